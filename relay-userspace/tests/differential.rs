//! The loaded XDP program and the host's build of the same decision, on the same frames, tables and clock: same
//! verdict, bytes, counters and bucket.
//!
//! Needs root and a binary built with the BPF program. `RELAY_DIFFERENTIAL_CASES` sets the number of frames.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    unsafe_code,
    reason = "in a test a panic is a failure, the shares are printed, and geteuid is not in std"
)]

mod skipping;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use etherparse::{IpHeaders, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder};
use relay_common::frame::SliceFrame;
use relay_common::next_hop::{Egress, Hop, station_words};
use relay_common::slot::Slot;
use relay_common::tables::Tables as _;
use relay_common::{Action, BIND_LEN, Reason, Side, forward};
use relay_userspace::clock::MonoTime;
use relay_userspace::relay::datapath::{
    FlowTable, FlowTuple, Flows, Limit, OBJECT, Program, Routes, SlotId, TableSizes, Tables,
};

/// TEST_RUN runs the program as if the frame came by the loopback interface.
const LOOPBACK: u32 = 1;
const STATION: [u8; 6] = [2, 0, 0, 0, 0, 1];
const GATEWAY: [u8; 6] = [2, 0, 0, 0, 0, 2];
const KEY: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
const MAGIC: [u8; 8] = [0x2a, 1, 2, 3, 4, 5, 6, 7];
const RELAY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 9, 0, 2)), 4433);
const RELAY_V6: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 2)), 4433);
const HEADROOM: usize = 64;
const SESSIONS: u32 = 64;
const BATCH: u64 = 256;

/// Next hops of the test: by the interface, redirected, unresolved, and with a small MTU.
const HOPS: [(Egress, u32); 4] =
    [(Egress::Transmit, 1500), (Egress::Redirect, 1500), (Egress::Userspace, 1500), (Egress::Transmit, 576)];

#[test]
fn the_program_and_the_host_code_decide_alike() {
    if let Some(why) = cannot_run() {
        return skipping::skip("the_program_and_the_host_code_decide_alike", why);
    }
    let cases: u64 =
        std::env::var("RELAY_DIFFERENTIAL_CASES").map_or(200_000, |cases| cases.parse().expect("a number"));
    let sizes = TableSizes::for_sessions(SESSIONS);
    let (mut program, kernel_tables, mut egress) = Program::load_with_fixed_clock(sizes, KEY, MAGIC).unwrap();
    let mut kernel = World::new(kernel_tables);
    let mut host = World::new(Tables::private(sizes, KEY, MAGIC));
    for number in 0..HOPS.len() {
        egress.set(number as u32, LOOPBACK).unwrap();
    }

    let mut random = Random(0x5eed);
    let mut now = MonoTime(1_000_000_000_000);
    program.set_clock(now).unwrap();
    let mut counts = vec![0u64; Reason::COUNT];
    for case in 0..cases {
        if case % BATCH == 0 {
            let change = random.next();
            kernel.change(change, now);
            host.change(change, now);
        }
        if random.one_in(8) {
            now = MonoTime(now.0 + random.below(1_000_000));
            program.set_clock(now).unwrap();
        }
        let frame = random.frame();
        let mut room = [&[0; HEADROOM], &frame[..]].concat();
        let mut view = SliceFrame::new(&mut room, HEADROOM, LOOPBACK);
        let decision = forward(&mut view, &*host.tables, || now.0);
        let expected = view.as_bytes().to_vec();
        let (verdict, bytes) = program.run(&frame).unwrap();

        let reason = decision.err().unwrap_or(Reason::Forwarded);
        counts[reason.index() as usize] += 1;
        let redirect = decision.is_ok_and(|departure| departure.redirect);
        assert_eq!(verdict, action(reason, redirect), "case {case}: {reason:?} for {frame:02x?}");
        assert_eq!(bytes, expected, "case {case}: {reason:?}");

        if case % BATCH == BATCH - 1 {
            for (reason, tally) in program.tallies().unwrap() {
                assert_eq!(tally.packets, counts[reason.index() as usize], "case {case}: {reason:?}");
            }
            for number in 0..SESSIONS {
                assert_eq!(kernel.words(number), host.words(number), "case {case}: slot {number}");
            }
        }
    }
    println!("{cases} frames:");
    for reason in Reason::ALL {
        let count = counts[reason.index() as usize];
        println!("  {:<18} {count:>9} {:>6.2} %", reason.name(), 100.0 * count as f64 / cases as f64);
    }
    assert!(counts[0] * 10 >= cases * 4, "at least 40 % are forwarded");
}

fn cannot_run() -> Option<&'static str> {
    // SAFETY: the call takes nothing and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    match OBJECT {
        None => Some("built without the BPF program: run `cargo xtask test`"),
        Some(_) if !root => Some("loading the program needs root"),
        Some(_) => None,
    }
}

/// The XDP action of a decision (linux/bpf.h, enum xdp_action).
fn action(reason: Reason, redirect: bool) -> u32 {
    match reason.action() {
        Action::Abort => 0,
        Action::Drop => 1,
        Action::Pass => 2,
        Action::Forward if redirect => 4,
        Action::Forward => 3,
    }
}

/// Hops by the agent's address, so that both worlds choose alike.
struct ByAddress;

impl Routes for ByAddress {
    fn hop_for(&mut self, agent: IpAddr, _relay: IpAddr) -> u16 {
        let last = match agent {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(ip) => ip.octets()[15],
        };
        match last {
            octet if octet.is_multiple_of(16) => u16::from(octet / 16 % 4),
            octet => u16::from(octet % 2),
        }
    }

    fn release(&mut self, _hop: u16) {}
}

/// Tables and their writer; the two of a test get the same orders.
struct World {
    tables: Arc<Tables>,
    flows: FlowTable<ByAddress>,
    installed: Vec<SlotId>,
}

impl World {
    fn new(tables: Tables) -> World {
        let tables = Arc::new(tables);
        tables.interfaces()[LOOPBACK as usize].write(LOOPBACK, STATION, 1500);
        for (entry, (egress, mtu)) in tables.next_hops().iter().zip(HOPS) {
            let stations = station_words(GATEWAY, STATION);
            entry.write(&Hop { egress, interface: LOOPBACK, mtu, stations });
        }
        World { flows: FlowTable::new(Arc::clone(&tables), ByAddress), tables, installed: Vec::new() }
    }

    /// Installs what is missing, and changes one session.
    fn change(&mut self, choice: u64, now: MonoTime) {
        let far = MonoTime(now.0 + 60_000_000_000);
        let past = MonoTime(now.0.saturating_sub(1));
        if self.installed.is_empty() {
            for pair in 0..SESSIONS / 2 {
                let sides = [agent(2 * pair), agent(2 * pair + 1)];
                let limit = match pair / 4 % 4 {
                    0 => Limit::UNLIMITED,
                    1 => Limit::per_second(1_000_000_000),
                    2 => Limit::per_second(50_000),
                    _ => Limit::per_second(20_000_000),
                };
                self.installed.push(self.flows.install(sides, limit, [far, far], now).unwrap());
            }
        }
        let slot = self.installed[choice as usize % self.installed.len()];
        let side = if choice & 1 << 40 == 0 { Side::Connector } else { Side::Target };
        for slot in &self.installed {
            for side in Side::BOTH {
                self.flows.extend(*slot, side, far);
            }
        }
        match (choice >> 32) % 4 {
            0 => self.flows.extend(slot, side, past),
            1 => self.flows.set_limit(slot, Limit::per_second(choice >> 46), now),
            _ => {}
        }
    }

    /// Everything of a slot that packets change.
    fn words(&self, number: u32) -> [u64; 9] {
        let slot: &Slot = self.tables.slot(number).unwrap();
        [
            slot.arrival.load(),
            slot.marked_at.load().into(),
            slot.marked_packets.load().into(),
            slot.limited_packets.load().into(),
            slot.limited_bytes.load(),
            slot.sides[0].packets.load().into(),
            slot.sides[0].bytes.load(),
            slot.sides[1].packets.load().into(),
            slot.sides[1].bytes.load(),
        ]
    }
}

/// Agents of both families, so that sessions are of every combination: a session's agents are neighbours in number.
fn agent(number: u32) -> FlowTuple {
    let port = 40_000 + number as u16;
    if (number / 2 % 4) & (1 << (number % 2)) == 0 {
        let ip = Ipv4Addr::new(10, 1, (number / 128) as u8, (number % 128) as u8 + 1);
        FlowTuple { agent: SocketAddr::from((ip, port)), relay: RELAY }
    } else {
        let ip = Ipv6Addr::new(0xfd00, 1, 2, 3, 4, 5, 6, number as u16 + 1);
        FlowTuple { agent: SocketAddr::from((ip, port)), relay: RELAY_V6 }
    }
}

/// SplitMix64: a failing case comes again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }

    /// A frame of a session, often with something unusual about it.
    fn frame(&mut self) -> Vec<u8> {
        let FlowTuple { agent: from, relay } = agent(self.below(u64::from(SESSIONS)) as u32);
        let length = match self.below(4) {
            0 => self.below(64),
            1 => self.below(1473),
            2 => 1200,
            _ => self.below(256),
        };
        let payload: Vec<u8> = (0..length).map(|_| self.next() as u8).collect();
        let udp_length = (8 + payload.len()) as u16;
        let (ttl, class) = (2 + self.below(250) as u8, self.next() as u8);
        let ip = match (from.ip(), relay.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut ip =
                    Ipv4Header::new(udp_length, ttl, IpNumber::UDP, from.octets(), to.octets()).unwrap();
                ip.dscp = (class >> 2).try_into().unwrap();
                ip.ecn = (class & 3).try_into().unwrap();
                IpHeaders::Ipv4(ip, Default::default())
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => IpHeaders::Ipv6(
                Ipv6Header {
                    traffic_class: class,
                    flow_label: (self.below(1 << 20) as u32).try_into().unwrap(),
                    payload_length: udp_length,
                    next_header: IpNumber::UDP,
                    hop_limit: ttl,
                    source: from.octets(),
                    destination: to.octets(),
                },
                Default::default(),
            ),
            _ => unreachable!("a tuple has one family"),
        };
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(GATEWAY, STATION)
            .ip(ip)
            .udp(from.port(), relay.port())
            .write(&mut frame, &payload)
            .unwrap();
        if self.one_in(3) {
            self.disturb(&mut frame);
        }
        frame
    }

    fn disturb(&mut self, frame: &mut Vec<u8>) {
        let v6 = frame[12] == 0x86;
        let (headers, ttl, protocol, length, source_port, check) =
            if v6 { (62, 21, 20, 18, 55, 60) } else { (42, 22, 23, 16, 35, 40) };
        match self.below(15) {
            0 if v6 => frame[protocol] = [0, 43, 44, 51, 60, 135, 139, 140][self.below(8) as usize],
            0 => frame[14] = 0x46,
            1 => frame[14] = self.next() as u8,
            2 if v6 => frame[14] = 0x50,
            2 => frame[20] = 0x20,
            3 => frame[ttl] = self.below(2) as u8,
            4 => frame[protocol] = 6,
            5 => frame[0] ^= 2,
            6 => frame[12..14].copy_from_slice(&[[0x81, 0x00], [0x88, 0xa8]][self.below(2) as usize]),
            7 => frame[12..14].copy_from_slice(&[0x08, 0x06]),
            8 => frame[length..length + 2].copy_from_slice(&(self.next() as u16).to_be_bytes()),
            9 => frame.truncate(14 + self.below(headers as u64 - 14) as usize),
            10 => frame[source_port] ^= 1,
            11 => frame[check..check + 2].fill(0),
            12 => {
                // A bind datagram, or one byte more or less than that.
                frame.resize(headers + BIND_LEN + self.below(3) as usize - 1, 0);
                frame[headers..headers + 8].copy_from_slice(&MAGIC);
                set_lengths(frame);
            }
            13 => {
                // Any header byte, with the IP checksum left wrong: a forwarder does not check it.
                let at = self.below(headers as u64) as usize;
                frame[at] = self.next() as u8;
            }
            _ => {
                // Larger than the interface's MTU.
                frame.resize(1515 + self.below(1000) as usize, 0);
                set_lengths(frame);
            }
        }
    }
}

fn set_lengths(frame: &mut [u8]) {
    let ip_length = (frame.len() - 14) as u16;
    if frame[12] == 0x86 {
        frame[18..20].copy_from_slice(&(ip_length - 40).to_be_bytes());
        frame[58..60].copy_from_slice(&(ip_length - 40).to_be_bytes());
    } else {
        frame[16..18].copy_from_slice(&ip_length.to_be_bytes());
        frame[38..40].copy_from_slice(&(ip_length - 20).to_be_bytes());
    }
}
