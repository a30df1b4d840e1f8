//! Packets of a session that the program passes up are relayed by the userspace forwarder: once, under the same
//! bucket, and counted apart.
//!
//! Needs root, `ip` and `ethtool`, and a binary built with the BPF program.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "in a test a panic is a failure, and a test that cannot run says why"
)]

mod explained;
#[path = "../namespaces/mod.rs"]
mod namespaces;
#[path = "../skipping/mod.rs"]
mod skipping;
mod unusual;
mod wire;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use etherparse::{IpHeaders, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder};
use relay_common::Reason;
use relay_common::bucket::Allowance;
use relay_common::checksum::fold;
use relay_common::next_hop::{Egress, Hop, station_words};
use relay_common::tables::Tables as _;
use relay_userspace::clock::MonoTime;
use relay_userspace::relay::datapath::{
    FlowTable, FlowTuple, Flows, Hook, Limit, Netlink, OBJECT, Origin, Port, Program, Routes, SlotId,
    TableSizes, Tables,
};
use relay_userspace::relay::forwarder::{Forwarder, Merging, RelayPort};

use namespaces::{Inside, addr, in_namespace, ip, run, until_counted};
use unusual::{in_fragments, set_ip_checksum, with_extension, with_options, without_checksum};
use wire::{Heard, Wire};

const MAGIC: [u8; 8] = [0x2a, 1, 2, 3, 4, 5, 6, 7];
const NEAR: [u8; 6] = [2, 0, 0, 0, 1, 1];
const NEAR_AGENT: [u8; 6] = [2, 0, 0, 0, 1, 2];
const FAR: [u8; 6] = [2, 0, 0, 0, 2, 1];
const FAR_AGENT: [u8; 6] = [2, 0, 0, 0, 2, 2];

/// Next hops by number: to the agent behind `far`, and to it by a VLAN.
const PLAIN: u16 = 1;
const BY_VLAN: u16 = 2;
const VLAN: u16 = 5;

const LIMIT: Limit = Limit { bytes_per_s: 1000, burst_bytes: 1 << 20 };

const TTL: u8 = 60;
const TOS: u8 = 0xb8;

#[test]
fn what_the_program_passes_up_is_relayed_once_and_charged_once() {
    in_lab(Hook::Native, "what_the_program_passes_up_is_relayed_once_and_charged_once", |lab| {
        let session = lab.session("10.9.1", "10.9.2", PLAIN);
        lab.expect_from_the_kernel(&session, &[session.packet(b"nothing unusual")], b"nothing unusual");

        let [first, second] = in_fragments(&session.packet(&[7; 2000]));
        lab.expect_from_userspace(&session, Reason::Fragment, &[second, first], &[7; 2000]);
        let optioned = with_options(&session.packet(b"options"));
        lab.expect_from_userspace(&session, Reason::IpOptions, &[optioned], b"options");
        let heard = lab.far.hear(session.target.port(), b"options");
        assert_eq!((heard.ttl, heard.tos, heard.dont_fragment), (TTL - 1, TOS, true));
        let mut trailed = session.packet(&[8; 100]);
        trailed.extend([0; 9]);
        lab.expect_from_userspace(&session, Reason::LengthMismatch, &[trailed], &[8; 100]);

        // Every packet is one of its session to the program, with or without UDP checksum.
        let unsummed = without_checksum(&session.packet(b"no checksum"));
        lab.expect_from_the_kernel(&session, &[unsummed], b"no checksum");
        let heard = lab.far.hear(session.target.port(), b"no checksum");
        assert!(!heard.checksum);
        lab.expect_from_the_kernel(&session, &[session.packet(b"the end")], b"the end");
    });
}

#[test]
fn what_the_program_passes_up_is_relayed_in_ipv6_too() {
    in_lab(Hook::Native, "what_the_program_passes_up_is_relayed_in_ipv6_too", |lab| {
        let session = lab.session("fd00:1:", "fd00:2:", PLAIN);
        lab.expect_from_the_kernel(&session, &[session.packet(b"nothing unusual")], b"nothing unusual");
        for (kind, name) in [(0, &b"hop-by-hop"[..]), (60, b"destination options")] {
            let extended = with_extension(&session.packet(name), [kind, 17, 0, 1, 4, 0, 0, 0, 0]);
            lab.expect_from_userspace(&session, Reason::ExtensionHeader, &[extended], name);
            let heard = lab.far.hear(session.target.port(), name);
            assert_eq!((heard.ttl, heard.tos), (TTL - 1, TOS));
        }
        // One fragment that is the whole: an "atomic" one.
        let atomic = with_extension(&session.packet(b"atomic"), [44, 17, 0, 0, 0, 0, 0, 0, 9]);
        lab.expect_from_userspace(&session, Reason::ExtensionHeader, &[atomic], b"atomic");
        lab.expect_from_the_kernel(&session, &[session.packet(b"the end")], b"the end");
    });
}

#[test]
fn what_cannot_become_ipv6_in_the_kernel_does_in_userspace() {
    in_lab(Hook::Native, "what_cannot_become_ipv6_in_the_kernel_does_in_userspace", |lab| {
        let session = lab.session("10.9.1", "fd00:2:", PLAIN);
        lab.expect_from_the_kernel(&session, &[session.packet(b"nothing unusual")], b"nothing unusual");
        let unsummed = without_checksum(&session.packet(b"no checksum"));
        lab.expect_from_userspace(&session, Reason::ZeroChecksum, &[unsummed], b"no checksum");
        let heard = lab.far.hear(session.target.port(), b"no checksum");
        assert_eq!((heard.ttl, heard.tos, heard.checksum), (TTL - 1, TOS, true));
        let [first, second] = in_fragments(&session.packet(&[7; 2000]));
        lab.expect_from_userspace(&session, Reason::Fragment, &[first, second], &[7; 2000]);
        lab.expect_from_the_kernel(&session, &[session.packet(b"the end")], b"the end");
    });
}

#[test]
fn a_checksum_that_the_sender_left_to_hardware_is_finished_on_the_way_through_userspace() {
    in_lab(
        Hook::Native,
        "a_checksum_that_the_sender_left_to_hardware_is_finished_on_the_way_through_userspace",
        |lab| {
            for (near, far) in [("10.9.1", "10.9.2"), ("fd00:1:", "fd00:2:"), ("10.9.1", "fd00:2:")] {
                let session = lab.session(near, far, PLAIN);
                let bound = session.connector;
                let connector = lab.agents.run(move || {
                    run("ethtool", "-K near0 tx on");
                    UdpSocket::bind(bound).unwrap()
                });
                let before = lab.state(&session);
                let forwarded = lab.forwarder.count(Reason::Forwarded);
                connector.send_to(b"unfinished", session.relay).unwrap();
                session.expect(b"unfinished");
                assert!(lab.far.hear(session.target.port(), b"unfinished").checksum);
                until_counted(&lab.forwarder, Reason::Forwarded, forwarded + 1);
                assert_eq!(lab.state(&session), State { userspace: 1, ..charged(before, b"unfinished") });
                lab.end(session);
            }
            assert_eq!(lab.program.tally(Reason::UnfinishedChecksum).unwrap().packets, 3);
        },
    );
}

#[test]
fn a_finished_checksum_that_looks_left_to_hardware_is_told_in_the_driver_and_goes_up_in_the_stack() {
    let name =
        "a_finished_checksum_that_looks_left_to_hardware_is_told_in_the_driver_and_goes_up_in_the_stack";
    for hook in [Hook::Native, Hook::Generic] {
        in_lab(hook, name, |lab| {
            for (near, far) in
                [("10.9.1", "10.9.2"), ("fd00:1:", "fd00:2:"), ("10.9.1", "fd00:2:"), ("fd00:1:", "10.9.2")]
            {
                let session = lab.session(near, far, PLAIN);
                for length in [2, 61, 1200, 1452] {
                    let frames = [finished_alike(|word| session.packet(&payload(word, length)))];
                    let payload = &frames[0][frames[0].len() - length..];
                    match hook {
                        Hook::Native => lab.expect_from_the_kernel(&session, &frames, payload),
                        Hook::Generic => {
                            let reason = Reason::UnfinishedChecksum;
                            lab.expect_from_userspace(&session, reason, &frames, payload);
                        }
                    }
                    assert!(lab.far.hear(session.target.port(), payload).checksum);
                }
                lab.end(session);
            }
        });
    }
}

#[test]
fn datagrams_merged_into_one_frame_are_relayed_one_by_one_in_generic_mode() {
    let name = "datagrams_merged_into_one_frame_are_relayed_one_by_one_in_generic_mode";
    in_lab(Hook::Generic, name, |lab| {
        let session = lab.session("10.9.1", "10.9.2", PLAIN);
        lab.expect_from_the_kernel(&session, &[session.packet(b"nothing unusual")], b"nothing unusual");
        let bound = session.connector;
        let connector = lab.agents.run(move || {
            run("ethtool", "-K near0 tx on tx-udp-segmentation on");
            UdpSocket::bind(bound).unwrap()
        });
        // Two that are smaller than the interface's MTU together, and ten that are not.
        for (reason, count) in [(Reason::UnfinishedChecksum, 2), (Reason::SuperFrame, 10)] {
            let (mut expected, forwarded) = (lab.state(&session), lab.forwarder.count(Reason::Forwarded));
            let datagrams: Vec<Vec<u8>> = (0..count).map(|number| vec![number; 600]).collect();
            wire::send_merged(&connector, &datagrams.concat(), 600, session.relay);
            for datagram in &datagrams {
                session.expect(datagram);
                expected = State { userspace: expected.userspace + 1, ..charged(expected, datagram) };
            }
            until_counted(&lab.forwarder, Reason::Forwarded, forwarded + u64::from(count));
            assert_eq!(lab.state(&session), expected, "{reason:?}");
            assert_eq!(lab.program.tally(reason).unwrap().packets, 1, "{reason:?}");
        }
        lab.expect_from_the_kernel(&session, &[session.packet(b"the end")], b"the end");
    });
}

#[test]
fn what_may_not_go_on_is_not_relayed_by_userspace_either() {
    in_lab(Hook::Native, "what_may_not_go_on_is_not_relayed_by_userspace_either", |lab| {
        let session = lab.session("10.9.1", "10.9.2", PLAIN);
        let before = lab.state(&session);
        let mut expiring = session.packet(b"last hop");
        expiring[22] = 1;
        set_ip_checksum(&mut expiring);
        lab.near.send(&expiring);
        until_counted(&lab.forwarder, Reason::TtlExpired, 1);
        let mut elsewhere = session.packet(b"not to this station");
        elsewhere[5] ^= 1;
        lab.near.send(&elsewhere);
        let mut untold = session.packet(b"a VLAN that is not there");
        untold.splice(12..12, [0x81, 0, 0, 9]);
        lab.near.send(&untold);
        let after = lab.state(&session);
        assert_eq!((after.arrival, after.userspace), (before.arrival, before.userspace));
        // It is the next that arrives.
        lab.expect_from_the_kernel(&session, &[session.packet(b"the end")], b"the end");
        for reason in [Reason::TtlExpiring, Reason::OtherStation, Reason::VlanTagged] {
            assert_eq!(lab.program.tally(reason).unwrap().packets, 1, "{reason:?}");
        }
    });
}

#[test]
fn a_tagged_packet_leaves_by_its_vlan_in_the_kernel() {
    for (near, far) in [("10.9.1", "10.9.2"), ("fd00:1:", "10.9.2"), ("10.9.1", "fd00:2:")] {
        in_lab(Hook::Native, "a_tagged_packet_leaves_by_its_vlan_in_the_kernel", |lab| {
            let session = lab.session(near, far, BY_VLAN);
            let before = lab.state(&session);
            let mut tagged = session.packet(b"tagged");
            tagged.splice(12..12, [0x81, 0, 0xa0, VLAN as u8]);
            lab.near.send(&tagged);
            let heard = lab.far.hear(session.target.port(), b"tagged");
            let expected = Heard {
                vlan: Some(VLAN),
                tos: TOS,
                ttl: TTL - 1,
                dont_fragment: true,
                checksum: true,
                payload: b"tagged".to_vec(),
            };
            assert_eq!(heard, expected);
            assert_eq!(lab.state(&session).kernel, before.kernel + 1);
        });
    }
}

/// A relay between two veth pairs, each with the program, and the agents in a namespace of their own.
struct Lab {
    agents: Inside,
    /// Where the near agent's frames are sent, and where the far one's are heard.
    near: Wire,
    far: Wire,
    program: Program,
    tables: Arc<Tables>,
    flows: FlowTable<OneHop>,
    forwarder: Forwarder,
}

/// A session from the agent behind `near` to the one behind `far`.
struct Session {
    connector: SocketAddr,
    relay: SocketAddr,
    target: SocketAddr,
    /// Where the target's datagrams come from.
    from: SocketAddr,
    at_target: UdpSocket,
    slot: SlotId,
}

/// What packets of a session change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    arrival: u64,
    kernel: u64,
    userspace: u64,
}

/// The next hop of every session installed from now on.
struct OneHop(u16);

impl Routes for OneHop {
    fn hop_for(&mut self, _agent: IpAddr, _relay: IpAddr) -> u16 {
        self.0
    }

    fn release(&mut self, _hop: u16) {}
}

fn in_lab(hook: Hook, name: &str, test: impl FnOnce(&mut Lab) + Send) {
    if OBJECT.is_none() {
        return skipping::skip(name, "built without the BPF program: run `cargo xtask test`");
    }
    in_namespace(name, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _within = runtime.enter();
        test(&mut Lab::new(hook));
    });
}

impl Lab {
    fn new(hook: Hook) -> Lab {
        ip("link set lo up");
        let agents = Inside::new();
        for (relay, station, agent, agent_station, net) in
            [("near", NEAR, "near0", NEAR_AGENT, 1), ("far", FAR, "far0", FAR_AGENT, 2)]
        {
            ip(&format!("link add {relay} address {} type veth peer name {agent}", mac(station)));
            ip(&format!("link set {agent} netns {}", agents.thread));
            ip(&format!("address add 10.9.{net}.1/24 dev {relay}"));
            ip(&format!("address add fd00:{net}::1/64 dev {relay} nodad"));
            run("ethtool", &format!("-K {relay} tx off"));
            ip(&format!("link set {relay} up"));
            agents.run(move || {
                ip(&format!("link set {agent} address {} up", mac(agent_station)));
                ip(&format!("address add 10.9.{net}.2/24 dev {agent}"));
                ip(&format!("address add fd00:{net}::2/64 dev {agent} nodad"));
                // Else a native program's frames do not reach it.
                run("ethtool", &format!("-K {agent} gro on tx off"));
            });
        }
        let (near, far) = agents.run(|| (Wire::open("near0"), Wire::open("far0")));

        let sizes = TableSizes::for_sessions(4);
        let (mut program, tables, mut egress) = Program::load(hook, sizes, [1, 2], MAGIC).unwrap();
        let links = Netlink::open().unwrap().links().unwrap();
        let index = |name: &str| links.iter().find(|link| link.name == name).unwrap().index;
        for (name, station) in [("near", NEAR), ("far", FAR)] {
            let port = Port { name: name.into(), index: index(name), station, mtu: 1500 };
            program.attach(&tables, port, hook).unwrap();
        }
        for (number, vlan) in [(PLAIN, 0), (BY_VLAN, VLAN)] {
            egress.set(number.into(), index("far")).unwrap();
            tables.next_hops()[usize::from(number)].write(&Hop {
                egress: Egress::Redirect,
                interface: index("far"),
                mtu: 1500,
                stations: station_words(FAR_AGENT, FAR),
                vlan,
            });
        }
        let tables = Arc::new(tables);
        let flows = FlowTable::new(Arc::clone(&tables), OneHop(PLAIN));
        let port = RelayPort::open(4433, 1, MAGIC).unwrap();
        let forwarder =
            Forwarder::start(port, Arc::clone(&tables), Merging::beside(Some(hook))).unwrap().forwarder;
        Lab { agents, near, far, program, tables, flows, forwarder }
    }

    /// A session between agents in these networks, the second one's packets sent by `hop`. Its bucket is half full and
    /// drains for half a minute, so that every charge shows in full.
    fn session(&mut self, near: &str, far: &str, hop: u16) -> Session {
        let at = |net: &str, host: u8, port: u16| {
            let separator = if net.ends_with(':') { ":" } else { "." };
            SocketAddr::new(addr(&format!("{net}{separator}{host}")), port)
        };
        let (relay, from) = (at(near, 1, 4433), at(far, 1, 4433));
        let bound = at(far, 2, 0);
        let at_target = self.agents.run(move || UdpSocket::bind(bound).unwrap());
        at_target.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let (connector, target) = (at(near, 2, 40_001), at_target.local_addr().unwrap());
        let now = MonoTime::now();
        *self.flows.routes() = OneHop(hop);
        let sides = [FlowTuple { agent: connector, relay }, FlowTuple { agent: target, relay: from }];
        let slot = self
            .flows
            .install(sides, LIMIT, &Origin::NONE, [now + Duration::from_secs(300); 2], now)
            .unwrap();
        let ahead = now + Duration::from_secs(30);
        self.tables.slot(slot.0).unwrap().arrival.store(ahead.0 * 64);
        Session { connector, relay, target, from, at_target, slot }
    }

    fn state(&self, session: &Session) -> State {
        let traffic = self.flows.traffic(session.slot).sides[0];
        let arrival = self.tables.slot(session.slot.0).unwrap().arrival.load();
        State { arrival, kernel: traffic.packets_kernel, userspace: traffic.packets_userspace }
    }

    /// The frames, which the program passes up for `reason`, arrive as one datagram by way of userspace.
    fn expect_from_userspace(&self, session: &Session, reason: Reason, frames: &[Vec<u8>], payload: &[u8]) {
        let (before, passed) = (self.state(session), self.program.tally(reason).unwrap().packets);
        let forwarded = self.forwarder.count(Reason::Forwarded);
        self.send(session, frames, payload);
        until_counted(&self.forwarder, Reason::Forwarded, forwarded + 1);
        let passed = self.program.tally(reason).unwrap().packets - passed;
        assert_eq!(passed, frames.len() as u64, "{reason:?}");
        let after = State { userspace: before.userspace + 1, ..charged(before, payload) };
        assert_eq!(self.state(session), after, "{reason:?}");
    }

    /// The frames arrive as one datagram by way of the program alone.
    fn expect_from_the_kernel(&self, session: &Session, frames: &[Vec<u8>], payload: &[u8]) {
        let before = self.state(session);
        self.send(session, frames, payload);
        let after = State { kernel: before.kernel + 1, ..charged(before, payload) };
        assert_eq!(self.state(session), after);
    }

    /// Sends frames and takes the datagram that comes of them: what comes twice is taken for the next one's, and noticed.
    fn send(&self, session: &Session, frames: &[Vec<u8>], payload: &[u8]) {
        for frame in frames {
            self.near.send(frame);
        }
        session.expect(payload);
    }

    /// Removes a session, so that its connector's tuple can be another's.
    fn end(&mut self, session: Session) {
        self.flows.remove(session.slot, MonoTime::now());
    }
}

/// A payload that begins with `word`.
fn payload(word: u16, length: usize) -> Vec<u8> {
    let mut payload = vec![7; length];
    payload[..2].copy_from_slice(&word.to_be_bytes());
    payload
}

/// That of the frames `made` with a word of payload in which the checksum, which is right, is the sum of the pseudo header.
fn finished_alike(made: impl Fn(u16) -> Vec<u8>) -> Vec<u8> {
    let looks_unfinished = |frame: &[u8]| {
        let (addresses, udp) = if frame[12] == 0x86 { (22, 54) } else { (26, 34) };
        let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let sum = (addresses..udp).step_by(2).chain([udp + 4]).map(|at| u32::from(word(at))).sum::<u32>();
        fold(sum + 17) == word(udp + 6)
    };
    (0..=u16::MAX).map(made).find(|frame| looks_unfinished(frame)).expect("one of all the words")
}

/// The state after one charge for a datagram.
fn charged(before: State, payload: &[u8]) -> State {
    let cost = Allowance::new(LIMIT.bytes_per_s, LIMIT.burst_bytes).cost(payload.len() as u32);
    State { arrival: before.arrival + cost, ..before }
}

fn mac(station: [u8; 6]) -> String {
    station.map(|byte| format!("{byte:02x}")).join(":")
}

impl Session {
    /// Takes the datagram that arrives.
    fn expect(&self, payload: &[u8]) {
        let mut buffer = [0; 8192];
        let (len, from) = self.at_target.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..len], from), (payload, self.from));
    }

    /// A frame of the connector's.
    fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let udp_length = (8 + payload.len()) as u16;
        let ip = match (self.connector.ip(), self.relay.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut ip =
                    Ipv4Header::new(udp_length, TTL, IpNumber::UDP, from.octets(), to.octets()).unwrap();
                ip.dscp = (TOS >> 2).try_into().unwrap();
                ip.dont_fragment = true;
                IpHeaders::Ipv4(ip, Default::default())
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => IpHeaders::Ipv6(
                Ipv6Header {
                    traffic_class: TOS,
                    flow_label: Default::default(),
                    payload_length: udp_length,
                    next_header: IpNumber::UDP,
                    hop_limit: TTL,
                    source: from.octets(),
                    destination: to.octets(),
                },
                Default::default(),
            ),
            _ => panic!("a tuple has one family"),
        };
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(NEAR_AGENT, NEAR)
            .ip(ip)
            .udp(self.connector.port(), self.relay.port())
            .write(&mut frame, payload)
            .unwrap();
        frame
    }
}
