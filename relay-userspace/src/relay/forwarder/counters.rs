//! What became of the datagrams a reader took, counted by reason.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use relay_common::{Reason, Tally};

/// Counts per [`Reason`]. One thread counts, any may look; each reader has its own, so that none waits for another's
/// cache line: not for its neighbour's in memory either, nor for the one the processor fetches along with it.
#[derive(Debug)]
#[repr(align(128))]
pub struct Counters([[AtomicU64; 2]; Reason::COUNT]);

impl Counters {
    /// All zero.
    pub const fn new() -> Counters {
        Counters([const { [const { AtomicU64::new(0) }; 2] }; Reason::COUNT])
    }

    /// Counts datagrams, which have so many bytes of payload together.
    pub fn count(&self, reason: Reason, datagrams: u64, bytes: u64) {
        let Some([of_datagrams, of_bytes]) = self.0.get(reason.index() as usize) else { return };
        for (counter, more) in [(of_datagrams, datagrams), (of_bytes, bytes)] {
            counter.store(counter.load(Relaxed).wrapping_add(more), Relaxed);
        }
    }

    /// How many were counted.
    pub fn get(&self, reason: Reason) -> Tally {
        self.0.get(reason.index() as usize).map_or_else(Tally::default, |[datagrams, bytes]| Tally {
            packets: datagrams.load(Relaxed),
            bytes: bytes.load(Relaxed),
        })
    }
}
