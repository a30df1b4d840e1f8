//! One session: its two sides, what it carries, how far it is.

use std::net::SocketAddr;
use std::time::Duration;

use relay_common::Side;

use super::CONSENT;
use super::agents::ConnId;
use super::binds::{Challenge, Pace};
use crate::clock::MonoTime;
use crate::identity::NodeId;
use crate::protocol::SessionId;
use crate::protocol::bind::BindKey;
use crate::protocol::flow_terms::MAX_DATAGRAM_RANGE;
use crate::relay::datapath::{Debt, FlowTuple, Flows, Limit, SideTraffic, SlotId, Traffic};
use crate::relay::family::Family;

/// The traffic of a busy session is looked at this often, for what the limit dropped; and agents are told of that at most
/// this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// So many sessions that are not busy are looked at in a second, if there are that many.
const LOOKS_PER_SECOND: u32 = 4096;

/// However many there are, each is looked at this often. Until then a session that was quiet may be limited unnoticed.
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_secs(5);

/// The largest IP packet that a path may be expected to take, unless the relay knows of less.
const ETHERNET_MTU: u32 = 1500;

/// An offer or session.
#[derive(Debug)]
pub(super) struct Session {
    pub id: SessionId,
    /// Indexed by [`Side`].
    pub parties: [Party; 2],
    pub limit: Limit,
    pub since: MonoTime,
    /// While it is an offer: when it dies. None once it was paired.
    pub offer_until: Option<MonoTime>,
    /// Present while both flows are in place.
    pub slot: Option<SlotId>,
    /// What slots it had before have carried.
    carried: Traffic,
    /// What the last of them owed: losing its tuples does not renew a session's burst.
    debt: Debt,
    /// Relayed packets at the last look.
    seen_packets: u64,
    /// Their bytes.
    seen_bytes: u64,
    /// When packets were last found to be relayed.
    active: MonoTime,
    /// What the limit had dropped when that was told last.
    told_dropped: Dropped,
    told_at: Option<MonoTime>,
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
    /// Of the tuple it proved last; before the first, of its control connection.
    pub family: Family,
    /// The largest IP packet that fits towards it.
    pub mtu: u32,
    /// The tuple it has proved, unless another session has proved it since.
    pub bound: Option<FlowTuple>,
    /// When it last proved a tuple.
    pub proved: MonoTime,
    /// The one challenge that a Proof may answer.
    pub challenge: Option<Challenge>,
    pub challenges: Pace<8>,
    pub moves: Pace<1>,
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
    pub fn unproved(
        node: NodeId,
        conn: ConnId,
        remote: SocketAddr,
        bind_key: BindKey,
        now: MonoTime,
    ) -> Party {
        Party {
            node,
            conn: Some(conn),
            bind_key,
            counter: 0,
            family: Family::of(remote),
            mtu: ETHERNET_MTU,
            bound: None,
            proved: now,
            challenge: None,
            challenges: Pace::default(),
            moves: Pace::default(),
        }
    }
}

impl Session {
    /// An offer made now.
    pub fn offer(id: SessionId, parties: [Party; 2], limit: Limit, now: MonoTime) -> Session {
        Session {
            id,
            parties,
            limit,
            since: now,
            offer_until: Some(now + super::OFFER_LIFETIME),
            slot: None,
            carried: Traffic::default(),
            debt: Debt::NONE,
            seen_packets: 0,
            seen_bytes: 0,
            active: now,
            told_dropped: Dropped::default(),
            told_at: None,
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

    /// The largest UDP payload that fits both sides' paths as far as the relay knows them, as the agents are told.
    pub fn max_datagram_bytes(&self) -> u32 {
        // A datagram leaves with the headers of the side it goes to: translation to IPv6 adds to them.
        let towards = |party: &Party| party.mtu.saturating_sub(headers(party.family));
        let [connector, target] = &self.parties;
        towards(connector).min(towards(target)).max(*MAX_DATAGRAM_RANGE.start())
    }

    /// Looks at how large packets may be that leave towards each side. What is not known now stays as it was.
    pub fn see_mtus(&mut self, flows: &impl Flows) {
        let Some(slot) = self.slot else { return };
        for (party, mtu) in self.parties.iter_mut().zip(flows.egress_mtus(slot)) {
            party.mtu = mtu.map_or(party.mtu, |mtu| mtu.min(ETHERNET_MTU));
        }
    }

    /// Both tuples, once proved.
    pub fn tuples(&self) -> Option<[FlowTuple; 2]> {
        let [connector, target] = &self.parties;
        Some([connector.bound?, target.bound?])
    }

    /// What the bucket of its next slot begins with.
    pub fn debt(&self) -> Debt {
        self.debt
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
            self.debt = flows.remove(slot, now);
        }
    }

    pub fn traffic(&self, flows: &impl Flows) -> Traffic {
        self.slot.map_or(self.carried, |slot| sum(self.carried, flows.traffic(slot)))
    }

    /// The side whose last proof is no longer good.
    pub fn silent_side(&self, now: MonoTime) -> Option<Side> {
        Side::BOTH.into_iter().find(|side| self.party(*side).proved + CONSENT <= now)
    }

    /// Looks at what it has carried; it is one of `sessions`. Returns what the limit has dropped since that was last
    /// returned, if it is time to tell the agents.
    pub fn look(&mut self, flows: &impl Flows, sessions: usize, now: MonoTime) -> Dropped {
        let traffic = self.traffic(flows);
        let packets = traffic.sides.iter().map(|side| side.packets_kernel + side.packets_userspace).sum();
        let bytes: u64 = traffic.sides.iter().map(|side| side.bytes).sum();
        if packets != self.seen_packets {
            self.seen_packets = packets;
            self.active = now;
        }
        // Whoever spends less than a burst between two looks is not about to be limited.
        let is_fast = self.limit.bytes_per_s > 0
            && bytes.saturating_sub(std::mem::replace(&mut self.seen_bytes, bytes)) > self.limit.burst_bytes;
        let dropped = Dropped {
            packets: traffic.limited_packets.saturating_sub(self.told_dropped.packets),
            bytes: traffic.limited_bytes.saturating_sub(self.told_dropped.bytes),
        };
        self.next_look = now + pause(is_fast || dropped.packets > 0, sessions);
        if dropped.packets == 0 || self.told_at.is_some_and(|at| now.since(at) < LOOK_EVERY) {
            return Dropped::default();
        }
        self.told_dropped = Dropped { packets: traffic.limited_packets, bytes: traffic.limited_bytes };
        self.told_at = Some(now);
        dropped
    }

    /// Whether no packet was found to be relayed for this long.
    pub fn is_idle(&self, idle_timeout: Duration, now: MonoTime) -> bool {
        self.active + idle_timeout <= now
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

    pub fn status(&self, flows: &impl Flows, now: MonoTime) -> SessionStatus {
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
