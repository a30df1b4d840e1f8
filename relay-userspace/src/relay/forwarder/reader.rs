//! The readers: one thread per socket takes datagrams in batches and forwards, hands on or drops each.

use std::io::{self, PipeReader, PipeWriter};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{process, thread};

use relay_common::{BIND_LEN, Reason};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::ancillary::Ancillary;
use super::arrivals::{AT_ONCE, Arrivals, Arrived, BATCH, Place};
use super::control_gate::ControlGate;
use super::counters::Counters;
use super::departures::{Departures, Outcome};
use super::gathering::{Departure, Headers};
use super::quic_socket::{MAX_DATAGRAM, QUEUE_LEN, QuicSocket, STRANGERS_LEN};
use super::socket_options::wait_readable;
use super::steering::may_be_quic;
use crate::clock::MonoTime;
use crate::relay::datapath::{Arrival, Relayed, Run, Tables};
use crate::relay::family::{Family, PerFamily};
use crate::relay::line_pace::LinePace;

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
    /// Its gate, if control's datagrams are steered to it and it works beside control.
    pub gate: Option<ControlGate>,
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

/// A relay that reads its port no more looks alive and is deaf: better it ends, and whatever watches it starts it again.
struct EndsWithReader;

impl Drop for EndsWithReader {
    fn drop(&mut self) {
        if thread::panicking() {
            tracing::error!("a reader of the relay's port has panicked");
            process::abort();
        }
    }
}

/// What one reader takes and sends at once.
struct Batch {
    arrivals: Arrivals,
    departures: PerFamily<Departures>,
}

impl Batch {
    /// Room for `most` messages.
    fn new(most: usize) -> Batch {
        let departures = PerFamily { v4: Departures::new(), v6: Some(Departures::new()) };
        Batch { arrivals: Arrivals::new(most), departures }
    }
}

impl Reader {
    /// Works until it is told to stop.
    pub fn run(self) {
        let _or_the_process_ends = EndsWithReader;
        let mut batch = Batch::new(BATCH);
        let mut faults = LinePace::OF_FAULTS;
        while !self.stop.asked.load(Ordering::Relaxed) {
            // Asks before it waits: while datagrams keep coming, waiting for them is a system call too many.
            match self.turn(&mut batch, None) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(&mut faults),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => pause_after(&error, &mut faults),
            }
        }
    }

    /// Works as a task of the runtime that control runs on, until the task is aborted: what it hands to control is taken by
    /// the same thread, without a change to another.
    pub async fn run_beside_control(mut self, readable: AsyncFd<UdpSocket>) {
        let _or_the_process_ends = EndsWithReader;
        // No more than that: the thread is wanted by others.
        let mut batch = Batch::new(AT_ONCE);
        let mut gate = self.gate.take();
        let mut faults = LinePace::OF_FAULTS;
        loop {
            let ready = match gate.as_mut().and_then(|gate| gate.tend(MonoTime::now())) {
                None => readable.readable().await,
                Some(patience) => match timeout(patience, readable.readable()).await {
                    Ok(ready) => ready,
                    Err(_nothing_came) => continue,
                },
            };
            let Ok(mut ready) = ready else { return };
            match self.turn(&mut batch, gate.as_mut()) {
                // The queue was empty by then: what comes later is a new event.
                Ok(count) if count < AT_ONCE => ready.clear_ready(),
                // Others have their turn in between.
                Ok(_) => tokio::task::yield_now().await,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    drop(ready);
                    tell(&error, &mut faults);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Takes one batch of messages, and sends what is to be forwarded. Returns how many there were.
    fn turn(&self, batch: &mut Batch, mut gate: Option<&mut ControlGate>) -> io::Result<usize> {
        let Batch { arrivals, departures } = batch;
        let count = arrivals.receive(&self.socket)?;
        let now = MonoTime::now();
        for index in 0..count {
            match arrivals.get(index) {
                Some(arrived) => self.take(&arrived, arrivals.bytes(), departures, gate.as_deref_mut(), now),
                None => self.counters.count(Reason::Truncated, 1, 0),
            }
        }
        self.flush(departures, arrivals.bytes(), now);
        Ok(count)
    }

    /// The datagrams of one message, whose session is looked up once. Queues what is forwarded and counts the rest.
    fn take(
        &self,
        arrived: &Arrived,
        bytes: &[u8],
        departures: &mut PerFamily<Departures>,
        mut gate: Option<&mut ControlGate>,
        now: MonoTime,
    ) {
        let Arrived { from, ancillary, .. } = *arrived;
        let (Some(to), Some(ttl)) = (ancillary.to, ancillary.ttl) else {
            let payloads = arrived.datagrams().map(|place| place.len as u64);
            return payloads.for_each(|len| self.counters.count(Reason::Truncated, 1, len));
        };
        let to = SocketAddr::new(to, self.port);
        let run = match self.tables.run(from, to) {
            // A tuple that a side has just moved away from may be control's by now.
            run if run.is_of_a_flow() || gate.is_some() => run,
            _ => self.tables.previous_run(from, to, now),
        };
        for place in arrived.datagrams() {
            let payload = place.of(bytes).unwrap_or_default();
            let arrival = Arrival { from, to, payload, tos: ancillary.tos, ttl };
            match self.decide(&run, &arrival, gate.as_deref_mut(), now) {
                Ok(relayed) => {
                    if relayed.mark {
                        self.counters.count_marked(payload.len() as u64);
                    }
                    queue(departures, place, &relayed, arrived);
                }
                Err(reason) => self.counters.count(reason, 1, payload.len() as u64),
            }
        }
        // Datagrams that come merged are many.
        if departures.iter().map(Departures::len).sum::<usize>() > MAX_QUEUED {
            self.flush(departures, bytes, now);
        }
    }

    /// One datagram: bind datagrams first, then flows by their tuple, then QUIC, since relayed datagrams may look like
    /// QUIC. The reason says what became of it if it is not to be forwarded.
    fn decide(
        &self,
        run: &Run<'_>,
        arrival: &Arrival<'_>,
        gate: Option<&mut ControlGate>,
        now: MonoTime,
    ) -> Result<Relayed, Reason> {
        let Arrival { from, to, payload, tos, .. } = *arrival;
        let queue_len = if gate.is_some() { QUEUE_LEN } else { STRANGERS_LEN };
        let permit = |side| {
            let permitted = gate.is_none_or(|gate| gate.permits(side, from, now));
            if permitted { Ok(()) } else { Err(Reason::ControlShare) }
        };
        match run.decide_if(arrival, now, permit) {
            Err(Reason::Bind) => Err(self.pass_bind(from, to, payload)),
            Err(reason @ (Reason::NoFlow | Reason::ConsentExpired)) if may_be_quic(payload) => {
                // What is larger than any QUIC datagram of ours is nobody's.
                let dropped = payload.len() <= MAX_DATAGRAM
                    && !self.quic.deliver(from, to.ip(), tos, payload, queue_len);
                Err(if dropped { Reason::QuicQueueFull } else { reason })
            }
            decision => decision,
        }
    }

    /// Sends what is queued by the socket of its destination's family.
    fn flush(&self, departures: &mut PerFamily<Departures>, bytes: &[u8], now: MonoTime) {
        let report = |outcome: Outcome| {
            let Outcome { at, datagrams, bytes, result } = outcome;
            let reason = match result {
                Ok(()) => {
                    self.tables.count(at, datagrams as u64, bytes as u64);
                    Reason::Forwarded
                }
                Err(reason) => reason,
            };
            self.counters.count(reason, datagrams as u64, bytes as u64);
        };
        departures.v4.flush(Some(&self.senders.v4), bytes, now, report);
        if let Some(departures) = &mut departures.v6 {
            departures.flush(self.senders.v6.as_deref(), bytes, now, report);
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
    fn wait(&self, faults: &mut LinePace) {
        match wait_readable(&self.socket, self.stop.wake.as_fd()) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => pause_after(&error, faults),
            _ => {}
        }
    }
}

/// Datagrams that are queued before they are sent, at most, but for those of one message.
const MAX_QUEUED: usize = 4096;

/// Queues a datagram of `arrived` to be sent on.
fn queue(departures: &mut PerFamily<Departures>, payload: Place, relayed: &Relayed, arrived: &Arrived) {
    let Relayed { to, from, mark, at } = *relayed;
    let Ancillary { tos, ttl, fragmented, .. } = arrived.ancillary;
    let tos = if mark { tos | CE } else { tos };
    let headers = Headers { to, from: from.ip(), tos, ttl: ttl.unwrap_or(0).saturating_sub(1) };
    let departures = match (Family::of(to), &mut departures.v6) {
        (Family::V6, Some(v6)) => v6,
        _ => &mut departures.v4,
    };
    departures.add(&Departure { payload, headers, at, fragmented });
}

/// Congestion experienced: both ECN bits (RFC 3168 section 5).
const CE: u8 = 0b11;

const PAUSE: Duration = Duration::from_millis(10);

/// An error of the socket as a whole: rare, and not a reason to stop, nor to spin.
fn pause_after(error: &io::Error, faults: &mut LinePace) {
    tell(error, faults);
    std::thread::sleep(PAUSE);
}

fn tell(error: &io::Error, faults: &mut LinePace) {
    faults.write(MonoTime::now(), || {
        tracing::warn!(%error, "receiving from the relay's port failed; trying again");
    });
}
