//! How often something has happened within the last span of time, in memory that does not grow with that.

use std::time::Duration;

use crate::clock::MonoTime;

/// Counts in spans that follow one another. Of the one before the present one so much is counted as the sliding window
/// still covers, as if it had been even.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlidingCount {
    since: MonoTime,
    before: u64,
    present: u64,
}

impl SlidingCount {
    /// One more.
    pub fn add(&mut self, span: Duration, now: MonoTime) {
        self.advance(span, now);
        self.present = self.present.saturating_add(1);
    }

    /// How many there were within the last `span`.
    pub fn within(&mut self, span: Duration, now: MonoTime) -> u64 {
        self.advance(span, now);
        let left = span.saturating_sub(now.since(self.since));
        let covered = u128::from(self.before) * left.as_nanos() / span.as_nanos().max(1);
        self.present.saturating_add(u64::try_from(covered).unwrap_or(u64::MAX))
    }

    fn advance(&mut self, span: Duration, now: MonoTime) {
        let passed = now.since(self.since);
        if passed >= span * 2 {
            *self = SlidingCount { since: now, before: 0, present: 0 };
        } else if passed >= span {
            *self = SlidingCount { since: self.since + span, before: self.present, present: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn at(seconds: u64) -> MonoTime {
        MonoTime(0) + Duration::from_secs(1000 + seconds)
    }

    #[test]
    fn what_lies_behind_the_window_is_counted_less_and_less_and_then_not_at_all() {
        let mut count = SlidingCount::default();
        assert_eq!(count.within(MINUTE, at(0)), 0);
        (0..100).for_each(|_| count.add(MINUTE, at(0)));
        assert_eq!(count.within(MINUTE, at(59)), 100);
        assert_eq!(count.within(MINUTE, at(60)), 100);
        assert_eq!(count.within(MINUTE, at(90)), 50);
        (0..10).for_each(|_| count.add(MINUTE, at(90)));
        assert_eq!(count.within(MINUTE, at(90)), 60);
        assert_eq!(count.within(MINUTE, at(119)), 11);
        assert_eq!(count.within(MINUTE, at(150)), 5);
        assert_eq!(count.within(MINUTE, at(400)), 0);
    }

    #[test]
    fn whoever_keeps_below_a_number_in_every_window_is_never_counted_above_it() {
        let mut count = SlidingCount::default();
        for second in 0..600 {
            count.add(MINUTE, at(second));
            assert!(count.within(MINUTE, at(second)) <= 61, "after {second} s");
        }
    }
}
