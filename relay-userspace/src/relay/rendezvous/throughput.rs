//! How much the relay carries, from what is found whenever a session's traffic is looked at.
//!
//! Nobody walks over the sessions for it. Each is looked at at least every 5 s and at its end; what it has carried since
//! the look before counts in the second of the look. So a byte counts at the latest 6 s after it was relayed, for 5 s.

use crate::clock::MonoTime;

/// Bytes per second of all sessions together, as an average over the last whole seconds.
#[derive(Debug, Default)]
pub(super) struct Throughput {
    /// Bytes found in each second, at its number modulo the length: the present second and the [`SPAN`] before it.
    found: [u64; SPAN as usize + 1],
    /// The number of the present second.
    second: u64,
}

/// So many whole seconds make the average. A session that is seldom looked at brings several seconds' bytes at once: fewer
/// would show that as peaks.
const SPAN: u64 = 5;

impl Throughput {
    /// A look has found that so many bytes were relayed.
    pub fn add(&mut self, bytes: u64, now: MonoTime) {
        self.advance(now);
        let second = self.second;
        if let Some(found) = self.of(second) {
            *found = found.saturating_add(bytes);
        }
    }

    /// The measure.
    pub fn bytes_per_s(&mut self, now: MonoTime) -> u64 {
        self.advance(now);
        let whole = (self.second.saturating_sub(SPAN)..self.second).map(|second| self.found(second));
        whole.fold(0, u64::saturating_add) / SPAN
    }

    fn advance(&mut self, now: MonoTime) {
        let second = now.0 / 1_000_000_000;
        // Whatever has passed unseen since is over; more than all of it need not be emptied.
        let from = self.second.max(second.saturating_sub(SPAN + 1));
        for passed in from..second {
            if let Some(found) = self.of(passed + 1) {
                *found = 0;
            }
        }
        self.second = self.second.max(second);
    }

    fn of(&mut self, second: u64) -> Option<&mut u64> {
        let place = (second % (SPAN + 1)) as usize;
        self.found.get_mut(place)
    }

    fn found(&self, second: u64) -> u64 {
        self.found.get((second % (SPAN + 1)) as usize).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(ms: u64) -> MonoTime {
        MonoTime(7_000_000_000_000) + Duration::from_millis(ms)
    }

    #[test]
    fn a_steady_stream_is_measured_as_what_it_is_however_often_it_is_looked_at() {
        for every_ms in [100, 1000, 2500, 5000] {
            let mut throughput = Throughput::default();
            for look in 1..=60_000 / every_ms {
                throughput.add(every_ms * 1000, at(look * every_ms));
            }
            assert_eq!(throughput.bytes_per_s(at(60_001)), 1_000_000, "every {every_ms} ms");
        }
    }

    #[test]
    fn what_is_found_counts_once_its_second_is_over_and_for_five_seconds() {
        let mut throughput = Throughput::default();
        throughput.add(5000, at(300));
        let measured: Vec<u64> =
            (0..7).map(|second| throughput.bytes_per_s(at(second * 1000 + 999))).collect();
        assert_eq!(measured, [0, 1000, 1000, 1000, 1000, 1000, 0]);
    }

    #[test]
    fn a_long_silence_is_measured_as_nothing() {
        let mut throughput = Throughput::default();
        for look in 0..50 {
            throughput.add(u64::MAX / 4, at(look * 100));
        }
        assert_eq!(throughput.bytes_per_s(at(5000)), u64::MAX / SPAN, "nor does it overflow");
        assert_eq!(throughput.bytes_per_s(at(3_600_000)), 0);
        throughput.add(5000, at(3_600_000));
        assert_eq!(throughput.bytes_per_s(at(3_601_000)), 1000);
    }
}
