//! Datagrams in batches, with what std does not carry: TOS, TTL and local address of each, and the socket options of a
//! forwarder. The one file of the forwarder that calls the system directly.
#![expect(unsafe_code, reason = "recvmmsg, sendmmsg, poll and these socket options are not in std")]

use std::borrow::Borrow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};
use std::{io, mem, ptr};

use relay_common::Reason;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::ancillary::{self, Ancillary, ControlBuffer, RECEIVE_SPACE, SEND_SPACE};
use crate::relay::family::{Family, PerFamily};

/// Datagrams taken or sent by one system call.
pub const BATCH: usize = 64;

/// Room for one datagram: the largest there is (reassembled from fragments) fits.
pub const BUFFER_LEN: usize = 1 << 16;

/// A received datagram.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'b> {
    /// UDP payload.
    pub payload: &'b [u8],
    /// Where it came from.
    pub from: SocketAddr,
    /// Local address, TOS and TTL.
    pub ancillary: Ancillary,
}

/// The headers a sent datagram gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Destination.
    pub to: SocketAddr,
    /// Source address, one of this host's; the source port is the socket's.
    pub from: IpAddr,
    /// TOS or traffic class: DSCP and ECN.
    pub tos: u8,
    /// TTL or hop limit, at least 1.
    pub ttl: u8,
}

/// Buffers for [`BATCH`] datagrams: received together, and sent on from where they lie.
///
/// Sending needs no copy because a batch is sent before the next is received: [`Batch::receive`] empties the queues.
pub struct Batch<T> {
    buffers: Box<[u8]>,
    names: Box<[libc::sockaddr_in6; BATCH]>,
    controls: Box<[ControlBuffer<RECEIVE_SPACE>; BATCH]>,
    received: Vec<libc::mmsghdr>,
    iovecs: Vec<libc::iovec>,
    to_v4: Outgoing<T>,
    to_v6: Outgoing<T>,
}

/// What is to be sent to one family: one system call's worth.
///
/// A queued message names its payload by place and length, so that a part of a buffer can be sent as easily.
struct Outgoing<T> {
    queue: Vec<Queued<T>>,
    names: Vec<libc::sockaddr_in6>,
    controls: Vec<ControlBuffer<SEND_SPACE>>,
    iovecs: Vec<libc::iovec>,
    messages: Vec<libc::mmsghdr>,
}

struct Queued<T> {
    start: usize,
    len: usize,
    headers: Headers,
    fragmented: bool,
    ticket: T,
}

impl<T: Copy> Batch<T> {
    /// Allocates the buffers: 4 MiB of address space, of which only what datagrams fill becomes memory.
    pub fn new() -> Batch<T> {
        Batch {
            buffers: vec![0; BATCH * BUFFER_LEN].into_boxed_slice(),
            names: Box::new([UNNAMED; BATCH]),
            controls: Box::new([ControlBuffer([0; RECEIVE_SPACE]); BATCH]),
            received: Vec::with_capacity(BATCH),
            iovecs: Vec::with_capacity(BATCH),
            to_v4: Outgoing::new(),
            to_v6: Outgoing::new(),
        }
    }

    /// Takes the datagrams that wait in the socket's queue, without waiting for one. Returns how many.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; else what recvmmsg(2) says.
    pub fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        self.to_v4.queue.clear();
        self.to_v6.queue.clear();
        self.iovecs.clear();
        self.received.clear();
        self.iovecs.extend(self.buffers.chunks_exact_mut(BUFFER_LEN).map(buffer));
        let places = self.iovecs.iter_mut().zip(self.names.iter_mut()).zip(self.controls.iter_mut());
        self.received.extend(
            places.map(|((iovec, name), control)| {
                header(iovec, (name, usize::MAX), (&mut control.0, usize::MAX))
            }),
        );
        let (headers, len) = (self.received.as_mut_ptr(), self.received.len() as libc::c_uint);
        // SAFETY: `received` holds `len` headers made just above, whose pointers go to `iovecs`, `names`, `controls` and
        // through the iovecs to disjoint parts of `buffers`: all owned by self and not resized before the call.
        let count =
            unsafe { libc::recvmmsg(socket.as_raw_fd(), headers, len, libc::MSG_DONTWAIT, ptr::null_mut()) };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error());
        self.received.truncate(*count.as_ref().unwrap_or(&0));
        count
    }

    /// The received datagram at `index`. `None` past the last, or if it was cut short or its source is not an IP
    /// address; neither happens with these buffers and a UDP socket.
    pub fn datagram(&self, index: usize) -> Option<Datagram<'_>> {
        let message = self.received.get(index)?;
        let cut = libc::MSG_TRUNC | libc::MSG_CTRUNC;
        if message.msg_hdr.msg_flags & cut != 0 {
            return None;
        }
        let start = index * BUFFER_LEN;
        Some(Datagram {
            payload: self.buffers.get(start..start + message.msg_len as usize)?,
            from: address(self.names.get(index)?)?,
            ancillary: Ancillary::parse(self.controls.get(index)?.0.get(..message.msg_hdr.msg_controllen)?),
        })
    }

    /// Queues the received datagram at `index` to be sent on. Nothing happens past the last. `ticket` comes back from
    /// [`Batch::flush`].
    pub fn forward(&mut self, index: usize, headers: Headers, ticket: T) {
        let Some(datagram) = self.datagram(index) else { return };
        let (len, fragmented) = (datagram.payload.len(), datagram.ancillary.fragmented);
        let outgoing = match Family::of(headers.to) {
            Family::V4 => &mut self.to_v4,
            Family::V6 => &mut self.to_v6,
        };
        outgoing.queue.push(Queued { start: index * BUFFER_LEN, len, headers, fragmented, ticket });
    }

    /// Sends what is queued by the socket of its destination's family, and reports of each datagram its ticket, its
    /// length and what became of it. One that cannot be sent does not hold up the others, except that a full socket
    /// buffer ends a family's batch: the rest would meet it too.
    pub fn flush<S: Borrow<UdpSocket>>(
        &mut self,
        sockets: &PerFamily<S>,
        mut report: impl FnMut(T, usize, Result<(), Reason>),
    ) {
        let Batch { buffers, to_v4, to_v6, .. } = self;
        to_v4.flush(buffers, Some(sockets.v4.borrow()), &mut report);
        to_v6.flush(buffers, sockets.v6.as_ref().map(Borrow::borrow), &mut report);
    }
}

impl<T: Copy> Outgoing<T> {
    fn new() -> Outgoing<T> {
        Outgoing {
            queue: Vec::with_capacity(BATCH),
            names: Vec::with_capacity(BATCH),
            controls: Vec::with_capacity(BATCH),
            iovecs: Vec::with_capacity(BATCH),
            messages: Vec::with_capacity(BATCH),
        }
    }

    /// Sends the queue, whose payloads lie in `buffers`.
    fn flush(
        &mut self,
        buffers: &mut [u8],
        socket: Option<&UdpSocket>,
        mut report: impl FnMut(T, usize, Result<(), Reason>),
    ) {
        let Some(socket) = socket else {
            let lost = self.queue.drain(..);
            return lost.for_each(|lost| report(lost.ticket, lost.len, Err(Reason::SendUnreachable)));
        };
        self.prepare(buffers);
        let mut next = 0;
        while let Some(first) = self.queue.get(next) {
            let (ticket, len, arrived_in_fragments) = (first.ticket, first.len, first.fragmented);
            let error = match self.send(socket, next..self.queue.len()) {
                Ok(sent) => {
                    self.queue
                        .iter()
                        .skip(next)
                        .take(sent)
                        .for_each(|sent| report(sent.ticket, sent.len, Ok(())));
                    next += sent;
                    continue;
                }
                Err(error) => error,
            };
            let fault = send_fault(&error);
            match error.raw_os_error() {
                Some(libc::EINTR) => continue,
                Some(libc::EAGAIN) => {
                    self.queue.iter().skip(next).for_each(|lost| report(lost.ticket, lost.len, Err(fault)));
                    break;
                }
                Some(libc::EMSGSIZE) if arrived_in_fragments => {
                    let result = self.send_in_fragments(socket, next);
                    report(ticket, len, result.map_err(|error| send_fault(&error)));
                }
                _ => report(ticket, len, Err(fault)),
            }
            next += 1;
        }
        self.queue.clear();
    }

    /// Builds the message headers of the whole queue.
    fn prepare(&mut self, buffers: &mut [u8]) {
        self.controls.clear();
        self.names.clear();
        self.iovecs.clear();
        self.messages.clear();
        let mut lens = [(0, 0); BATCH];
        for (queued, lens) in self.queue.iter().zip(&mut lens) {
            let Headers { to, from, tos, ttl } = queued.headers;
            let mut control = ControlBuffer([0; SEND_SPACE]);
            let control_len = ancillary::write_send(&mut control, from, tos, ttl);
            let (name, name_len) = name(to);
            *lens = (name_len, control_len);
            let payload = buffers.get_mut(queued.start..queued.start + queued.len).unwrap_or_default();
            self.controls.push(control);
            self.names.push(name);
            self.iovecs.push(buffer(payload));
        }
        let places = self.iovecs.iter_mut().zip(&mut self.names).zip(&mut self.controls);
        self.messages.extend(places.zip(lens).map(|(((iovec, name), control), (name_len, control_len))| {
            header(iovec, (name, name_len), (&mut control.0, control_len))
        }));
    }

    fn send(&mut self, socket: &UdpSocket, which: Range<usize>) -> io::Result<usize> {
        let messages = self.messages.get_mut(which).unwrap_or_default();
        let (first, len) = (messages.as_mut_ptr(), messages.len() as libc::c_uint);
        // SAFETY: `messages` holds `len` headers made by `prepare` from this queue, whose pointers go to `iovecs`,
        // `names` and `controls`, owned by self and not resized since, and to the buffers `flush` borrows meanwhile.
        // sendmmsg reads through them and writes only the lengths in the headers.
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), first, len, SEND_FLAGS) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Sends one message that arrived in fragments, so without DF, and needs fragments again. What other threads send
    /// on the socket meanwhile merely lacks DF for that moment.
    fn send_in_fragments(&mut self, socket: &UdpSocket, index: usize) -> io::Result<()> {
        // Two readers send on each socket: without this, one would set DF again before the other has sent.
        static FRAGMENTING: Mutex<()> = Mutex::new(());
        let _one_at_a_time = FRAGMENTING.lock().unwrap_or_else(PoisonError::into_inner);
        set_path_mtu(socket, PathMtu::Fragment)?;
        let sent = self.send(socket, index..index + 1);
        set_path_mtu(socket, PathMtu::KeepDf)?;
        sent.map(drop)
    }
}

/// Sends one datagram.
///
/// # Errors
/// What sendmsg(2) says.
pub fn send_one(socket: &UdpSocket, payload: &[u8], headers: Headers) -> io::Result<()> {
    let Headers { to, from, tos, ttl } = headers;
    let mut control = ControlBuffer([0; SEND_SPACE]);
    let control_len = ancillary::write_send(&mut control, from, tos, ttl);
    let (mut name, name_len) = name(to);
    let mut iovec = libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
    let message = header(&mut iovec, (&mut name, name_len), (&mut control.0, control_len));
    // SAFETY: the header's pointers go to locals of this function and to `payload`, which sendmsg only reads.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &message.msg_hdr, SEND_FLAGS) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What a failed send is counted as.
pub fn send_fault(error: &io::Error) -> Reason {
    match error.raw_os_error() {
        Some(libc::EMSGSIZE) => Reason::SendTooBig,
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::EHOSTDOWN) => {
            Reason::SendUnreachable
        }
        // ENOBUFS, ENOMEM, EAGAIN: no room. EPERM: the local firewall. EINVAL: the source address is gone.
        // ECONNREFUSED: an ICMP error about an earlier datagram, reported instead of sending this one.
        _ => Reason::SendFailed,
    }
}

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

/// Turns UDP_GRO on or off.
///
/// # Errors
/// What setsockopt(2) says.
pub fn set_gro(socket: &UdpSocket, on: bool) -> io::Result<()> {
    set_option(socket, libc::SOL_UDP, libc::UDP_GRO, i32::from(on))
}

/// Makes `program` choose the socket of the SO_REUSEPORT group that `socket` belongs to. Needs no privilege.
///
/// # Errors
/// What setsockopt(2) says.
pub fn attach_steering(socket: &UdpSocket, program: &[libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // The kernel copies the program and does not write to it.
    set_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, program)
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

/// Registers `socket` with the tokio runtime, for being writable only: registered for reading too, every datagram that
/// comes would wake the runtime. Must be called within a runtime.
///
/// # Errors
/// The runtime refuses.
pub fn register_writable(socket: UdpSocket) -> io::Result<AsyncFd<UdpSocket>> {
    // SAFETY: a UdpSocket owns its descriptor, which stays open and the same while AsyncFd owns the socket.
    let registered = unsafe { AsyncFd::register_with_interest(socket, Interest::WRITABLE) };
    registered.map_err(Into::into)
}

const SEND_FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// Sets a socket option. Private because `T` must be the type the kernel expects for it.
fn set_option<T>(socket: &UdpSocket, level: i32, name: i32, value: T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes from `value`, which is alive and that large.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn buffer(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
}

/// A message header that points to its three parts; the caller keeps them alive and in place while it uses it.
fn header(
    iovec: &mut libc::iovec,
    (name, name_len): (&mut libc::sockaddr_in6, usize),
    (control, control_len): (&mut [u8], usize),
) -> libc::mmsghdr {
    // SAFETY: null pointers and zero lengths are a valid value of this plain C structure.
    let mut message: libc::mmsghdr = unsafe { mem::zeroed() };
    message.msg_hdr.msg_name = ptr::from_mut(name).cast();
    message.msg_hdr.msg_namelen = name_len.min(size_of::<libc::sockaddr_in6>()) as libc::socklen_t;
    message.msg_hdr.msg_iov = iovec;
    message.msg_hdr.msg_iovlen = 1;
    message.msg_hdr.msg_control = control.as_mut_ptr().cast();
    message.msg_hdr.msg_controllen = control_len.min(control.len());
    message
}

/// An address of no family. sockaddr_in6 serves for both families: the first eight bytes of sockaddr_in (family, port,
/// address) lie where its family, port and flow label do.
const UNNAMED: libc::sockaddr_in6 = libc::sockaddr_in6 {
    sin6_family: libc::AF_UNSPEC as libc::sa_family_t,
    sin6_port: 0,
    sin6_flowinfo: 0,
    sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
    sin6_scope_id: 0,
};

/// The system's form of an address, and its length.
fn name(address: SocketAddr) -> (libc::sockaddr_in6, usize) {
    let mut name = UNNAMED;
    name.sin6_port = address.port().to_be();
    match address {
        SocketAddr::V4(v4) => {
            name.sin6_family = libc::AF_INET as libc::sa_family_t;
            name.sin6_flowinfo = u32::from_ne_bytes(v4.ip().octets());
            (name, size_of::<libc::sockaddr_in>())
        }
        SocketAddr::V6(v6) => {
            name.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            name.sin6_addr.s6_addr = v6.ip().octets();
            name.sin6_scope_id = v6.scope_id();
            (name, size_of::<libc::sockaddr_in6>())
        }
    }
}

/// The address in a name the kernel has written.
fn address(name: &libc::sockaddr_in6) -> Option<SocketAddr> {
    let port = u16::from_be(name.sin6_port);
    match i32::from(name.sin6_family) {
        libc::AF_INET => Some((Ipv4Addr::from(name.sin6_flowinfo.to_ne_bytes()), port).into()),
        libc::AF_INET6 => {
            let address = Ipv6Addr::from(name.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(address, port, 0, name.sin6_scope_id).into())
        }
        _ => None,
    }
}
