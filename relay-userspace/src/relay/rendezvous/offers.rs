//! Pairing: an agent asks for another, and both are offered to each other.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::SocketAddr;

use relay_common::Side;

use super::agents::{ConnId, own_id};
use super::nodes::{Announcement, NodeNumber};
use super::refusal::Refusal;
use super::session::{Party, Session};
use super::{EndReason, Event, MAX_OFFERS_PER_PAIR, MAX_SESSIONS_PER_PAIR, Randomness, Rendezvous};
use crate::clock::MonoTime;
use crate::identity::NodeId;
use crate::protocol::flow_terms::{FLOW, RelayConnect, RelayError};
use crate::protocol::{ErrorCode, SessionId};
use crate::relay::datapath::Flows;
use crate::relay::prefix::Prefix;

impl Rendezvous {
    /// RelayConnect: pairs the agent with another one, unless that `is_banned`. Nothing is forwarded until both have proved
    /// a tuple.
    pub(super) fn connect(
        &mut self,
        conn: ConnId,
        connect: &RelayConnect,
        is_banned: bool,
        flows: &mut impl Flows,
        randomness: &mut impl Randomness,
        now: MonoTime,
    ) {
        let Some(agent) = self.agents.get(conn) else { return };
        let (source, remote, prefix) = (agent.node, agent.remote, agent.prefix);
        if let Err(fault) = own_id(&connect.source_id, &source) {
            return self.expel(conn, ErrorCode::InvalidIdentity, fault.refusal(), fault.text(), now);
        }
        let Ok(target) = connect.target_id.parse::<NodeId>() else {
            let text = "malformed target id: expected atlas_ and 64 hexadecimal digits";
            return self.expel(conn, ErrorCode::InvalidIdentity, Refusal::MalformedNodeId, text, now);
        };
        if target == source {
            let text = "an agent cannot be paired with itself";
            return self.expel(conn, ErrorCode::InvalidIdentity, Refusal::ConnectToSelf, text, now);
        }
        let may_connect = self.agents.get_mut(conn).is_some_and(|agent| agent.may_connect(now));
        if !may_connect {
            return self.decline(conn, &target, Refusal::ConnectRate, now);
        }
        if connect.flow == Some(FLOW) {
            self.speaks_flow(conn, now);
        }
        if self.draining.is_some() {
            return self.decline(conn, &target, Refusal::Draining, now);
        }
        if connect.flow != Some(FLOW) {
            return self.splice(conn, [source, target], is_banned, prefix, randomness, now);
        }
        let reachable = self.reachable(&source, &target, is_banned);
        let room = reachable.and_then(|reached| Ok((reached, self.room(&source, &target, prefix, now)?)));
        let ((target_conn, target_remote), displaced) = match room {
            Ok(room) => room,
            Err(refusal) => return self.decline(conn, &target, refusal, now),
        };
        if let Some(older) = displaced {
            self.end(older, EndReason::Displaced, flows, now);
        }
        let id = SessionId(randomness.array());
        // Both are connected.
        let (Some(from), Some(to)) = (self.nodes.number(&source), self.nodes.number(&target)) else { return };
        let parties =
            [Party::unproved(from, conn, remote, now), Party::unproved(to, target_conn, target_remote, now)];
        self.sessions.insert(|prefix| Session::offer(id, parties, prefix, now), prefix, &mut self.nodes);
        let most = self.most_offers_of_target();
        if let Some(target) = self.nodes.get_mut(to) {
            target.offered(most, now);
        }
        self.schedule(id);
        self.event(Event::Offered { session: id, connector: source, target });
        self.send_terms(id, false);
    }

    /// How `target` can be reached by `source`, if it can.
    pub(super) fn announced(
        &self,
        source: &NodeId,
        target: &NodeId,
        is_banned: bool,
    ) -> Result<&Announcement, Refusal> {
        // Absent, banned and not allowed look the same from outside, whatever else is the matter with the target.
        let node = self.nodes.by_id(target).ok_or(Refusal::TargetAbsent)?;
        let announcement = node.announcement.as_ref().ok_or(Refusal::TargetAbsent)?;
        if announcement.allow.as_ref().is_some_and(|allowed| !allowed.contains(source)) {
            return Err(Refusal::TargetDenies);
        }
        if is_banned {
            return Err(Refusal::TargetBanned);
        }
        Ok(announcement)
    }

    /// Whether `source` may be offered to `target` now; if so, the target's connection and where it comes from.
    fn reachable(
        &self,
        source: &NodeId,
        target: &NodeId,
        is_banned: bool,
    ) -> Result<(ConnId, SocketAddr), Refusal> {
        let announcement = self.announced(source, target, is_banned)?;
        if !announcement.speaks_flow {
            return Err(Refusal::DocumentedOnly);
        }
        let agent = self.agents.get(announcement.conn).ok_or(Refusal::TargetAbsent)?;
        Ok((announcement.conn, agent.remote))
    }

    /// Whether there may be one more offer of `source`, which is of `prefix`, to `target`, and which older one it takes the
    /// place of.
    fn room(
        &mut self,
        source: &NodeId,
        target: &NodeId,
        prefix: Prefix,
        now: MonoTime,
    ) -> Result<Option<SessionId>, Refusal> {
        if self.carries_too_much(now) {
            return Err(Refusal::TotalLimit);
        }
        let policy = &self.settings.policy;
        let is_offer = |session: &&Session| session.is_offer();
        let [from, to] = [source, target].map(|id| self.nodes.number(id));
        let of_pair = || self.sessions.of_pair(from, to, &self.nodes);
        let (Some(source), Some(target)) = (self.nodes.by_id(source), self.nodes.by_id(target)) else {
            return Err(Refusal::TargetAbsent);
        };
        if !target.may_be_offered(self.most_offers_of_target(), now) {
            return Err(Refusal::TargetRate);
        }
        let prefixes = self.sessions.prefixes();
        let prefix_is_full = prefixes.sessions_of(prefix) >= policy.sessions_per_prefix;
        if of_pair().filter(is_offer).count() >= MAX_OFFERS_PER_PAIR {
            let oldest = of_pair().filter(is_offer).min_by_key(|offer| offer.since);
            // Unless the source has asked for that one from elsewhere, no prefix has more than before.
            let of_same = oldest.is_some_and(|offer| prefixes.get(offer.prefix) == Some(prefix));
            if prefix_is_full && !of_same {
                return Err(Refusal::PrefixSessions);
            }
            return Ok(oldest.map(|offer| offer.id));
        }
        if of_pair().count() + self.splices.between(from, to) >= MAX_SESSIONS_PER_PAIR {
            return Err(Refusal::PairSessions);
        }
        if source.open_offers(Side::Connector) >= policy.offers_per_source {
            return Err(Refusal::SourceOffers);
        }
        if source.sessions >= policy.sessions_per_node {
            return Err(Refusal::SourceSessions);
        }
        if prefix_is_full {
            return Err(Refusal::PrefixSessions);
        }
        if target.open_offers(Side::Target) >= self.most_offers_of_target() {
            return self.displaced(to).map(Some).ok_or(Refusal::TargetOffers);
        }
        if target.sessions >= policy.sessions_per_node {
            return Err(Refusal::TargetSessions);
        }
        Ok(None)
    }

    /// Whether all sessions together carry more than they may.
    pub(super) fn carries_too_much(&mut self, now: MonoTime) -> bool {
        let most = self.settings.policy.relay_total_limit;
        most > 0 && self.throughput.bytes_per_s(now) > most
    }

    /// The offer to a target that goes for one more. Whoever means it binds within a second or two, so it is one whose
    /// connector has not bound yet: identities made only to fill the target's offers do not keep others out. Of the prefix
    /// that has asked for most of them it is the oldest: who makes many identities in one place is in his own way first.
    fn displaced(&self, target: Option<NodeNumber>) -> Option<SessionId> {
        let offers = || self.sessions.with_target(target, &self.nodes).filter(|session| session.is_offer());
        let mut asked = BTreeMap::new();
        for offer in offers() {
            *asked.entry(offer.prefix).or_insert(0_u32) += 1;
        }
        let unbound = offers().filter(|offer| offer.party(Side::Connector).counter == 0);
        let most = |offer: &&Session| (asked.get(&offer.prefix).copied(), Reverse(offer.since));
        unbound.max_by_key(most).map(|offer| offer.id)
    }

    /// Answers RelayConnect with an error; the connection stays.
    pub(super) fn decline(&mut self, conn: ConnId, target: &NodeId, refusal: Refusal, now: MonoTime) {
        self.refuse(conn, refusal, now);
        let (code, text) = match refusal {
            Refusal::TargetAbsent | Refusal::TargetDenies | Refusal::TargetBanned => (
                ErrorCode::TargetUnknown,
                "no such agent is announced here, or it does not accept this source",
            ),
            Refusal::Draining => {
                (ErrorCode::Draining, "this relay is about to stop and takes no new sessions")
            }
            Refusal::TotalLimit => (ErrorCode::Limited, "this relay carries as much as it may"),
            Refusal::SourceOffers => {
                (ErrorCode::Limited, "too many offers of this agent are open: wait 10 s")
            }
            Refusal::ConnectRate => (ErrorCode::Limited, "too many connects: send at most 4 a second"),
            Refusal::PairSessions => {
                (ErrorCode::Limited, "as many sessions with that agent as may be: end one first")
            }
            Refusal::SourceSessions => {
                (ErrorCode::Limited, "this agent has as many sessions as it may: end one first")
            }
            Refusal::PrefixSessions => (
                ErrorCode::Limited,
                "the agents at this network address have as many sessions as they may: end one first",
            ),
            Refusal::TargetSessions => {
                (ErrorCode::Busy, "that agent has as many sessions as it may: try again later")
            }
            Refusal::TargetOffers => (ErrorCode::Busy, "too many offers to that agent are open: try again"),
            Refusal::TargetRate => {
                (ErrorCode::Busy, "that agent is asked for too often: try again in a second")
            }
            Refusal::DocumentedOnly => (
                ErrorCode::DocumentedOnly,
                "that agent knows only the documented messages: connect without flow, to be joined by streams that \
                 this relay can read",
            ),
            _ => (ErrorCode::Refused, "that agent takes only sessions with flow: 1"),
        };
        self.send(
            conn,
            RelayError {
                code: code.number(),
                message: text.to_owned(),
                target_id: Some(target.to_string()),
                session: None,
            },
        );
    }
}
