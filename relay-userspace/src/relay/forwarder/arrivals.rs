//! Datagrams as they come: taken in batches, with what std does not carry.
#![expect(unsafe_code, reason = "recvmmsg and madvise are not in std")]

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::{io, iter, ptr};

use super::ancillary::{Ancillary, ControlBuffer, RECEIVE_SPACE};
use super::message_header::{self, UNNAMED};

/// Messages in one batch, at most. The more of a flow's datagrams there are in a batch, the more leave in one message;
/// few wait longer for it, since only what is in the socket's queue already is taken.
pub const BATCH: usize = 2048;

/// A batch grows no more once it has as many bytes: what has come merged gains nothing by it, and should still be in the
/// processor's cache when it is sent.
const ENOUGH_BYTES: usize = 2 << 20;

/// Messages taken by one system call. Fewer come only if the queue is empty.
pub const AT_ONCE: usize = 64;

/// Room for one message: the largest datagram there is, reassembled from fragments or merged of many, fits.
const BUFFER_LEN: usize = 1 << 16;

/// From one buffer to the next: not a power of two, or the first lines of all would compete for one place in the cache.
const STRIDE: usize = BUFFER_LEN + 192;

/// Where a datagram's payload lies in [`Arrivals::bytes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its first byte.
    pub start: usize,
    /// Its length.
    pub len: usize,
}

impl Place {
    /// The payload.
    pub fn of(self, bytes: &[u8]) -> Option<&[u8]> {
        bytes.get(self.start..self.start + self.len)
    }
}

/// What was received as one message: one datagram, or several of one sender that the kernel has merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// The payloads, one after another.
    pub place: Place,
    /// Where they came from.
    pub from: SocketAddr,
    /// Local address, TOS, TTL and merging of all of them.
    pub ancillary: Ancillary,
}

impl Arrived {
    /// Each datagram's payload: all are as long as the first, but the last may be shorter.
    pub fn datagrams(&self) -> impl Iterator<Item = Place> + use<> {
        let Place { start, len } = self.place;
        // An empty datagram is one too.
        let size = self.ancillary.segment_len.map_or(len, usize::from).max(1);
        let end = start + len;
        let later = (start..end).step_by(size).skip(1);
        iter::once(start).chain(later).map(move |start| Place { start, len: size.min(end - start) })
    }
}

/// Makes the kernel give memory page by page: in huge pages, one byte of each buffer would fill all of them.
fn in_small_pages(buffers: &mut [u8]) {
    const PAGE: usize = 4096;
    let start = buffers.as_ptr().align_offset(PAGE);
    let Some(whole) = buffers.get_mut(start..) else { return };
    let len = whole.len() / PAGE * PAGE;
    // SAFETY: the range is whole pages of memory that `buffers` borrows exclusively; the advice changes no byte of it. If it
    // is not taken, that is no harm.
    unsafe { libc::madvise(whole.as_mut_ptr().cast(), len, libc::MADV_NOHUGEPAGE) };
}

/// Buffers for a batch of messages.
///
/// Whoever sends them on does it from where they lie, before the next batch is taken.
pub struct Arrivals {
    buffers: Vec<u8>,
    names: Vec<libc::sockaddr_in6>,
    controls: Vec<ControlBuffer<RECEIVE_SPACE>>,
    /// Written once: what the headers point to never moves.
    _iovecs: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
    count: usize,
}

// SAFETY: the pointers in it go to what it owns itself, and nothing of that is bound to a thread.
unsafe impl Send for Arrivals {}

impl Arrivals {
    /// Allocates the buffers for at most `most` messages: 64 KiB of address space each, of which only what datagrams fill
    /// becomes memory.
    pub fn new(most: usize) -> Arrivals {
        let mut buffers = vec![0; most * STRIDE];
        in_small_pages(&mut buffers);
        let mut names = vec![UNNAMED; most];
        let mut controls = vec![ControlBuffer([0; RECEIVE_SPACE]); most];
        let mut iovecs: Vec<libc::iovec> = buffers
            .chunks_exact_mut(STRIDE)
            .map(|buffer| message_header::buffer(buffer, BUFFER_LEN))
            .collect();
        let parts = iovecs.iter_mut().zip(&mut names).zip(&mut controls);
        let headers =
            parts.map(|((iovec, name), control)| message_header::of(iovec, name, control)).collect();
        Arrivals { buffers, names, controls, _iovecs: iovecs, headers, count: 0 }
    }

    /// Takes the messages that wait in the socket's queue, without waiting for one. Returns how many.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; else what recvmmsg(2) says.
    pub fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        // The kernel has written over the lengths of what it has used.
        for header in self.headers.iter_mut().take(self.count) {
            message_header::reset(header, size_of::<ControlBuffer<RECEIVE_SPACE>>());
        }
        self.count = 0;
        let mut bytes = 0;
        while self.count < self.headers.len() && bytes < ENOUGH_BYTES {
            let taken = match self.receive_more(socket) {
                Ok(taken) => taken,
                Err(error) if self.count == 0 => return Err(error),
                // It comes again if it matters.
                Err(_) => break,
            };
            let headers = self.headers.iter().skip(self.count).take(taken);
            bytes += headers.map(|header| header.msg_len as usize).sum::<usize>();
            self.count += taken;
            if taken < AT_ONCE {
                break;
            }
        }
        Ok(self.count)
    }

    fn receive_more(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        let headers = self.headers.get_mut(self.count..).unwrap_or_default();
        let len = headers.len().min(AT_ONCE) as libc::c_uint;
        let flags = libc::MSG_DONTWAIT;
        // SAFETY: `headers` holds at least `len` headers, whose pointers go to this batch's iovecs, names and controls
        // and through the iovecs to disjoint parts of its buffers: vectors owned by self, never resized, and since `new`
        // only read, by borrows of self that have ended.
        let taken =
            unsafe { libc::recvmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), len, flags, ptr::null_mut()) };
        usize::try_from(taken).map_err(|_| io::Error::last_os_error())
    }

    /// The message at `index`. `None` past the last, or if it was cut short or its source is not an IP address; neither
    /// happens with these buffers and a UDP socket.
    pub fn get(&self, index: usize) -> Option<Arrived> {
        let header = self.headers.get(..self.count)?.get(index)?;
        if message_header::is_cut(header) {
            return None;
        }
        let control = self.controls.get(index)?.0.get(..header.msg_hdr.msg_controllen)?;
        Some(Arrived {
            place: Place { start: index * STRIDE, len: header.msg_len as usize },
            from: message_header::address(self.names.get(index)?)?,
            ancillary: Ancillary::parse(control),
        })
    }

    /// What the places of this batch's datagrams are in.
    pub fn bytes(&self) -> &[u8] {
        &self.buffers
    }
}
