//! One direction of two joined streams.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quinn::{ReadError, RecvStream, SendStream, VarInt, WriteError};
use tokio::time::{Instant, sleep};

use super::CHUNK;
use super::pace::Pace;
use crate::clock::MonoTime;

/// What both directions of a pairing share.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// Bytes that all pairings have passed on since it was last looked at.
    unseen: Arc<AtomicU64>,
}

#[derive(Debug)]
struct State {
    pace: Pace,
    /// Bytes passed on, by sending side.
    passed: [u64; 2],
    /// When any were last.
    active: Instant,
}

/// How a direction has come to its end. The other end has been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    /// The sender has finished it.
    Finished,
    /// The sender has reset it.
    Reset,
    /// The receiver does not want any more.
    Stopped,
    /// The sender's connection is gone.
    SenderLost,
    /// The receiver's connection is gone.
    ReceiverLost,
}

impl Shared {
    pub fn new(pace: Pace, unseen: Arc<AtomicU64>) -> Shared {
        Shared { state: Mutex::new(State { pace, passed: [0; 2], active: Instant::now() }), unseen }
    }

    /// Bytes passed on so far, by sending side.
    pub fn passed(&self) -> [u64; 2] {
        self.state().passed
    }

    /// When bytes were last passed on.
    pub fn active(&self) -> Instant {
        self.state().active
    }

    pub fn change_pace(&self, change: impl FnOnce(&mut Pace)) {
        change(&mut self.state().pace);
    }

    /// How long `bytes` have to wait for the limit.
    fn take(&self, bytes: usize) -> Duration {
        self.state().pace.take(u32::try_from(bytes).unwrap_or(u32::MAX), MonoTime::now())
    }

    fn count(&self, side: usize, bytes: usize) {
        self.unseen.fetch_add(bytes as u64, Ordering::Relaxed);
        let mut state = self.state();
        state.active = Instant::now();
        if let Some(passed) = state.passed.get_mut(side) {
            *passed += bytes as u64;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Passes on what the sender sends, `unread` first, until one end has had enough. Nothing more is read while it waits to be
/// written or for the limit: then QUIC makes the sender wait.
pub(super) async fn carry(
    from: &mut RecvStream,
    unread: Bytes,
    to: &mut SendStream,
    shared: &Shared,
    side: usize,
) -> Over {
    let mut waiting = unread;
    loop {
        while !waiting.is_empty() {
            let chunk = waiting.split_to(waiting.len().min(CHUNK));
            if let Err(over) = pass_on(from, chunk, to, shared, side).await {
                return over;
            }
        }
        tokio::select! {
            read = from.read_chunk(CHUNK, true) => match read {
                Ok(Some(chunk)) => waiting = chunk.bytes,
                Ok(None) => {
                    // It fails if the receiver has stopped it, which is told by dropping it.
                    let _stopped = to.finish();
                    return Over::Finished;
                }
                Err(ReadError::Reset(code)) => return reset(to, code),
                Err(_) => return Over::SenderLost,
            },
            stopped = to.stopped() => match stopped {
                Ok(Some(code)) => return stop(from, to, code),
                Ok(None) | Err(_) => return Over::ReceiverLost,
            },
        }
    }
}

/// Passes one chunk on, once the limit lets it.
async fn pass_on(
    from: &mut RecvStream,
    chunk: Bytes,
    to: &mut SendStream,
    shared: &Shared,
    side: usize,
) -> Result<(), Over> {
    let length = chunk.len();
    let written = {
        let mut writing = pin!(async {
            let wait = shared.take(length);
            // Even a sleep of no length lasts until the timer's next tick.
            if !wait.is_zero() {
                sleep(wait).await;
            }
            to.write_chunk(chunk).await
        });
        loop {
            tokio::select! {
                written = &mut writing => break Ok(written),
                () = sleep(LOOK_FOR_RESET) => if let Some(code) = reset_by(from).await { break Err(code) },
            }
        }
    };
    match written {
        Ok(Ok(())) => {
            shared.count(side, length);
            Ok(())
        }
        Ok(Err(WriteError::Stopped(code))) => Err(stop(from, to, code)),
        Ok(Err(_)) => Err(Over::ReceiverLost),
        Err(code) => Err(reset(to, code)),
    }
}

/// While nothing can be written, whether the sender has reset its stream is looked at this often. quinn's `received_reset`
/// would tell at once, but it leaves a waker behind that its `RecvStream` must not have when it is dropped after its end.
const LOOK_FOR_RESET: Duration = Duration::from_millis(250);

/// The code with which the sender has reset its stream, if it has.
async fn reset_by(from: &mut RecvStream) -> Option<VarInt> {
    tokio::select! {
        biased;
        // Takes nothing.
        read = from.read_chunk(0, true) => match read {
            Err(ReadError::Reset(code)) => Some(code),
            _ => None,
        },
        () = std::future::ready(()) => None,
    }
}

fn reset(to: &mut SendStream, code: VarInt) -> Over {
    let _over_already = to.reset(code);
    Over::Reset
}

fn stop(from: &mut RecvStream, to: &mut SendStream, code: VarInt) -> Over {
    let _over_already = (from.stop(code), to.reset(code));
    Over::Stopped
}
