//! The socket options of a forwarder, and waiting for its sockets.
#![expect(unsafe_code, reason = "poll and these socket options are not in std")]

use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::ancillary;

/// What happens to datagrams larger than the path's MTU. Path MTUs learned from ICMP are ignored either way: anyone can
/// forge them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathMtu {
    /// DF is set; what the egress interface cannot take is refused (EMSGSIZE).
    KeepDf,
    /// No DF; fragmented to the interface's MTU.
    Fragment,
}

/// Sets DF and fragmenting for what the socket sends from now on.
///
/// # Errors
/// What setsockopt(2) says.
pub fn set_path_mtu(socket: &UdpSocket, policy: PathMtu) -> io::Result<()> {
    let (v4, v6) = match policy {
        PathMtu::KeepDf => (libc::IP_PMTUDISC_PROBE, libc::IPV6_PMTUDISC_PROBE),
        PathMtu::Fragment => (libc::IP_PMTUDISC_OMIT, libc::IPV6_PMTUDISC_OMIT),
    };
    if socket.local_addr()?.is_ipv4() {
        return set_option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, v4);
    }
    set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, v6)?;
    set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, i32::from(policy == PathMtu::KeepDf))
}

/// Asks for local address, TOS, TTL and fragmenting of every received datagram.
///
/// # Errors
/// What setsockopt(2) says.
pub fn report_ancillary(socket: &UdpSocket) -> io::Result<()> {
    let (level, options) = if socket.local_addr()?.is_ipv4() {
        let options = [libc::IP_PKTINFO, libc::IP_RECVTOS, libc::IP_RECVTTL, ancillary::IP_RECVFRAGSIZE];
        (libc::IPPROTO_IP, options)
    } else {
        let options = [
            libc::IPV6_RECVPKTINFO,
            libc::IPV6_RECVTCLASS,
            libc::IPV6_RECVHOPLIMIT,
            ancillary::IPV6_RECVFRAGSIZE,
        ];
        (libc::IPPROTO_IPV6, options)
    };
    options.into_iter().try_for_each(|option| set_option(socket, level, option, 1))
}

/// Turns UDP_GRO on or off: whether the kernel merges datagrams of one sender that come one after another.
///
/// # Errors
/// What setsockopt(2) says.
pub fn set_gro(socket: &UdpSocket, on: bool) -> io::Result<()> {
    set_option(socket, libc::SOL_UDP, libc::UDP_GRO, i32::from(on))
}

/// Makes the kernel refuse gathered messages on this socket, as it does where the device computes no checksums.
#[cfg(test)]
pub fn refuse_gathered(socket: &UdpSocket, on: bool) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, i32::from(on))
}

/// Makes the kernel report an ICMP error about one datagram by refusing the next, whoever that is for.
#[cfg(test)]
pub fn report_icmp_errors(socket: &UdpSocket) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_IP, libc::IP_RECVERR, 1)
}

/// Makes `program` choose the socket of the SO_REUSEPORT group that `socket` belongs to. Needs no privilege.
///
/// # Errors
/// What setsockopt(2) says.
pub fn attach_steering(socket: &UdpSocket, program: &[libc::sock_filter]) -> io::Result<()> {
    attach(socket, libc::SO_ATTACH_REUSEPORT_CBPF, program)
}

/// Makes `program` say which datagrams come into the socket's queue, in place of what said so before. Needs no privilege.
/// What it keeps out counts as dropped by the socket.
///
/// # Errors
/// What setsockopt(2) says.
pub fn attach_filter(socket: &UdpSocket, program: &[libc::sock_filter]) -> io::Result<()> {
    attach(socket, libc::SO_ATTACH_FILTER, program)
}

fn attach(socket: &UdpSocket, option: i32, program: &[libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // The kernel copies the program and does not write to it.
    set_option(socket, libc::SOL_SOCKET, option, program)
}

/// Waits until `socket` or `wake` can be read, or `wake` is closed at its other end.
///
/// # Errors
/// What poll(2) says.
pub fn wait_readable(socket: &UdpSocket, wake: BorrowedFd<'_>) -> io::Result<()> {
    let wait_for = |fd: BorrowedFd<'_>| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let mut waits = [wait_for(socket.as_fd()), wait_for(wake)];
    // SAFETY: `waits` is a valid array of the length given.
    let ready = unsafe { libc::poll(waits.as_mut_ptr(), waits.len() as libc::nfds_t, -1) };
    if ready < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Registers `socket` with the tokio runtime for `interest` alone: whoever asks for more is woken by every datagram that
/// comes or has gone. Must be called within a runtime.
///
/// # Errors
/// The runtime refuses.
pub fn register(socket: UdpSocket, interest: Interest) -> io::Result<AsyncFd<UdpSocket>> {
    // SAFETY: a UdpSocket owns its descriptor, which stays open and the same while AsyncFd owns the socket.
    let registered = unsafe { AsyncFd::register_with_interest(socket, interest) };
    registered.map_err(Into::into)
}

/// Sets a socket option. Private because `T` must be the type the kernel expects for it.
fn set_option<T>(socket: &UdpSocket, level: i32, name: i32, value: T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes from `value`, which is alive and that large.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
