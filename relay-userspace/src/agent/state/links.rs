//! The relays: which are connected, what is announced to them, whether they still answer.

use std::collections::BTreeSet;
use std::time::Duration;

use relay_common::Side;

use super::drains::Drain;
use super::requests::Stage;
use super::{MISSED_PONGS, Now, Output, PING_INTERVAL, RelayIndex, State};
use crate::agent::error::SessionEnd;
use crate::clock::MonoTime;
use crate::identity::NodeId;
use crate::protocol::flow_terms::{Disconnect, FLOW, RelayAnnounce, disconnect_reason};
use crate::protocol::message::Ping;

#[derive(Debug)]
pub(super) struct Relay {
    /// `HOST:PORT`, for messages.
    pub name: String,
    pub link: Link,
    /// Whom it has proved to be, or is to.
    pub node: Option<NodeId>,
    /// It is about to stop.
    pub drain: Option<Drain>,
    /// Known by a hint alone: the configured relay whose place it takes.
    pub stands_in_for: Option<RelayIndex>,
}

#[derive(Debug)]
pub(super) enum Link {
    /// No attempt has ended yet since it was first known, or since it has restarted.
    Connecting,
    Up {
        since: MonoTime,
        announced: bool,
        next_ping: MonoTime,
        unanswered_pings: u32,
    },
    Down {
        why: String,
    },
    /// It was known by a hint, and nothing needs it any more.
    Forgotten,
}

impl Relay {
    /// A relay of which no more is known than where it is.
    pub fn named(name: String) -> Self {
        Relay { name, link: Link::Connecting, node: None, drain: None, stands_in_for: None }
    }

    /// Whether it can be asked for a session.
    pub fn takes_sessions(&self) -> bool {
        self.is_up() && self.drain.is_none()
    }

    pub fn is_up(&self) -> bool {
        matches!(self.link, Link::Up { .. })
    }
}

impl State {
    /// A relay is connected and has passed the handshake.
    pub fn relay_up(&mut self, relay: RelayIndex, now: Now) {
        let Some(entry) = self.relays.get_mut(relay.0) else { return };
        if matches!(entry.link, Link::Forgotten) {
            return;
        }
        entry.link = Link::Up {
            since: now.mono,
            announced: false,
            next_ping: now.mono + PING_INTERVAL,
            unanswered_pings: 0,
        };
        // It says so again if it still is about to stop.
        entry.drain = None;
        self.announce_to(relay, now);
        self.ask_for_waiting(now);
        self.relay_came_for_moves(relay, now);
        self.drop_unneeded_hints();
    }

    /// The round trip of the control connection to a relay was measured.
    pub fn round_trip(&mut self, relay: RelayIndex, sample: Duration) {
        self.preference.measured(relay, sample);
    }

    /// The smoothed round trip to a relay, once it was measured.
    pub fn smoothed_round_trip(&self, relay: RelayIndex) -> Option<Duration> {
        self.preference.round_trip(relay)
    }

    /// Others may connect from now on. Sessions that others asked for and may not have any more end.
    pub fn set_accept(&mut self, accept: BTreeSet<NodeId>, now: Now) {
        if accept == self.accept {
            return;
        }
        self.accept = accept;
        for relay in (0..self.relays.len()).map(RelayIndex) {
            if self.relays.get(relay.0).is_some_and(Relay::is_up) {
                self.announce_to(relay, now);
            }
        }
        let asked_for = self.sessions.iter().filter(|(_, session)| session.side == Side::Target);
        let ended = asked_for.filter(|(_, session)| !self.accept.contains(&session.peer));
        for id in ended.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.end_and_tell(id, SessionEnd::NoLongerAccepted, disconnect_reason::SHUTDOWN, now);
        }
    }

    /// A relay could not be reached, or its connection is gone. Sessions through it go on.
    pub fn relay_down(&mut self, relay: RelayIndex, why: String, now: Now) {
        self.relay_left(relay, Link::Down { why }, now);
    }

    /// A relay was started again, or is just being. Sessions through it go on, and requests may wait for it.
    pub fn relay_restarts(&mut self, relay: RelayIndex, now: Now) {
        self.relay_left(relay, Link::Connecting, now);
    }

    fn relay_left(&mut self, relay: RelayIndex, link: Link, now: Now) {
        let Some(entry) = self.relays.get_mut(relay.0) else { return };
        if matches!(entry.link, Link::Forgotten) {
            return;
        }
        entry.link = link;
        for request in self.requests.values_mut() {
            if request.stage == Stage::Asked(relay) {
                request.stage = Stage::Waiting;
            }
        }
        self.ask_for_waiting(now);
        self.relay_left_moves(relay, now);
    }

    /// Whether a relay has registered this agent.
    pub fn is_announced(&self, relay: RelayIndex) -> bool {
        matches!(self.relays.get(relay.0), Some(Relay { link: Link::Up { announced: true, .. }, .. }))
    }

    fn announce_to(&mut self, relay: RelayIndex, now: Now) {
        if self.announce {
            let announce = RelayAnnounce {
                node_id: self.me.to_string(),
                timestamp: now.unix_s,
                flow: Some(FLOW),
                allow: Some(self.accept.iter().map(NodeId::to_string).collect()),
            };
            self.outputs.push_back(Output::Send(relay, announce.into()));
        }
    }

    pub(super) fn relay_name(&self, relay: RelayIndex) -> String {
        self.relays.get(relay.0).map_or_else(String::new, |relay| relay.name.clone())
    }

    /// Asks every relay for a sign of life once that is due, and gives up those that owe too many.
    pub(super) fn ping_relays(&mut self, now: Now) {
        for (relay, entry) in self.relays.iter_mut().enumerate() {
            let relay = RelayIndex(relay);
            if let Link::Up { next_ping, unanswered_pings, .. } = &mut entry.link
                && *next_ping <= now.mono
            {
                if *unanswered_pings >= MISSED_PONGS {
                    let idle = Disconnect::new(disconnect_reason::IDLE, None, None);
                    self.outputs.push_back(Output::Send(relay, idle.into()));
                    self.outputs.push_back(Output::Reconnect(relay));
                    *next_ping = MonoTime(u64::MAX);
                } else {
                    *unanswered_pings += 1;
                    *next_ping = now.mono + PING_INTERVAL;
                    self.outputs.push_back(Output::Send(relay, Ping::new(now.unix_s).into()));
                }
            }
        }
    }
}
