//! Relays that are about to stop, and those that they name to go to instead.
//!
//! - **Who is believed.** A relay, about its own sessions, over its own connection. It cannot read them, and whoever takes
//!   its place cannot either; what a hint could do is to aim agents at hosts that have nothing to do with relays. So it names
//!   the node id that is to be proved there, at most [`MOST_HINTED`] of them are followed, and none into a network that only
//!   the agent reaches.
//! - **What follows.** The sessions over that relay move as those of a relay that fails do, only that nothing fails: to the
//!   relay of the hint, else to another. It is asked for no session any more.
//! - **For how long.** A relay known by a hint alone is asked for sessions after all configured ones, and left once the
//!   configured relay that it stands in for is back and nothing uses it.

use std::collections::BTreeSet;

use relay_common::Side;

use super::links::{Link, Relay};
use super::moves::Move;
use super::requests::Stage;
use super::sessions::Part;
use super::{Now, Output, RelayIndex, State};
use crate::agent::refusal::Refusal;
use crate::config::RelayHint;
use crate::identity::NodeId;
use crate::protocol::SessionId;
use crate::protocol::handshake::printable;

/// Relays that an agent follows by hints as long as it runs.
pub const MOST_HINTED: usize = 16;

/// The longest name of a host (RFC 1035).
const MAX_HOST_LEN: usize = 253;

/// What a relay has said of its end.
#[derive(Debug)]
pub(super) struct Drain {
    /// The relay that it names.
    to: Option<RelayIndex>,
}

/// Why a hint is not followed.
#[derive(Debug, thiserror::Error)]
enum HintFault {
    #[error("the relay it names to move to, {0:?}, is malformed: expected NODE@HOST:PORT")]
    Malformed(String),
    #[error("the relay that it names to move to is itself, or this agent")]
    Itself,
    #[error("the relay that it names to move to, {0}, has another node id by all that is known here")]
    OtherNode(RelayHint),
    #[error("it names {0} to move to, one more than the {MOST_HINTED} relays that are followed in this way")]
    TooMany(RelayHint),
}

impl State {
    /// The node behind a relay is known: it is configured, or was proved.
    pub fn relay_is(&mut self, relay: RelayIndex, node: NodeId) {
        if let Some(entry) = self.relays.get_mut(relay.0) {
            entry.node = Some(node);
        }
    }

    /// A relay says that it is about to stop, and may name another one.
    pub(super) fn relay_drains(&mut self, relay: RelayIndex, hint: Option<&str>, now: Now) {
        let to = hint.and_then(|hint| match self.hinted(relay, hint) {
            Ok(to) => Some(to),
            Err(fault) => {
                self.count(Refusal::RelayHint, self.relay_name(relay), fault.to_string());
                None
            }
        });
        let to_name = to.map(|to| self.relay_name(to));
        tracing::info!(
            relay = self.relay_name(relay),
            to = to_name,
            "the relay is about to stop: moving away"
        );
        if let Some(entry) = self.relays.get_mut(relay.0) {
            entry.drain = Some(Drain { to });
        }
        let over_it = self.sessions.iter().filter(|(_, session)| session.relay == relay);
        for id in over_it.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.move_off_draining(id, now);
        }
    }

    /// Has a session look for another path if its relay is about to stop.
    pub(super) fn move_off_draining(&mut self, id: SessionId, now: Now) {
        let Some(session) = self.sessions.get(&id).filter(|session| self.drains(session.relay)) else {
            return;
        };
        if session.part != Part::Present || !session.paired {
            return;
        }
        match session.side {
            Side::Connector => self.begin_move(id, now),
            // What may be its successor is.
            Side::Target => _ = self.decide_for(id, now),
        }
    }

    /// Whether a relay has said that it is about to stop.
    pub(super) fn drains(&self, relay: RelayIndex) -> bool {
        self.relays.get(relay.0).is_some_and(|relay| relay.drain.is_some())
    }

    /// The relay that this one has named to move to.
    pub(super) fn named_by(&self, relay: RelayIndex) -> Option<RelayIndex> {
        self.relays.get(relay.0)?.drain.as_ref()?.to
    }

    /// Whether a relay is neither there nor known to be away.
    pub(super) fn is_awaited(&self, relay: RelayIndex) -> bool {
        matches!(self.relays.get(relay.0), Some(Relay { link: Link::Connecting, .. }))
    }

    /// The relays that can be asked for sessions, the preferred ones first.
    pub(super) fn usable_relays(&self) -> impl Iterator<Item = RelayIndex> + '_ {
        self.usable(false).chain(self.usable(true))
    }

    /// Those of them that are known by hints alone, or the others.
    fn usable(&self, hinted: bool) -> impl Iterator<Item = RelayIndex> + '_ {
        let fits = move |relay: &Relay| relay.takes_sessions() && relay.stands_in_for.is_some() == hinted;
        self.preference.order().filter(move |relay| self.relays.get(relay.0).is_some_and(fits))
    }

    /// The relay of a hint, which is connected to if it was not known.
    fn hinted(&mut self, by: RelayIndex, text: &str) -> Result<RelayIndex, HintFault> {
        let malformed = || HintFault::Malformed(printable(text, 128));
        let hint: RelayHint = text.parse().map_err(|_| malformed())?;
        if hint.at.host().len() > MAX_HOST_LEN {
            return Err(malformed());
        }
        let place = hint.at.to_string();
        let of_node = self.relays.iter().position(|relay| relay.node == Some(hint.node));
        let known = of_node.or_else(|| self.relays.iter().position(|relay| relay.name == place));
        let stands_in_for = self.relays.get(by.0).and_then(|relay| relay.stands_in_for).unwrap_or(by);
        if hint.node == self.me || known == Some(by.0) {
            return Err(HintFault::Itself);
        }
        if let Some((at, relay)) = known.and_then(|at| Some((at, self.relays.get_mut(at)?))) {
            if relay.node.is_some_and(|node| node != hint.node) {
                return Err(HintFault::OtherNode(hint));
            }
            if matches!(relay.link, Link::Forgotten) {
                (relay.link, relay.stands_in_for) = (Link::Connecting, Some(stands_in_for));
                self.outputs.push_back(Output::Follow { relay: RelayIndex(at), hint, by });
            }
            return Ok(RelayIndex(at));
        }
        let hinted = self.relays.iter().filter(|relay| relay.stands_in_for.is_some()).count();
        if hinted >= MOST_HINTED {
            return Err(HintFault::TooMany(hint));
        }
        let relay = RelayIndex(self.relays.len());
        let named =
            Relay { node: Some(hint.node), stands_in_for: Some(stands_in_for), ..Relay::named(place) };
        self.relays.push(named);
        self.preference.add(relay);
        self.outputs.push_back(Output::Follow { relay, hint, by });
        Ok(relay)
    }

    /// Leaves the relays that are known by hints alone and that nothing needs any more.
    pub(super) fn drop_unneeded_hints(&mut self) {
        let used: BTreeSet<RelayIndex> = self
            .sessions
            .values()
            .map(|session| session.relay)
            .chain(self.moves.values().filter_map(Move::asks))
            .chain(self.requests.values().filter_map(|request| match request.stage {
                Stage::Asked(relay) => Some(relay),
                _ => None,
            }))
            .chain(self.relays.iter().filter_map(|relay| relay.drain.as_ref()?.to))
            .collect();
        let is_back = |relay: RelayIndex| self.relays.get(relay.0).is_some_and(Relay::takes_sessions);
        let unneeded = |(at, relay): (usize, &Relay)| {
            let known = !matches!(relay.link, Link::Forgotten);
            let needless = known && is_back(relay.stands_in_for?) && !used.contains(&RelayIndex(at));
            needless.then_some(RelayIndex(at))
        };
        let unneeded: Vec<RelayIndex> = self.relays.iter().enumerate().filter_map(unneeded).collect();
        for relay in unneeded {
            if let Some(entry) = self.relays.get_mut(relay.0) {
                tracing::info!(relay = entry.name, "leaving the relay, which stood in for one that is back");
                (entry.link, entry.drain) = (Link::Forgotten, None);
            }
            self.outputs.push_back(Output::Forget(relay));
        }
    }
}
