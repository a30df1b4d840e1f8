//! One session: its two sides, what it carries, how far it is.

use std::net::SocketAddr;
use std::time::Duration;

use relay_common::Side;

use super::CONSENT;
use super::agents::ConnId;
use super::binds::Questions;
use super::counts::Restrained;
use super::nodes::NodeNumber;
use super::prefixes::PrefixNumber;
use super::proved_tuple::ProvedTuple;
use crate::clock::MonoTime;
use crate::identity::NodeId;
use crate::protocol::SessionId;
use crate::protocol::flow_terms::MAX_DATAGRAM_RANGE;
use crate::relay::datapath::{Debt, FlowTuple, Flows, Limit, SlotId, Traffic};
use crate::relay::family::Family;

/// The traffic of a busy session is looked at this often, for what the limit dropped; and agents are told of that at most
/// this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// So many sessions that are not busy are looked at in a second, if there are that many.
const LOOKS_PER_SECOND: u32 = 4096;

/// However many there are, each is looked at this often. Until then a session that was quiet may be limited unnoticed.
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_secs(5);

/// The largest IP packet that a path may be expected to take, unless the relay knows of less.
const ETHERNET_MTU: u16 = 1500;

/// An offer or session.
///
/// There may be a million, so what few of them have, or for a moment only, is elsewhere.
#[derive(Debug)]
pub(super) struct Session {
    pub id: SessionId,
    /// Indexed by [`Side`].
    pub parties: [Party; 2],
    /// The prefix that it was asked for from.
    pub prefix: PrefixNumber,
    pub since: MonoTime,
    stage: Stage,
    /// Present while both flows are in place.
    pub slot: Option<SlotId>,
    /// Relayed packets at the last look.
    seen_packets: u64,
    /// Their bytes.
    seen_bytes: u64,
    /// The time of its one entry in the timers that counts; none: it has none.
    pub wakes_at: Option<MonoTime>,
    /// What its sides are being asked, indexed by [`Side`].
    questions: Option<Box<[Questions; 2]>>,
    past: Option<Box<Past>>,
}

/// How far a session has come.
#[derive(Clone, Copy, Debug)]
enum Stage {
    /// It was never paired.
    Offer {
        /// When it dies.
        until: MonoTime,
    },
    /// It was paired once.
    Established {
        /// When its traffic is to be looked at next.
        next_look: MonoTime,
        /// When packets were last found to be relayed.
        active: MonoTime,
    },
}

/// What becomes of few sessions.
#[derive(Debug, Default)]
struct Past {
    /// What it had carried when it lost its last slot.
    carried: Traffic,
    /// What that one owed: losing its tuples does not renew a session's burst.
    debt: Debt,
    /// What the limit had dropped when that was told last.
    told_dropped: Dropped,
    told_at: Option<MonoTime>,
    /// What the limit had done to it at the last look.
    seen_restrained: Restrained,
}

/// One side of a session.
#[derive(Debug)]
pub(super) struct Party {
    pub node: NodeNumber,
    /// The node's next session, in the order in which [`Sessions`](super::sessions::Sessions) lists them.
    pub next_of_node: Option<u32>,
    /// The control connection it is told things on; none while it is away.
    pub conn: Option<ConnId>,
    /// The highest bind counter accepted; 0: none.
    pub counter: u64,
    /// Of the tuple it proved last; before the first, of its control connection.
    pub family: Family,
    /// The largest IP packet that fits towards it.
    mtu: u16,
    /// The tuple it has proved, unless another session has proved it since.
    pub bound: Option<ProvedTuple>,
    /// When it last proved a tuple.
    pub proved: MonoTime,
}

/// What a look at a session's traffic has found.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Found {
    /// UDP payload bytes relayed since the look before.
    pub bytes: u64,
    /// What the limit has done since then.
    pub restrained: Restrained,
    /// What the limit has dropped since that was last returned, if it is time to tell the agents.
    pub dropped: Dropped,
}

/// What the limit has dropped.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Dropped {
    pub packets: u64,
    /// UDP payload bytes.
    pub bytes: u64,
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

impl Party {
    /// One that has proved nothing yet. Its control connection comes from `remote`.
    pub fn unproved(node: NodeNumber, conn: ConnId, remote: SocketAddr, now: MonoTime) -> Party {
        Party {
            node,
            next_of_node: None,
            conn: Some(conn),
            counter: 0,
            family: Family::of(remote),
            mtu: ETHERNET_MTU,
            bound: None,
            proved: now,
        }
    }

    /// One of a session that a predecessor has left, with `agent` the tuple that it had proved to that one.
    pub fn left(node: NodeNumber, counter: u64, agent: Option<SocketAddr>, now: MonoTime) -> Party {
        Party {
            node,
            next_of_node: None,
            conn: None,
            counter,
            family: agent.map_or(Family::V4, Family::of),
            mtu: ETHERNET_MTU,
            bound: None,
            proved: now,
        }
    }

    /// The tuple it has proved, unless another session has proved it since.
    pub fn tuple(&self) -> Option<FlowTuple> {
        self.bound.map(FlowTuple::from)
    }
}

impl Session {
    /// An offer made now.
    pub fn offer(id: SessionId, parties: [Party; 2], prefix: PrefixNumber, now: MonoTime) -> Session {
        Session {
            id,
            parties,
            prefix,
            since: now,
            stage: Stage::Offer { until: now + super::OFFER_LIFETIME },
            slot: None,
            seen_packets: 0,
            seen_bytes: 0,
            wakes_at: None,
            questions: None,
            past: None,
        }
    }

    /// While it is an offer: when it dies. None once it was paired.
    pub fn offer_until(&self) -> Option<MonoTime> {
        match self.stage {
            Stage::Offer { until } => Some(until),
            Stage::Established { .. } => None,
        }
    }

    /// Whether it was never paired.
    pub fn is_offer(&self) -> bool {
        self.offer_until().is_some()
    }

    /// Its nodes, indexed by [`Side`].
    pub fn nodes(&self) -> [NodeNumber; 2] {
        self.parties.each_ref().map(|party| party.node)
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

    /// The side that is `node`.
    pub fn side_of(&self, node: NodeNumber) -> Option<Side> {
        Side::BOTH.into_iter().find(|side| self.party(*side).node == node)
    }

    /// What a side is being asked, if it is.
    pub fn questions(&self, side: Side) -> Option<&Questions> {
        let [connector, target] = &**self.questions.as_ref()?;
        Some(match side {
            Side::Connector => connector,
            Side::Target => target,
        })
    }

    pub fn questions_mut(&mut self, side: Side) -> &mut Questions {
        let [connector, target] = &mut **self.questions.get_or_insert_default();
        match side {
            Side::Connector => connector,
            Side::Target => target,
        }
    }

    /// A side has answered what it was asked.
    pub fn answered(&mut self, side: Side) {
        if self.questions.is_some() {
            self.questions_mut(side).answered();
        }
    }

    /// Forgets what the sides were asked, once that makes no difference any more.
    pub fn forget_questions(&mut self, now: MonoTime) {
        self.questions.take_if(|questions| questions.iter().all(|side| side.are_over(now)));
    }

    pub fn state(&self) -> SessionState {
        match (self.slot, self.parties.iter().any(|party| party.bound.is_some())) {
            (Some(_), _) => SessionState::Paired,
            (None, true) => SessionState::Half,
            (None, false) => SessionState::Offered,
        }
    }

    /// The largest UDP payload that fits both sides' paths as far as the relay knows them, as the agents are told.
    pub fn max_datagram_bytes(&self) -> u32 {
        // A datagram leaves with the headers of the side it goes to: translation to IPv6 adds to them.
        let towards = |party: &Party| u32::from(party.mtu).saturating_sub(headers(party.family));
        let [connector, target] = &self.parties;
        towards(connector).min(towards(target)).max(*MAX_DATAGRAM_RANGE.start())
    }

    /// Looks at how large packets may be that leave towards each side. What is not known now stays as it was.
    pub fn see_mtus(&mut self, flows: &impl Flows) {
        let Some(slot) = self.slot else { return };
        for (party, mtu) in self.parties.iter_mut().zip(flows.egress_mtus(slot)) {
            let known = mtu.map(|mtu| u16::try_from(mtu).unwrap_or(u16::MAX).min(ETHERNET_MTU));
            party.mtu = known.unwrap_or(party.mtu);
        }
    }

    /// Both tuples, once proved.
    pub fn tuples(&self) -> Option<[FlowTuple; 2]> {
        let [connector, target] = &self.parties;
        Some([connector.tuple()?, target.tuple()?])
    }

    /// What the bucket of its next slot begins with.
    pub fn debt(&self) -> Debt {
        self.past.as_ref().map_or(Debt::NONE, |past| past.debt)
    }

    /// The flows are in place from now on.
    pub fn paired(&mut self, slot: SlotId, now: MonoTime) {
        self.slot = Some(slot);
        self.stage = Stage::Established { next_look: now + LOOK_EVERY, active: now };
    }

    /// It was paired before a predecessor left it, had carried `carried` and owed `debt`.
    pub fn go_on(&mut self, carried: Traffic, debt: Debt, now: MonoTime) {
        self.stage = Stage::Established { next_look: now + LOOK_EVERY, active: now };
        (self.seen_packets, self.seen_bytes) = (carried.packets(), carried.bytes());
        let told_dropped = Dropped { packets: carried.limited_packets, bytes: carried.limited_bytes };
        let seen_restrained = Restrained::of(&carried);
        self.past = Some(Box::new(Past { carried, debt, told_dropped, told_at: None, seen_restrained }));
    }

    /// The flows are no longer wanted: what they carried is kept.
    pub fn part(&mut self, flows: &mut impl Flows, now: MonoTime) {
        if let Some(slot) = self.slot.take() {
            let past = self.past.get_or_insert_default();
            past.carried = flows.traffic(slot);
            past.debt = flows.remove(slot, now);
        }
    }

    pub fn traffic(&self, flows: &impl Flows) -> Traffic {
        self.slot.map_or_else(|| self.carried_before(), |slot| flows.traffic(slot))
    }

    /// What it had carried when it lost its last slot: what its next one begins with.
    pub fn carried_before(&self) -> Traffic {
        self.past.as_ref().map_or(Traffic::NOTHING, |past| past.carried)
    }

    /// The side whose last proof is no longer good.
    pub fn silent_side(&self, now: MonoTime) -> Option<Side> {
        Side::BOTH.into_iter().find(|side| self.party(*side).proved + CONSENT <= now)
    }

    /// Looks at what it has carried under `limit`; it is one of `sessions`.
    pub fn look(&mut self, flows: &impl Flows, limit: Limit, sessions: usize, now: MonoTime) -> Found {
        let traffic = self.traffic(flows);
        let Stage::Established { next_look, active } = &mut self.stage else { return Found::default() };
        let packets = traffic.packets();
        if packets != self.seen_packets {
            self.seen_packets = packets;
            *active = now;
        }
        let bytes = traffic.bytes().saturating_sub(std::mem::replace(&mut self.seen_bytes, traffic.bytes()));
        // Whoever spends less than a burst between two looks is not about to be limited.
        let is_fast = limit.bytes_per_s > 0 && bytes > limit.burst_bytes;
        let (told, told_at) =
            self.past.as_ref().map_or_else(Default::default, |past| (past.told_dropped, past.told_at));
        let dropped = Dropped {
            packets: traffic.limited_packets.saturating_sub(told.packets),
            bytes: traffic.limited_bytes.saturating_sub(told.bytes),
        };
        *next_look = now + pause(is_fast || dropped.packets > 0, sessions);
        let restrained = self.unseen_restraint(&traffic);
        if restrained != Restrained::default() {
            self.past.get_or_insert_default().seen_restrained = Restrained::of(&traffic);
        }
        if dropped.packets == 0 || told_at.is_some_and(|at| now.since(at) < LOOK_EVERY) {
            return Found { bytes, restrained, dropped: Dropped::default() };
        }
        let past = self.past.get_or_insert_default();
        past.told_dropped = Dropped { packets: traffic.limited_packets, bytes: traffic.limited_bytes };
        past.told_at = Some(now);
        Found { bytes, restrained, dropped }
    }

    /// How many packets that the limit dropped the agents have been told of.
    pub fn told_dropped(&self) -> u64 {
        self.past.as_ref().map_or(0, |past| past.told_dropped.packets)
    }

    /// What of `traffic`, which is all of its own, no look has found yet.
    pub fn unseen_bytes(&self, traffic: &Traffic) -> u64 {
        traffic.bytes().saturating_sub(self.seen_bytes)
    }

    /// What the limit has done of what is in `traffic`, which is all of its own, that no look has found yet.
    pub fn unseen_restraint(&self, traffic: &Traffic) -> Restrained {
        let seen = self.past.as_ref().map_or_else(Default::default, |past| past.seen_restrained);
        Restrained::of(traffic).since(seen)
    }

    /// Whether no packet was found to be relayed for this long.
    pub fn is_idle(&self, idle_timeout: Duration, now: MonoTime) -> bool {
        matches!(self.stage, Stage::Established { active, .. } if active + idle_timeout <= now)
    }

    /// When it has to be looked at next.
    pub fn due(&self, idle_timeout: Duration) -> MonoTime {
        match self.stage {
            Stage::Offer { until } => until,
            Stage::Established { next_look, active } => {
                let [connector, target] = &self.parties;
                let consent = connector.proved.min(target.proved) + CONSENT;
                consent.min(next_look).min(active + idle_timeout)
            }
        }
    }

    /// What listings say of it; the nodes are its own.
    pub fn status(
        &self,
        [connector, target]: [NodeId; 2],
        limit: Limit,
        flows: &impl Flows,
        now: MonoTime,
    ) -> SessionStatus {
        let side = |party: &Party| SideStatus {
            agent: party.tuple().map(|tuple| tuple.agent),
            relay: party.tuple().map(|tuple| tuple.relay),
            last_proof: (party.counter > 0).then(|| now.since(party.proved)),
        };
        SessionStatus {
            session: self.id,
            state: self.state(),
            connector,
            target,
            limit,
            age: now.since(self.since),
            sides: self.parties.each_ref().map(side),
            traffic: self.traffic(flows),
        }
    }
}

/// How long one of `sessions` goes unlooked at: all of them together must not keep the relay awake.
fn pause(is_busy: bool, sessions: usize) -> Duration {
    let share = Duration::from_secs(sessions as u64) / LOOKS_PER_SECOND;
    if is_busy { LOOK_EVERY } else { share.clamp(LOOK_EVERY, LOOK_AT_LEAST_EVERY) }
}

/// Bytes of the IP and UDP headers before a datagram.
const fn headers(family: Family) -> u32 {
    match family {
        Family::V4 => 20 + 8,
        Family::V6 => 40 + 8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_sessions_are_looked_at_less_often_the_more_there_are_and_busy_ones_every_second() {
        let (second, longest) = (Duration::from_secs(1), Duration::from_secs(5));
        for (sessions, idle) in [(1, second), (4096, second), (12_288, 3 * second), (1_000_000, longest)] {
            assert_eq!(pause(false, sessions), idle, "{sessions}");
            assert_eq!(pause(true, sessions), second, "{sessions}");
        }
    }
}
