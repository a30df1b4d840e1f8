//! What became of the datagrams a reader took, counted by reason.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use relay_common::Reason;

/// Counts per [`Reason`]. One thread counts, any may look; each reader has its own, so that none waits for another's
/// cache line: not for its neighbour's in memory either, nor for the one the processor fetches along with it.
#[derive(Debug)]
#[repr(align(128))]
pub struct Counters([AtomicU64; Reason::COUNT]);

impl Counters {
    /// All zero.
    pub const fn new() -> Counters {
        Counters([const { AtomicU64::new(0) }; Reason::COUNT])
    }

    /// Counts datagrams.
    pub fn count(&self, reason: Reason, datagrams: u64) {
        if let Some(counter) = self.0.get(reason.index() as usize) {
            counter.store(counter.load(Relaxed).wrapping_add(datagrams), Relaxed);
        }
    }

    /// How many were counted.
    pub fn get(&self, reason: Reason) -> u64 {
        self.0.get(reason.index() as usize).map_or(0, |counter| counter.load(Relaxed))
    }
}
