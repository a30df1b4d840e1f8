//! What happens to sessions in the course of time: terms told, traffic looked at, ends.

use relay_common::Side;

use super::agents::ConnId;
use super::event::EndReason;
use super::nodes::NodeNumber;
use super::session::{Dropped, Found};
use super::{CONSENT, Event, KEEPALIVE, Refusal, Rendezvous};
use crate::clock::MonoTime;
use crate::identity::NodeId;
use crate::protocol::flow_terms::{
    Disconnect, ErrorMessage, FlowTerms, RelayError, RelayReady, disconnect_reason,
};
use crate::protocol::{ErrorCode, SessionId};
use crate::relay::datapath::Flows;

impl Rendezvous {
    /// Sees to it that a session is looked at when that is due.
    pub(super) fn schedule(&mut self, id: SessionId) {
        let Some(number) = self.sessions.number(id) else { return };
        let Some(session) = self.sessions.numbered(number) else { return };
        let due = session.due(self.settings.idle_timeout);
        // An entry that comes too early is put in again then: what is due later with every proof is so without a move.
        if session.wakes_at.is_none_or(|at| due < at) {
            session.wakes_at = Some(due);
            self.looks.add(number, due);
        }
    }

    /// A timer's entry of `at` has come, for the session of this number.
    pub(super) fn wake(&mut self, number: u32, at: MonoTime, flows: &mut impl Flows, now: MonoTime) {
        let idle_timeout = self.settings.idle_timeout;
        let Some(session) = self.sessions.numbered(number) else { return };
        if session.wakes_at.take_if(|entry| *entry == at).is_none() {
            return;
        }
        let (id, due) = (session.id, session.due(idle_timeout));
        match due <= now {
            true => self.examine(id, flows, now),
            false => self.schedule(id),
        }
    }

    /// A session's time has come: ends it if it is over, else looks at its traffic.
    pub(super) fn examine(&mut self, id: SessionId, flows: &mut impl Flows, now: MonoTime) {
        let (limit, sessions) = (self.settings.limit, self.sessions.total());
        let Some(session) = self.sessions.get_mut(id) else { return };
        if session.is_offer() {
            return self.end(id, EndReason::OfferExpired, flows, now);
        }
        if let Some(side) = session.silent_side(now) {
            return self.end(id, EndReason::ConsentLost(side), flows, now);
        }
        let Found { bytes, restrained, dropped } = session.look(flows, limit, sessions, now);
        self.throughput.add(bytes, now);
        self.restrained.add(restrained);
        if session.is_idle(self.settings.idle_timeout, now) {
            return self.end(id, EndReason::Idle, flows, now);
        }
        session.forget_questions(now);
        self.tell_dropped(id, dropped);
        self.tell_what_fits(id, flows);
        self.schedule(id);
    }

    /// A side ends one session; the connection stays.
    pub(super) fn leave(&mut self, conn: ConnId, id: SessionId, flows: &mut impl Flows, now: MonoTime) {
        let Some(node) = self.agents.get(conn).map(|agent| agent.node) else { return };
        let number = self.nodes.number(&node);
        // It may just have ended: both ends may say so at once.
        let Some(session) = self.sessions.get(id) else { return };
        match number.and_then(|number| session.side_of(number)) {
            Some(Side::Target) if session.is_offer() => self.end(id, EndReason::Refused, flows, now),
            Some(side) => self.end(id, EndReason::Left(side), flows, now),
            None => self.refuse(conn, Refusal::ForeignSession, now),
        }
    }

    /// Ends a session or offer: flows first, then both sides are told.
    pub(super) fn end(&mut self, id: SessionId, reason: EndReason, flows: &mut impl Flows, now: MonoTime) {
        let nodes = self.sessions.get(id).and_then(|session| self.nodes.ids(session.nodes()));
        let (Some([connector, target]), Some(mut session)) =
            (nodes, self.sessions.remove(id, &mut self.nodes))
        else {
            return;
        };
        session.part(flows, now);
        for side in Side::BOTH {
            if let Some(conn) = session.party(side).conn {
                self.tell_end(conn, (id, target), side, reason);
            }
        }
        let (age, traffic) = (now.since(session.since), session.traffic(flows));
        self.throughput.add(session.unseen_bytes(&traffic), now);
        self.restrained.add(session.unseen_restraint(&traffic));
        self.event(Event::Ended { session: id, connector, target, reason, age, traffic });
    }

    /// Ends all sessions and offers of a node. How many there were.
    pub(super) fn end_all(
        &mut self,
        node: Option<NodeNumber>,
        reason: EndReason,
        flows: &mut impl Flows,
        now: MonoTime,
    ) -> usize {
        let of_node = self.sessions.of_node(node, &self.nodes);
        let sessions: Vec<SessionId> = of_node.map(|(session, _)| session.id).collect();
        sessions.iter().for_each(|session| self.end(*session, reason, flows, now));
        sessions.len() + self.unsplice_node(node, reason)
    }

    /// Tells both sides how large their datagrams may be, if that has changed.
    pub(super) fn tell_what_fits(&mut self, id: SessionId, flows: &impl Flows) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        let told = session.max_datagram_bytes();
        session.see_mtus(flows);
        if session.max_datagram_bytes() != told {
            self.send_terms(id, false);
        }
    }

    /// Sends both sides their terms.
    pub(super) fn send_terms(&mut self, id: SessionId, bind_now: bool) {
        for side in Side::BOTH {
            self.send_terms_to(id, side, bind_now);
        }
    }

    /// Sends one side its terms, if it is connected.
    pub(super) fn send_terms_to(&mut self, id: SessionId, side: Side, bind_now: bool) {
        let Some(session) = self.sessions.get(id) else { return };
        let Some(conn) = session.party(side).conn else { return };
        let Some([connector, target]) = self.nodes.ids(session.nodes()) else { return };
        let limit = self.settings.limit;
        let terms = FlowTerms {
            session: id,
            peer: if side == Side::Connector { target } else { connector },
            side,
            bind_key: self.bind_keys.derive(id, side, &connector, &target),
            bind_magic: self.magic,
            rate_bytes_per_s: limit.bytes_per_s,
            burst_bytes: limit.burst_bytes,
            max_datagram_bytes: session.max_datagram_bytes(),
            consent: CONSENT,
            keepalive: KEEPALIVE,
            data_addresses: self.settings.advertise.clone(),
            bind_now,
        };
        self.send(conn, RelayReady::with_terms(&terms));
    }

    /// Tells a session's agents what the limit has dropped.
    fn tell_dropped(&mut self, id: SessionId, dropped: Dropped) {
        let Dropped { packets, bytes } = dropped;
        let Some(session) = self.sessions.get(id).filter(|_| packets > 0) else { return };
        let conns = session.parties.each_ref().map(|party| party.conn);
        let first = session.told_dropped() == packets;
        self.event(Event::Limited { session: id, packets, bytes, first });
        for conn in conns.into_iter().flatten() {
            let text = "datagrams were dropped for the session's limit";
            self.send(
                conn,
                ErrorMessage {
                    session: Some(id),
                    packets: Some(packets),
                    bytes: Some(bytes),
                    ..ErrorMessage::new(ErrorCode::RateLimited, text)
                },
            );
        }
    }

    /// `ended`: the session, and its target.
    fn tell_end(&mut self, conn: ConnId, ended: (SessionId, NodeId), side: Side, reason: EndReason) {
        let note = Some(reason.to_string());
        let word = match reason {
            EndReason::OfferExpired => {
                return self.tell_failure(conn, ended, side, ErrorCode::OfferExpired, reason);
            }
            EndReason::Displaced => {
                return self.tell_failure(conn, ended, side, ErrorCode::Limited, reason);
            }
            EndReason::TableFull => {
                return self.tell_failure(conn, ended, side, ErrorCode::TableFull, reason);
            }
            EndReason::TupleRefused(_) => {
                return self.tell_failure(conn, ended, side, ErrorCode::Refused, reason);
            }
            EndReason::Refused if side == Side::Target => return,
            EndReason::Refused => {
                return self.tell_failure(conn, ended, side, ErrorCode::Refused, reason);
            }
            // Of joined streams, which end without a message.
            EndReason::NotJoined => return,
            EndReason::Left(leaver) if leaver == side => return,
            EndReason::Left(_) => disconnect_reason::PEER_GONE,
            EndReason::ConsentLost(_) => disconnect_reason::CONSENT_LOST,
            EndReason::Idle => disconnect_reason::IDLE,
            EndReason::Operator | EndReason::AccessDenied | EndReason::Banned => disconnect_reason::OPERATOR,
            EndReason::LeaseOver | EndReason::Unreadable => disconnect_reason::CONSENT_LOST,
            EndReason::Shutdown => disconnect_reason::SHUTDOWN,
        };
        self.send(conn, Disconnect::new(word, note, Some(ended.0)));
    }

    /// What could not become a session is told as a RelayError.
    fn tell_failure(
        &mut self,
        conn: ConnId,
        (session, target): (SessionId, NodeId),
        side: Side,
        code: ErrorCode,
        reason: EndReason,
    ) {
        self.send(
            conn,
            RelayError {
                code: code.number(),
                message: reason.to_string(),
                target_id: (side == Side::Connector).then(|| target.to_string()),
                session: Some(session),
            },
        );
    }
}
