//! When which packet leaves one direction of a delay line. Pure: time and the seed of chance are parameters.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What one direction of a line does to its packets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conditions {
    /// Every packet takes this long, or longer.
    pub delay: Duration,
    /// And up to this much more, evenly spread. Packets keep their order all the same.
    pub jitter: Duration,
    /// The share of packets that are lost.
    pub loss: f64,
    /// The share of packets that are held back, so that others overtake them.
    pub reordering: f64,
    /// How much longer such a packet takes.
    pub held_back: Duration,
    /// How many bytes may be under way. What finds no room is dropped.
    pub room_bytes: usize,
}

impl Default for Conditions {
    /// A line that takes no time.
    fn default() -> Self {
        Conditions {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: 0.0,
            reordering: 0.0,
            held_back: Duration::from_millis(5),
            room_bytes: 64 << 20,
        }
    }
}

impl Conditions {
    /// A line that only takes time.
    pub fn delay(delay: Duration) -> Self {
        Conditions { delay, ..Conditions::default() }
    }

    /// Whether packets fare differently: then the line must be given single packets, not segments in one.
    pub fn tell_packets_apart(&self) -> bool {
        !self.jitter.is_zero() || self.loss > 0.0 || self.reordering > 0.0
    }
}

/// What has become of one direction's packets. Segments that came as one count as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Came out at the other end.
    pub carried: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Held back by chance.
    pub held_back: u64,
    /// Dropped for want of room.
    pub overflowed: u64,
    /// Dropped because the system did not take them at the other end.
    pub refused: u64,
}

/// The packets under way in one direction.
#[derive(Debug)]
pub struct DelayQueue<P> {
    conditions: Conditions,
    chance: Chance,
    /// Both by departure: in each the next to leave is the first.
    in_order: VecDeque<Waiting<P>>,
    held_back: VecDeque<Waiting<P>>,
    waiting_bytes: usize,
    latest: Option<Instant>,
    counts: Counts,
}

#[derive(Debug)]
struct Waiting<P> {
    departure: Instant,
    bytes: usize,
    packet: P,
}

impl<P> DelayQueue<P> {
    /// An empty line. What chance decides follows from `seed` and the order of packets alone.
    pub fn new(conditions: Conditions, seed: u64) -> Self {
        DelayQueue {
            conditions,
            chance: Chance(seed),
            in_order: VecDeque::new(),
            held_back: VecDeque::new(),
            waiting_bytes: 0,
            latest: None,
            counts: Counts::default(),
        }
    }

    /// Takes a packet of `bytes` that arrives at `now`. Times must not decrease.
    pub fn offer(&mut self, packet: P, bytes: usize, now: Instant) {
        // Always the same number of draws for a packet, so that one condition's chance does not change another's.
        let [loss, reordering, jitter] = [self.chance.draw(), self.chance.draw(), self.chance.draw()];
        if loss < self.conditions.loss {
            self.counts.lost += 1;
            return;
        }
        if bytes > self.conditions.room_bytes.saturating_sub(self.waiting_bytes) {
            self.counts.overflowed += 1;
            return;
        }
        self.waiting_bytes += bytes;
        let departure = now + self.conditions.delay + self.conditions.jitter.mul_f64(jitter);
        let departure = self.latest.map_or(departure, |latest| latest.max(departure));
        self.latest = Some(departure);
        if reordering < self.conditions.reordering {
            self.counts.held_back += 1;
            let departure = departure + self.conditions.held_back;
            self.held_back.push_back(Waiting { departure, bytes, packet });
        } else {
            self.in_order.push_back(Waiting { departure, bytes, packet });
        }
    }

    /// When the next packet leaves.
    pub fn next_departure(&self) -> Option<Instant> {
        let fronts = [self.in_order.front(), self.held_back.front()];
        fronts.into_iter().flatten().map(|waiting| waiting.departure).min()
    }

    /// The next packet that leaves at `now` or before.
    pub fn take_due(&mut self, now: Instant) -> Option<P> {
        let next = self.next_departure().filter(|departure| *departure <= now)?;
        let from = match self.in_order.front() {
            Some(first) if first.departure == next => &mut self.in_order,
            _ => &mut self.held_back,
        };
        let Waiting { bytes, packet, .. } = from.pop_front()?;
        self.waiting_bytes -= bytes;
        self.counts.carried += 1;
        Some(packet)
    }

    /// The packet that was taken last did not get out.
    pub fn refused(&mut self) {
        self.counts.carried -= 1;
        self.counts.refused += 1;
    }

    /// What has become of the packets so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }
}

/// SplitMix64: good enough for chance, and the same on every run.
#[derive(Debug)]
struct Chance(u64);

impl Chance {
    /// A number from 0 to 1, without 1.
    fn draw(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        (mixed >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_packet_leaves_after_the_delay_and_not_before() {
        let start = Instant::now();
        let mut queue = DelayQueue::new(Conditions::delay(20 * MS), 1);
        queue.offer("first", 100, start);
        queue.offer("second", 100, start + 3 * MS);

        assert_eq!(queue.next_departure(), Some(start + 20 * MS));
        assert_eq!(queue.take_due(start + 20 * MS - Duration::from_nanos(1)), None);
        assert_eq!(queue.take_due(start + 20 * MS), Some("first"));
        assert_eq!(queue.take_due(start + 20 * MS), None);
        assert_eq!(queue.take_due(start + 23 * MS), Some("second"));
        assert_eq!((queue.next_departure(), queue.counts().carried), (None, 2));
    }

    #[test]
    fn jitter_spreads_packets_over_its_span_and_keeps_their_order() {
        let conditions = Conditions { jitter: 10 * MS, ..Conditions::delay(20 * MS) };
        // Apart by more than the jitter, so that each shows its own.
        let times = travel(conditions, 1_000, 11 * MS);
        let spent: Vec<Duration> =
            times.iter().map(|(number, left)| *left - *number as u32 * 11 * MS).collect();
        assert!(spent.iter().all(|spent| (20 * MS..30 * MS).contains(spent)));
        let mean = spent.iter().sum::<Duration>() / 1_000;
        assert!(mean.abs_diff(25 * MS) < MS, "{mean:?}");
        assert!(spent.iter().min().unwrap() < &(21 * MS) && spent.iter().max().unwrap() > &(29 * MS));

        let close_together = travel(conditions, 1_000, MS / 10);
        assert!(close_together.iter().map(|(number, _)| *number).eq(0..1_000), "in order");
    }

    #[test]
    fn the_stated_share_is_lost_and_the_same_packets_with_the_same_seed() {
        let conditions = Conditions { loss: 0.1, ..Conditions::default() };
        let arrived = travel(conditions, 100_000, MS);
        // Four standard deviations of 95.
        assert!(arrived.len().abs_diff(90_000) < 380, "{} arrived", arrived.len());
        assert_eq!(travel(conditions, 100_000, MS), arrived);
    }

    #[test]
    fn other_conditions_do_not_change_which_packets_are_lost() {
        let numbers = |conditions| -> Vec<usize> {
            let mut numbers: Vec<_> = travel(conditions, 1_000, MS).into_iter().map(|(n, _)| n).collect();
            numbers.sort_unstable();
            numbers
        };
        let alone = Conditions { loss: 0.1, ..Conditions::default() };
        let together = Conditions { jitter: 5 * MS, reordering: 0.2, ..alone };
        assert_eq!(numbers(alone), numbers(together));
    }

    #[test]
    fn the_stated_share_is_held_back_and_overtaken() {
        let conditions = Conditions { reordering: 0.05, held_back: 5 * MS, ..Conditions::delay(20 * MS) };
        let times = travel(conditions, 100_000, MS);
        assert_eq!(times.len(), 100_000);
        let late: Vec<_> =
            times.iter().filter(|(number, left)| *left > *number as u32 * MS + 20 * MS).collect();
        assert!(late.iter().all(|(number, left)| *left == *number as u32 * MS + 25 * MS));
        assert!(late.len().abs_diff(5_000) < 280, "{} were held back", late.len());
        let overtaken = times.windows(2).filter(|pair| pair[0].0 > pair[1].0).count();
        assert!(overtaken > 4_000, "{overtaken} were overtaken");
    }

    #[test]
    fn what_finds_no_room_is_dropped_and_counted() {
        let start = Instant::now();
        let mut queue = DelayQueue::new(Conditions { room_bytes: 1_000, ..Conditions::delay(MS) }, 1);
        for number in 0..4 {
            queue.offer(number, 400, start);
        }
        queue.offer(4, 200, start);
        assert_eq!(queue.counts().overflowed, 2);
        let left: Vec<_> = std::iter::from_fn(|| queue.take_due(start + MS)).collect();
        assert_eq!(left, [0, 1, 4]);
        queue.offer(5, 1_000, start + MS);
        assert_eq!(queue.counts().overflowed, 2, "there is room again");
    }

    #[test]
    fn a_packet_that_did_not_get_out_is_not_counted_as_carried() {
        let start = Instant::now();
        let mut queue = DelayQueue::new(Conditions::default(), 1);
        queue.offer((), 100, start);
        queue.take_due(start).unwrap();
        queue.refused();
        assert_eq!(queue.counts(), Counts { refused: 1, ..Counts::default() });
    }

    /// Sends `count` packets with `pause` between; gives number and time of departure, from the first packet's arrival.
    fn travel(conditions: Conditions, count: usize, pause: Duration) -> Vec<(usize, Duration)> {
        let start = Instant::now();
        let mut queue = DelayQueue::new(conditions, 4711);
        let mut left = Vec::new();
        let mut leave_until = |queue: &mut DelayQueue<usize>, until: Instant| {
            while let Some(departure) = queue.next_departure().filter(|departure| *departure <= until) {
                left.push((queue.take_due(departure).unwrap(), departure - start));
            }
        };
        for number in 0..count {
            let now = start + pause * number as u32;
            leave_until(&mut queue, now);
            queue.offer(number, 1_200, now);
        }
        leave_until(&mut queue, start + pause * count as u32 + Duration::from_secs(10));
        left
    }
}
