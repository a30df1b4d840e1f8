//! Datagrams as they leave: a batch is sent with as few messages and system calls as the kernel lets us.
#![expect(unsafe_code, reason = "sendmmsg and sendmsg are not in std")]

use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use std::{io, ptr};

use relay_common::Reason;
use relay_common::index::SlotSide;

use super::ancillary::{self, ControlBuffer, SEND_SPACE};
use super::arrivals::Place;
use super::gathering::{Departure, Gathering, Headers, Message};
use super::message_header;
use super::socket_options::{PathMtu, set_path_mtu};
use crate::clock::MonoTime;

/// What became of datagrams that were to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whose they were.
    pub at: SlotSide,
    /// How many.
    pub datagrams: usize,
    /// Their payload bytes.
    pub bytes: usize,
    /// Whether they were sent, or why not.
    pub result: Result<(), Reason>,
}

/// What is to be sent to one family.
pub struct Departures {
    gathering: Gathering,
    /// Where a device refuses gathered messages: until when none is tried.
    single_until: MonoTime,
    names: Vec<libc::sockaddr_in6>,
    controls: Vec<ControlBuffer<SEND_SPACE>>,
    iovecs: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

/// How long datagrams leave one by one after a device has refused a gathered message: there may be other devices.
pub const SINGLE_AFTER_REFUSAL: Duration = Duration::from_secs(10);

// SAFETY: the pointers in it go to what it owns itself, and nothing of that is bound to a thread.
unsafe impl Send for Departures {}

impl Departures {
    /// Nothing is to be sent.
    pub fn new() -> Departures {
        Departures {
            gathering: Gathering::new(),
            single_until: MonoTime::default(),
            names: Vec::new(),
            controls: Vec::new(),
            iovecs: Vec::new(),
            headers: Vec::new(),
        }
    }

    /// Queues a datagram.
    pub fn add(&mut self, departure: &Departure) {
        self.gathering.add(departure);
    }

    /// Datagrams that are queued.
    pub fn len(&self) -> usize {
        self.gathering.len()
    }

    /// Sends what is queued, whose payloads lie in `bytes`, and reports what became of it, every datagram once. One that
    /// cannot be sent does not hold up the others, except that a full socket buffer ends the batch: the rest would meet
    /// it too. `None` for a family that this host has not.
    pub fn flush(
        &mut self,
        socket: Option<&UdpSocket>,
        bytes: &[u8],
        now: MonoTime,
        mut report: impl FnMut(Outcome),
    ) {
        if let Some(socket) = socket {
            self.prepare(bytes);
            self.send(socket, bytes, now, &mut report);
        } else {
            self.lose_from(0, Reason::SendUnreachable, &mut report);
        }
        let together = now >= self.single_until;
        self.gathering.clear(together);
    }

    /// Builds the message headers of the whole queue.
    fn prepare(&mut self, bytes: &[u8]) {
        let Departures { gathering, names, controls, iovecs, headers, .. } = self;
        names.clear();
        controls.clear();
        iovecs.clear();
        headers.clear();
        for message in gathering.messages() {
            let first_iovec = iovecs.len();
            let mut end = None;
            for place in gathering.payloads(message) {
                match iovecs.last_mut() {
                    // Merged datagrams lie one after another.
                    Some(iovec) if end == Some(place.start) => iovec.iov_len += place.len,
                    _ => iovecs.push(iovec(place.of(bytes).unwrap_or_default())),
                }
                end = Some(place.start + place.len);
            }
            let Headers { to, from, tos, ttl } = message.headers;
            let segment_len = (message.count > 1).then_some(message.segment_len as u16);
            let (name, name_len) = message_header::name(to);
            let mut control = ControlBuffer([0; SEND_SPACE]);
            let mut header = message_header::empty();
            header.msg_hdr.msg_namelen = name_len as libc::socklen_t;
            header.msg_hdr.msg_controllen = ancillary::write_send(&mut control, from, tos, ttl, segment_len);
            header.msg_hdr.msg_iovlen = iovecs.len() - first_iovec;
            names.push(name);
            controls.push(control);
            headers.push(header);
        }
        // Now that they move no more.
        let mut iovecs = &mut iovecs[..];
        for ((header, name), control) in headers.iter_mut().zip(names).zip(controls) {
            let (own, rest) = iovecs.split_at_mut(header.msg_hdr.msg_iovlen.min(iovecs.len()));
            iovecs = rest;
            header.msg_hdr.msg_name = ptr::from_mut(name).cast();
            header.msg_hdr.msg_iov = own.as_mut_ptr();
            header.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
        }
    }

    fn send(&mut self, socket: &UdpSocket, bytes: &[u8], now: MonoTime, report: &mut impl FnMut(Outcome)) {
        let mut next = 0;
        while let Some(message) = self.gathering.messages().get(next) {
            let message = *message;
            let error = match self.send_prepared(socket, next, bytes) {
                Ok(sent) => {
                    let sent = self.gathering.messages().iter().skip(next).take(sent.max(1));
                    next += sent.map(|message| report(message.outcome(Ok(())))).count();
                    continue;
                }
                Err(error) => error,
            };
            match error.raw_os_error() {
                Some(libc::EINTR) => continue,
                Some(libc::EAGAIN) => return self.lose_from(next, send_fault(&error), report),
                _ if message.count > 1 => {
                    let first_left = self.send_one_by_one(socket, &message, bytes, report);
                    if refuses_gathered(&error) && first_left {
                        self.single_until = now + SINGLE_AFTER_REFUSAL;
                    }
                }
                Some(libc::EMSGSIZE) if message.fragmented => {
                    let sent = self.send_in_fragments(socket, &message, bytes);
                    report(message.outcome(sent.map_err(|error| send_fault(&error))));
                }
                _ => report(message.outcome(Err(send_fault(&error)))),
            }
            next += 1;
        }
    }

    /// Sends prepared messages from `first` on, and returns how many were. `_bytes` is where their payloads lie.
    fn send_prepared(&mut self, socket: &UdpSocket, first: usize, _bytes: &[u8]) -> io::Result<usize> {
        let headers = self.headers.get_mut(first..).unwrap_or_default();
        let (start, len) = (headers.as_mut_ptr(), headers.len() as libc::c_uint);
        // SAFETY: `headers` holds `len` headers made by `prepare` from this queue, whose pointers go to names, controls
        // and iovecs owned by self and not resized since, and through the iovecs to `_bytes`, borrowed meanwhile.
        // sendmmsg reads through them and writes only the lengths in the headers.
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), start, len, SEND_FLAGS) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Sends each datagram of `message` by itself. Whether the first, none of which is longer, has left: else its length or
    /// its address is to blame, not that they were gathered.
    fn send_one_by_one(
        &self,
        socket: &UdpSocket,
        message: &Message,
        bytes: &[u8],
        report: &mut impl FnMut(Outcome),
    ) -> bool {
        let mut first_left = None;
        for place in self.gathering.payloads(message) {
            let sent = send_one(socket, place.of(bytes).unwrap_or_default(), message.headers);
            first_left.get_or_insert(sent.is_ok());
            let result = sent.map_err(|error| send_fault(&error));
            report(Outcome { at: message.at, datagrams: 1, bytes: place.len, result });
        }
        first_left.unwrap_or(false)
    }

    /// Sends one message that arrived in fragments, so without DF, and needs fragments again. What other threads send
    /// on the socket meanwhile merely lacks DF for that moment.
    fn send_in_fragments(&self, socket: &UdpSocket, message: &Message, bytes: &[u8]) -> io::Result<()> {
        // Two readers send on each socket: without this, one would set DF again before the other has sent.
        static FRAGMENTING: Mutex<()> = Mutex::new(());
        let place = self.gathering.payloads(message).next().unwrap_or(Place { start: 0, len: 0 });
        let _one_at_a_time = FRAGMENTING.lock().unwrap_or_else(PoisonError::into_inner);
        set_path_mtu(socket, PathMtu::Fragment)?;
        let sent = send_one(socket, place.of(bytes).unwrap_or_default(), message.headers);
        set_path_mtu(socket, PathMtu::KeepDf)?;
        sent
    }

    /// Reports everything from the message `first` on as lost.
    fn lose_from(&self, first: usize, reason: Reason, report: &mut impl FnMut(Outcome)) {
        let lost = self.gathering.messages().iter().skip(first);
        lost.for_each(|message| report(message.outcome(Err(reason))));
    }
}

impl Message {
    fn outcome(&self, result: Result<(), Reason>) -> Outcome {
        Outcome { at: self.at, datagrams: self.count, bytes: self.bytes, result }
    }
}

/// Sends one datagram.
///
/// # Errors
/// What sendmsg(2) says.
pub fn send_one(socket: &UdpSocket, payload: &[u8], headers: Headers) -> io::Result<()> {
    let Headers { to, from, tos, ttl } = headers;
    let mut control = ControlBuffer([0; SEND_SPACE]);
    let control_len = ancillary::write_send(&mut control, from, tos, ttl, None);
    let (mut name, name_len) = message_header::name(to);
    let mut iovec = iovec(payload);
    let mut message = message_header::of(&mut iovec, &mut name, &mut control).msg_hdr;
    (message.msg_namelen, message.msg_controllen) = (name_len as libc::socklen_t, control_len);
    // SAFETY: the header's pointers go to locals of this function and to `payload`, which sendmsg only reads.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &message, SEND_FLAGS) };
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

/// Whether the kernel says that it cannot cut messages on the way to where this one goes: for want of a checksum in
/// hardware before Linux 6.11, or under IPsec.
fn refuses_gathered(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL))
}

const SEND_FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// What is only read through.
fn iovec(payload: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() }
}
