//! The kernel's queues of a UDP socket: how large they are, and what did not fit.

#![expect(unsafe_code, reason = "the socket options for this are in no safe API")]

use std::ffi::c_int;
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Asks for kernel buffers of `bytes` for received and for sent datagrams each, and returns the size of the former as
/// the kernel accounts it (it doubles what was asked for, and charges a small datagram 768 bytes or more). With
/// CAP_NET_ADMIN the administrator's limits (`net.core.rmem_max`, `wmem_max`) are exceeded; without it they cap the
/// sizes.
///
/// # Errors
/// What setsockopt(2) or getsockopt(2) says.
pub fn set_buffer_sizes(socket: &UdpSocket, bytes: usize) -> io::Result<usize> {
    let options = socket2::SockRef::from(socket);
    if !force(socket, libc::SO_RCVBUFFORCE, bytes) {
        options.set_recv_buffer_size(bytes)?;
    }
    if !force(socket, libc::SO_SNDBUFFORCE, bytes) {
        options.set_send_buffer_size(bytes)?;
    }
    options.recv_buffer_size()
}

/// Datagrams the kernel has dropped since the socket was opened because its receive buffer was full (or their checksum
/// wrong). Wraps.
///
/// # Errors
/// What getsockopt(2) says.
pub fn queue_drops(socket: BorrowedFd<'_>) -> io::Result<u32> {
    const SO_MEMINFO: c_int = 55; // asm-generic/socket.h
    const DROPS: usize = 8; // SK_MEMINFO_DROPS, linux/sock_diag.h
    let mut memory = [0u32; DROPS + 1];
    let mut len = size_of_val(&memory) as libc::socklen_t;
    // SAFETY: `memory` is writable and `len` is its size in bytes; the kernel writes at most that.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_MEMINFO,
            memory.as_mut_ptr().cast(),
            &mut len,
        )
    };
    if result == 0 { Ok(memory[DROPS]) } else { Err(io::Error::last_os_error()) }
}

/// Whether the size was granted, whatever the administrator's limits.
fn force(socket: &UdpSocket, option: c_int, bytes: usize) -> bool {
    let bytes = c_int::try_from(bytes).unwrap_or(c_int::MAX);
    let value = std::ptr::from_ref(&bytes).cast();
    let len = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: `value` points to a c_int that lives through the call and `len` is its size; the descriptor is open for as
    // long as `socket` is borrowed.
    unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, value, len) == 0 }
}
