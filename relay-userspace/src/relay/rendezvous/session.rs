//! Sessions: their two sides, what they carry, and when they end.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use relay_common::Side;

use super::binds::Pace;
use super::event::EndReason;
use super::timers::Timer;
use super::{CONSENT, Event, KEEPALIVE, Rendezvous, goodbye};
use crate::clock::MonoTime;
use crate::identity::NodeId;
use crate::protocol::bind::BindKey;
use crate::protocol::flow_terms::{ErrorMessage, FlowTerms, RelayError, RelayReady, disconnect_reason};
use crate::protocol::{ErrorCode, SessionId};
use crate::relay::datapath::{FlowTuple, Flows, Limit, SideTraffic, SlotId, Traffic};

use super::agents::ConnId;

/// Traffic is looked at this often, for idleness and for what the limit dropped.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// An offer or session.
#[derive(Debug)]
pub(super) struct Session {
    pub id: SessionId,
    /// Indexed by [`Side`].
    pub parties: [Party; 2],
    pub limit: Limit,
    /// The largest UDP payload that fits, as the agents are told.
    pub max_datagram_bytes: u32,
    pub since: MonoTime,
    /// While it is an offer: when it dies. None once it was paired.
    pub offer_until: Option<MonoTime>,
    /// Present while both flows are in place.
    pub slot: Option<SlotId>,
    /// What slots it had before have carried.
    carried: Traffic,
    /// Relayed packets at the last look.
    seen_packets: u64,
    /// When packets were last found to be relayed.
    active: MonoTime,
    /// What the limit had dropped when the agents were last told.
    told_limited: (u64, u64),
    next_look: MonoTime,
}

/// One side of a session.
#[derive(Debug)]
pub(super) struct Party {
    pub node: NodeId,
    /// The control connection it is told things on; none while it is away.
    pub conn: Option<ConnId>,
    pub bind_key: BindKey,
    /// The highest bind counter accepted; 0: none.
    pub counter: u64,
    /// The tuple it has proved, unless another session has proved it since.
    pub bound: Option<FlowTuple>,
    /// When it last proved a tuple.
    pub proved: MonoTime,
    pub challenges: Pace<8>,
    pub moves: Pace<1>,
}

/// How far a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// No side is bound.
    Offered,
    /// One side is bound.
    Half,
    /// Both flows are in place.
    Paired,
}

/// A session, for listings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionStatus {
    /// Its id.
    pub session: SessionId,
    /// How far it is.
    pub state: SessionState,
    /// Who asked.
    pub connector: NodeId,
    /// Who was asked for.
    pub target: NodeId,
    /// Its limit.
    pub limit: Limit,
    /// Time since the offer was made.
    pub age: Duration,
    /// Indexed by [`Side`].
    pub sides: [SideStatus; 2],
    /// What it carried.
    pub traffic: Traffic,
}

/// One side of a session, for listings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SideStatus {
    /// The agent's tuple, once proved.
    pub agent: Option<SocketAddr>,
    /// The relay address it uses.
    pub relay: Option<SocketAddr>,
    /// Time since its last proof.
    pub last_proof: Option<Duration>,
}

impl Session {
    /// An offer made now.
    pub fn offer(
        id: SessionId,
        parties: [Party; 2],
        limit: Limit,
        max_datagram_bytes: u32,
        now: MonoTime,
    ) -> Session {
        Session {
            id,
            parties,
            limit,
            max_datagram_bytes,
            since: now,
            offer_until: Some(now + super::OFFER_LIFETIME),
            slot: None,
            carried: Traffic::default(),
            seen_packets: 0,
            active: now,
            told_limited: (0, 0),
            next_look: now,
        }
    }

    pub fn party(&self, side: Side) -> &Party {
        let [connector, target] = &self.parties;
        match side {
            Side::Connector => connector,
            Side::Target => target,
        }
    }

    pub fn party_mut(&mut self, side: Side) -> &mut Party {
        let [connector, target] = &mut self.parties;
        match side {
            Side::Connector => connector,
            Side::Target => target,
        }
    }

    /// The side whose connection is `conn`. The two sides are different nodes, so there is at most one.
    pub fn side_on(&self, conn: ConnId) -> Option<Side> {
        Side::BOTH.into_iter().find(|side| self.party(*side).conn == Some(conn))
    }

    /// The side that is `node`.
    pub fn side_of(&self, node: &NodeId) -> Option<Side> {
        Side::BOTH.into_iter().find(|side| self.party(*side).node == *node)
    }

    pub fn state(&self) -> SessionState {
        match (self.slot, self.parties.iter().any(|party| party.bound.is_some())) {
            (Some(_), _) => SessionState::Paired,
            (None, true) => SessionState::Half,
            (None, false) => SessionState::Offered,
        }
    }

    /// Both tuples, once proved.
    pub fn tuples(&self) -> Option<[FlowTuple; 2]> {
        let [connector, target] = &self.parties;
        Some([connector.bound?, target.bound?])
    }

    /// The flows are in place from now on.
    pub fn paired(&mut self, slot: SlotId, now: MonoTime) {
        self.slot = Some(slot);
        self.offer_until = None;
        self.active = now;
        self.next_look = now + LOOK_EVERY;
    }

    /// The flows are no longer wanted: what they carried is kept.
    pub fn part(&mut self, flows: &mut impl Flows, now: MonoTime) {
        if let Some(slot) = self.slot.take() {
            self.carried = sum(self.carried, flows.traffic(slot));
            flows.remove(slot, now);
        }
    }

    pub fn traffic(&self, flows: &impl Flows) -> Traffic {
        self.slot.map_or(self.carried, |slot| sum(self.carried, flows.traffic(slot)))
    }

    /// When it has to be looked at next.
    pub fn due(&self, idle_timeout: Duration) -> MonoTime {
        if let Some(until) = self.offer_until {
            return until;
        }
        let [connector, target] = &self.parties;
        let consent = connector.proved.min(target.proved) + CONSENT;
        consent.min(self.next_look).min(self.active + idle_timeout)
    }

    fn status(&self, flows: &impl Flows, now: MonoTime) -> SessionStatus {
        let [connector, target] = &self.parties;
        let side = |party: &Party| SideStatus {
            agent: party.bound.map(|tuple| tuple.agent),
            relay: party.bound.map(|tuple| tuple.relay),
            last_proof: (party.counter > 0).then(|| now.since(party.proved)),
        };
        SessionStatus {
            session: self.id,
            state: self.state(),
            connector: connector.node,
            target: target.node,
            limit: self.limit,
            age: now.since(self.since),
            sides: [side(connector), side(target)],
            traffic: self.traffic(flows),
        }
    }
}

/// All offers and sessions, by id, node and tuple.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    all: BTreeMap<SessionId, Session>,
    by_node: BTreeMap<NodeId, BTreeSet<SessionId>>,
    /// Every proved tuple belongs to one side of one session: whoever proved it last.
    by_tuple: BTreeMap<FlowTuple, (SessionId, Side)>,
    /// Open offers by connector and by target.
    offers: [BTreeMap<NodeId, u32>; 2],
}

impl Sessions {
    pub fn get(&self, id: SessionId) -> Option<&Session> {
        self.all.get(&id)
    }

    pub fn get_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        self.all.get_mut(&id)
    }

    pub fn ids(&self) -> Vec<SessionId> {
        self.all.keys().copied().collect()
    }

    pub fn of_node(&self, node: &NodeId) -> Vec<SessionId> {
        self.by_node.get(node).into_iter().flatten().copied().collect()
    }

    /// Who has proved `tuple`.
    pub fn owner(&self, tuple: &FlowTuple) -> Option<(SessionId, Side)> {
        self.by_tuple.get(tuple).copied()
    }

    /// Offers that `node` has open as `side`.
    pub fn open_offers(&self, node: &NodeId, side: Side) -> u32 {
        let [as_connector, as_target] = &self.offers;
        let counts = match side {
            Side::Connector => as_connector,
            Side::Target => as_target,
        };
        counts.get(node).copied().unwrap_or(0)
    }

    pub fn insert(&mut self, session: Session) {
        for (party, offers) in session.parties.iter().zip(&mut self.offers) {
            self.by_node.entry(party.node).or_default().insert(session.id);
            *offers.entry(party.node).or_default() += 1;
        }
        self.all.insert(session.id, session);
    }

    /// An offer is none any more: it was paired, or is over.
    pub fn close_offer(&mut self, nodes: [NodeId; 2]) {
        for (node, offers) in nodes.iter().zip(&mut self.offers) {
            if let Some(count) = offers.get_mut(node) {
                *count -= 1;
                if *count == 0 {
                    offers.remove(node);
                }
            }
        }
    }

    pub fn remove(&mut self, id: SessionId) -> Option<Session> {
        let session = self.all.remove(&id)?;
        for party in &session.parties {
            if let Some(tuple) = party.bound {
                self.by_tuple.remove(&tuple);
            }
            if let Some(sessions) = self.by_node.get_mut(&party.node) {
                sessions.remove(&id);
                if sessions.is_empty() {
                    self.by_node.remove(&party.node);
                }
            }
        }
        if session.offer_until.is_some() {
            let [connector, target] = &session.parties;
            self.close_offer([connector.node, target.node]);
        }
        Some(session)
    }

    /// `side` of session `id` has proved `tuple`, which nobody else owns.
    pub fn own(&mut self, id: SessionId, side: Side, tuple: FlowTuple) {
        let Some(session) = self.all.get_mut(&id) else { return };
        if let Some(before) = session.party_mut(side).bound.replace(tuple) {
            self.by_tuple.remove(&before);
        }
        self.by_tuple.insert(tuple, (id, side));
    }

    /// `side` of session `id` has no tuple any more.
    pub fn disown(&mut self, id: SessionId, side: Side) {
        if let Some(tuple) = self.all.get_mut(&id).and_then(|session| session.party_mut(side).bound.take()) {
            self.by_tuple.remove(&tuple);
        }
    }

    /// Sides of `node` whose connection was `from` continue on `to`.
    pub fn attach(&mut self, node: &NodeId, from: Option<ConnId>, to: ConnId) -> Vec<(SessionId, Side)> {
        let mut attached = Vec::new();
        for id in self.by_node.get(node).into_iter().flatten() {
            let Some(session) = self.all.get_mut(id) else { continue };
            let Some(side) = session.side_of(node) else { continue };
            let party = session.party_mut(side);
            if party.conn == from {
                party.conn = Some(to);
                attached.push((*id, side));
            }
        }
        attached
    }

    /// Sides of `node` whose connection was `from` have none now.
    pub fn detach(&mut self, node: &NodeId, from: ConnId) {
        for id in self.by_node.get(node).into_iter().flatten() {
            let Some(session) = self.all.get_mut(id) else { continue };
            if let Some(side) = session.side_on(from) {
                session.party_mut(side).conn = None;
            }
        }
    }

    pub fn statuses(&self, flows: &impl Flows, now: MonoTime) -> Vec<SessionStatus> {
        self.all.values().map(|session| session.status(flows, now)).collect()
    }

    #[cfg(test)]
    pub fn iter(&self) -> impl Iterator<Item = &Session> {
        self.all.values()
    }

    #[cfg(test)]
    pub fn tuple_count(&self) -> usize {
        self.by_tuple.len()
    }

    #[cfg(test)]
    pub fn offer_counts(&self) -> &[BTreeMap<NodeId, u32>; 2] {
        &self.offers
    }
}

impl Rendezvous {
    /// Sets the time at which a session is looked at next.
    pub(super) fn schedule(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get(id) {
            self.timers.set(Timer::Session(id), session.due(self.settings.idle_timeout));
        }
    }

    /// A session's time has come: ends it if it is over, else looks at its traffic.
    pub(super) fn examine(&mut self, id: SessionId, flows: &mut impl Flows, now: MonoTime) {
        let Some(session) = self.sessions.get(id) else { return };
        if session.offer_until.is_some() {
            return match session.offer_until {
                Some(until) if until <= now => self.end(id, EndReason::OfferExpired, flows, now),
                _ => self.schedule(id),
            };
        }
        for side in Side::BOTH {
            if session.party(side).proved + CONSENT <= now {
                return self.end(id, EndReason::ConsentLost(side), flows, now);
            }
        }
        if self.look(id, flows, now) {
            return self.end(id, EndReason::Idle, flows, now);
        }
        self.schedule(id);
    }

    /// A side ends one session; the connection stays.
    pub(super) fn leave(&mut self, conn: ConnId, id: SessionId, flows: &mut impl Flows, now: MonoTime) {
        let Some(node) = self.agents.get(conn).map(|agent| agent.node) else { return };
        match self.sessions.get(id).map(|session| session.side_of(&node)) {
            Some(Some(side)) => self.end(id, EndReason::Left(side), flows, now),
            // It may just have ended: both ends may say so at once.
            None => {}
            Some(None) => self.refuse(conn, super::Refusal::ForeignSession, now),
        }
    }

    /// Ends a session or offer: flows first, then both sides are told.
    pub(super) fn end(&mut self, id: SessionId, reason: EndReason, flows: &mut impl Flows, now: MonoTime) {
        let Some(mut session) = self.sessions.remove(id) else { return };
        self.timers.clear(Timer::Session(id));
        session.part(flows, now);
        for side in Side::BOTH {
            if let Some(conn) = session.party(side).conn {
                self.tell_end(conn, &session, side, reason);
            }
        }
        let [connector, target] = &session.parties;
        self.event(Event::Ended {
            session: id,
            connector: connector.node,
            target: target.node,
            reason,
            age: now.since(session.since),
            traffic: session.carried,
        });
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
        let party = session.party(side);
        let Some(conn) = party.conn else { return };
        let terms = FlowTerms {
            session: id,
            peer: session.party(side.other()).node,
            side,
            bind_key: party.bind_key.clone(),
            bind_magic: self.magic,
            rate_bytes_per_s: session.limit.bytes_per_s,
            burst_bytes: session.limit.burst_bytes,
            max_datagram_bytes: session.max_datagram_bytes,
            consent: CONSENT,
            keepalive: KEEPALIVE,
            data_addresses: self.settings.advertise.clone(),
            bind_now,
        };
        self.send(conn, RelayReady::with_terms(&terms));
    }

    /// Looks at what a session has carried: true if it has been idle for too long. Tells its agents what the limit has
    /// dropped since it was last looked at.
    fn look(&mut self, id: SessionId, flows: &impl Flows, now: MonoTime) -> bool {
        let idle_timeout = self.settings.idle_timeout;
        let Some(session) = self.sessions.get_mut(id) else { return false };
        session.next_look = now + LOOK_EVERY;
        let traffic = session.traffic(flows);
        let packets: u64 =
            traffic.sides.iter().map(|side| side.packets_kernel + side.packets_userspace).sum();
        if packets != session.seen_packets {
            session.seen_packets = packets;
            session.active = now;
        }
        let (packets, bytes) = session.told_limited;
        let dropped =
            (traffic.limited_packets.saturating_sub(packets), traffic.limited_bytes.saturating_sub(bytes));
        session.told_limited = (traffic.limited_packets, traffic.limited_bytes);
        let idle = session.active + idle_timeout <= now;
        let conns = session.parties.each_ref().map(|party| party.conn);
        if dropped.0 > 0 {
            let (packets, bytes) = dropped;
            self.event(Event::Limited { session: id, packets, bytes });
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
        idle
    }

    fn tell_end(&mut self, conn: ConnId, session: &Session, side: Side, reason: EndReason) {
        let note = Some(reason.to_string());
        let word = match reason {
            EndReason::OfferExpired => {
                return self.tell_failure(conn, session, side, ErrorCode::OfferExpired, reason);
            }
            EndReason::TableFull => {
                return self.tell_failure(conn, session, side, ErrorCode::TableFull, reason);
            }
            EndReason::TupleRefused(_) => {
                return self.tell_failure(conn, session, side, ErrorCode::Refused, reason);
            }
            EndReason::Left(leaver) if leaver == side => return,
            EndReason::Left(_) => disconnect_reason::PEER_GONE,
            EndReason::ConsentLost(_) => disconnect_reason::CONSENT_LOST,
            EndReason::Idle => disconnect_reason::IDLE,
            EndReason::Shutdown => disconnect_reason::SHUTDOWN,
        };
        self.send(conn, goodbye(word, note, Some(session.id)));
    }

    /// What could not become a session is told as a RelayError.
    fn tell_failure(
        &mut self,
        conn: ConnId,
        session: &Session,
        side: Side,
        code: ErrorCode,
        reason: EndReason,
    ) {
        let target = session.party(Side::Target).node;
        self.send(
            conn,
            RelayError {
                code: code.number(),
                message: reason.to_string(),
                target_id: (side == Side::Connector).then(|| target.to_string()),
                session: Some(session.id),
            },
        );
    }
}

/// What two slots of one session have carried.
fn sum(a: Traffic, b: Traffic) -> Traffic {
    let [a_connector, a_target] = a.sides;
    let [b_connector, b_target] = b.sides;
    let side = |a: SideTraffic, b: SideTraffic| SideTraffic {
        packets_kernel: a.packets_kernel + b.packets_kernel,
        packets_userspace: a.packets_userspace + b.packets_userspace,
        bytes: a.bytes + b.bytes,
    };
    Traffic {
        sides: [side(a_connector, b_connector), side(a_target, b_target)],
        limited_packets: a.limited_packets + b.limited_packets,
        limited_bytes: a.limited_bytes + b.limited_bytes,
        marked_packets: a.marked_packets + b.marked_packets,
    }
}
