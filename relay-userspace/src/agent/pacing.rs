//! Sending no faster than the relay lets through.

use std::time::{Duration, Instant};

/// A model of the relay's bucket for one session: what it says may be sent passes the relay without loss.
///
/// Everything that rides in the session is charged, sent and received alike, because the relay's limit is for both
/// directions together. The rate is 1/64 below the relay's, so that clocks that run differently do not fill the relay's
/// bucket over hours; the burst is 1/8 of the relay's, below the quarter at which it begins to mark.
#[derive(Clone, Debug)]
pub struct Pacer {
    limit: Option<PacedLimit>,
    /// When everything charged so far has drained.
    drained_at: Instant,
}

#[derive(Clone, Copy, Debug)]
struct PacedLimit {
    bytes_per_s: u64,
    /// May be charged ahead before senders wait.
    tolerance: Duration,
    /// Is never charged ahead further: a peer that floods does not silence us for longer than this.
    most: Duration,
}

/// A datagram costs at least this many bytes, as it does in the relay's bucket.
pub const MIN_CHARGE_BYTES: u64 = 64;

/// Transmissions up to this many bytes never wait: acknowledgements and handshakes. The relay lets them use the upper
/// part of its bucket too.
pub const EXEMPT_BYTES: usize = 256;

impl Pacer {
    /// For a session limited to `bytes_per_s` (0: not at all) with `burst_bytes`.
    pub fn new(bytes_per_s: u64, burst_bytes: u64, now: Instant) -> Self {
        Pacer { limit: PacedLimit::of(bytes_per_s, burst_bytes), drained_at: now }
    }

    /// The relay has changed the limit. What was charged stays charged, at most the new burst of it.
    pub fn set_limit(&mut self, bytes_per_s: u64, burst_bytes: u64, now: Instant) {
        self.limit = PacedLimit::of(bytes_per_s, burst_bytes);
        if let Some(limit) = self.limit {
            self.drained_at = self.drained_at.min(now + limit.most);
        }
    }

    /// Counts `datagrams` with `bytes` of UDP payload in all.
    pub fn charge(&mut self, datagrams: u64, bytes: u64, now: Instant) {
        let Some(limit) = self.limit else { return };
        let cost = bytes.max(datagrams.saturating_mul(MIN_CHARGE_BYTES));
        let span = Duration::from_nanos(
            u64::try_from(u128::from(cost) * 1_000_000_000 / u128::from(limit.bytes_per_s))
                .unwrap_or(u64::MAX),
        );
        self.drained_at = (self.drained_at.max(now) + span.min(limit.most)).min(now + limit.most);
    }

    /// How long a sender of `bytes` has to wait; None: not at all.
    pub fn delay(&self, bytes: usize, now: Instant) -> Option<Duration> {
        let limit = self.limit?;
        if bytes <= EXEMPT_BYTES {
            return None;
        }
        let ahead = self.drained_at.saturating_duration_since(now);
        ahead.checked_sub(limit.tolerance).filter(|wait| !wait.is_zero())
    }
}

impl PacedLimit {
    fn of(bytes_per_s: u64, burst_bytes: u64) -> Option<Self> {
        if bytes_per_s == 0 {
            return None;
        }
        let bytes_per_s = (bytes_per_s - bytes_per_s / 64).max(1);
        let span = |bytes: u64| Duration::from_secs_f64(bytes as f64 / bytes_per_s as f64).min(LONGEST);
        let burst_bytes = burst_bytes.max(MIN_BURST_BYTES);
        Some(PacedLimit { bytes_per_s, tolerance: span(burst_bytes / 8), most: span(burst_bytes) })
    }
}

/// The relay's smallest burst.
const MIN_BURST_BYTES: u64 = 64 * 1024;

/// Rates of a few bytes a second are not worth longer memory than this.
const LONGEST: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_greedy_sender_gets_just_below_the_rate() {
        let start = Instant::now();
        let mut pacer = Pacer::new(MIB, MIB / 4, start);
        let (mut now, mut sent) = (start, 0);
        while now < start + Duration::from_secs(10) {
            match pacer.delay(14_520, now) {
                Some(wait) => now += wait,
                None => {
                    pacer.charge(10, 14_520, now);
                    sent += 14_520;
                }
            }
        }
        let limit = 10 * MIB;
        assert!(sent > limit * 97 / 100 && sent < limit, "{sent} of {limit}");
    }

    #[test]
    fn what_is_received_counts_too() {
        let now = Instant::now();
        let mut pacer = Pacer::new(MIB, MIB / 4, now);
        pacer.charge(100, 140_000, now);
        assert!(pacer.delay(1_452, now).unwrap() > Duration::from_millis(50));
    }

    #[test]
    fn small_datagrams_never_wait_but_are_charged_64_bytes() {
        let now = Instant::now();
        let mut pacer = Pacer::new(MIB, MIB / 4, now);
        pacer.charge(10_000, 0, now);
        assert_eq!(pacer.delay(EXEMPT_BYTES, now), None);
        assert!(pacer.delay(EXEMPT_BYTES + 1, now).is_some());
    }

    #[test]
    fn a_flood_does_not_block_for_longer_than_the_burst() {
        let now = Instant::now();
        let mut pacer = Pacer::new(MIB, MIB / 4, now);
        for _ in 0..1_000 {
            pacer.charge(1_000, MIB, now);
        }
        assert!(pacer.delay(1_452, now).unwrap() < Duration::from_millis(260));
        pacer.set_limit(100 * MIB, 25 * MIB, now);
        assert!(pacer.delay(1_452, now + Duration::from_millis(260)).is_none());
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        let now = Instant::now();
        let mut pacer = Pacer::new(0, 0, now);
        pacer.charge(1_000_000, u64::MAX, now);
        assert_eq!(pacer.delay(65_000, now), None);
    }
}
