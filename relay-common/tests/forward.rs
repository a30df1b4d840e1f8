//! One frame through the whole decision, against a packet library of others.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "in a test a panic is a failure"
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{
    Ethernet2Header, IpHeaders, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder, SlicedPacket,
    TransportSlice, UdpHeader,
};
use proptest::prelude::{any, prop_assert_eq, proptest};
use relay_common::frame::SliceFrame;
use relay_common::index::{IndexBucket, Place, SlotSide};
use relay_common::interface::Interface;
use relay_common::local::Local;
use relay_common::next_hop::{Egress, Hop, NextHop, station_words};
use relay_common::route::Route;
use relay_common::siphash::HashKey;
use relay_common::slot::{LineLocals, Slot};
use relay_common::tables::Tables;
use relay_common::tuple::AnyTuple;
use relay_common::{BIND_LEN, Departure, Reason, Side, bucket::Allowance, forward};

const RELAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const AGENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 5];
const RELAY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 9, 0, 2)), 4433);
const RELAY_V6: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 2)), 4433);
const CONNECTOR: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 9, 1, 2)), 40_001);
const CONNECTOR_V6: SocketAddr =
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 2, 3, 4, 5, 6, 7)), 40_001);
const TARGET: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 9, 2, 2)), 50_002);
const TARGET_V6: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0xfd00, 7, 6, 5, 4, 3, 2, 1)), 50_002);
const INTERFACE: u32 = 7;
const MAGIC: [u8; 8] = [0x11, 2, 3, 4, 5, 6, 7, 8];
const NOW: u64 = 1_000_000_000;
const HEADROOM: usize = 64;

/// The relay's address of an agent's family.
fn relay_for(agent: SocketAddr) -> SocketAddr {
    if agent.is_ipv4() { RELAY } else { RELAY_V6 }
}

/// One session, in plain memory.
struct World {
    buckets: [IndexBucket; 2],
    slot: Slot,
    hop: NextHop,
    interface: Interface,
    locals: [Local; 2],
}

impl World {
    /// A session between CONNECTOR and TARGET.
    fn new() -> World {
        World::between(CONNECTOR, TARGET)
    }

    fn between(connector: SocketAddr, target: SocketAddr) -> World {
        let world = World {
            buckets: Default::default(),
            slot: Slot::default(),
            hop: NextHop::default(),
            interface: Interface::default(),
            locals: Default::default(),
        };
        world.interface.write(INTERFACE, RELAY_MAC, 1500);
        world.hop.write(&Hop {
            egress: Egress::Transmit,
            interface: INTERFACE,
            mtu: 1500,
            stations: station_words(GATEWAY_MAC, RELAY_MAC),
        });
        for (side, from, to) in [(Side::Connector, connector, target), (Side::Target, target, connector)] {
            let tuple = AnyTuple::new(from, relay_for(from)).unwrap();
            let route = Route::new(&tuple, &AnyTuple::new(relay_for(to), to).unwrap(), 0);
            let locals = LineLocals { taken: world.local(from), made: world.local(to) };
            world.slot.side(side).write(&tuple, &route, locals);
            let place = Place::of(tuple.hash(world.hash_key()), 1);
            assert!(
                world.buckets[place.buckets[0] as usize].put(place.fingerprint, SlotSide { slot: 0, side })
            );
            world.slot.deadline[side.index()].store(NOW + 1);
        }
        world
    }

    fn local(&self, agent: SocketAddr) -> u16 {
        match relay_for(agent).ip() {
            IpAddr::V4(_) => 0,
            IpAddr::V6(address) => Local::number(&self.locals, address).unwrap(),
        }
    }

    fn limit(&self, bytes_per_s: u64, burst: u64) {
        let allowance = Allowance::new(bytes_per_s, burst);
        self.slot.cost_per_byte.store(allowance.cost_per_byte);
        self.slot.burst.store(allowance.burst);
    }

    /// The frame as it leaves.
    fn forward(&self, frame: &[u8]) -> Result<Vec<u8>, Reason> {
        let mut bytes = [&[0xee; HEADROOM], frame].concat();
        let mut view = SliceFrame::new(&mut bytes, HEADROOM, INTERFACE);
        let decision = forward(&mut view, self, || NOW);
        let left = view.as_bytes().to_vec();
        match decision {
            Ok(departure) => assert_eq!(departure, Departure { hop: 0, redirect: false }),
            Err(_) => assert_eq!(left, frame, "a frame that is not forwarded is not changed"),
        }
        decision.map(|_| left)
    }

    fn refusal(&self, frame: impl AsRef<[u8]>) -> Reason {
        self.forward(frame.as_ref()).expect_err("not forwarded")
    }
}

impl Tables for World {
    fn hash_key(&self) -> HashKey {
        [11, 22]
    }
    fn bucket_mask(&self) -> u32 {
        1
    }
    fn bucket(&self, number: u32) -> Option<&IndexBucket> {
        self.buckets.get(number as usize)
    }
    fn slot(&self, number: u32) -> Option<&Slot> {
        (number == 0).then_some(&self.slot)
    }
    fn next_hop(&self, number: u32) -> Option<&NextHop> {
        (number == 0).then_some(&self.hop)
    }
    fn local(&self, number: u32) -> Option<&Local> {
        self.locals.get(number as usize)
    }
    fn interface(&self, index: u32) -> Option<&Interface> {
        (index == INTERFACE).then_some(&self.interface)
    }
    fn bind_magic(&self) -> u64 {
        u64::from_ne_bytes(MAGIC)
    }
}

fn frame(from: SocketAddr, to: SocketAddr, ttl: u8, tos: u8, payload: &[u8]) -> Vec<u8> {
    let udp_length = (UdpHeader::LEN + payload.len()) as u16;
    let ip = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut ip = Ipv4Header::new(udp_length, ttl, IpNumber::UDP, from.octets(), to.octets()).unwrap();
            ip.dscp = (tos >> 2).try_into().unwrap();
            ip.ecn = (tos & 3).try_into().unwrap();
            ip.dont_fragment = true;
            IpHeaders::Ipv4(ip, Default::default())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => IpHeaders::Ipv6(
            Ipv6Header {
                traffic_class: tos,
                flow_label: 0x54321.try_into().unwrap(),
                payload_length: udp_length,
                next_header: IpNumber::UDP,
                hop_limit: ttl,
                source: from.octets(),
                destination: to.octets(),
            },
            Default::default(),
        ),
        _ => panic!("one family"),
    };
    let builder = PacketBuilder::ethernet2(AGENT_MAC, RELAY_MAC).ip(ip).udp(from.port(), to.port());
    let mut bytes = Vec::new();
    builder.write(&mut bytes, payload).unwrap();
    bytes
}

fn data(payload: &[u8]) -> Vec<u8> {
    frame(CONNECTOR, RELAY, 64, 0, payload)
}

fn data_v6(payload: &[u8]) -> Vec<u8> {
    frame(CONNECTOR_V6, RELAY_V6, 64, 0, payload)
}

/// What an agent sees of a packet.
#[derive(Debug)]
struct Received {
    ethernet: Ethernet2Header,
    from: SocketAddr,
    to: SocketAddr,
    ttl: u8,
    tos: u8,
    udp_checksum: u16,
    payload: Vec<u8>,
}

/// Takes a forwarded frame apart and checks both checksums in full.
fn received(bytes: &[u8]) -> Received {
    let packet = SlicedPacket::from_ethernet(bytes).unwrap();
    let etherparse::LinkSlice::Ethernet2(ethernet) = packet.link.unwrap() else { panic!("Ethernet") };
    let Some(TransportSlice::Udp(udp)) = packet.transport else { panic!("UDP") };
    let (header, payload) = (udp.to_header(), udp.payload().to_vec());
    let ip_length = bytes.len() - 14;
    let (from, to, ttl, tos, checksum): (IpAddr, IpAddr, _, _, _) = match packet.net.unwrap() {
        etherparse::NetSlice::Ipv4(ip) => {
            let ip = ip.header().to_header();
            assert_eq!(ip.header_checksum, ip.calc_header_checksum(), "IP header checksum");
            assert!(usize::from(ip.total_len) == ip_length || bytes.len() == 60);
            let checksum = header.calc_checksum_ipv4(&ip, &payload).unwrap();
            let tos = ip.dscp.value() << 2 | ip.ecn.value();
            (ip.source.into(), ip.destination.into(), ip.time_to_live, tos, checksum)
        }
        etherparse::NetSlice::Ipv6(ip) => {
            let ip = ip.header().to_header();
            assert_eq!(usize::from(ip.payload_length) + 40, ip_length);
            let checksum = header.calc_checksum_ipv6(&ip, &payload).unwrap();
            (ip.source.into(), ip.destination.into(), ip.hop_limit, ip.traffic_class, checksum)
        }
        other => panic!("{other:?}"),
    };
    assert!(header.checksum == checksum || header.checksum == 0 && from.is_ipv4(), "UDP checksum");
    Received {
        ethernet: ethernet.to_header(),
        from: SocketAddr::new(from, header.source_port),
        to: SocketAddr::new(to, header.destination_port),
        ttl,
        tos,
        udp_checksum: header.checksum,
        payload,
    }
}

proptest! {
    /// Addresses, ports, MACs and TTL change; payload and traffic class do not; nothing is added but what another family's
    /// header needs; both checksums are right.
    #[test]
    fn a_packet_of_a_session_leaves_for_the_other_agent(
        payload in proptest::collection::vec(any::<u8>(), 0..1453),
        ttl in 2u8..,
        tos in any::<u8>(),
        connector_v6 in any::<bool>(),
        target_v6 in any::<bool>(),
        from_target in any::<bool>(),
    ) {
        let connector = if connector_v6 { CONNECTOR_V6 } else { CONNECTOR };
        let target = if target_v6 { TARGET_V6 } else { TARGET };
        let world = World::between(connector, target);
        let (from, to) = if from_target { (target, connector) } else { (connector, target) };
        let before = frame(from, relay_for(from), ttl, tos, &payload);
        let after = world.forward(&before).unwrap();
        let family_adds = if to.is_ipv6() { 20 } else { 0 } - if from.is_ipv6() { 20 } else { 0 };
        prop_assert_eq!(after.len() as i64, before.len() as i64 + family_adds, "no byte is added");
        let seen = received(&after);
        prop_assert_eq!((seen.ethernet.source, seen.ethernet.destination), (RELAY_MAC, GATEWAY_MAC));
        prop_assert_eq!((seen.from, seen.to), (relay_for(to), to));
        prop_assert_eq!((seen.ttl, seen.tos), (ttl - 1, tos));
        prop_assert_eq!(&seen.payload, &payload);
        let line = world.slot.side(if from_target { Side::Target } else { Side::Connector });
        prop_assert_eq!((line.packets.load(), line.bytes.load()), (1, payload.len() as u64));
    }

    /// Whatever bytes come, nothing panics and what is not forwarded is not changed.
    #[test]
    fn any_bytes_get_one_reason(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = World::new().forward(&bytes);
    }

    /// A packet of a session with any bytes of its headers overwritten: forwarded with its payload, or left alone.
    #[test]
    fn a_damaged_packet_is_never_forwarded_wrong(
        payload in proptest::collection::vec(any::<u8>(), 30..100),
        damage in proptest::collection::vec((0usize..62, any::<u8>()), 1..4),
        v6 in any::<bool>(),
    ) {
        let world = if v6 { World::between(CONNECTOR_V6, TARGET_V6) } else { World::new() };
        let mut bytes = if v6 { data_v6(&payload) } else { data(&payload) };
        let headers = if v6 { 62 } else { 42 };
        for (at, byte) in damage {
            bytes[at % headers] = byte;
        }
        if let Ok(after) = world.forward(&bytes) {
            prop_assert_eq!(&after[headers..], &bytes[headers..]);
        }
    }
}

#[test]
fn a_packet_without_udp_checksum_stays_without() {
    let world = World::new();
    let mut bytes = data(b"payload");
    bytes[40..42].fill(0);
    assert_eq!(received(&world.forward(&bytes).unwrap()).udp_checksum, 0);
}

#[test]
fn a_packet_without_udp_checksum_cannot_become_ipv6_and_goes_up_uncharged() {
    let world = World::between(CONNECTOR, TARGET_V6);
    world.limit(1_000_000, 100_000);
    let mut bytes = data(b"payload");
    bytes[40..42].fill(0);
    assert_eq!(world.refusal(bytes), Reason::ZeroChecksum);
    assert_eq!(world.slot.arrival.load(), 0);
    let world = World::between(CONNECTOR_V6, TARGET);
    let mut bytes = data_v6(b"payload");
    bytes[60..62].fill(0);
    assert_eq!(world.refusal(bytes), Reason::ZeroChecksum);
}

#[test]
fn a_udp_checksum_that_comes_out_as_zero_is_sent_in_its_other_form() {
    let world = World::new();
    let zero_sum = (0..=u16::MAX).any(|word| {
        let bytes = world.forward(&data(&word.to_be_bytes())).unwrap();
        assert_ne!(&bytes[40..42], [0, 0]);
        bytes[40..42] == [0xff, 0xff]
    });
    assert!(zero_sum, "one of the payloads makes the sum zero");
}

#[test]
fn unusual_packets_of_a_session_are_passed_up_with_their_reason() {
    let world = World::new();
    let changed = |at: usize, byte: u8| {
        let mut bytes = data(b"payload that is long enough not to be padded");
        bytes[at] = byte;
        world.refusal(bytes)
    };
    assert_eq!(changed(14, 0x46), Reason::IpOptions);
    assert_eq!(changed(14, 0x44), Reason::Malformed);
    assert_eq!(changed(14, 0x65), Reason::Malformed);
    assert_eq!(changed(20, 0x20), Reason::Fragment);
    assert_eq!(changed(21, 0x01), Reason::Fragment);
    assert_eq!(changed(22, 1), Reason::TtlExpiring);
    assert_eq!(changed(22, 0), Reason::TtlExpiring);
    assert_eq!(changed(23, 6), Reason::NotUdp);
    assert_eq!(changed(17, 1), Reason::LengthMismatch);
    assert_eq!(changed(39, 1), Reason::LengthMismatch);
    assert_eq!(changed(0, 3), Reason::OtherStation);
    assert_eq!(changed(5, 3), Reason::OtherStation);
    assert_eq!(changed(12, 0x86), Reason::NotIp);
    assert_eq!(changed(12, 0x81), Reason::VlanTagged);
    assert_eq!(world.refusal(&data(b"")[..41]), Reason::Truncated);
    assert_eq!(world.refusal([0; 13]), Reason::Truncated);
}

#[test]
fn unusual_ipv6_packets_of_a_session_are_passed_up_with_their_reason() {
    let world = World::between(CONNECTOR_V6, TARGET_V6);
    let changed = |at: usize, byte: u8| {
        let mut bytes = data_v6(b"payload");
        bytes[at] = byte;
        world.refusal(bytes)
    };
    assert_eq!(changed(14, 0x40), Reason::Malformed);
    assert_eq!(changed(20, 0), Reason::ExtensionHeader);
    assert_eq!(changed(20, 44), Reason::ExtensionHeader);
    assert_eq!(changed(20, 60), Reason::ExtensionHeader);
    assert_eq!(changed(20, 58), Reason::NotUdp);
    assert_eq!(changed(21, 1), Reason::TtlExpiring);
    assert_eq!(changed(19, 1), Reason::LengthMismatch);
    assert_eq!(changed(59, 1), Reason::LengthMismatch);
    assert_eq!(changed(53, 9), Reason::NoFlow, "another address of the relay");
    assert_eq!(changed(37, 9), Reason::NoFlow, "another agent");
    assert_eq!(world.refusal(&data_v6(b"")[..61]), Reason::Truncated);
}

#[test]
fn bytes_behind_the_packet_are_not_carried_along() {
    let world = World::new();
    let mut padded = data(b"short");
    padded.resize(60, 0);
    assert!(world.forward(&padded).is_ok(), "the padding of the shortest frame is fine");
    let mut long = data(&[7; 100]);
    long.push(0);
    assert_eq!(world.refusal(long), Reason::LengthMismatch);
}

#[test]
fn strangers_and_other_ports_are_no_flow() {
    let world = World::new();
    let stranger = SocketAddr::new(CONNECTOR.ip(), CONNECTOR.port() + 1);
    assert_eq!(world.refusal(frame(stranger, RELAY, 64, 0, b"x")), Reason::NoFlow);
    let other_port = SocketAddr::new(RELAY.ip(), 443);
    assert_eq!(world.refusal(frame(CONNECTOR, other_port, 64, 0, b"x")), Reason::NoFlow);
}

#[test]
fn bind_datagrams_go_up_and_their_imitations_are_dropped() {
    let world = World::new();
    let mut payload = [0; BIND_LEN];
    payload[..8].copy_from_slice(&MAGIC);
    assert_eq!(world.refusal(data(&payload)), Reason::Bind);
    assert_eq!(world.refusal(data(&payload[..BIND_LEN - 1])), Reason::BindMalformed);
    assert_eq!(world.refusal(data(&MAGIC)), Reason::BindMalformed);
    payload[7] ^= 1;
    assert!(world.forward(&data(&payload)).is_ok());
}

#[test]
fn after_either_deadline_nothing_is_forwarded() {
    for side in Side::BOTH {
        let world = World::new();
        world.slot.deadline[side.index()].store(NOW);
        assert_eq!(world.refusal(data(b"x")), Reason::ConsentExpired);
    }
}

#[test]
fn a_packet_too_big_for_the_way_out_goes_up_uncharged() {
    let world = World::new();
    world.limit(1_000_000, 100_000);
    let mut hop = world.hop.copy().unwrap();
    hop.mtu = 1280;
    world.hop.write(&hop);
    assert_eq!(world.refusal(data(&[0; 1253])), Reason::TooBig);
    assert_eq!(world.slot.arrival.load(), 0);
    assert!(world.forward(&data(&[0; 1252])).is_ok());
}

#[test]
fn a_packet_that_grows_too_big_in_translation_goes_up() {
    let world = World::between(CONNECTOR, TARGET_V6);
    assert_eq!(world.refusal(data(&[0; 1453])), Reason::TooBig);
    assert_eq!(world.forward(&data(&[0; 1452])).unwrap().len(), 1514);
}

#[test]
fn a_packet_larger_than_the_way_in_was_merged_and_goes_up() {
    let world = World::new();
    assert_eq!(world.refusal(data(&[0; 1473])), Reason::SuperFrame);
}

#[test]
fn an_unresolved_next_hop_leaves_the_packet_to_userspace() {
    let world = World::new();
    let mut hop = world.hop.copy().unwrap();
    hop.egress = Egress::Userspace;
    world.hop.write(&hop);
    assert_eq!(world.refusal(data(b"x")), Reason::HopUnresolved);
}

#[test]
fn over_the_limit_packets_are_dropped_and_counted_in_the_session() {
    let world = World::new();
    world.limit(100_000, 100_000);
    let passed = (0..200).filter(|_| world.forward(&data(&[0; 1000])).is_ok()).count();
    assert_eq!(passed, 87, "seven eighths of the burst");
    assert_eq!(world.slot.limited_packets.load(), 113);
    assert_eq!(world.slot.limited_bytes.load(), 113_000);
}

#[test]
fn a_filling_bucket_marks_packets_that_can_bear_it() {
    for (connector, target) in [(CONNECTOR, TARGET), (CONNECTOR, TARGET_V6)] {
        marks_between(connector, target);
    }
    for (connector, target) in [(CONNECTOR_V6, TARGET), (CONNECTOR_V6, TARGET_V6)] {
        marks_between(connector, target);
    }
}

fn marks_between(connector: SocketAddr, target: SocketAddr) {
    let world = World::between(connector, target);
    world.limit(100_000, 100_000);
    let ecn = |tos: u8| {
        received(&world.forward(&frame(connector, relay_for(connector), 64, tos, &[0; 1000])).unwrap()).tos
            & 3
    };
    let marks = (0..80).filter(|_| ecn(0b10) == 0b11).count();
    assert!(marks > 2, "{marks} of 80");
    assert_eq!(world.slot.marked_packets.load() as usize, marks);
    assert_eq!(ecn(0b00), 0b00, "not ECN-capable");
}
