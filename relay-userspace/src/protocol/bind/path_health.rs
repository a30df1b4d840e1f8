//! What one side of a session can tell of its path from what is answered and heard: a pure state machine.

use std::time::Duration;

use crate::clock::MonoTime;

/// How the path of a paired session does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathHealth {
    /// It answers.
    Sound,
    /// Since an unanswered bind neither an answer has come nor data: the relay is dead, or the network between.
    Silent,
    /// Data comes, but the relay answers no bind: its daemon is gone, and consent runs out.
    Unproved,
    /// The relay answers, but nothing comes back for what is sent. Protocols that answer all they get have lost their
    /// peer; others are just being listened to.
    PeerSilent,
}

impl PathHealth {
    /// What is the matter, for people.
    pub const fn words(self) -> &'static str {
        match self {
            PathHealth::Sound => "it answers",
            PathHealth::Silent => "neither answers nor data come from the relay",
            PathHealth::Unproved => "data comes, but the relay answers no bind",
            PathHealth::PeerSilent => "the relay answers, but nothing comes from the peer",
        }
    }

    /// [`PathHealth::Silent`] after this time: longer than a few lost binds in a row and their retries, and than a local
    /// move takes; short enough that the timers of what rides have not grown much. The bind itself follows within a second
    /// of sending without hearing.
    pub const SILENT_AFTER: Duration = Duration::from_secs(3);

    /// [`PathHealth::Unproved`] after this time: longer than the restart of a relay whose kernel part goes on. The 30 s
    /// before a bind is due and this leave 20 s of consent for finding another path.
    pub const UNPROVED_AFTER: Duration = Duration::from_secs(20);

    /// [`PathHealth::PeerSilent`] after this time: longer than an idle connection of the agents waits with its sign of
    /// life (8 s), and once more for a lost one.
    pub const PEER_SILENT_AFTER: Duration = Duration::from_secs(12);
}

/// Watches one path.
#[derive(Clone, Debug)]
pub(super) struct PathWatch {
    /// Since when a bind is unanswered and no data has come.
    silent_since: Option<MonoTime>,
    /// Since when a bind is unanswered.
    unproved_since: Option<MonoTime>,
    /// Since when data is sent and none comes.
    peer_silent_since: Option<MonoTime>,
    /// What was told last.
    told: PathHealth,
}

impl PathWatch {
    pub fn new() -> Self {
        PathWatch {
            silent_since: None,
            unproved_since: None,
            peer_silent_since: None,
            told: PathHealth::Sound,
        }
    }

    /// A bind or a proof was sent.
    pub fn asked(&mut self, now: MonoTime) {
        self.silent_since.get_or_insert(now);
        self.unproved_since.get_or_insert(now);
    }

    /// The relay has accepted a proof.
    pub fn answered(&mut self) {
        self.silent_since = None;
        self.unproved_since = None;
    }

    /// Data was sent.
    pub fn sent(&mut self, now: MonoTime) {
        self.peer_silent_since.get_or_insert(now);
    }

    /// Data has come.
    pub fn heard(&mut self) {
        self.silent_since = None;
        self.peer_silent_since = None;
    }

    /// What is to be told, if it is not what was told last.
    pub fn news(&mut self, now: MonoTime) -> Option<PathHealth> {
        let health = self.health(now);
        (std::mem::replace(&mut self.told, health) != health).then_some(health)
    }

    fn health(&self, now: MonoTime) -> PathHealth {
        let lasts = |since: Option<MonoTime>, span| since.is_some_and(|since| now >= since + span);
        if lasts(self.silent_since, PathHealth::SILENT_AFTER) {
            PathHealth::Silent
        } else if lasts(self.unproved_since, PathHealth::UNPROVED_AFTER) {
            PathHealth::Unproved
        } else if lasts(self.peer_silent_since, PathHealth::PEER_SILENT_AFTER) {
            PathHealth::PeerSilent
        } else {
            PathHealth::Sound
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_silent_after_three_seconds_without_an_answer_or_data() {
        let mut watch = PathWatch::new();
        watch.asked(at(0));
        watch.asked(at(2));
        assert_eq!((watch.news(at(2)), watch.news(at(3))), (None, Some(PathHealth::Silent)));
        assert_eq!(watch.news(at(4)), None, "it is told once");
        watch.answered();
        assert_eq!(watch.news(at(4)), Some(PathHealth::Sound));
    }

    #[test]
    fn data_without_answers_is_an_unproved_path_after_twenty_seconds() {
        let mut watch = PathWatch::new();
        for second in 0..20 {
            watch.asked(at(second));
            watch.heard();
            assert_eq!(watch.news(at(second)), None);
        }
        assert_eq!(watch.news(at(20)), Some(PathHealth::Unproved));
        watch.asked(at(20));
        assert_eq!(watch.news(at(23)), Some(PathHealth::Silent), "the data has stopped, too");
    }

    #[test]
    fn sending_without_hearing_is_a_silent_peer_if_the_relay_answers() {
        let mut watch = PathWatch::new();
        for second in 0..12 {
            watch.sent(at(second));
            watch.asked(at(second));
            watch.answered();
            assert_eq!(watch.news(at(second)), None);
        }
        assert_eq!(watch.news(at(12)), Some(PathHealth::PeerSilent));
        watch.heard();
        assert_eq!(watch.news(at(12)), Some(PathHealth::Sound));
    }

    #[test]
    fn an_idle_path_is_sound() {
        let mut watch = PathWatch::new();
        watch.asked(at(0));
        watch.answered();
        assert_eq!(watch.news(at(10_000)), None);
    }

    fn at(second: u64) -> MonoTime {
        MonoTime(0) + Duration::from_secs(second)
    }
}
