//! What would become of a packet: decided by the program and the forwarder's code on a copy of what the tables have for its
//! tuple, so that nothing of the session changes: no counter, no bucket, and nothing is sent.
//!
//! The copy lies in tables for one session. The program is loaded a second time over them when the relay starts: once it has
//! given up its privilege, a loaded program still runs on a frame, but none can be loaded.

use std::net::SocketAddr;
use std::time::Duration;

use relay_common::bucket::Allowance;
use relay_common::hash::HashSeed;
use relay_common::index::SlotSide;
use relay_common::interface::Interface;
use relay_common::next_hop::{Egress, Hop};
use relay_common::tables::Tables as _;
use relay_common::tuple::AnyTuple;
use relay_common::{Action, BIND_MAGIC_LEN, Reason, Side};

use super::flows::FlowTuple;
use super::program::{EgressMap, Hook, Program, XdpError};
use super::record::Identity;
use super::tables::{Arrival, Relayed, TableSizes, Tables};
use crate::clock::MonoTime;
use crate::relay::udp_frame::{self, Ingredients, UdpFrame};

/// The longest frame that is explained, in bytes: more than a jumbo frame of any network.
pub const MAX_FRAME: usize = 16 * 1024;

/// The kernel runs a program on a frame as if it came by the loopback interface.
const LOOPBACK: u32 = 1;

/// The slot that a session is copied to.
const COPY: u32 = 0;

/// The TTL of frames that are made here.
const TTL: u8 = 64;

/// A set of tables with a program over them, to try packets on.
pub struct Explainer {
    tables: Tables,
    program: Option<(Program, EgressMap)>,
}

/// A packet that is asked about.
#[derive(Clone, Debug)]
pub enum Packet {
    /// A frame, with its MAC addresses, as it came or would come.
    Frame(Vec<u8>),
    /// One that is made, with so many bytes of zeroes as UDP payload, as it would come by the interface that leads to the
    /// agent.
    Made {
        /// UDP payload bytes.
        payload: u16,
    },
}

/// What would become of it.
#[derive(Clone, Debug)]
pub struct Fate {
    /// The frame.
    pub frame: Vec<u8>,
    /// Index of the interface that it is taken to come by; none if the tables describe none.
    pub interface: Option<u32>,
    /// What the program does with it; none without a program.
    pub program: Option<ByProgram>,
    /// What the forwarder does with it; none if it does not get it, or not as it is.
    pub forwarder: Option<Result<Relayed, Reason>>,
    /// The session that its tuple is one of.
    pub flow: Option<CopiedFlow>,
}

/// What the program does with a frame.
#[derive(Clone, Debug)]
pub struct ByProgram {
    /// Its reason.
    pub reason: Reason,
    /// The frame afterwards.
    pub frame: Vec<u8>,
}

/// What the tables had of a tuple's session before it was tried.
#[derive(Clone, Debug)]
pub struct CopiedFlow {
    /// The side that sends packets of the tuple.
    pub side: Side,
    /// The side has moved away from the tuple a moment ago.
    pub previous: bool,
    /// Whose session it is; none of one that the tables have no record of.
    pub identity: Option<Identity>,
    /// The tuples of both sides, indexed by [`Side`].
    pub tuples: [Option<FlowTuple>; 2],
    /// How long packets from and to each side may still be forwarded, indexed by [`Side`].
    pub consent_left: [Duration; 2],
    /// Rate and burst.
    pub allowance: Allowance,
    /// How much is left of the burst, in ticks.
    pub burst_left: u64,
    /// Number of the next hop.
    pub hop_number: u16,
    /// The next hop; none while it is being changed.
    pub hop: Option<Hop>,
}

/// A packet cannot be tried.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// There is no such packet.
    #[error("{agent} and {relay} are of two families: no packet goes from one to the other")]
    Families {
        /// Its source.
        agent: SocketAddr,
        /// Its destination.
        relay: SocketAddr,
    },
    /// The frame has no packet of this tuple.
    #[error("the packet goes from {} to {}, asked for was {} to {}", .found.agent, .found.relay, .asked.agent, .asked.relay)]
    OtherTuple {
        /// That of the packet.
        found: Box<FlowTuple>,
        /// The one that was asked about.
        asked: Box<FlowTuple>,
    },
    /// No frame is as short or as long.
    #[error("a frame of {length} bytes: expected one of 14 to {MAX_FRAME} bytes, with its Ethernet header")]
    Length {
        /// Its length.
        length: usize,
    },
    /// The program did not run.
    #[error(transparent)]
    Program(#[from] XdpError),
}

impl Explainer {
    /// One with the program as it is at `hook`, for a relay whose bind datagrams begin with `bind_magic`.
    ///
    /// # Errors
    /// The kernel refuses another program, or there is none in this binary.
    pub fn with_program(
        hook: Hook,
        hash_seed: HashSeed,
        bind_magic: [u8; BIND_MAGIC_LEN],
    ) -> Result<Explainer, XdpError> {
        let sizes = TableSizes::for_sessions(1);
        let (program, tables, egress) = Program::load(hook, sizes, hash_seed, bind_magic)?;
        Ok(Explainer { tables, program: Some((program, egress)) })
    }

    /// One for a relay whose packets all go through userspace.
    pub fn without_program(hash_seed: HashSeed, bind_magic: [u8; BIND_MAGIC_LEN]) -> Explainer {
        Explainer {
            tables: Tables::private(TableSizes::for_sessions(1), hash_seed, bind_magic),
            program: None,
        }
    }

    /// Tries a packet of `tuple` on a copy of what `real` has for it.
    ///
    /// # Errors
    /// See [`ExplainError`].
    pub fn explain(
        &mut self,
        real: &Tables,
        tuple: FlowTuple,
        packet: Packet,
        now: MonoTime,
    ) -> Result<Fate, ExplainError> {
        let FlowTuple { agent, relay } = tuple;
        let words = AnyTuple::new(agent, relay).ok_or(ExplainError::Families { agent, relay })?;
        let (at, previous) = match real.find(&words) {
            Ok(flow) => (Some(flow.at), false),
            Err(_) => (real.find_previous(&tuple, now).ok().map(|flow| flow.at), true),
        };
        let way_back = at.and_then(|at| hop(real, SlotSide { side: at.side.other(), ..at }).1);
        let interface = interface(real, &packet, way_back.as_ref());
        let frame = frame(packet, tuple, interface, way_back.as_ref())?;
        let flow = at.map(|at| describe(real, at, previous, now));
        let copied = at.and_then(|at| self.copy(real, at, previous.then_some(tuple), now));
        if let (Some(from), Some(to)) = (interface, self.tables.interface(LOOPBACK)) {
            to.copy_from(from, LOOPBACK);
        }
        let tried = self.try_out(&frame, tuple, flow.as_ref(), now);
        self.clear(copied, now);
        let (program, forwarder) = tried?;
        let interface = interface.map(|interface| interface.index.load());
        Ok(Fate { frame, interface, program, forwarder, flow })
    }

    /// Copies the session at `at`, with the index entry of this side and the next hop. Gives what is to be taken out again.
    fn copy(
        &self,
        real: &Tables,
        at: SlotSide,
        previous: Option<FlowTuple>,
        now: MonoTime,
    ) -> Option<(AnyTuple, SlotSide)> {
        let (from, to) = (real.slot(at.slot)?, self.tables.slot(COPY)?);
        for (from, to) in real.locals.iter().zip(self.tables.locals.iter()) {
            to.copy_from(from);
        }
        let number = u32::from(from.side(at.side).hop());
        if let (Some(from), Some(to)) = (real.next_hop(number), self.tables.next_hop(number)) {
            // One that is being written stays unresolved: it is for a moment only.
            from.copy().into_iter().for_each(|hop| to.write(&hop));
        }
        to.copy_from(from);
        let copy = SlotSide { slot: COPY, side: at.side };
        let present = from.side(at.side).tuple(real)?;
        self.tables.enter(&present, copy, 0);
        if let Some(tuple) = previous {
            self.tables.previous.keep(tuple, copy, now);
        }
        Some((present, copy))
    }

    fn clear(&self, copied: Option<(AnyTuple, SlotSide)>, now: MonoTime) {
        let Some(slot) = self.tables.slot(COPY) else { return };
        if let Some((tuple, at)) = copied {
            self.tables.withdraw(&tuple, at);
            self.tables.previous.forget_slot(COPY, now);
            let number = u32::from(slot.side(at.side).hop());
            if let Some(hop) = self.tables.next_hop(number) {
                hop.write(&UNRESOLVED);
            }
        }
        slot.copy_from(&Default::default());
        if let Some(interface) = self.tables.interface(LOOPBACK) {
            interface.index.store(0);
        }
    }

    #[expect(clippy::type_complexity, reason = "what the two do, one after the other")]
    fn try_out(
        &mut self,
        frame: &[u8],
        tuple: FlowTuple,
        flow: Option<&CopiedFlow>,
        now: MonoTime,
    ) -> Result<(Option<ByProgram>, Option<Result<Relayed, Reason>>), XdpError> {
        let by_program = match &mut self.program {
            Some((program, egress)) => Some(run(program, egress, frame, flow)?),
            None => None,
        };
        let gets_it = by_program.as_ref().is_none_or(|by| reaches_forwarder(by.reason, tuple));
        let forwarder = UdpFrame::read(frame).filter(|_| gets_it).map(|packet| {
            let UdpFrame { source: from, destination: to, payload, tos, ttl, .. } = packet;
            let arrival = Arrival { from, to, payload, tos, ttl };
            match self.tables.decide(&arrival, now) {
                Err(Reason::NoFlow) => self.tables.decide_previous(&arrival, now),
                decided => decided,
            }
        });
        Ok((by_program, forwarder))
    }
}

/// A next hop that is nobody's.
const UNRESOLVED: Hop = Hop { egress: Egress::Userspace, interface: 0, mtu: 0, stations: [0; 3], vlan: 0 };

fn run(
    program: &mut Program,
    egress: &mut EgressMap,
    frame: &[u8],
    flow: Option<&CopiedFlow>,
) -> Result<ByProgram, XdpError> {
    if let Some(CopiedFlow { hop: Some(hop), hop_number, .. }) = flow
        && hop.egress == Egress::Redirect
    {
        egress.set(u32::from(*hop_number), hop.interface)?;
    }
    let before = program.tallies()?;
    let (_verdict, frame) = program.run(frame, 0)?;
    let after = program.tallies()?;
    let counted = after.iter().zip(&before).find(|(after, before)| after.1.packets != before.1.packets);
    // The program counts every frame.
    let reason = counted.map_or(Reason::CommitFailed, |((reason, _), _)| *reason);
    Ok(ByProgram { reason, frame })
}

/// Whether the kernel's stack hands such a packet, as it is, to the relay's socket.
fn reaches_forwarder(reason: Reason, tuple: FlowTuple) -> bool {
    match reason {
        reason if reason.action() != Action::Pass => false,
        Reason::NotIp | Reason::NotUdp | Reason::Truncated | Reason::Malformed | Reason::OtherStation => {
            false
        }
        // It comes with others, merged or put together.
        Reason::Fragment | Reason::SuperFrame => false,
        Reason::ZeroChecksum => tuple.agent.is_ipv4(),
        _ => true,
    }
}

fn hop(tables: &Tables, at: SlotSide) -> (u16, Option<Hop>) {
    let number = tables.slot(at.slot).map_or(0, |slot| slot.side(at.side).hop());
    (number, tables.next_hop(u32::from(number)).and_then(|entry| entry.copy().ok()))
}

fn describe(tables: &Tables, at: SlotSide, previous: bool, now: MonoTime) -> CopiedFlow {
    let slot = tables.slot(at.slot);
    let allowance = slot.map_or(Allowance::UNLIMITED, |slot| slot.bucket().allowance);
    let record = tables.records.get(at.slot as usize);
    let tuple_of = |side| {
        let tuple = slot?.side(side).tuple(tables)?;
        Some(FlowTuple { agent: tuple.source(), relay: tuple.destination() })
    };
    let left = |side: Side| {
        let until = slot.and_then(|slot| slot.deadline.get(side.index())).map_or(0, |until| until.load());
        MonoTime(until).since(now)
    };
    let (hop_number, hop) = hop(tables, at);
    CopiedFlow {
        side: at.side,
        previous,
        identity: slot.zip(record).and_then(|(slot, record)| record.identity(slot.generation.load())),
        tuples: Side::BOTH.map(tuple_of),
        consent_left: Side::BOTH.map(left),
        allowance,
        burst_left: slot.map_or(0, |slot| allowance.left(slot.arrival.load(), now.0)),
        hop_number,
        hop,
    }
}

/// The interface that the packet is taken to come by: the one it is addressed to, else the one that leads to the agent, else
/// the first.
fn interface<'t>(tables: &'t Tables, packet: &Packet, way_back: Option<&Hop>) -> Option<&'t Interface> {
    let mut described = tables.interfaces.iter().filter(|entry| entry.index.load() != 0);
    let station = match packet {
        Packet::Frame(frame) => frame.first_chunk::<6>(),
        Packet::Made { .. } => None,
    };
    let addressed = station.and_then(|station| described.clone().find(|entry| entry.is_addressed(*station)));
    let towards = || {
        let index = way_back.filter(|hop| hop.egress != Egress::Userspace)?.interface;
        described.clone().find(|entry| entry.index.load() == index)
    };
    addressed.or_else(towards).or_else(|| described.next())
}

fn frame(
    packet: Packet,
    tuple: FlowTuple,
    interface: Option<&Interface>,
    way_back: Option<&Hop>,
) -> Result<Vec<u8>, ExplainError> {
    let FlowTuple { agent, relay } = tuple;
    let frame = match packet {
        Packet::Made { payload } => {
            let hop = way_back.filter(|hop| hop.egress != Egress::Userspace);
            let station = interface.map_or([0; 6], Interface::station);
            let of = Ingredients {
                stations: [station, hop.map_or([0; 6], |hop| hop.stations()[0])],
                vlan: hop.map(|hop| hop.vlan).filter(|vlan| *vlan != 0),
                source: agent,
                destination: relay,
                ttl: TTL,
            };
            let length = usize::from(payload);
            udp_frame::make(&of, &vec![0; length]).ok_or(ExplainError::Length { length })?
        }
        Packet::Frame(frame) => frame,
    };
    if !(14..=MAX_FRAME).contains(&frame.len()) {
        return Err(ExplainError::Length { length: frame.len() });
    }
    match UdpFrame::read(&frame) {
        Some(UdpFrame { source, destination, .. }) if (source, destination) != (agent, relay) => {
            let found = FlowTuple { agent: source, relay: destination };
            Err(ExplainError::OtherTuple { found: found.into(), asked: tuple.into() })
        }
        _ => Ok(frame),
    }
}
