//! The tables of one side of the comparison: sessions of every kind, changed by the same orders on both sides.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use relay_common::Side;
use relay_common::next_hop::{Egress, Hop, station_words};
use relay_common::slot::Slot;
use relay_common::tables::Tables as _;
use relay_common::word::Word32;
use relay_userspace::clock::MonoTime;
use relay_userspace::relay::datapath::{FlowTable, FlowTuple, Flows, Limit, Origin, Routes, SlotId, Tables};

use crate::random::Random;

/// TEST_RUN runs the program as if the frame came by the loopback interface.
pub const LOOPBACK: u32 = 1;
pub const STATION: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const GATEWAY: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub const RELAY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 9, 0, 2)), 4433);
pub const RELAY_V6: SocketAddr =
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 2)), 4433);

/// The MTU of the interface, and of one with jumbo frames.
pub const MTU: u32 = 1500;
pub const JUMBO: u32 = 9000;

/// A session's two agents are neighbours in number.
pub const AGENTS: u32 = 128;
const SESSIONS: u32 = AGENTS / 2;

/// Next hops: egress, MTU, VLAN. By the interface, redirected, unresolved, with the smallest MTU of each family, by
/// VLANs, and with jumbo frames.
pub const HOPS: [(Egress, u32, u16); 8] = [
    (Egress::Transmit, MTU, 0),
    (Egress::Redirect, MTU, 0),
    (Egress::Userspace, MTU, 0),
    (Egress::Transmit, 576, 0),
    (Egress::Redirect, 1280, 0),
    (Egress::Transmit, MTU, 5),
    (Egress::Redirect, 1400, 0xffe),
    (Egress::Transmit, JUMBO, 0),
];

/// How often each is on the way to an agent.
const SHARES: [u8; 32] =
    [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5, 5, 5, 6, 6, 6, 7, 7];

/// Limits in bytes per second: none, one that is never reached, and some that are.
const RATES: [u64; 8] = [0, 0, 0, 1_000_000_000, 20_000_000, 1_000_000, 100_000, 20_000];

/// The agents, of both families: sessions are of every combination.
pub fn agent(number: u32) -> FlowTuple {
    let port = 40_000 + number as u16;
    if (number / 2 % 4) & (1 << (number % 2)) == 0 {
        FlowTuple { agent: (Ipv4Addr::new(10, 1, 0, number as u8), port).into(), relay: RELAY }
    } else {
        let ip = Ipv6Addr::new(0xfd00, 1, 2, 3, 4, 5, 6, number as u16);
        FlowTuple { agent: (ip, port).into(), relay: RELAY_V6 }
    }
}

/// The agent at the other end of its session.
pub fn peer(number: u32) -> u32 {
    number ^ 1
}

/// The next hop of packets to an agent.
pub fn hop_to(number: u32) -> usize {
    usize::from(SHARES[(u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 59) as usize])
}

/// Hops by the agent's number, the last byte of its address.
struct ByNumber;

impl Routes for ByNumber {
    fn hop_for(&mut self, agent: IpAddr, _relay: IpAddr) -> u16 {
        let number = match agent {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(ip) => ip.octets()[15],
        };
        hop_to(number.into()) as u16
    }

    fn release(&mut self, _hop: u16) {}
}

/// What holds for one case alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Circumstance {
    Usual,
    /// The interface's entry is empty, or describes another.
    UnknownInterface(u32),
    /// The interface takes jumbo frames.
    JumboInterface,
    /// The next hop with this number is being written.
    HopBeingWritten(usize),
    /// The line of this agent is being written.
    LineBeingWritten(u32),
    /// A side's consent, of this agent's session, ends this many ns after now.
    ConsentEnds(u32, Side, u64),
    /// There is no room for a longer header in front of the frame.
    NoHeadroom,
}

impl Circumstance {
    /// One for a frame that comes from agent `from`.
    pub fn any(random: &mut Random, from: u32) -> Circumstance {
        // What a longer header needs is tried where there will be one.
        if agent(from).agent.is_ipv4() && agent(peer(from)).agent.is_ipv6() && random.one_in(10) {
            return Circumstance::NoHeadroom;
        }
        match random.below(60) {
            0 => Circumstance::UnknownInterface(random.pick(&[0, LOOPBACK + 256])),
            1 | 2 => Circumstance::JumboInterface,
            3 => Circumstance::HopBeingWritten(hop_to(peer(from))),
            4 => Circumstance::LineBeingWritten(from),
            5 | 6 => Circumstance::ConsentEnds(from, random.pick(&Side::BOTH), random.next() % 2),
            7 => Circumstance::NoHeadroom,
            _ => Circumstance::Usual,
        }
    }
}

/// Tables and their writer.
pub struct World {
    pub tables: Arc<Tables>,
    flows: FlowTable<ByNumber>,
    installed: Vec<SlotId>,
}

impl World {
    pub fn new(tables: Tables, now: MonoTime) -> World {
        let tables = Arc::new(tables);
        tables.interfaces()[LOOPBACK as usize].write(LOOPBACK, STATION, MTU);
        for (entry, (egress, mtu, vlan)) in tables.next_hops().iter().zip(HOPS) {
            let stations = station_words(GATEWAY, STATION);
            entry.write(&Hop { egress, interface: LOOPBACK, mtu, stations, vlan });
        }
        let flows = FlowTable::new(Arc::clone(&tables), ByNumber);
        let mut world = World { flows, tables, installed: Vec::new() };
        for session in 0..SESSIONS {
            let sides = [agent(2 * session), agent(2 * session + 1)];
            let limit = Limit::per_second(RATES[session as usize / 4 % RATES.len()]);
            let slot = world.flows.install(sides, limit, &Origin::NONE, [later(now); 2], now).unwrap();
            world.installed.push(slot);
        }
        world
    }

    /// Extends everybody's consent, and now and then changes one session's limit.
    pub fn change(&mut self, choice: u64, now: MonoTime) {
        for slot in &self.installed {
            for side in Side::BOTH {
                self.flows.extend(*slot, side, later(now));
            }
        }
        let slot = self.installed[choice as usize % self.installed.len()];
        if (choice >> 32).is_multiple_of(4) {
            let rate = RATES[(choice >> 40) as usize % RATES.len()];
            self.flows.set_limit(slot, Limit::per_second(rate), now);
        }
    }

    /// Lets a circumstance begin.
    pub fn begin(&self, circumstance: Circumstance, now: MonoTime) {
        let interface = &self.tables.interfaces()[LOOPBACK as usize];
        match circumstance {
            Circumstance::Usual | Circumstance::NoHeadroom => {}
            Circumstance::UnknownInterface(index) => interface.index.store(index),
            Circumstance::JumboInterface => interface.mtu.store(JUMBO),
            Circumstance::HopBeingWritten(hop) => odd(&self.tables.next_hops()[hop].sequence, true),
            Circumstance::LineBeingWritten(agent) => odd(self.sequence(agent), true),
            Circumstance::ConsentEnds(agent, side, after) => {
                self.slot_of(agent).deadline[side.index()].store(now.0 + after);
            }
        }
    }

    /// Lets it end.
    pub fn end(&self, circumstance: Circumstance, now: MonoTime) {
        let interface = &self.tables.interfaces()[LOOPBACK as usize];
        match circumstance {
            Circumstance::Usual | Circumstance::NoHeadroom => {}
            Circumstance::UnknownInterface(_) => interface.index.store(LOOPBACK),
            Circumstance::JumboInterface => interface.mtu.store(MTU),
            Circumstance::HopBeingWritten(hop) => odd(&self.tables.next_hops()[hop].sequence, false),
            Circumstance::LineBeingWritten(agent) => odd(self.sequence(agent), false),
            Circumstance::ConsentEnds(agent, side, _) => {
                self.slot_of(agent).deadline[side.index()].store(later(now).0);
            }
        }
    }

    fn sequence(&self, agent: u32) -> &Word32 {
        let side = Side::BOTH[agent as usize % 2];
        &self.slot_of(agent).side(side).sequence
    }

    fn slot_of(&self, agent: u32) -> &Slot {
        self.tables.slot(self.installed[agent as usize / 2].0).unwrap()
    }

    /// Packets of an agent's session that were marked.
    pub fn marked(&self, agent: u32) -> u32 {
        self.slot_of(agent).marked_packets.load()
    }

    /// Everything of an agent's session that packets change: its bucket and its counters.
    pub fn words(&self, agent: u32) -> [u64; 7] {
        let slot = self.slot_of(agent);
        [
            slot.arrival.load(),
            slot.marked_at.load().into(),
            slot.marked_packets.load().into(),
            slot.limited_packets.load().into(),
            slot.limited_bytes.load(),
            slot.sides[0].traffic.read().0,
            slot.sides[1].traffic.read().0,
        ]
    }
}

fn later(now: MonoTime) -> MonoTime {
    MonoTime(now.0 + 60_000_000_000)
}

/// Makes a sequence count say that a write is under way, or over.
fn odd(sequence: &Word32, odd: bool) {
    sequence.store(sequence.load() & !1 | u32::from(odd));
}
