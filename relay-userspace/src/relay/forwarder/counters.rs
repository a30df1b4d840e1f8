//! What became of the datagrams a reader took, counted by reason.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use relay_common::Reason;

/// Counts per [`Reason`]. One thread counts, any may look; each reader has its own, so that none waits for another's
/// cache line.
#[derive(Debug)]
pub struct Counters([AtomicU64; Reason::COUNT]);

impl Counters {
    /// All zero.
    pub const fn new() -> Counters {
        Counters([const { AtomicU64::new(0) }; Reason::COUNT])
    }

    /// Counts one datagram.
    pub fn count(&self, reason: Reason) {
        if let Some(counter) = self.0.get(reason.index() as usize) {
            counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
        }
    }

    /// How many were counted.
    pub fn get(&self, reason: Reason) -> u64 {
        self.0.get(reason.index() as usize).map_or(0, |counter| counter.load(Relaxed))
    }
}
