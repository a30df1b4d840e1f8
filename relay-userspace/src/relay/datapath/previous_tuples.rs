//! The tuples that sides have just moved away from. What was sent before a move may still be on its way: it is forwarded
//! for a while, to wherever the side's packets go now, under the same bucket.
//!
//! The program knows one tuple a side, so it passes such packets up like any stranger's; the userspace forwarder asks
//! here before it calls them that. Moves are rare, so that one lock serves all readers, and none is taken once the last
//! move is long enough ago.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use relay_common::Side;
use relay_common::index::SlotSide;

use super::flows::FlowTuple;
use crate::clock::MonoTime;

/// How long a side's previous tuple is forwarded after a move: longer than a datagram is on its way.
pub const PREVIOUS_TUPLE_KEPT: Duration = Duration::from_secs(5);

/// The previous tuples, at most one a side.
#[derive(Debug, Default)]
pub struct PreviousTuples {
    held: RwLock<Held>,
    /// How many are held, ended or not: what the writer asks first.
    count: AtomicUsize,
    /// When the last of them ends, in nanoseconds: what readers ask first.
    until: AtomicU64,
}

#[derive(Debug, Default)]
struct Held {
    by_tuple: HashMap<FlowTuple, (SlotSide, MonoTime)>,
    by_side: HashMap<(u32, Side), FlowTuple>,
    /// In the order in which they end; some may be gone already.
    ends: VecDeque<(MonoTime, FlowTuple)>,
}

impl PreviousTuples {
    /// Whose tuple this was until a moment ago.
    pub fn find(&self, tuple: &FlowTuple, now: MonoTime) -> Option<SlotSide> {
        if now.0 >= self.until.load(Ordering::Relaxed) {
            return None;
        }
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        let (at, until) = held.by_tuple.get(tuple)?;
        (now < *until).then_some(*at)
    }

    /// Side `at` has moved away from `tuple`. What it had before that is forgotten.
    pub(super) fn keep(&self, tuple: FlowTuple, at: SlotSide, now: MonoTime) {
        self.change(|held| {
            held.forget_ended(now);
            held.forget_side(at);
            let until = now + PREVIOUS_TUPLE_KEPT;
            held.by_tuple.insert(tuple, (at, until));
            held.by_side.insert((at.slot, at.side), tuple);
            held.ends.push_back((until, tuple));
        });
        self.until.store((now + PREVIOUS_TUPLE_KEPT).0, Ordering::Relaxed);
    }

    /// Somebody has proved `tuple`: it is nobody's previous one any more.
    pub(super) fn forget(&self, tuple: &FlowTuple) {
        self.unless_empty(|held| held.forget_tuple(tuple));
    }

    /// The session in slot `slot` is over.
    pub(super) fn forget_slot(&self, slot: u32, now: MonoTime) {
        self.unless_empty(|held| {
            held.forget_ended(now);
            Side::BOTH.into_iter().for_each(|side| held.forget_side(SlotSide { slot, side }));
        });
    }

    /// The tables' one writer alone adds to it: what it has just seen to be empty stays so.
    fn unless_empty(&self, change: impl FnOnce(&mut Held)) {
        if self.count.load(Ordering::Relaxed) != 0 {
            self.change(change);
        }
    }

    fn change(&self, change: impl FnOnce(&mut Held)) {
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut held);
        self.count.store(held.by_tuple.len(), Ordering::Relaxed);
    }
}

impl Held {
    fn forget_tuple(&mut self, tuple: &FlowTuple) {
        if let Some((at, _)) = self.by_tuple.remove(tuple) {
            self.by_side.remove(&(at.slot, at.side));
        }
    }

    fn forget_side(&mut self, at: SlotSide) {
        if let Some(tuple) = self.by_side.remove(&(at.slot, at.side)) {
            self.by_tuple.remove(&tuple);
        }
    }

    fn forget_ended(&mut self, now: MonoTime) {
        while let Some((_, tuple)) = self.ends.pop_front_if(|(until, _)| *until <= now) {
            // The tuple may have been kept again since, and for longer.
            if self.by_tuple.get(&tuple).is_some_and(|(_, until)| *until <= now) {
                self.forget_tuple(&tuple);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(port: u16) -> FlowTuple {
        FlowTuple { agent: ([10, 1, 0, 1], port).into(), relay: ([10, 9, 0, 2], 4433).into() }
    }

    fn at(slot: u32, side: Side) -> SlotSide {
        SlotSide { slot, side }
    }

    fn second(second: u64) -> MonoTime {
        MonoTime(second * 1_000_000_000)
    }

    #[test]
    fn a_tuple_is_found_for_five_seconds_after_its_side_has_moved() {
        let previous = PreviousTuples::default();
        previous.keep(tuple(1), at(7, Side::Target), second(1));
        assert_eq!(previous.find(&tuple(1), second(5)), Some(at(7, Side::Target)));
        assert_eq!(previous.find(&tuple(2), second(5)), None);
        assert_eq!(previous.find(&tuple(1), second(6)), None);
    }

    #[test]
    fn strangers_wait_for_no_lock_once_the_last_move_is_long_ago() {
        let previous = PreviousTuples::default();
        previous.keep(tuple(1), at(7, Side::Target), second(1));
        let _somebody_writes = previous.held.write().unwrap();
        assert_eq!(previous.find(&tuple(2), second(6)), None);
    }

    #[test]
    fn a_side_has_one_previous_tuple() {
        let previous = PreviousTuples::default();
        previous.keep(tuple(1), at(7, Side::Target), second(1));
        previous.keep(tuple(2), at(7, Side::Connector), second(1));
        previous.keep(tuple(3), at(7, Side::Target), second(2));
        assert_eq!(previous.find(&tuple(1), second(3)), None);
        assert_eq!(previous.find(&tuple(2), second(3)), Some(at(7, Side::Connector)));
        assert_eq!(previous.find(&tuple(3), second(3)), Some(at(7, Side::Target)));
    }

    #[test]
    fn a_tuple_that_is_proved_again_or_whose_session_ends_is_forgotten() {
        let previous = PreviousTuples::default();
        previous.keep(tuple(1), at(7, Side::Target), second(1));
        previous.keep(tuple(2), at(8, Side::Target), second(1));
        previous.forget(&tuple(1));
        assert_eq!(previous.find(&tuple(1), second(2)), None);
        previous.forget_slot(8, second(2));
        assert_eq!(previous.find(&tuple(2), second(2)), None);
    }

    #[test]
    fn a_tuple_kept_again_is_kept_for_longer_and_what_has_ended_takes_no_memory() {
        let previous = PreviousTuples::default();
        previous.keep(tuple(1), at(7, Side::Target), second(1));
        previous.keep(tuple(1), at(7, Side::Target), second(4));
        previous.keep(tuple(2), at(8, Side::Target), second(7));
        assert_eq!(previous.find(&tuple(1), second(8)), Some(at(7, Side::Target)));
        previous.keep(tuple(3), at(9, Side::Target), second(100));
        let held = previous.held.read().unwrap();
        assert_eq!((held.by_tuple.len(), held.by_side.len(), held.ends.len()), (1, 1, 1));
    }
}
