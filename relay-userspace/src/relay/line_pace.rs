//! How many lines of one kind the log takes: whoever can make the relay write lines must not fill the disk with them.

use std::time::Duration;

use crate::clock::MonoTime;

/// Lines of one kind. So many a second are written; of the others the next one says how many there were.
#[derive(Debug, Default)]
pub struct LinePace {
    second: Option<MonoTime>,
    written: u32,
    left_out: u64,
}

/// More come only when somebody makes them come: an agent connects once in a long while.
const LINES_PER_SECOND: u32 = 100;

impl LinePace {
    /// If one more is to be written: how many were left out since the last one.
    pub fn take(&mut self, now: MonoTime) -> Option<u64> {
        if self.second.is_none_or(|second| now.since(second) >= Duration::from_secs(1)) {
            (self.second, self.written) = (Some(now), 0);
        }
        if self.written >= LINES_PER_SECOND {
            self.left_out += 1;
            return None;
        }
        self.written += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_a_hundred_a_second_are_left_out_and_the_next_one_says_how_many() {
        let mut pace = LinePace::default();
        let at = |ms: u64| MonoTime(7) + Duration::from_millis(ms);
        let written = (0..250).filter(|number| pace.take(at(*number)).is_some()).count();
        assert_eq!(written, 100);
        assert_eq!(pace.take(at(999)), None);
        assert_eq!(pace.take(at(1000)), Some(151));
        assert_eq!(pace.take(at(1000)), Some(0));
    }
}
