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
