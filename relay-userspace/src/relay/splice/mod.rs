//! Two streams joined, byte for byte: the fallback for agents that know only the documented messages.
//!
//! The relay can read and alter what it carries here, and it costs more than datagrams: it is for agents that can do nothing
//! better. [`Splicer`] keeps the pairings that the rendezvous has decided on; `pump` carries one direction of one, `pace`
//! holds it to the limit, `window` bounds what is on its way in.

mod pace;
mod pump;
mod window;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quinn::{RecvStream, SendStream, VarInt};
use relay_common::Side;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep_until, timeout};

use self::pace::Pace;
use self::pump::{Over, Shared, carry};
pub use self::window::{ReceiveWindow, Widened};
use super::datapath::{Limit, SideTraffic, Traffic};
use super::rendezvous::EndReason;
use crate::clock::MonoTime;
use crate::protocol::envelope::{HEADER_LEN, MAX_CONTROL_PAYLOAD_LEN};
use crate::protocol::frames::write_frame;
use crate::protocol::{Message, SessionId};

/// The most that the relay holds of one direction of a pairing.
const MAX_BUFFERED: u32 = 256 * 1024;

/// Of it, what a stream may send unread.
pub const STREAM_WINDOW: u32 = 88 * 1024;

/// Of it, what has been written and not acknowledged: on all streams of a connection together.
pub const SEND_WINDOW: u32 = 96 * 1024;

/// So long two streams may take to be handed over. A task that hands one over may first write for 10 s to an agent that does
/// not read, and gives that up then.
const HAND_OVER: Duration = Duration::from_secs(15);

/// So much is read at a time. Only what was read before the streams were joined may be more: a frame that was not whole.
const CHUNK: usize = 32 * 1024;

const _: () = {
    let read = HEADER_LEN + MAX_CONTROL_PAYLOAD_LEN;
    assert!(CHUNK <= read && STREAM_WINDOW + SEND_WINDOW + read as u32 <= MAX_BUFFERED);
};

/// The code with which streams are reset and stopped if it is the relay that ends a pairing.
const ENDED_BY_THE_RELAY: VarInt = VarInt::from_u32(0);

/// One agent's end of a pairing. Dropping it resets its stream, unless the peer has finished or reset that.
#[derive(Debug)]
pub struct Half {
    to_agent: SendStream,
    from_agent: RecvStream,
    /// What was read of the stream already.
    unread: Bytes,
    /// Whether what the agent is sent has come to an end.
    is_over: bool,
    _window: Widened,
}

impl Half {
    /// A stream of whose bytes `unread` have been read.
    pub fn new(to_agent: SendStream, from_agent: RecvStream, unread: Bytes, window: Widened) -> Half {
        Half { to_agent, from_agent, unread, is_over: false, _window: window }
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        if !self.is_over {
            // Else it would seem to be finished.
            let _over_already = self.to_agent.reset(ENDED_BY_THE_RELAY);
        }
        // Its other direction stops by itself, with the same code.
    }
}

/// All pairings of two streams.
#[derive(Debug)]
pub struct Splicer {
    pairings: BTreeMap<SessionId, Pairing>,
    tasks: JoinSet<(SessionId, EndReason)>,
    /// Bytes that were passed on since that was last told.
    unseen: Arc<AtomicU64>,
    tell: Interval,
}

/// What has happened to pairings.
#[derive(Debug)]
pub enum News {
    /// One has come to its end by itself.
    Over {
        /// Which.
        session: SessionId,
        /// Why.
        reason: EndReason,
        /// What it has carried.
        traffic: Traffic,
    },
    /// All together have passed on so many bytes since that was last told.
    Passed(u64),
}

/// That is told this often, while there are pairings or something is left to tell.
const TELL_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Pairing {
    shared: Arc<Shared>,
    task: AbortHandle,
}

impl Splicer {
    /// None yet. Must be called within a tokio runtime.
    pub fn new() -> Splicer {
        let mut tell = interval(TELL_EVERY);
        tell.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Splicer { pairings: BTreeMap::new(), tasks: JoinSet::new(), unseen: Arc::default(), tell }
    }

    /// Joins the streams that are put into the two places, indexed by [`Side`]. If a place is dropped, its agent's stream is
    /// gone; if both have not come after [`HAND_OVER`], nothing is joined and they are reset. Once both are there, the
    /// connector is told that it is `ready`. The pairing ends once nothing has passed for `idle_timeout`.
    pub fn join(
        &mut self,
        session: SessionId,
        ready: Message,
        limit: Limit,
        idle_timeout: Duration,
    ) -> [oneshot::Sender<Half>; 2] {
        let shared = Arc::new(Shared::new(Pace::new(limit), Arc::clone(&self.unseen)));
        let [(connector, from_connector), (target, from_target)] = [oneshot::channel(), oneshot::channel()];
        let carried = Arc::clone(&shared);
        let task = self.tasks.spawn(async move {
            let halves = async { (from_connector.await, from_target.await) };
            let reason = match timeout(HAND_OVER, halves).await {
                Ok((Ok(connector), Ok(target))) => {
                    run(ready, [connector, target], &carried, idle_timeout).await
                }
                Ok((Err(_), _)) => EndReason::Left(Side::Connector),
                Ok((_, Err(_))) => EndReason::Left(Side::Target),
                Err(_elapsed) => EndReason::NotJoined,
            };
            (session, reason)
        });
        self.pairings.insert(session, Pairing { shared, task });
        [connector, target]
    }

    /// Waits for something to happen. Cancel safe.
    pub async fn news(&mut self) -> News {
        loop {
            let is_to_tell = !self.pairings.is_empty() || self.unseen.load(Ordering::Relaxed) > 0;
            tokio::select! {
                Some(over) = self.tasks.join_next() => {
                    // Else it was ended here.
                    if let Ok((session, reason)) = over {
                        let traffic = self.traffic(session);
                        self.pairings.remove(&session);
                        return News::Over { session, reason, traffic };
                    }
                }
                _ = self.tell.tick(), if is_to_tell => {
                    return News::Passed(self.unseen.swap(0, Ordering::Relaxed));
                }
                else => std::future::pending().await,
            }
        }
    }

    /// Ends a pairing: what it has carried.
    pub fn end(&mut self, session: SessionId) -> Traffic {
        let traffic = self.traffic(session);
        if let Some(pairing) = self.pairings.remove(&session) {
            pairing.task.abort();
        }
        traffic
    }

    /// What a pairing has carried so far.
    pub fn traffic(&self, session: SessionId) -> Traffic {
        let passed = self.pairings.get(&session).map_or([0; 2], |pairing| pairing.shared.passed());
        let sides = passed.map(|bytes| SideTraffic { bytes, ..SideTraffic::default() });
        Traffic { sides, ..Traffic::default() }
    }

    /// Every pairing gets another limit.
    pub fn set_limit(&self, limit: Limit, now: MonoTime) {
        for pairing in self.pairings.values() {
            pairing.shared.change_pace(|pace| pace.set_limit(limit, now));
        }
    }
}

/// Carries both directions until both are over, a connection is lost, or nothing has passed for `idle_timeout`.
async fn run(
    ready: Message,
    [mut connector, mut target]: [Half; 2],
    shared: &Shared,
    idle_timeout: Duration,
) -> EndReason {
    let unread = [&mut connector, &mut target].map(|half| std::mem::take(&mut half.unread));
    let [from_connector, from_target] = unread;
    let there = async {
        let (from, to) = (&mut connector.from_agent, &mut target.to_agent);
        let over = carry(from, from_connector, to, shared, Side::Connector.index()).await;
        target.is_over = is_told(over);
        ended_by(over, Side::Connector)
    };
    let back = async {
        let (from, to) = (&mut target.from_agent, &mut connector.to_agent);
        // If it fails, so does what follows.
        let _sent = write_frame(to, &ready).await;
        let over = carry(from, from_target, to, shared, Side::Target.index()).await;
        connector.is_over = is_told(over);
        ended_by(over, Side::Target)
    };
    tokio::select! {
        reason = both(there, back) => reason,
        () = idle(shared, idle_timeout) => EndReason::Idle,
    }
}

/// Waits for both directions, but no longer than until a connection is lost. The first to end tells why.
async fn both(
    there: impl Future<Output = Result<EndReason, EndReason>>,
    back: impl Future<Output = Result<EndReason, EndReason>>,
) -> EndReason {
    let (mut there, mut back) = (std::pin::pin!(there), std::pin::pin!(back));
    let (first, there_is_first) = tokio::select! {
        over = &mut there => (over, true),
        over = &mut back => (over, false),
    };
    let Ok(reason) = first else { return first.unwrap_or_else(|lost| lost) };
    let second = if there_is_first { back.await } else { there.await };
    second.map_or_else(|lost| lost, |_| reason)
}

/// Whether the receiver of a direction knows that it is over.
fn is_told(over: Over) -> bool {
    matches!(over, Over::Finished | Over::Reset | Over::Stopped)
}

/// Who has ended the direction in which `sender` sends. An error: its connection is gone, and with it the pairing.
fn ended_by(over: Over, sender: Side) -> Result<EndReason, EndReason> {
    let receiver = if sender == Side::Connector { Side::Target } else { Side::Connector };
    match over {
        Over::Finished | Over::Reset => Ok(EndReason::Left(sender)),
        Over::Stopped => Ok(EndReason::Left(receiver)),
        Over::SenderLost => Err(EndReason::Left(sender)),
        Over::ReceiverLost => Err(EndReason::Left(receiver)),
    }
}

/// Returns once nothing has passed for `idle_timeout`.
async fn idle(shared: &Shared, idle_timeout: Duration) {
    loop {
        let due = shared.active() + idle_timeout;
        if due <= tokio::time::Instant::now() {
            return;
        }
        sleep_until(due).await;
    }
}
