//! The limit of a spliced pairing: what is above it waits.

use std::time::Duration;

use relay_common::bucket::{Allowance, TICKS_PER_NS};

use crate::clock::MonoTime;
use crate::relay::datapath::Limit;

/// A session's bucket for bytes that can wait. Both directions take from it, in the order they come.
#[derive(Debug)]
pub(super) struct Pace {
    allowance: Allowance,
    /// When the bucket would owe nothing, in ticks.
    arrival: u64,
}

impl Pace {
    /// A bucket that owes nothing.
    pub fn new(limit: Limit) -> Pace {
        Pace { allowance: Allowance::new(limit.bytes_per_s, limit.burst_bytes), arrival: 0 }
    }

    /// Takes `bytes` out; how long they have to wait for it.
    pub fn take(&mut self, bytes: u32, now: MonoTime) -> Duration {
        if self.allowance.cost_per_byte == 0 {
            return Duration::ZERO;
        }
        let now = now.0.wrapping_mul(TICKS_PER_NS);
        self.arrival = self.arrival.max(now).saturating_add(self.allowance.cost(bytes));
        let ahead = self.arrival.saturating_sub(now).saturating_sub(self.allowance.burst);
        Duration::from_nanos(ahead.div_ceil(TICKS_PER_NS))
    }

    /// Goes on with another limit, as a slot's bucket does.
    pub fn set_limit(&mut self, limit: Limit, now: MonoTime) {
        let allowance = Allowance::new(limit.bytes_per_s, limit.burst_bytes);
        self.arrival = self.allowance.carry(self.arrival, allowance, now.0);
        self.allowance = allowance;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, proptest};

    use super::*;

    const START: MonoTime = MonoTime(1_000_000_000_000);

    proptest! {
        #[test]
        fn over_any_time_no_more_passes_than_the_rate_and_one_burst(
            steps in proptest::collection::vec((1..32_768_u32, 0..400_u64), 1..200),
            rate in 20_000..2_000_000_u64,
        ) {
            let limit = Limit::per_second(rate);
            let mut pace = Pace::new(limit);
            let (mut now, mut passed) = (START, Vec::new());
            for (bytes, pause_ms) in steps {
                now = now + pace.take(bytes, now);
                passed.push((now, u64::from(bytes)));
                now = now + Duration::from_millis(pause_ms);
            }
            for first in 0..passed.len() {
                let mut sum = 0;
                for (at, bytes) in &passed[first..] {
                    sum += bytes;
                    let earned = rate as f64 * at.since(passed[first].0).as_secs_f64();
                    prop_assert!(sum as f64 <= earned + limit.burst_bytes as f64 + 1.0);
                }
            }
        }
    }

    #[test]
    fn whoever_waits_as_long_as_told_gets_the_whole_rate() {
        let limit = Limit::per_second(1_000_000);
        let mut pace = Pace::new(limit);
        let mut now = START;
        for _ in 0..1_000 {
            now = now + pace.take(10_000, now);
        }
        // Ten seconds' worth, less the burst.
        let took = now.since(START).as_secs_f64();
        assert!((9.74..9.76).contains(&took), "{took} s");
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        let mut pace = Pace::new(Limit::UNLIMITED);
        assert!((0..1_000).all(|_| pace.take(u32::MAX, START).is_zero()));
    }

    #[test]
    fn a_new_limit_holds_for_what_waits_next() {
        let mut pace = Pace::new(Limit::per_second(1_000_000));
        pace.take(250_000, START);
        pace.set_limit(Limit::per_second(100_000), START);
        // Nothing was left of the burst, so nothing is now: 10,000 bytes are a tenth of a second.
        assert_eq!(pace.take(10_000, START).as_millis(), 100);
        pace.set_limit(Limit::UNLIMITED, START);
        assert_eq!(pace.take(10_000, START), Duration::ZERO);
    }
}
