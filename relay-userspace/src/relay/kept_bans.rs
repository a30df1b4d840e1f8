//! Bans over a restart: a file of the node's state.
//!
//! A ban that ended with the daemon would let everybody in again whom an upgrade follows, and the operator's own bans with
//! them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval};

use super::bans::{BanCause, BanStatus};
use super::control::{Rules, unix_seconds};
use super::rendezvous::Refusal;
use crate::clock::MonoTime;
use crate::refusals::RefusalReason as _;
use crate::whole_file;

/// What has changed is written after this time at most.
const WRITTEN_WITHIN: Duration = Duration::from_secs(10);

/// A longer file is none of ours.
const MAX_BYTES: u64 = 16 << 20;

/// The file, and what stands in it.
#[derive(Debug)]
pub struct KeptBans {
    path: PathBuf,
    rules: Arc<Rules>,
    written: Vec<KeptBan>,
}

/// A ban as it stands in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct KeptBan {
    subject: String,
    /// Seconds since the Unix epoch: a restart of the host must not make it longer.
    until_unix_s: i64,
    /// Seconds that were left of it when this was written: nor must a clock that is wrong.
    left_s: u64,
    /// The name of a refusal, or [`BY_HAND`].
    cause: String,
}

/// Why the operator bans.
const BY_HAND: &str = "by_hand";

impl KeptBans {
    /// Bans those who stand in the file at `path`. One that cannot be read is as none, which the log says.
    pub fn restore(path: PathBuf, rules: Arc<Rules>) -> KeptBans {
        let written = read(&path).unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "the bans of the relay before are not known");
            Vec::new()
        });
        let (now, unix_s) = (MonoTime::now(), unix_seconds());
        let mut bans = rules.bans();
        for ban in written.iter().filter_map(|ban| ban.status(unix_s)) {
            bans.restore(ban, now);
        }
        drop(bans);
        KeptBans { path, rules, written }
    }

    /// Writes the file again and again, for as long as it is polled.
    pub async fn keep(&mut self) {
        let mut ticks = interval(WRITTEN_WITHIN);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.write().await;
        }
    }

    /// Writes the file, if what stands in it is not what there is.
    pub async fn write(&mut self) {
        let (now, unix_s) = (MonoTime::now(), unix_seconds());
        let present = self.rules.bans().list(now);
        let present: Vec<KeptBan> = present.iter().map(|ban| KeptBan::of(ban, unix_s)).collect();
        if is_the_same(&present, &self.written) {
            return;
        }
        // What could not be written is not tried again until it changes: the log would say nothing else.
        self.written.clone_from(&present);
        let path = self.path.clone();
        // A disk may take its time.
        let writing = tokio::task::spawn_blocking(move || {
            let text = serde_json::to_vec(&present).map_err(io::Error::other)?;
            whole_file::replace(&path, 0o600, &text)
        });
        if let Err(error) = writing.await.unwrap_or_else(|failed| Err(io::Error::other(failed))) {
            tracing::warn!(path = %self.path.display(), %error, "who is banned is not kept for the next start");
        }
    }
}

impl KeptBan {
    fn of(ban: &BanStatus, unix_s: i64) -> KeptBan {
        let cause = match ban.cause {
            BanCause::ByHand => BY_HAND,
            BanCause::Refused(refusal) => refusal.name(),
        };
        let left_s = ban.left.as_secs();
        KeptBan {
            subject: ban.subject.to_string(),
            until_unix_s: unix_s.saturating_add(i64::try_from(left_s).unwrap_or(i64::MAX)),
            left_s,
            cause: cause.to_owned(),
        }
    }

    /// What is left of it; none if it is over or nothing that this version knows.
    fn status(&self, unix_s: i64) -> Option<BanStatus> {
        let until = u64::try_from(self.until_unix_s.saturating_sub(unix_s)).ok()?;
        let left = Some(until.min(self.left_s)).filter(|left| *left > 0)?;
        let cause = match &*self.cause {
            BY_HAND => BanCause::ByHand,
            name => BanCause::Refused(Refusal::of_name(name)?),
        };
        Some(BanStatus { subject: self.subject.parse().ok()?, left: Duration::from_secs(left), cause })
    }
}

/// Whether two lists ban the same until the same second, or the next: time goes on between two readings of two clocks.
fn is_the_same(one: &[KeptBan], other: &[KeptBan]) -> bool {
    one.len() == other.len()
        && one.iter().zip(other).all(|(one, other)| {
            one.subject == other.subject
                && one.cause == other.cause
                && one.until_unix_s.abs_diff(other.until_unix_s) <= 1
        })
}

fn read(path: &Path) -> io::Result<Vec<KeptBan>> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Ok(about) if about.len() > MAX_BYTES => {
            return Err(io::Error::other(format!(
                "it has {} bytes, expected {MAX_BYTES} at most",
                about.len()
            )));
        }
        _ => {}
    }
    serde_json::from_slice(&fs::read(path)?).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AtlasRoot, Config};
    use crate::identity::NodeId;
    use crate::relay::bans::BanSubject;
    use crate::relay::control::ControlPolicy;
    use crate::relay::prefix::Prefix;

    fn rules(text: &str) -> Arc<Rules> {
        let config = Config::parse(text, "config.toml".as_ref(), &AtlasRoot::at("/atlas")).unwrap();
        Arc::new(Rules::new(ControlPolicy::of(&config)))
    }

    fn node(byte: u8) -> BanSubject {
        BanSubject::Node(NodeId::from_bytes([byte; 32]))
    }

    #[tokio::test]
    async fn who_is_banned_stays_so_after_a_restart_for_what_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bans.json");
        let before = rules("");
        let now = MonoTime::now();
        for _ in 0..3 {
            before.bans().violation(NodeId::from_bytes([1; 32]), Refusal::BadFrame, now);
        }
        let prefix = BanSubject::Prefix(Prefix::of("192.0.2.1".parse().unwrap()));
        before.bans().add(prefix, Duration::from_secs(500), now).unwrap();
        before.bans().add(node(2), Duration::from_secs(500), now).unwrap();
        let mut kept = KeptBans::restore(path.clone(), Arc::clone(&before));
        kept.write().await;
        before.bans().lift(node(2), now);
        kept.write().await;
        let after = rules("");
        KeptBans::restore(path.clone(), Arc::clone(&after));
        let shown = |rules: &Rules| -> Vec<_> {
            rules.bans().list(MonoTime::now()).iter().map(|ban| (ban.subject, ban.cause)).collect()
        };
        assert_eq!(shown(&after), shown(&before));
        assert_eq!(shown(&after).len(), 2);
        let left = after.bans().left(prefix, MonoTime::now()).unwrap();
        assert!(left > Duration::from_secs(490) && left <= Duration::from_secs(500), "{left:?}");
        // Whoever bans nobody lets those in again, but for the operator's own bans.
        let lenient = rules("[security]\nban_duration_secs = 0\n");
        KeptBans::restore(path, Arc::clone(&lenient));
        assert_eq!(shown(&lenient), [(prefix, BanCause::ByHand)]);
    }

    #[test]
    fn a_clock_that_was_wrong_makes_no_ban_longer() {
        let (before, after) = (unix_seconds() - 1_000_000, unix_seconds());
        let status = BanStatus { subject: node(1), left: Duration::from_secs(60), cause: BanCause::ByHand };
        let kept = KeptBan::of(&status, after);
        assert_eq!(kept.status(before).unwrap().left, Duration::from_secs(60));
        assert_eq!(kept.status(after + 20).unwrap().left, Duration::from_secs(40));
        assert_eq!(kept.status(after + 60), None);
    }

    #[test]
    fn a_ban_that_is_over_or_unknown_and_a_file_that_is_none_ban_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bans.json");
        let (past, future) = (unix_seconds() - 1, unix_seconds() + 1000);
        let texts = [
            String::new(),
            "[".to_owned(),
            format!(
                "[{{\"subject\":\"192.0.2.1\",\"until_unix_s\":{past},\"left_s\":9,\"cause\":\"by_hand\"}}]"
            ),
            format!(
                "[{{\"subject\":\"nobody\",\"until_unix_s\":{future},\"left_s\":9,\"cause\":\"by_hand\"}}]"
            ),
            format!(
                "[{{\"subject\":\"192.0.2.1\",\"until_unix_s\":{future},\"left_s\":9,\"cause\":\"whim\"}}]"
            ),
        ];
        for text in texts {
            fs::write(&path, &text).unwrap();
            let rules = rules("");
            KeptBans::restore(path.clone(), Arc::clone(&rules));
            assert!(rules.bans().list(MonoTime::now()).is_empty(), "{text}");
        }
    }

    #[tokio::test]
    async fn nothing_is_written_while_nobody_is_banned_or_nothing_changes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bans.json");
        let rules = rules("");
        let mut kept = KeptBans::restore(path.clone(), Arc::clone(&rules));
        kept.write().await;
        assert!(!path.exists());
        rules.bans().add(node(1), Duration::from_secs(500), MonoTime::now()).unwrap();
        kept.write().await;
        fs::remove_file(&path).unwrap();
        kept.write().await;
        assert!(!path.exists(), "it is as it was");
    }
}
