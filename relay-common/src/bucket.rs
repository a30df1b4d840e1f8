//! The bandwidth limit of a session: a token bucket in the form of one word (GCRA, ITU-T I.371).
//!
//! The word is the *theoretical arrival time*: the time at which the bucket would be empty of debt again. A packet moves
//! it forward by its cost; a packet that would move it further than the burst ahead of now is over the limit. One word
//! means one compare-and-swap: exact with any number of CPUs, kernel and userspace on the same word, and nothing to
//! tear. Unit: 1/64 ns, so that a word lasts nine years of uptime and costs are exact enough at 1 GB/s.

use crate::word::{Word32, Word64};

/// Ticks of the bucket per nanosecond.
pub const TICKS_PER_NS: u64 = 64;

/// Fractional bits of [`Allowance::cost_per_byte`].
const COST_FRACTION_BITS: u32 = 18;

/// The smallest chargeable size in bytes: empty datagrams cost the host as much as small ones, so they are not free.
pub const MIN_CHARGED_BYTES: u32 = 64;

/// The smallest rate that can be expressed, in bytes per second: below it, the cost of a large datagram would overflow.
pub const MIN_BYTES_PER_S: u64 = 64;

/// Up to this payload size in bytes a packet may use the last eighth of the burst: acknowledgements and handshakes pass
/// where bulk data no longer does, so one side's flood does not silence the other.
pub const SMALL_PACKET_BYTES: u32 = 256;

/// How often a lost race for the word is tried again.
pub const MAX_TRIES: u32 = 8;

/// Steps of 2^20 ns (1.05 ms) between two marks while the bucket is moderately full: about 100 ms.
const MARK_PAUSE_STEPS: u32 = 95;

/// Rate and burst as the packet path needs them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Cost of one byte in ticks, times 2^18, rounded up. 0: unlimited.
    pub cost_per_byte: u64,
    /// How far ahead of now the word may be, in ticks.
    pub burst: u64,
}

impl Allowance {
    /// No limit.
    pub const UNLIMITED: Allowance = Allowance { cost_per_byte: 0, burst: 0 };

    /// The shortest burst in nanoseconds: two ticks of the coarse clock at 250 Hz. A shorter one would grant less than
    /// the rate, since the clock stands still in between.
    pub const MIN_BURST_NS: u64 = 8_000_000;

    /// The longest burst in nanoseconds: keeps every product of the marking ramp within 64 bits.
    pub const MAX_BURST_NS: u64 = 60_000_000_000;

    /// The allowance of `bytes_per_s` (0: unlimited; at least [`MIN_BYTES_PER_S`]) with a burst worth `burst_bytes`,
    /// held between [`Allowance::MIN_BURST_NS`] and [`Allowance::MAX_BURST_NS`].
    pub fn new(bytes_per_s: u64, burst_bytes: u64) -> Allowance {
        if bytes_per_s == 0 {
            return Allowance::UNLIMITED;
        }
        let rate = u128::from(bytes_per_s.max(MIN_BYTES_PER_S));
        let ticks_per_s = u128::from(1_000_000_000 * TICKS_PER_NS);
        let cost = (ticks_per_s << COST_FRACTION_BITS).div_ceil(rate);
        let burst = u128::from(burst_bytes) * ticks_per_s / rate;
        let bounds =
            (u128::from(Self::MIN_BURST_NS * TICKS_PER_NS), u128::from(Self::MAX_BURST_NS * TICKS_PER_NS));
        Allowance {
            // At the smallest rate this is 2.7e14, and the burst is bounded just above: both fit.
            cost_per_byte: cost as u64,
            burst: burst.clamp(bounds.0, bounds.1) as u64,
        }
    }

    /// The cost of a datagram with `payload` bytes, in ticks, rounded up.
    #[inline(always)]
    pub const fn cost(self, payload: u32) -> u64 {
        let bytes = if payload < MIN_CHARGED_BYTES { MIN_CHARGED_BYTES } else { payload } as u64;
        (bytes.wrapping_mul(self.cost_per_byte).wrapping_add((1 << COST_FRACTION_BITS) - 1))
            >> COST_FRACTION_BITS
    }
}

/// The verdict on one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charge {
    /// Within the limit; charged.
    Conforming,
    /// Within the limit and charged, but the bucket is filling: tell the sender by a CE mark, if the packet can bear it.
    Marked,
    /// Over the limit; not charged.
    Over,
    /// The word changed under every try; not charged.
    Contended,
}

/// A session's bucket, borrowed from its slot.
pub struct Bucket<'a> {
    /// Theoretical arrival time in ticks.
    pub arrival: &'a Word64,
    /// When a packet was marked last, in steps of 2^20 ns, wrapping.
    pub marked_at: &'a Word32,
    /// The session's allowance.
    pub allowance: Allowance,
}

impl Bucket<'_> {
    /// Charges a datagram of `payload` bytes at `now` (nanoseconds). `markable`: its IP header says that the sender
    /// understands marks.
    #[inline(always)]
    pub fn charge(&self, payload: u32, markable: bool, now: u64) -> Charge {
        if self.allowance.cost_per_byte == 0 {
            return Charge::Conforming;
        }
        let cost = self.allowance.cost(payload);
        let burst = self.allowance.burst;
        let ceiling = if payload > SMALL_PACKET_BYTES { burst - (burst >> 3) } else { burst };
        let now_ticks = now.wrapping_mul(TICKS_PER_NS);
        let mut arrival = self.arrival.load();
        let mut tries = 0;
        while tries < MAX_TRIES {
            let start = if arrival > now_ticks { arrival } else { now_ticks };
            let next = start.wrapping_add(cost);
            let level = next.wrapping_sub(now_ticks);
            if level > ceiling {
                return Charge::Over;
            }
            match self.arrival.replace(arrival, next) {
                Ok(()) if markable && self.marks(level, next, now) => return Charge::Marked,
                Ok(()) => return Charge::Conforming,
                Err(found) => arrival = found,
            }
            tries += 1;
        }
        Charge::Contended
    }

    /// Whether a packet that filled the bucket to `level` is marked: above a quarter of the burst one packet per 100 ms,
    /// above five eighths with a probability that rises to 1 at the top.
    #[inline(always)]
    fn marks(&self, level: u64, arrival: u64, now: u64) -> bool {
        let burst = self.allowance.burst;
        if level <= burst >> 2 {
            return false;
        }
        let step = (now >> 20) as u32;
        if step.wrapping_sub(self.marked_at.load()) >= MARK_PAUSE_STEPS {
            self.marked_at.store(step);
            return true;
        }
        let ramp_start = (burst >> 1) + (burst >> 3);
        if level <= ramp_start {
            return false;
        }
        // The ramp needs chance, not secrecy: the word's low bits, mixed, serve kernel and host alike.
        let chance = arrival.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
        let ramp = burst - ramp_start;
        (level - ramp_start) << 16 > ramp.wrapping_mul(chance)
    }
}

#[cfg(not(target_arch = "bpf"))]
impl Allowance {
    /// The bytes per second it grants; none: it is unlimited. Rates of up to 100 MB/s come out as they were given, larger ones
    /// to seven digits.
    pub fn bytes_per_s(self) -> Option<u64> {
        let ticks_per_s = u128::from(1_000_000_000 * TICKS_PER_NS) << COST_FRACTION_BITS;
        let cost = u128::from(self.cost_per_byte);
        // To the nearest: the cost is rounded.
        ((ticks_per_s * 2).checked_div(cost)?.saturating_add(1) / 2).try_into().ok()
    }

    /// How many bytes so many ticks are worth; none: it is unlimited.
    pub fn bytes(self, ticks: u64) -> Option<u64> {
        (u128::from(ticks) << COST_FRACTION_BITS).checked_div(u128::from(self.cost_per_byte))?.try_into().ok()
    }

    /// The ticks that are left at `now` (ns) of the burst of a bucket that stands at `arrival`.
    pub fn left(self, arrival: u64, now: u64) -> u64 {
        self.burst.saturating_sub(arrival.saturating_sub(now.wrapping_mul(TICKS_PER_NS)))
    }

    /// The word of a bucket that goes on with the allowance `new` at `now` (ns): what is left of the burst stays left, in
    /// bytes, as far as the new burst holds it.
    ///
    /// So over any interval, and whatever changes fall into it, a bucket grants no more than the sum of rate x time over
    /// the pieces between the changes, and the burst of the piece it begins in: what is left when the interval begins is
    /// at most that burst, each piece adds at most its rate x time, and a change adds nothing.
    pub fn carry(self, arrival: u64, new: Allowance, now: u64) -> u64 {
        if self.cost_per_byte == 0 || new.cost_per_byte == 0 {
            // Nothing was charged, or nothing will be.
            return 0;
        }
        let now_ticks = now.wrapping_mul(TICKS_PER_NS);
        let level = arrival.saturating_sub(now_ticks);
        let Some(left) = self.burst.checked_sub(level) else {
            // Charged by the clock of one who is ahead of `now`: nothing is left, and will be for that time.
            return now_ticks.saturating_add(new.burst).saturating_add(level - self.burst);
        };
        // Below 2^42 x 2^48: no overflow. Rounded down, as it is left.
        let left = u128::from(left) * u128::from(new.cost_per_byte) / u128::from(self.cost_per_byte);
        let left = u64::try_from(left).unwrap_or(u64::MAX).min(new.burst);
        now_ticks.saturating_add(new.burst - left)
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    extern crate std;
    use super::{Allowance, Charge, MIN_BYTES_PER_S, MIN_CHARGED_BYTES, SMALL_PACKET_BYTES};
    use crate::slot::Slot;
    use proptest::prelude::{Just, Strategy, prop_assert, prop_oneof, proptest};
    use std::vec::Vec;

    struct Session(Slot);

    impl Session {
        fn new(bytes_per_s: u64, burst_bytes: u64) -> Session {
            let session = Session(Slot::default());
            session.change(bytes_per_s, burst_bytes, 0);
            session
        }

        fn change(&self, bytes_per_s: u64, burst_bytes: u64, now: u64) {
            self.0.set_allowance(Allowance::new(bytes_per_s, burst_bytes), now);
        }

        fn charge(&self, payload: u32, now: u64) -> Charge {
            self.0.bucket().charge(payload, false, now)
        }

        fn charge_markable(&self, payload: u32, now: u64) -> Charge {
            self.0.bucket().charge(payload, true, now)
        }

        fn burst(&self) -> u64 {
            self.0.bucket().allowance.burst
        }
    }

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn an_allowance_tells_the_rate_it_was_made_of_and_what_is_left_of_a_burst() {
        for rate in [64, 1000, 1_048_576, 1_250_000, 99_999_999] {
            assert_eq!(Allowance::new(rate, 65_536).bytes_per_s(), Some(rate));
        }
        let fast = Allowance::new(12_500_000_000, 1 << 30).bytes_per_s().unwrap();
        assert!(fast.abs_diff(12_500_000_000) < 12_500, "{fast}");
        assert_eq!(Allowance::UNLIMITED.bytes_per_s(), None);
        assert_eq!(Allowance::UNLIMITED.bytes(1), None);
        let session = Session::new(1_000_000, 250_000);
        let left = |session: &Session| {
            let allowance = session.0.bucket().allowance;
            allowance.bytes(allowance.left(session.0.arrival.load(), SECOND)).unwrap()
        };
        assert_eq!(left(&session), 250_000);
        assert_eq!(session.charge(1200, SECOND), Charge::Conforming);
        assert!(left(&session).abs_diff(248_800) <= 1, "{}", left(&session));
        while session.charge(64, SECOND) == Charge::Conforming {}
        assert!(left(&session) < 64);
    }

    #[test]
    fn a_limit_of_zero_is_no_limit() {
        let session = Session::new(0, 0);
        for _ in 0..1000 {
            assert_eq!(session.charge(65_507, SECOND), Charge::Conforming);
        }
    }

    #[test]
    fn a_full_bucket_grants_the_burst_and_then_the_rate() {
        let session = Session::new(1_000_000, 250_000);
        let burst = (0..).take_while(|_| session.charge(200, SECOND) == Charge::Conforming).count();
        assert_eq!(burst, 250_000 / 200);
        let later = SECOND + SECOND / 10;
        let refill = (0..).take_while(|_| session.charge(200, later) == Charge::Conforming).count();
        assert_eq!(refill, 100_000 / 200);
    }

    #[test]
    fn large_packets_leave_the_last_eighth_to_small_ones() {
        let session = Session::new(1_000_000, 80_000);
        while session.charge(SMALL_PACKET_BYTES + 1, SECOND) == Charge::Conforming {}
        assert_eq!(session.charge(1200, SECOND), Charge::Over);
        assert_eq!(session.charge(SMALL_PACKET_BYTES, SECOND), Charge::Conforming);
    }

    #[test]
    fn an_empty_datagram_is_not_free() {
        let session = Session::new(64_000, 64 * 1024);
        let passed = (0..100_000).filter(|_| session.charge(0, SECOND) == Charge::Conforming).count();
        assert_eq!(passed, 64 * 1024 / MIN_CHARGED_BYTES as usize);
    }

    #[test]
    fn a_higher_rate_grants_at_once_what_was_left_and_no_more() {
        let session = Session::new(1_000, 50_000);
        for _ in 0..400 {
            assert_eq!(session.charge(100, SECOND), Charge::Conforming);
        }
        session.change(1_000_000, 64_000, SECOND);
        let left = (0..).take_while(|_| session.charge(100, SECOND) == Charge::Conforming).count();
        assert_eq!(left, 100);
        assert_eq!(session.charge(100, SECOND + 1_000_000), Charge::Conforming, "and then the new rate");
    }

    #[test]
    fn a_lower_rate_and_burst_leave_no_debt_to_wait_for() {
        let session = Session::new(1_000_000, 250_000);
        while session.charge(100, SECOND) == Charge::Conforming {}
        session.change(1_000, 10_000, SECOND);
        assert_eq!(session.charge(100, SECOND), Charge::Over);
        assert_eq!(session.charge(100, SECOND + 101_000_000), Charge::Conforming);
    }

    #[test]
    fn a_change_told_late_takes_the_time_of_those_who_were_ahead() {
        let session = Session::new(1_000_000, 250_000);
        let ahead = SECOND + 4_000_000;
        while session.charge(100, ahead) == Charge::Conforming {}
        session.change(100_000, 250_000, SECOND);
        assert_eq!(session.charge(100, ahead), Charge::Over);
        assert_eq!(session.charge(100, ahead + 1_100_000), Charge::Conforming);
    }

    #[test]
    fn nothing_is_marked_below_a_quarter_of_the_burst() {
        let session = Session::new(1_000_000, 250_000);
        for _ in 0..(250_000 / 4 / 1000) {
            assert_eq!(session.charge_markable(1000, SECOND), Charge::Conforming);
        }
        assert_eq!(session.charge_markable(1000, SECOND), Charge::Marked);
        assert_eq!(session.charge_markable(1000, SECOND), Charge::Conforming);
    }

    #[test]
    fn marks_grow_denser_towards_the_top_of_the_burst() {
        let session = Session::new(100_000_000, 25_000_000);
        let verdicts: Vec<Charge> = (0..25_000).map(|_| session.charge_markable(1000, SECOND)).collect();
        let marks = |from: usize, to: usize| {
            verdicts[from * 250..to * 250].iter().filter(|v| **v == Charge::Marked).count()
        };
        assert_eq!(marks(0, 24), 0);
        assert_eq!(marks(26, 62), 0, "one per 100 ms, and this took no time");
        let (low, high) = (marks(63, 70), marks(80, 87));
        assert!(low > 50 && high > 2 * low, "{low} then {high}");
    }

    #[test]
    fn an_unmarkable_packet_is_never_marked() {
        let session = Session::new(1_000_000, 250_000);
        let marked = (0..1000).filter(|_| session.charge(1000, SECOND) == Charge::Marked).count();
        assert_eq!(marked, 0);
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Packet { payload: u32 },
        Change { rate: u64, burst_bytes: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        let rate = prop_oneof![1 => Just(0), 3 => 1u64..10_000, 4 => 10_000u64..10_000_000, 2 => 64u64..2_000_000_000];
        prop_oneof![
            8 => (0u32..2000).prop_map(|payload| Step::Packet { payload }),
            1 => (0u32..65_508).prop_map(|payload| Step::Packet { payload }),
            2 => (rate, 1u64..1_000_000).prop_map(|(rate, burst_bytes)| Step::Change { rate, burst_bytes }),
        ]
    }

    /// The time between two changes: rate in bytes per second, burst in ticks, and how many unlimited pieces there were.
    #[derive(Clone, Copy, Debug)]
    struct Piece {
        rate: u128,
        burst: u128,
        unlimited_before: u32,
    }

    proptest! {
        /// Over any interval that begins and ends with a packet: no more than rate x time + burst.
        #[test]
        fn never_grants_more_than_rate_times_time_plus_burst(
            rate in 64u64..2_000_000_000,
            burst_bytes in 1u64..10_000_000,
            packets in proptest::collection::vec((0u64..50_000_000, 0u32..65_508), 1..200),
        ) {
            let session = Session::new(rate, burst_bytes);
            let mut now = SECOND;
            let mut granted: Vec<(u64, u64)> = Vec::new();
            for (pause, payload) in packets {
                now += pause;
                if session.charge(payload, now) != Charge::Over {
                    granted.push((now, u64::from(payload.max(MIN_CHARGED_BYTES))));
                }
            }
            let burst_ticks = u128::from(session.burst());
            for first in 0..granted.len() {
                let mut bytes = 0u128;
                for last in first..granted.len() {
                    bytes += u128::from(granted[last].1);
                    let ticks = u128::from(granted[last].0 - granted[first].0) * 64 + burst_ticks;
                    // bytes <= rate x ticks / ticks per second, in exact arithmetic
                    prop_assert!(bytes * 64 * u128::from(SECOND) <= u128::from(rate) * ticks);
                }
            }
        }

        /// Over any interval that begins and ends with a packet, with changes of rate and burst in between: no more than
        /// rate x time over the pieces, and the burst of the piece it begins in.
        #[test]
        fn never_grants_more_whatever_changes_in_between(
            steps in proptest::collection::vec((0u64..20_000_000, step()), 1..200),
        ) {
            let session = Session::new(1_000_000, 250_000);
            let mut now = SECOND;
            let mut piece = Piece { rate: 1_000_000, burst: u128::from(session.burst()), unlimited_before: 0 };
            // Rate x time of all pieces so far.
            let mut earned = 0u128;
            let mut granted: Vec<(Piece, u128, u128)> = Vec::new();
            for (pause, step) in steps {
                now += pause;
                earned += piece.rate * u128::from(pause) * 64;
                match step {
                    Step::Change { rate, burst_bytes } => {
                        session.change(rate, burst_bytes, now);
                        let unlimited_before = piece.unlimited_before + u32::from(rate == 0);
                        let rate = if rate == 0 { 0 } else { u128::from(rate.max(MIN_BYTES_PER_S)) };
                        piece = Piece { rate, burst: u128::from(session.burst()), unlimited_before };
                    }
                    Step::Packet { payload } if session.charge(payload, now) == Charge::Conforming => {
                        granted.push((piece, earned, u128::from(payload.max(MIN_CHARGED_BYTES))));
                    }
                    Step::Packet { .. } => prop_assert!(piece.rate != 0, "no limit refuses nothing"),
                }
            }
            for first in 0..granted.len() {
                let (piece, earned_before, _) = granted[first];
                let mut bytes = 0u128;
                for (last, earned, payload) in granted[first..].iter().copied() {
                    if piece.rate == 0 || last.unlimited_before != piece.unlimited_before {
                        break;
                    }
                    bytes += payload;
                    // bytes <= sum of rate x time + rate x burst, times the ticks of a second, in exact arithmetic
                    let most = earned - earned_before + piece.rate * piece.burst;
                    prop_assert!(bytes * 64 * u128::from(SECOND) <= most, "{bytes} of {most}");
                }
            }
        }

        /// A change takes nothing away but what the new burst does not hold.
        #[test]
        fn a_change_leaves_what_was_left(
            rates in (100u64..100_000_000, 100u64..100_000_000),
            bursts in (1u64..1_000_000, 1u64..1_000_000),
            spent in 0u32..4000,
        ) {
            let left = |session: &Session| {
                (0..).take_while(|_| session.charge(SMALL_PACKET_BYTES, SECOND) == Charge::Conforming).count()
            };
            let spent_session = || {
                let session = Session::new(rates.0, bursts.0);
                for _ in 0..spent {
                    session.charge(SMALL_PACKET_BYTES, SECOND);
                }
                session
            };
            let before = left(&spent_session());
            let held = left(&Session::new(rates.1, bursts.1));
            let session = spent_session();
            session.change(rates.1, bursts.1, SECOND);
            let after = left(&session);
            let expected = before.min(held);
            prop_assert!(after <= expected + 1 && after + 1 >= expected, "{after} of {before}, {held}");
        }

        /// A sender that always has data gets the rate, less one packet.
        #[test]
        fn grants_the_rate_to_a_backlogged_sender(rate in 65_536u64..1_000_000_000, payload in 64u32..1400) {
            let session = Session::new(rate, rate / 4);
            let mut granted = 0u64;
            let step = 1_000_000;
            let mut now = SECOND;
            while now < 2 * SECOND {
                while session.charge(payload, now) == Charge::Conforming { granted += u64::from(payload); }
                now += step;
            }
            let least = u128::from(rate) * 998 / 1000;
            prop_assert!(u128::from(granted) + 2 * u128::from(payload) >= least, "{granted} of {rate}");
        }
    }
}
