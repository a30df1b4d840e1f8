//! The readers: one thread per socket takes datagrams in batches and forwards, hands on or drops each.

use std::io::{self, PipeReader, PipeWriter};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use relay_common::index::SlotSide;
use relay_common::{BIND_LEN, Reason};
use tokio::sync::mpsc;

use super::batch_io::{Batch, Datagram, Headers, wait_readable};
use super::counters::Counters;
use super::quic_socket::{MAX_DATAGRAM, QuicSocket};
use super::steering::may_be_quic;
use crate::clock::MonoTime;
use crate::relay::datapath::{Arrival, Relayed, Tables};
use crate::relay::family::PerFamily;

/// A bind datagram on its way to the rendezvous: it has the magic and the length, nothing else is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindDatagram {
    /// Where it came from.
    pub from: SocketAddr,
    /// The relay address it came to.
    pub to: SocketAddr,
    /// The datagram.
    pub bytes: [u8; BIND_LEN],
}

/// What one reader thread works with.
pub struct Reader {
    /// The socket it reads.
    pub socket: Arc<UdpSocket>,
    /// Whether control's datagrams are steered to it.
    pub is_control: bool,
    /// Those it forwards through: the one it reads, and the other family's of the same number.
    pub senders: PerFamily<Arc<UdpSocket>>,
    /// The relay's port: control messages report addresses without it.
    pub port: u16,
    /// The flow tables.
    pub tables: Arc<Tables>,
    /// Where bind datagrams go.
    pub binds: mpsc::Sender<BindDatagram>,
    /// Where datagrams of no flow go.
    pub quic: Arc<QuicSocket>,
    /// What became of the datagrams; this reader's own.
    pub counters: Arc<Counters>,
    /// How it learns that it is to stop.
    pub stop: Arc<Stop>,
}

/// Tells readers to stop, whether they wait or work.
#[derive(Debug)]
pub struct Stop {
    asked: AtomicBool,
    /// Readable once `asked` was set.
    wake: PipeReader,
    waker: Mutex<Option<PipeWriter>>,
}

impl Stop {
    /// Nobody is to stop yet.
    ///
    /// # Errors
    /// The system refuses a pipe.
    pub fn new() -> io::Result<Stop> {
        let (wake, waker) = io::pipe()?;
        Ok(Stop { asked: AtomicBool::new(false), wake, waker: Mutex::new(Some(waker)) })
    }

    /// All readers are to stop.
    pub fn ask(&self) {
        self.asked.store(true, Ordering::Relaxed);
        // Closing the writing end wakes everyone who waits for the other.
        self.waker.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Reader {
    /// Works until it is told to stop.
    pub fn run(self) {
        let mut batch = Batch::new();
        while !self.stop.asked.load(Ordering::Relaxed) {
            // Asks before it waits: while datagrams keep coming, waiting for them is a system call too many.
            let count = match batch.receive(&self.socket) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait();
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    pause_after(&error);
                    continue;
                }
            };
            for index in 0..count {
                if let Err(reason) = self.take(&mut batch, index) {
                    self.counters.count(reason);
                }
            }
            batch.flush(&self.senders, |at, bytes, result| match result {
                Ok(()) => {
                    self.tables.count(at, 1, bytes as u64);
                    self.counters.count(Reason::Forwarded);
                }
                Err(reason) => self.counters.count(reason),
            });
        }
    }

    /// One datagram: bind datagrams first, then flows by their tuple, then QUIC, since relayed datagrams may look like
    /// QUIC. Queues what is forwarded; the reason says what became of anything else.
    fn take(&self, batch: &mut Batch<SlotSide>, index: usize) -> Result<(), Reason> {
        let datagram = batch.datagram(index).ok_or(Reason::Truncated)?;
        let Datagram { payload, from, ancillary } = datagram;
        let (Some(to), Some(ttl)) = (ancillary.to, ancillary.ttl) else { return Err(Reason::Truncated) };
        let to = SocketAddr::new(to, self.port);
        let arrival = Arrival { from, to, payload, tos: ancillary.tos, ttl };
        let now = MonoTime::now();
        let decision = match self.tables.decide(&arrival, now) {
            // A tuple that a side has just moved away from may be control's by now.
            Err(Reason::NoFlow) if !self.is_control => self.tables.decide_previous(&arrival, now),
            decision => decision,
        };
        match decision {
            Ok(Relayed { to, from, mark, at }) => {
                let tos = if mark { ancillary.tos | CE } else { ancillary.tos };
                batch.forward(index, Headers { to, from: from.ip(), tos, ttl: ttl - 1 }, at);
                Ok(())
            }
            Err(Reason::Bind) => Err(self.pass_bind(from, to, payload)),
            Err(reason @ (Reason::NoFlow | Reason::ConsentExpired)) if may_be_quic(payload) => {
                // What is larger than any QUIC datagram of ours is nobody's.
                let dropped = payload.len() <= MAX_DATAGRAM
                    && !self.quic.deliver(from, to.ip(), ancillary.tos, payload);
                Err(if dropped { Reason::QuicQueueFull } else { reason })
            }
            Err(reason) => Err(reason),
        }
    }

    fn pass_bind(&self, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Reason {
        let Ok(bytes) = payload.try_into() else { return Reason::BindMalformed };
        match self.binds.try_send(BindDatagram { from, to, bytes }) {
            Ok(()) => Reason::Bind,
            Err(_) => Reason::BindQueueFull,
        }
    }

    /// Waits for datagrams, or to be told to stop.
    fn wait(&self) {
        match wait_readable(&self.socket, self.stop.wake.as_fd()) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => pause_after(&error),
            _ => {}
        }
    }
}

/// Congestion experienced: both ECN bits (RFC 3168 section 5).
const CE: u8 = 0b11;

/// An error of the socket as a whole: rare, and not a reason to stop, nor to spin.
fn pause_after(error: &io::Error) {
    tracing::warn!(%error, "receiving from the relay's port failed; trying again");
    std::thread::sleep(Duration::from_millis(10));
}
