//! Who is kept out of control's socket for a while, and until when: pure.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use crate::clock::MonoTime;

/// For so long at least. Who floods on is found again by what its share lets through, once in this time.
pub const KEPT_OUT: Duration = Duration::from_secs(10);

/// One is let in again at a time, this long after the one before it: not all of a flood at once.
pub const BETWEEN: Duration = Duration::from_millis(100);

/// So many at once. The kernel compares every datagram for control with all of them, which takes less than receiving it.
pub const MAX_KEPT_OUT: usize = 128;

/// Sources kept out of one socket.
#[derive(Debug, Default)]
pub struct KeptOut {
    /// With the time from which each may be let in, the earliest first.
    sources: VecDeque<(SocketAddr, MonoTime)>,
    let_in_from: MonoTime,
    /// Whether the kernel has not been told yet.
    changed: bool,
    told: MonoTime,
}

impl KeptOut {
    /// Keeps `source` out from now on, if there is a place for it.
    pub fn add(&mut self, source: SocketAddr, now: MonoTime) {
        if self.sources.len() < MAX_KEPT_OUT && self.sources.iter().all(|(other, _)| *other != source) {
            self.sources.push_back((source, now + KEPT_OUT));
            self.changed = true;
        }
    }

    /// Whom to keep out from now on, if the kernel is to be told: at most once a tick of the clock.
    pub fn change(&mut self, now: MonoTime) -> Option<impl ExactSizeIterator<Item = SocketAddr>> {
        if self.let_in_at().is_some_and(|at| at <= now) {
            self.sources.pop_front();
            self.let_in_from = now + BETWEEN;
            self.changed = true;
        }
        if !self.changed || self.told >= now {
            return None;
        }
        (self.changed, self.told) = (false, now);
        Some(self.sources.iter().map(|(source, _)| *source))
    }

    /// The kernel could not be told at `now`: it is to be told again a while later.
    pub fn again(&mut self, now: MonoTime) {
        (self.changed, self.told) = (true, now + BETWEEN);
    }

    /// When [`KeptOut::change`] is to be asked next, if nobody is added.
    pub fn next_change(&self) -> Option<MonoTime> {
        if self.changed { Some(self.told) } else { self.let_in_at() }
    }

    fn let_in_at(&self) -> Option<MonoTime> {
        self.sources.front().map(|(_, until)| (*until).max(self.let_in_from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(4);
    const START: MonoTime = MonoTime(5_000_000_000);

    fn source(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    /// The ports of those who are kept out, if the kernel is to be told.
    fn told(kept_out: &mut KeptOut, now: MonoTime) -> Option<Vec<u16>> {
        kept_out.change(now).map(|sources| sources.map(|source| source.port()).collect())
    }

    #[test]
    fn the_kernel_is_told_of_a_change_once_and_once_a_tick() {
        let mut kept_out = KeptOut::default();
        assert_eq!((told(&mut kept_out, START), kept_out.next_change()), (None, None));
        kept_out.add(source(1), START);
        kept_out.add(source(1), START);
        assert_eq!(told(&mut kept_out, START), Some(vec![1]));
        assert_eq!(told(&mut kept_out, START + TICK), None);
        kept_out.add(source(2), START + TICK);
        kept_out.add(source(1), START + TICK);
        assert_eq!(told(&mut kept_out, START + TICK), Some(vec![1, 2]));
        kept_out.add(source(3), START + TICK);
        assert_eq!(told(&mut kept_out, START + TICK), None, "not twice in a tick");
        assert!(kept_out.next_change() <= Some(START + TICK), "but in the next");
        assert_eq!(told(&mut kept_out, START + TICK + TICK), Some(vec![1, 2, 3]));
    }

    #[test]
    fn what_the_kernel_could_not_be_told_is_told_again_a_while_later() {
        let mut kept_out = KeptOut::default();
        kept_out.add(source(1), START);
        assert_eq!(told(&mut kept_out, START), Some(vec![1]));
        kept_out.again(START);
        assert_eq!(
            (told(&mut kept_out, START + TICK), kept_out.next_change()),
            (None, Some(START + BETWEEN))
        );
        assert_eq!(told(&mut kept_out, START + BETWEEN + TICK), Some(vec![1]));
    }

    #[test]
    fn all_are_let_in_again_one_after_the_other() {
        let mut kept_out = KeptOut::default();
        (1..=3).for_each(|port| kept_out.add(source(port), START));
        assert_eq!(told(&mut kept_out, START), Some(vec![1, 2, 3]));
        let first = START + KEPT_OUT;
        assert_eq!(
            (told(&mut kept_out, START + (KEPT_OUT - TICK)), kept_out.next_change()),
            (None, Some(first))
        );
        assert_eq!(told(&mut kept_out, first), Some(vec![2, 3]));
        assert_eq!(
            (told(&mut kept_out, first + TICK), kept_out.next_change()),
            (None, Some(first + BETWEEN))
        );
        assert_eq!(told(&mut kept_out, first + BETWEEN), Some(vec![3]));
        assert_eq!(told(&mut kept_out, first + BETWEEN * 2), Some(vec![]));
        assert_eq!(kept_out.next_change(), None);
    }

    #[test]
    fn their_number_is_bounded() {
        let mut kept_out = KeptOut::default();
        (1..=1000).for_each(|port| kept_out.add(source(port), START));
        assert_eq!(told(&mut kept_out, START).map(|ports| ports.len()), Some(MAX_KEPT_OUT));
    }
}
