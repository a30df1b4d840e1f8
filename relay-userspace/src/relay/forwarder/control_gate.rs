//! The gate of control's socket: what of the sessions' own comes by it is held to a share, and who floods it is kept out.
//!
//! Dropping in userspace helps as long as a reader empties the queue faster than it fills. On a host with one processor,
//! where the readers of relayed traffic want all of it, that is not long: so the kernel is told not to queue them.

use std::hash::{BuildHasher, RandomState};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use relay_common::index::SlotSide;

use super::control_share::ControlShares;
use super::kept_out::KeptOut;
use super::socket_options::attach_filter;
use super::steering::keep_out;
use crate::clock::MonoTime;
use crate::relay::line_pace::LinePace;
use crate::socket_queue::queue_drops;

/// The gate of one socket, in the hands of its reader.
#[derive(Debug)]
pub struct ControlGate {
    socket: Arc<UdpSocket>,
    shares: ControlShares,
    kept_out: KeptOut,
    ipv4: bool,
    /// See [`keep_out`].
    factor: u32,
    tally: Arc<GateTally>,
    /// Lines about filters that the kernel does not take.
    faults: LinePace,
}

impl ControlGate {
    /// A gate that is open to all, for the sessions of `slots` slots.
    pub fn new(socket: Arc<UdpSocket>, slots: u32, tally: Arc<GateTally>) -> ControlGate {
        let factor = RandomState::new().hash_one(()) as u32 | 1;
        let (shares, kept_out) = (ControlShares::new(slots), KeptOut::default());
        let ipv4 = socket.local_addr().is_ok_and(|address| address.is_ipv4());
        ControlGate { socket, shares, kept_out, ipv4, factor, tally, faults: LinePace::OF_FAULTS }
    }

    /// Whether a datagram of a session's side, sent from `source`, is within that side's share. Who sends more is kept
    /// out from the next [`ControlGate::tend`] on.
    pub fn permits(&mut self, side: SlotSide, source: SocketAddr, now: MonoTime) -> bool {
        let permitted = self.shares.take(side, now);
        if !permitted {
            self.kept_out.add(source, now);
        }
        permitted
    }

    /// Tells the kernel whom to keep out, if that has changed. To be called before the socket is read, and again after
    /// what is returned, if nothing comes until then.
    pub fn tend(&mut self, now: MonoTime) -> Option<Duration> {
        let (factor, ipv4) = (self.factor, self.ipv4);
        let change =
            self.kept_out.change(now).map(|sources| (sources.len() > 0, keep_out(sources, factor, ipv4)));
        if let Some((closed, program)) = change {
            match attach_filter(&self.socket, &program) {
                Ok(()) => self.tally.set_closed(closed, drops(&self.socket)),
                Err(error) => {
                    self.faults.write(now, || {
                        tracing::warn!(%error, "the filter of control's socket cannot be changed; trying again");
                    });
                    self.kept_out.again(now);
                }
            }
        }
        self.kept_out.next_change().map(|at| at.since(now))
    }
}

/// How many messages a gate has kept out: datagrams, but merged ones count as one. The kernel counts them among those that found the queue full; while somebody
/// is kept out, all are taken for his.
#[derive(Debug, Default)]
pub struct GateTally(Mutex<Tally>);

#[derive(Debug, Default)]
struct Tally {
    /// Kept out until the gate was opened last.
    before: u32,
    /// What the socket had dropped when the gate was closed, if it is.
    closed_at: Option<u32>,
}

impl GateTally {
    /// Datagrams kept out of `socket`, and those that did not fit its queue. Both wrap at 2^32.
    pub fn of(&self, socket: &UdpSocket) -> (u32, u32) {
        let tally = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let drops = drops(socket);
        let kept_out = tally.kept_out(drops);
        (kept_out, drops.wrapping_sub(kept_out))
    }

    fn set_closed(&self, closed: bool, drops: u32) {
        let mut tally = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tally.before = tally.kept_out(drops);
        tally.closed_at = closed.then_some(drops);
    }
}

impl Tally {
    fn kept_out(&self, drops: u32) -> u32 {
        let since_closed = self.closed_at.map_or(0, |at| drops.wrapping_sub(at));
        self.before.wrapping_add(since_closed)
    }
}

fn drops(socket: &UdpSocket) -> u32 {
    queue_drops(socket.as_fd()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_while_the_gate_is_closed_was_kept_out() {
        let tally = GateTally::default();
        let kept_out = |drops| tally.0.lock().unwrap().kept_out(drops);
        assert_eq!(kept_out(7), 0);
        tally.set_closed(true, 7);
        assert_eq!((kept_out(7), kept_out(17)), (0, 10));
        tally.set_closed(true, 20);
        assert_eq!(kept_out(20), 13, "others are kept out as well");
        tally.set_closed(false, u32::MAX);
        let all = u32::MAX - 7;
        assert_eq!((kept_out(u32::MAX), kept_out(5)), (all, all), "the queue was full");
        tally.set_closed(true, 5);
        assert_eq!(kept_out(8), all + 3);
    }
}
