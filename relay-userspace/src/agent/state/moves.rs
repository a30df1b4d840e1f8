//! Moving sessions from a relay whose path fails to another, without their users noticing more than a pause.
//!
//! The rules, all in one place:
//!
//! - **What fails.** A path is [`Silent`](PathHealth::Silent) 3 s after a bind that nothing answers (and a bind follows
//!   1 s after data that nothing answers); [`Unproved`](PathHealth::Unproved) after 20 s of data without answers of the
//!   relay; [`PeerSilent`](PathHealth::PeerSilent), which counts for the agents' own QUIC alone, after 12 s of sending
//!   without hearing. It is *lost* when the relay says that it stops, when consent is lost, and, if there is another relay
//!   to try, when the relay says that a side fell silent. A lost control connection alone fails nothing: packets go on.
//! - **Who acts.** The connector asks the other relays for a session with the same peer, in the order of
//!   [`Preference`](super::preference::Preference), each once a round and the next after [`ANSWER_WITHIN`]. The relay that
//!   failed is asked last, and only if it was lost and connected again, or only consent was. So two agents that are each
//!   other's connector move a session each, and no move meets another.
//! - **Before it is paired** a session needs no move: whoever asked asks the next relay after [`ANSWER_WITHIN`] without an
//!   answer, and after [`PAIRED_WITHIN`] without a pairing.
//! - **The move.** Once the new session is paired its path is the one that is sent on, and the old one is received on for
//!   [`OLD_PATH_LINGERS`]; then its relay is told. A path that is sound again before a new session is offered stays.
//! - **The target follows.** Over its end-to-end sessions QUIC does: a connection comes by another session, and the old
//!   one has a user less. Raw datagrams say nothing, so the target decides: the one raw session with the peer whose path
//!   fails is the one that moves; if there is one and it does not fail, it is asked for a sign of life, and what came waits
//!   for [`UNDECIDED`]. With several in question none is moved, and the newcomer is a session like any other.
//! - **Giving up.** A lost session ends [`MOVE_WITHIN`] after it began to fail; one whose path is only bad is kept, and
//!   tried again, until consent is lost.
//! - **How often.** Rounds are spaced by [`Backoff`](crate::agent::backoff::Backoff), which a path that lasts a minute
//!   resets: at most nine rounds in the first minute, and four in any later one, however often paths come and go.
//! - **A relay that is about to stop** ([`drains`](super::drains)) has its sessions move in the same way although nothing
//!   fails: the relay that it names is asked first, and while that is being connected to no other. The one raw session of a
//!   target over such a relay counts as failing.
//! - **Never without need.** A relay that becomes faster than the present one is preferred for the next session.

use std::collections::BTreeSet;
use std::time::Duration;

use relay_common::Side;

use super::links::Link;
use super::sessions::{Part, Session};
use super::{Now, Output, RelayIndex, State, Use};
use crate::agent::error::SessionEnd;
use crate::clock::MonoTime;
use crate::identity::NodeId;
use crate::protocol::SessionId;
use crate::protocol::bind::PathHealth;
use crate::protocol::flow_terms::{FLOW, RelayConnect, disconnect_reason};

/// A lost session ends if no other path is paired within this time of its failing. With what it takes to notice it is
/// below the 30 s that the agents' QUIC waits for its peer.
pub const MOVE_WITHIN: Duration = Duration::from_secs(20);

/// A relay that is asked answers within this time, or the next is asked.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// A session that somebody waits for is paired within this time, or the next relay is asked if there is one.
pub const PAIRED_WITHIN: Duration = Duration::from_secs(5);

/// A relay that is connected again has said by then which sessions it still knows.
pub const RELAY_SETTLES: Duration = Duration::from_secs(2);

/// The path that was left is received on for so long: what was sent before the peer knew arrives.
pub const OLD_PATH_LINGERS: Duration = Duration::from_secs(2);

/// A peer's raw session over another relay waits for so long until it shows whether an older one is silent.
pub const UNDECIDED: Duration = PathHealth::SILENT_AFTER.saturating_add(Duration::from_secs(2));

/// A session's path fails.
#[derive(Debug)]
pub(super) struct Failure {
    pub since: MonoTime,
    pub health: PathHealth,
    /// Why its relay carries it no more.
    pub lost: Option<SessionEnd>,
}

impl Failure {
    pub fn given_up_at(&self) -> MonoTime {
        self.since + MOVE_WITHIN
    }
}

/// The search for another path for one session.
#[derive(Debug)]
pub(super) struct Move {
    /// In this round.
    tried: BTreeSet<RelayIndex>,
    stage: MoveStage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MoveStage {
    /// The next round begins then.
    Resting(MonoTime),
    /// RelayConnect has been sent; the next relay is asked then.
    Asked(RelayIndex, MonoTime),
    /// That session binds.
    Binding(SessionId),
}

impl State {
    /// A session's path does better or worse than before.
    pub(super) fn path_does(&mut self, id: SessionId, health: PathHealth, now: Now) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.part != Part::Present || !session.paired {
            return;
        }
        let fails = match health {
            PathHealth::Sound => false,
            PathHealth::Silent | PathHealth::Unproved => true,
            PathHealth::PeerSilent => session.carries == Use::EndToEnd,
        };
        if fails {
            let began = Failure { since: now.mono, health, lost: None };
            session.failure.get_or_insert(began).health = health;
            self.begin_move(id, now);
            self.decide_for(id, now);
        } else if !session.is_lost() {
            session.failure = None;
            let stays = !self.must_move(id);
            if stays && self.moves.get(&id).is_some_and(|it| !matches!(it.stage, MoveStage::Binding(_))) {
                self.moves.remove(&id);
            }
        }
    }

    /// A session's relay carries it no more. It waits for another path if it is in use and there is time left.
    pub(super) fn lose(&mut self, id: SessionId, end: SessionEnd, now: Now) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let in_use = session.part == Part::Present && session.paired && session.users > 0;
        let began = Failure { since: now.mono, health: PathHealth::Silent, lost: None };
        let failure = session.failure.get_or_insert(began);
        failure.lost.get_or_insert(end.clone());
        if !in_use || failure.given_up_at() <= now.mono {
            return self.end(id, end, now);
        }
        self.begin_move(id, now);
        self.decide_for(id, now);
    }

    /// Whether a session whose relay says that a side is silent may find another path.
    pub(super) fn has_another_relay(&self, id: SessionId) -> bool {
        let Some(session) = self.sessions.get(&id) else { return false };
        self.relays.iter().enumerate().any(|(at, relay)| at != session.relay.0 && relay.takes_sessions())
    }

    /// Whether a session's path fails, or its relay is about to stop.
    fn must_move(&self, id: SessionId) -> bool {
        self.sessions.get(&id).is_some_and(|session| session.failure.is_some() || self.drains(session.relay))
    }

    /// Looks for another path for a connector's session, if that is not under way.
    pub(super) fn begin_move(&mut self, id: SessionId, now: Now) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.side != Side::Connector || self.moves.contains_key(&id) {
            return;
        }
        session.attempts.lasted(now.mono - session.since);
        let at = if session.attempts.is_fresh() { now.mono } else { now.mono + session.pause(id) };
        self.moves.insert(id, Move { tried: BTreeSet::new(), stage: MoveStage::Resting(at) });
        self.advance_moves(now);
    }

    /// Does what has come due.
    pub(super) fn advance_moves(&mut self, now: Now) {
        let due = self.moves.iter().filter(|(_, it)| it.deadline().is_some_and(|at| at <= now.mono));
        for id in due.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.ask_next_for_move(id, now);
        }
    }

    pub(super) fn next_move(&self) -> Option<MonoTime> {
        self.moves.values().filter_map(Move::deadline).min()
    }

    /// Asks the next relay for a session that is to be moved; without one the round is over.
    pub(super) fn ask_next_for_move(&mut self, id: SessionId, now: Now) {
        let Some(session) = self.sessions.get(&id) else { return };
        let Some(tried) = self.moves.get(&id).map(|it| &it.tried) else { return };
        if !self.must_move(id) {
            self.moves.remove(&id);
            return;
        }
        let relay = self.relay_for_move(session, tried, now);
        let peer = session.peer;
        let (Some(session), Some(it)) = (self.sessions.get_mut(&id), self.moves.get_mut(&id)) else { return };
        let Some(relay) = relay else {
            // Where nothing fails and nobody was asked, it is only that the named relay is not there yet.
            let waits = session.failure.is_none() && it.tried.is_empty();
            let pause = if waits { ANSWER_WITHIN } else { session.pause(id) };
            it.tried.clear();
            it.stage = MoveStage::Resting(now.mono + pause);
            return;
        };
        it.tried.insert(relay);
        it.stage = MoveStage::Asked(relay, now.mono + ANSWER_WITHIN);
        let connect = RelayConnect {
            source_id: self.me.to_string(),
            target_id: peer.to_string(),
            timestamp: Some(now.unix_s),
            flow: Some(FLOW),
        };
        self.outputs.push_back(Output::Send(relay, connect.into()));
    }

    fn relay_for_move(
        &self,
        session: &Session,
        tried: &BTreeSet<RelayIndex>,
        now: Now,
    ) -> Option<RelayIndex> {
        let up_since = |relay: RelayIndex| match self.relays.get(relay.0)?.link {
            Link::Up { since, .. } => Some(since),
            _ => None,
        };
        let other = |relay: &RelayIndex| !tried.contains(relay) && *relay != session.relay;
        if let Some(named) = self.named_by(session.relay) {
            if self.is_awaited(named) && session.failure.is_none() {
                return None;
            }
            if let Some(named) = self.usable_relays().find(|relay| *relay == named && other(relay)) {
                return Some(named);
            }
        }
        self.usable_relays().find(other).or_else(|| {
            let failure = session.failure.as_ref()?;
            let since = up_since(session.relay)?;
            let forgot = match failure.lost {
                Some(SessionEnd::ConsentLost { .. }) => true,
                _ => since > failure.since && since + RELAY_SETTLES <= now.mono,
            };
            let has_forgotten = forgot && failure.health != PathHealth::PeerSilent;
            (has_forgotten && !tried.contains(&session.relay)).then_some(session.relay)
        })
    }

    /// The session that is to be moved and waits for this relay's answer about a peer.
    pub(super) fn asked_to_move(
        &self,
        relay: RelayIndex,
        about: impl Fn(NodeId) -> bool,
    ) -> Option<SessionId> {
        let waits = |(id, it): (&SessionId, &Move)| {
            let asked = matches!(it.stage, MoveStage::Asked(asked, _) if asked == relay);
            asked && self.sessions.get(id).is_some_and(|session| about(session.peer))
        };
        self.moves.iter().find(|entry| waits(*entry)).map(|(id, _)| *id)
    }

    /// The session that takes over from `old` binds.
    pub(super) fn move_binds(&mut self, old: SessionId, new: SessionId) {
        if let Some(it) = self.moves.get_mut(&old) {
            it.stage = MoveStage::Binding(new);
        }
    }

    /// A relay is connected: those that wait for one need not wait longer.
    pub(super) fn relay_came_for_moves(&mut self, relay: RelayIndex, now: Now) {
        for (id, it) in &mut self.moves {
            let own = self.sessions.get(id).is_some_and(|session| session.relay == relay);
            let at = if own { now.mono + RELAY_SETTLES } else { now.mono };
            if let MoveStage::Resting(until) = &mut it.stage {
                *until = at.min(*until);
            }
        }
        self.advance_moves(now);
    }

    /// A relay is gone: whoever waits for its answer asks the next.
    pub(super) fn relay_left_moves(&mut self, relay: RelayIndex, now: Now) {
        while let Some(id) = self.asked_to_move(relay, |_| true) {
            self.ask_next_for_move(id, now);
        }
    }

    /// `new` is paired and takes the place of `old`.
    pub(super) fn take_over(&mut self, old: SessionId, new: SessionId, now: Now) {
        let Some(before) = self.sessions.get_mut(&old) else {
            return self.end_and_tell(new, SessionEnd::Closed, disconnect_reason::SHUTDOWN, now);
        };
        let (users, origin, mut attempts) =
            (std::mem::take(&mut before.users), before.origin, before.attempts.clone());
        let lost = before.is_lost();
        before.part = Part::Left;
        before.since = now.mono;
        // One more, even though it has succeeded, until the new path has lasted.
        attempts.next(0);
        if let Some(after) = self.sessions.get_mut(&new) {
            after.part = Part::Present;
            after.since = now.mono;
            (after.users, after.origin, after.attempts) = (users, origin, attempts);
        }
        self.moves.remove(&old);
        self.outputs.push_back(Output::Moved { from: old, to: new });
        if lost {
            self.end(old, SessionEnd::Moved, now);
        }
    }

    /// A peer's new raw session is paired: it takes over from an older one, or is one of its own, or waits until that
    /// shows.
    pub(super) fn raw_newcomer(&mut self, id: SessionId, now: Now) {
        let Some((peer, relay)) = self.sessions.get(&id).map(|session| (session.peer, session.relay)) else {
            return;
        };
        let is_older = |session: &Session| {
            let raw_target = session.side == Side::Target && session.carries == Use::Raw;
            raw_target && session.peer == peer && session.part == Part::Present && session.users > 0
        };
        let older: Vec<(SessionId, RelayIndex, bool)> = self
            .sessions
            .iter()
            .filter(|(other, session)| **other != id && is_older(session))
            .map(|(other, session)| (*other, session.relay, self.must_move(*other)))
            .collect();
        let failing: Vec<SessionId> =
            older.iter().filter(|(_, _, fails)| *fails).map(|(other, _, _)| *other).collect();
        match (&failing[..], &older[..]) {
            ([old], _) => self.take_over(*old, id, now),
            ([], [(old, its_relay, _)]) if *its_relay != relay => {
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.part = Part::Undecided(*old, now.mono + UNDECIDED);
                }
                self.outputs.push_back(Output::Probe(*old));
            }
            _ => self.outputs.push_back(Output::Paired(id)),
        }
    }

    /// The raw session `old` has come to its end or fails: what waits for that takes over from it.
    pub(super) fn decide_for(&mut self, old: SessionId, now: Now) -> bool {
        let waits = |session: &Session| matches!(session.part, Part::Undecided(other, _) if other == old);
        let Some(new) = self.sessions.iter().find(|(_, session)| waits(session)).map(|(id, _)| *id) else {
            return false;
        };
        self.take_over(old, new, now);
        true
    }

    /// A raw session that was undecided is one of its own.
    pub(super) fn decided_new(&mut self, id: SessionId, now: Now) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.part = Part::Present;
            session.since = now.mono;
            self.outputs.push_back(Output::Paired(id));
        }
    }

    /// A session has ended: what was to take over from it, and what it was to take over from, go on without.
    pub(super) fn moves_without(&mut self, id: SessionId, part: Part, now: Now) {
        if let Part::Successor(old) = part {
            self.ask_next_for_move(old, now);
        }
        if let Some(Move { stage: MoveStage::Binding(new), .. }) = self.moves.remove(&id) {
            self.end_and_tell(new, SessionEnd::Closed, disconnect_reason::SHUTDOWN, now);
        }
        let waits = |session: &Session| matches!(session.part, Part::Undecided(old, _) if old == id);
        let undecided = self.sessions.iter().find(|(_, session)| waits(session)).map(|(id, _)| *id);
        if let Some(new) = undecided {
            self.decided_new(new, now);
        }
    }
}

impl Move {
    /// The relay that is asked at present.
    pub fn asks(&self) -> Option<RelayIndex> {
        match self.stage {
            MoveStage::Asked(relay, _) => Some(relay),
            _ => None,
        }
    }

    fn deadline(&self) -> Option<MonoTime> {
        match self.stage {
            MoveStage::Resting(until) | MoveStage::Asked(_, until) => Some(until),
            MoveStage::Binding(_) => None,
        }
    }
}

impl Session {
    /// Until the next round. Session ids are random, so agents that lost one relay do not ask another all at once.
    fn pause(&mut self, id: SessionId) -> Duration {
        let [a, b, c, d, e, f, g, h, ..] = id.0;
        self.attempts.next(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
    }
}
