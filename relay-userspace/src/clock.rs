//! The one clock that sessions, deadlines and buckets use.

use std::ops::{Add, Sub};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A point in time: nanoseconds of `CLOCK_MONOTONIC_COARSE`, the clock `bpf_ktime_get_coarse_ns` reads.
///
/// Kernel and userspace charge one bucket, so they must read one clock: mixing the coarse and the precise one is unfair
/// to whoever reads the coarse one. Its resolution is one tick (1 to 10 ms).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MonoTime(pub u64);

impl MonoTime {
    /// The present. Only drivers call this; state machines are told the time.
    pub fn now() -> Self {
        let at = clock_gettime(ClockId::MonotonicCoarse);
        MonoTime((at.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(at.tv_nsec as u64))
    }

    /// Time passed since `earlier`, zero if `earlier` is later.
    pub fn since(self, earlier: MonoTime) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for MonoTime {
    type Output = MonoTime;

    /// Saturates at the end of time (584 years after boot).
    fn add(self, span: Duration) -> MonoTime {
        MonoTime(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<MonoTime> for MonoTime {
    type Output = Duration;

    fn sub(self, earlier: MonoTime) -> Duration {
        self.since(earlier)
    }
}
