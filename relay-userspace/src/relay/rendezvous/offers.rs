//! Pairing: an agent asks for another, and both are offered to each other.

use std::net::SocketAddr;

use relay_common::Side;

use super::agents::{ConnId, own_id};
use super::refusal::Refusal;
use super::session::{Party, Session};
use super::{
    EndReason, Event, MAX_OFFERS_PER_PAIR, MAX_OFFERS_PER_SOURCE, MAX_OFFERS_PER_TARGET,
    MAX_SESSIONS_PER_NODE, MAX_SESSIONS_PER_PAIR, Randomness, Rendezvous,
};
use crate::clock::MonoTime;
use crate::identity::NodeId;
use crate::protocol::flow_terms::{FLOW, RelayConnect, RelayError};
use crate::protocol::{ErrorCode, SessionId};
use crate::relay::datapath::Flows;

impl Rendezvous {
    /// RelayConnect: pairs the agent with another one. Nothing is forwarded until both have proved a tuple.
    pub(super) fn connect(
        &mut self,
        conn: ConnId,
        connect: &RelayConnect,
        flows: &mut impl Flows,
        randomness: &mut impl Randomness,
        now: MonoTime,
    ) {
        let Some(agent) = self.agents.get(conn) else { return };
        let (source, remote) = (agent.node, agent.remote);
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
        let reachable = self.reachable(connect, &source, &target);
        let room = reachable.and_then(|reached| Ok((reached, self.room(&source, &target)?)));
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
        self.sessions.insert(Session::offer(id, parties, now), &mut self.nodes);
        self.schedule(id);
        self.event(Event::Offered { session: id, connector: source, target });
        self.send_terms(id, false);
    }

    /// Whether `source` may be offered to `target` now; if so, the target's connection and where it comes from.
    fn reachable(
        &self,
        connect: &RelayConnect,
        source: &NodeId,
        target: &NodeId,
    ) -> Result<(ConnId, SocketAddr), Refusal> {
        if connect.flow != Some(FLOW) {
            return Err(Refusal::DocumentedOnly);
        }
        // Absent and not allowed look the same from outside, whatever else is the matter with the target.
        let node = self.nodes.by_id(target).ok_or(Refusal::TargetAbsent)?;
        let announcement = node.announcement.as_ref().ok_or(Refusal::TargetAbsent)?;
        if announcement.allow.as_ref().is_some_and(|allowed| !allowed.contains(source)) {
            return Err(Refusal::TargetDenies);
        }
        if !announcement.speaks_flow {
            return Err(Refusal::DocumentedOnly);
        }
        let agent = self.agents.get(announcement.conn).ok_or(Refusal::TargetAbsent)?;
        Ok((announcement.conn, agent.remote))
    }

    /// Whether there may be one more offer of `source` to `target`, and which older one it takes the place of.
    fn room(&self, source: &NodeId, target: &NodeId) -> Result<Option<SessionId>, Refusal> {
        let is_offer = |session: &&Session| session.is_offer();
        let [from, to] = [source, target].map(|id| self.nodes.number(id));
        let of_pair = || self.sessions.of_pair(from, to, &self.nodes);
        let (Some(source), Some(target)) = (self.nodes.by_id(source), self.nodes.by_id(target)) else {
            return Err(Refusal::TargetAbsent);
        };
        if of_pair().filter(is_offer).count() >= MAX_OFFERS_PER_PAIR {
            let oldest = of_pair().filter(is_offer).min_by_key(|offer| offer.since);
            return Ok(oldest.map(|offer| offer.id));
        }
        if of_pair().count() >= MAX_SESSIONS_PER_PAIR {
            return Err(Refusal::PairSessions);
        }
        if source.open_offers(Side::Connector) >= MAX_OFFERS_PER_SOURCE {
            return Err(Refusal::SourceOffers);
        }
        if source.sessions >= MAX_SESSIONS_PER_NODE {
            return Err(Refusal::SourceSessions);
        }
        if target.open_offers(Side::Target) >= MAX_OFFERS_PER_TARGET {
            // Whoever means it binds within a second or two: identities made only to fill the target's offers do not
            // keep others out.
            let unbound = |offer: &&Session| is_offer(offer) && offer.party(Side::Connector).counter == 0;
            let with_target = self.sessions.with_target(to, &self.nodes);
            let oldest = with_target.filter(unbound).min_by_key(|offer| offer.since);
            return oldest.map(|offer| Some(offer.id)).ok_or(Refusal::TargetOffers);
        }
        if target.sessions >= MAX_SESSIONS_PER_NODE {
            return Err(Refusal::TargetSessions);
        }
        Ok(None)
    }

    /// Answers RelayConnect with an error; the connection stays.
    fn decline(&mut self, conn: ConnId, target: &NodeId, refusal: Refusal, now: MonoTime) {
        self.refuse(conn, refusal, now);
        let (code, text) = match refusal {
            Refusal::TargetAbsent | Refusal::TargetDenies => (
                ErrorCode::TargetUnknown,
                "no such agent is announced here, or it does not accept this source",
            ),
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
            Refusal::TargetSessions => {
                (ErrorCode::Limited, "that agent has as many sessions as it may: try again later")
            }
            Refusal::TargetOffers => (ErrorCode::Busy, "too many offers to that agent are open: try again"),
            _ => (ErrorCode::Refused, "this relay pairs only agents that bind data sockets (flow: 1)"),
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
