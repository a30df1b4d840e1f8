//! The sign of life that a supervisor wants, with one line about the daemon. It comes only while the daemon's loop turns:
//! each is the answer to a question that the loop has answered.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::{Announcer, Supervision};
use crate::clock::MonoTime;

/// Asks the daemon's loop.
pub trait Ask: Send {
    /// One line about the daemon, once its loop comes to it. `None`: there is no loop any more.
    fn ask(&mut self) -> impl Future<Output = Option<String>> + Send;
}

/// What is told when.
#[derive(Debug)]
struct Pulse {
    watchdog: bool,
    /// The last line, and when it was told.
    told: Option<(String, MonoTime)>,
}

/// How often the line about the daemon may change.
const STATUS_EVERY: Duration = Duration::from_secs(10);

/// Tells the supervisor until the daemon's loop has ended. A loop that hangs is not spoken for.
pub fn keep_telling(supervision: &Supervision, daemon: impl Ask + 'static) {
    let (announcer, watchdog) = (supervision.announcer(), supervision.watchdog());
    if announcer.socket().is_some() {
        tokio::spawn(tell(announcer, watchdog, daemon));
    }
}

async fn tell(announcer: Announcer, watchdog: Option<Duration>, mut daemon: impl Ask) {
    let mut pulse = Pulse { watchdog: watchdog.is_some(), told: None };
    let period = watchdog.map_or(STATUS_EVERY, |period| period / 2).max(Duration::from_millis(1));
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(line) = daemon.ask().await else { return };
        if let Some(message) = pulse.answered(line, MonoTime::now()) {
            announcer.tell(&message);
        }
    }
}

impl Pulse {
    /// What to say once the loop has answered.
    fn answered(&mut self, line: String, now: MonoTime) -> Option<String> {
        // What stands in it must not look like another assignment.
        let line = line.replace('\n', " ");
        let renew = self.told.as_ref().is_none_or(|(told, at)| *told != line && now >= *at + STATUS_EVERY);
        let status = renew.then(|| format!("STATUS={line}"));
        if renew {
            self.told = Some((line, now));
        }
        let watchdog = self.watchdog.then(|| "WATCHDOG=1".to_owned());
        let said: Vec<String> = watchdog.into_iter().chain(status).collect();
        (!said.is_empty()).then(|| said.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;
    use crate::supervision::listener::Listener;

    fn at(seconds: u64) -> MonoTime {
        MonoTime(seconds * 1_000_000_000)
    }

    #[test]
    fn each_answer_is_a_sign_of_life_and_a_line_is_told_once_and_not_too_often() {
        let mut pulse = Pulse { watchdog: true, told: None };
        let mut answered = |line: &str, seconds| pulse.answered(line.to_owned(), at(seconds)).unwrap();
        assert_eq!(answered("idle", 100), "WATCHDOG=1\nSTATUS=idle");
        assert_eq!(answered("idle", 200), "WATCHDOG=1");
        assert_eq!(answered("busy", 201), "WATCHDOG=1\nSTATUS=busy");
        assert_eq!(answered("idle", 210), "WATCHDOG=1", "it was busy until just now");
        assert_eq!(answered("idle", 211), "WATCHDOG=1\nSTATUS=idle");
    }

    #[test]
    fn nobody_who_wants_no_sign_of_life_is_given_one() {
        let mut pulse = Pulse { watchdog: false, told: None };
        assert_eq!(pulse.answered("idle".to_owned(), at(0)).as_deref(), Some("STATUS=idle"));
        assert_eq!(pulse.answered("idle".to_owned(), at(100)), None);
    }

    #[test]
    fn what_stands_in_a_line_is_no_assignment_of_its_own() {
        let mut pulse = Pulse { watchdog: false, told: None };
        let said = pulse.answered("a\nWATCHDOG=1".to_owned(), at(0));
        assert_eq!(said.as_deref(), Some("STATUS=a WATCHDOG=1"));
    }

    /// Answers so many times, and then hangs or is gone.
    struct Loop {
        answers: usize,
        hangs: bool,
    }

    impl Ask for Loop {
        async fn ask(&mut self) -> Option<String> {
            match self.answers.checked_sub(1) {
                Some(left) => self.answers = left,
                None if self.hangs => pending().await,
                None => return None,
            }
            Some("idle".to_owned())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_hangs_is_not_spoken_for() {
        let listener = Listener::open();
        let announcer = Announcer::over(Some(listener.connected()));
        let telling = tell(announcer, Some(Duration::from_secs(30)), Loop { answers: 3, hangs: true });
        tokio::time::timeout(Duration::from_secs(3600), telling).await.unwrap_err();
        assert_eq!(listener.said(), ["WATCHDOG=1 STATUS=idle", "WATCHDOG=1", "WATCHDOG=1"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_sign_comes_twice_in_the_time_that_it_is_wanted_in_and_ends_with_the_loop() {
        let listener = Listener::open();
        let announcer = Announcer::over(Some(listener.connected()));
        let begun = tokio::time::Instant::now();
        tell(announcer, Some(Duration::from_secs(30)), Loop { answers: 5, hangs: false }).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(5 * 15));
        assert_eq!(listener.said().len(), 5);
    }
}
