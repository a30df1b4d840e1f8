//! The least that a forwarder in userspace can do: a plain loop of recvmmsg and sendmmsg. It looks nothing up, asks for
//! nothing beside the datagrams, and sends all of them to one address.
#![expect(unsafe_code, reason = "recvmmsg and sendmmsg have no safe form")]

use std::io;
use std::net::{SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const BATCH: usize = 64;
const LEN: usize = 2048;

/// Forwards what comes by `socket` to `to`, and counts it in `sent`, until `stop` is set and the socket's timeout is over.
pub fn forward(socket: &UdpSocket, to: SocketAddrV4, stop: &AtomicBool, sent: &AtomicU64) -> io::Result<()> {
    let fd = socket.as_raw_fd();
    let mut name = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: to.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(to.ip().octets()) },
        sin_zero: [0; 8],
    };
    let mut buffers = vec![[0u8; LEN]; BATCH];
    let mut iovecs: Vec<libc::iovec> = buffers
        .iter_mut()
        .map(|buffer| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: LEN })
        .collect();
    // SAFETY: null pointers and zero lengths are a valid value of this plain C structure.
    let mut messages: Vec<libc::mmsghdr> = vec![unsafe { std::mem::zeroed() }; BATCH];
    while !stop.load(Ordering::Relaxed) {
        for (message, iovec) in messages.iter_mut().zip(&mut iovecs) {
            iovec.iov_len = LEN;
            message.msg_hdr.msg_name = std::ptr::null_mut();
            message.msg_hdr.msg_namelen = 0;
            message.msg_hdr.msg_iov = iovec;
            message.msg_hdr.msg_iovlen = 1;
        }
        let (first, timeout) = (messages.as_mut_ptr(), std::ptr::null_mut());
        // SAFETY: `first` are BATCH messages whose pointers go to `iovecs`, and theirs to `buffers`, of LEN bytes each; all
        // of them outlive the call, and nothing else refers to them meanwhile.
        let count = unsafe { libc::recvmmsg(fd, first, BATCH as u32, libc::MSG_WAITFORONE, timeout) };
        if count < 0 {
            match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => continue,
                error => return Err(error),
            }
        }
        for (message, iovec) in messages.iter_mut().zip(&mut iovecs).take(count as usize) {
            iovec.iov_len = message.msg_len as usize;
            message.msg_hdr.msg_name = (&raw mut name).cast();
            message.msg_hdr.msg_namelen = size_of_val(&name) as libc::socklen_t;
        }
        // SAFETY: as for recvmmsg; `count` is at most BATCH, and `name` outlives the call.
        let count = unsafe { libc::sendmmsg(fd, messages.as_mut_ptr(), count as u32, 0) };
        if count < 0 {
            return Err(io::Error::last_os_error());
        }
        sent.fetch_add(count as u64, Ordering::Relaxed);
    }
    Ok(())
}

/// It stays as plain as it is.
const _: () = assert!(lines(include_bytes!("plain_loop.rs")) <= 80, "the plain loop is to stay plain");

const fn lines(text: &[u8]) -> usize {
    let (mut count, mut at) = (0, 0);
    while at < text.len() {
        if text[at] == b'\n' {
            count += 1;
        }
        at += 1;
    }
    count
}
