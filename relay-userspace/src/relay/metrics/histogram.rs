//! How long things took.

use std::time::Duration;

/// Counts of durations, by bounds that never change.
#[derive(Clone, Debug)]
pub struct Histogram {
    /// Upper bounds, each with how many were not above it, but above the one before.
    buckets: Vec<(Duration, u64)>,
    count: u64,
    sum: Duration,
}

impl Histogram {
    /// Nothing yet. `bounds` grow.
    pub fn new(bounds: &[Duration]) -> Histogram {
        Histogram { buckets: bounds.iter().map(|bound| (*bound, 0)).collect(), count: 0, sum: Duration::ZERO }
    }

    /// One more took so long.
    pub fn record(&mut self, took: Duration) {
        if let Some((_, count)) = self.buckets.iter_mut().find(|(bound, _)| took <= *bound) {
            *count += 1;
        }
        self.count += 1;
        self.sum = self.sum.saturating_add(took);
    }

    /// Each bound, with how many were not above it.
    pub fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> {
        self.buckets.iter().scan(0, |below, (bound, count)| {
            *below += count;
            Some((*bound, *below))
        })
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How long all together took.
    pub fn sum(&self) -> Duration {
        self.sum
    }
}
