//! How many lines of one kind the log takes: whoever can make the relay write lines must not fill the disk with them.

use std::time::Duration;

use crate::clock::MonoTime;

/// Lines of one kind. So many a second are written; of the others the next one says how many there were.
#[derive(Debug)]
pub struct LinePace {
    per_second: u32,
    second: Option<MonoTime>,
    written: u32,
    left_out: u64,
}

impl LinePace {
    /// For what agents do. More lines come only when somebody makes them come: an agent connects once in a long while.
    pub const OF_EVENTS: LinePace = LinePace::new(100);

    /// For what the system refuses: what it has refused once it refuses again and again.
    pub const OF_FAULTS: LinePace = LinePace::new(1);

    const fn new(per_second: u32) -> LinePace {
        LinePace { per_second, second: None, written: 0, left_out: 0 }
    }

    /// Has `line` write its line if it is to be written, and before it how many were left out.
    pub fn write(&mut self, now: MonoTime, line: impl FnOnce()) {
        let Some(left_out) = self.take(now) else { return };
        if left_out > 0 {
            tracing::warn!(times = left_out, "lines like the next one were left out");
        }
        line();
    }

    /// If one more is to be written: how many were left out since the last one.
    fn take(&mut self, now: MonoTime) -> Option<u64> {
        if self.second.is_none_or(|second| now.since(second) >= Duration::from_secs(1)) {
            (self.second, self.written) = (Some(now), 0);
        }
        if self.written >= self.per_second {
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
        let mut pace = LinePace::OF_EVENTS;
        let at = |ms: u64| MonoTime(7) + Duration::from_millis(ms);
        let written = (0..250).filter(|number| pace.take(at(*number)).is_some()).count();
        assert_eq!(written, 100);
        assert_eq!(pace.take(at(999)), None);
        assert_eq!(pace.take(at(1000)), Some(151));
        assert_eq!(pace.take(at(1000)), Some(0));
    }

    #[test]
    fn what_the_system_refuses_again_and_again_is_said_once_a_second() {
        let mut pace = LinePace::OF_FAULTS;
        let mut written = Vec::new();
        for ms in (0..3_000).step_by(10) {
            pace.write(MonoTime(7) + Duration::from_millis(ms), || written.push(ms));
        }
        assert_eq!(written, [0, 1000, 2000]);
    }
}
