//! What became of the datagrams a reader took, counted by reason.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use relay_common::{Reason, Tally};

/// Counts per [`Reason`]. One thread counts, any may look; each reader has its own, so that none waits for another's
/// cache line: not for its neighbour's in memory either, nor for the one the processor fetches along with it.
#[derive(Debug)]
#[repr(align(128))]
pub struct Counters {
    by_reason: [Count; Reason::COUNT],
    marked: Count,
}

/// Datagrams, and their bytes of payload.
#[derive(Debug)]
struct Count([AtomicU64; 2]);

impl Counters {
    /// All zero.
    pub const fn new() -> Counters {
        Counters { by_reason: [const { Count::NONE }; Reason::COUNT], marked: Count::NONE }
    }

    /// Counts datagrams, which have so many bytes of payload together.
    pub fn count(&self, reason: Reason, datagrams: u64, bytes: u64) {
        if let Some(count) = self.by_reason.get(reason.index() as usize) {
            count.add(datagrams, bytes);
        }
    }

    /// Counts a datagram that is marked CE, beside its reason.
    pub fn count_marked(&self, bytes: u64) {
        self.marked.add(1, bytes);
    }

    /// How many were counted.
    pub fn get(&self, reason: Reason) -> Tally {
        self.by_reason.get(reason.index() as usize).map_or_else(Tally::default, Count::get)
    }

    /// How many were marked.
    pub fn marked(&self) -> Tally {
        self.marked.get()
    }
}

impl Count {
    #[expect(clippy::declare_interior_mutable_const, reason = "what counters begin with")]
    const NONE: Count = Count([const { AtomicU64::new(0) }; 2]);

    fn add(&self, datagrams: u64, bytes: u64) {
        for (counter, more) in self.0.iter().zip([datagrams, bytes]) {
            counter.store(counter.load(Relaxed).wrapping_add(more), Relaxed);
        }
    }

    fn get(&self) -> Tally {
        let [packets, bytes] = self.0.each_ref().map(|counter| counter.load(Relaxed));
        Tally { packets, bytes }
    }
}
