//! How long to wait before the next attempt: to reach a relay, or to find a session another path.

use std::time::Duration;

/// Waits that double from half a second to half a minute, each shortened by chance to between its half and its whole:
/// agents that lost the same relay at the same moment do not come back at the same moment.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(500);
    const LONGEST: Duration = Duration::from_secs(30);

    /// What lasts for so long has succeeded.
    pub const STEADY: Duration = Duration::from_secs(60);

    /// The wait after one more failure. `chance` is a random number.
    pub fn next(&mut self, chance: u64) -> Duration {
        let whole = Self::FIRST.saturating_mul(1 << self.failures.min(16)).min(Self::LONGEST);
        self.failures = self.failures.saturating_add(1);
        let half = whole / 2;
        let half_ns = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX).max(1);
        half + Duration::from_nanos(chance % half_ns)
    }

    /// What was reached has lasted for `span`. Only if that is long are earlier failures forgotten: what comes and goes
    /// is not tried ever again at once.
    pub fn lasted(&mut self, span: Duration) {
        if span >= Self::STEADY {
            self.failures = 0;
        }
    }

    /// Whether nothing has failed yet.
    pub fn is_fresh(&self) -> bool {
        self.failures == 0
    }
}

/// A relay that was started again has its agents back within this time, and not in one instant.
pub const SPREAD: Duration = Duration::from_secs(1);

/// A wait of up to [`SPREAD`], by chance.
pub fn spread(chance: u64) -> Duration {
    let spread_ns = u64::try_from(SPREAD.as_nanos()).unwrap_or(u64::MAX).max(1);
    Duration::from_nanos(chance % spread_ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_half_a_minute_and_start_over_after_lasting_success() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..9).map(|_| backoff.next(0).as_millis()).collect();
        assert_eq!(waits, [250, 500, 1_000, 2_000, 4_000, 8_000, 15_000, 15_000, 15_000]);
        backoff.lasted(Backoff::STEADY - Duration::from_millis(1));
        assert!(!backoff.is_fresh(), "what has lasted for less is one more failure");
        assert!(backoff.next(0) >= Duration::from_secs(15));
        backoff.lasted(Backoff::STEADY);
        assert!(backoff.is_fresh());
        assert!(backoff.next(u64::MAX) <= Duration::from_millis(500));
    }

    #[test]
    fn a_minute_has_at_most_nine_attempts_whatever_chance_says() {
        for chance in [0, u64::MAX] {
            let mut backoff = Backoff::default();
            let (mut attempts, mut passed) = (1, Duration::ZERO);
            while passed < Duration::from_secs(60) {
                passed += backoff.next(chance);
                attempts += usize::from(passed < Duration::from_secs(60));
            }
            assert!(attempts <= 9, "{attempts} attempts");
        }
    }

    #[test]
    fn agents_of_a_relay_that_was_started_again_come_back_spread_over_a_second() {
        for (chance, wait_ns) in
            [(0, 0), (1, 1), (999_999_999, 999_999_999), (1_000_000_000, 0), (u64::MAX, 709_551_615)]
        {
            assert_eq!(spread(chance), Duration::from_nanos(wait_ns));
        }
    }

    #[test]
    fn chance_moves_a_wait_between_its_half_and_its_whole() {
        for chance in [0, 1, 249_999_999, 250_000_000, u64::MAX] {
            let wait = Backoff::default().next(chance);
            assert!((Duration::from_millis(250)..=Duration::from_millis(500)).contains(&wait));
        }
    }
}
