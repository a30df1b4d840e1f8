//! So many in so long a time.

use std::time::Duration;

use crate::clock::MonoTime;

/// At most `N` in any `SECONDS` seconds.
#[derive(Debug)]
pub(super) struct Pace<const N: usize, const SECONDS: u64> {
    /// The last `N`, the oldest at `next`.
    admitted: [Option<MonoTime>; N],
    next: usize,
}

impl<const N: usize, const SECONDS: u64> Default for Pace<N, SECONDS> {
    fn default() -> Self {
        Pace { admitted: [None; N], next: 0 }
    }
}

impl<const N: usize, const SECONDS: u64> Pace<N, SECONDS> {
    const PERIOD: Duration = Duration::from_secs(SECONDS);

    /// Whether one more may happen now.
    pub fn permits(&self, now: MonoTime) -> bool {
        let oldest = self.admitted.get(self.next).copied().flatten();
        oldest.is_none_or(|at| now.since(at) >= Self::PERIOD)
    }

    /// Whether nothing of the past counts any more.
    pub fn is_quiet(&self, now: MonoTime) -> bool {
        self.admitted.iter().flatten().all(|at| now.since(*at) >= Self::PERIOD)
    }

    /// One has happened.
    pub fn record(&mut self, now: MonoTime) {
        if let Some(oldest) = self.admitted.get_mut(self.next) {
            *oldest = Some(now);
            self.next = (self.next + 1) % N;
        }
    }
}
