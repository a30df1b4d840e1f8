//! One frame through the whole decision, against a packet library of others.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "in a test a panic is a failure"
)]

use std::net::{Ipv4Addr, SocketAddrV4};

use etherparse::{Ethernet2Header, Ipv4Header, PacketBuilder, SlicedPacket, TransportSlice, UdpHeader};
use proptest::prelude::{any, prop_assert_eq, proptest};
use relay_common::frame::SliceFrame;
use relay_common::index::{IndexBucket, Place, SlotSide};
use relay_common::interface::Interface;
use relay_common::next_hop::{Egress, Hop, NextHop, station_words};
use relay_common::siphash::HashKey;
use relay_common::slot::{RouteV4, Slot};
use relay_common::tables::Tables;
use relay_common::tuple::TupleV4;
use relay_common::{BIND_LEN, Departure, Reason, Side, bucket::Allowance, forward};

const RELAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const AGENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 5];
const RELAY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 9, 0, 2), 4433);
const CONNECTOR: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 9, 1, 2), 40_001);
const TARGET: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 9, 2, 2), 50_002);
const INTERFACE: u32 = 7;
const MAGIC: [u8; 8] = [0x11, 2, 3, 4, 5, 6, 7, 8];
const NOW: u64 = 1_000_000_000;

/// One session between CONNECTOR and TARGET, in plain memory.
struct World {
    buckets: [IndexBucket; 2],
    slot: Slot,
    hop: NextHop,
    interface: Interface,
}

impl World {
    fn new() -> World {
        let world = World {
            buckets: Default::default(),
            slot: Slot::default(),
            hop: NextHop::default(),
            interface: Interface::default(),
        };
        world.interface.write(INTERFACE, RELAY_MAC, 1500);
        world.hop.write(&Hop {
            egress: Egress::Transmit,
            interface: INTERFACE,
            mtu: 1500,
            stations: station_words(GATEWAY_MAC, RELAY_MAC),
        });
        for (side, from, to) in [(Side::Connector, CONNECTOR, TARGET), (Side::Target, TARGET, CONNECTOR)] {
            let tuple = TupleV4::new(from, RELAY);
            world.slot.side(side).write(&tuple, &RouteV4::new(&tuple, &TupleV4::new(RELAY, to), 0));
            let place = Place::of(tuple.hash(world.hash_key()), 1);
            assert!(
                world.buckets[place.buckets[0] as usize].put(place.fingerprint, SlotSide { slot: 0, side })
            );
            world.slot.deadline[side.index()].store(NOW + 1);
        }
        world
    }

    fn limit(&self, bytes_per_s: u64, burst: u64) {
        let allowance = Allowance::new(bytes_per_s, burst);
        self.slot.cost_per_byte.store(allowance.cost_per_byte);
        self.slot.burst.store(allowance.burst);
    }

    fn forward(&self, bytes: &mut [u8]) -> Result<Departure, Reason> {
        forward(&mut SliceFrame { bytes, interface: INTERFACE }, self, || NOW)
    }

    /// The reason of a frame that is not forwarded, having checked that it was left alone.
    fn refusal(&self, mut bytes: Vec<u8>) -> Reason {
        let before = bytes.clone();
        let reason = self.forward(&mut bytes).expect_err("not forwarded");
        assert_eq!(bytes, before, "a frame that is not forwarded is not changed");
        reason
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
    fn interface(&self, index: u32) -> Option<&Interface> {
        (index == INTERFACE).then_some(&self.interface)
    }
    fn bind_magic(&self) -> u64 {
        u64::from_ne_bytes(MAGIC)
    }
}

fn frame(from: SocketAddrV4, to: SocketAddrV4, ttl: u8, tos: u8, payload: &[u8]) -> Vec<u8> {
    let mut ip = Ipv4Header::new(
        (UdpHeader::LEN + payload.len()) as u16,
        ttl,
        etherparse::IpNumber::UDP,
        from.ip().octets(),
        to.ip().octets(),
    )
    .unwrap();
    ip.dscp = (tos >> 2).try_into().unwrap();
    ip.ecn = (tos & 3).try_into().unwrap();
    ip.dont_fragment = true;
    let builder = PacketBuilder::ethernet2(AGENT_MAC, RELAY_MAC)
        .ip(etherparse::IpHeaders::Ipv4(ip, Default::default()))
        .udp(from.port(), to.port());
    let mut bytes = Vec::new();
    builder.write(&mut bytes, payload).unwrap();
    bytes
}

fn data(payload: &[u8]) -> Vec<u8> {
    frame(CONNECTOR, RELAY, 64, 0, payload)
}

/// Takes a forwarded frame apart and checks both checksums in full.
fn received(bytes: &[u8]) -> (Ethernet2Header, Ipv4Header, UdpHeader, Vec<u8>) {
    let packet = SlicedPacket::from_ethernet(bytes).unwrap();
    let etherparse::LinkSlice::Ethernet2(ethernet) = packet.link.unwrap() else { panic!("Ethernet") };
    let etherparse::NetSlice::Ipv4(ip) = packet.net.unwrap() else { panic!("IPv4") };
    let ip = ip.header().to_header();
    let Some(TransportSlice::Udp(udp)) = packet.transport else { panic!("UDP") };
    let (header, payload) = (udp.to_header(), udp.payload().to_vec());
    assert_eq!(ip.header_checksum, ip.calc_header_checksum(), "IP header checksum");
    if header.checksum != 0 {
        assert_eq!(header.checksum, header.calc_checksum_ipv4(&ip, &payload).unwrap(), "UDP checksum");
    }
    (ethernet.to_header(), ip, header, payload)
}

proptest! {
    /// Addresses, ports, MACs and TTL change; payload, length and every other field do not; both checksums are right.
    #[test]
    fn a_packet_of_a_session_leaves_for_the_other_agent(
        payload in proptest::collection::vec(any::<u8>(), 0..1472),
        ttl in 2u8..,
        tos in any::<u8>(),
        from_target in any::<bool>(),
    ) {
        let world = World::new();
        let (from, to) = if from_target { (TARGET, CONNECTOR) } else { (CONNECTOR, TARGET) };
        let mut bytes = frame(from, RELAY, ttl, tos, &payload);
        let length = bytes.len();
        prop_assert_eq!(world.forward(&mut bytes), Ok(Departure { hop: 0, redirect: false }));
        prop_assert_eq!(bytes.len(), length, "no byte is added");
        let (ethernet, ip, udp, carried) = received(&bytes);
        prop_assert_eq!((ethernet.source, ethernet.destination), (RELAY_MAC, GATEWAY_MAC));
        prop_assert_eq!((ip.source, ip.destination), (RELAY.ip().octets(), to.ip().octets()));
        prop_assert_eq!((udp.source_port, udp.destination_port), (RELAY.port(), to.port()));
        prop_assert_eq!((ip.time_to_live, ip.dscp.value() << 2 | ip.ecn.value()), (ttl - 1, tos));
        prop_assert_eq!(carried, payload);
        let line = world.slot.side(if from_target { Side::Target } else { Side::Connector });
        prop_assert_eq!((line.packets.load(), line.bytes.load()), (1, (length - 42) as u64));
    }

    /// Whatever bytes come, nothing panics and what is not forwarded is not changed.
    #[test]
    fn any_bytes_get_one_reason(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let world = World::new();
        let before = bytes.clone();
        if world.forward(&mut bytes).is_err() {
            prop_assert_eq!(bytes, before);
        }
    }

    /// A packet of a session with any bytes of its headers overwritten: forwarded right, or left alone.
    #[test]
    fn a_damaged_packet_is_never_forwarded_wrong(
        payload in proptest::collection::vec(any::<u8>(), 0..100),
        damage in proptest::collection::vec((0usize..42, any::<u8>()), 1..4),
    ) {
        let world = World::new();
        let mut bytes = data(&payload);
        for (at, byte) in damage {
            bytes[at] = byte;
        }
        let before = bytes.clone();
        match world.forward(&mut bytes) {
            Ok(_) => prop_assert_eq!(&bytes[42..], &before[42..]),
            Err(_) => prop_assert_eq!(bytes, before),
        }
    }
}

#[test]
fn a_packet_without_udp_checksum_stays_without() {
    let world = World::new();
    let mut bytes = data(b"payload");
    bytes[40..42].fill(0);
    assert!(world.forward(&mut bytes).is_ok());
    assert_eq!(received(&bytes).2.checksum, 0);
}

#[test]
fn a_udp_checksum_that_comes_out_as_zero_is_sent_in_its_other_form() {
    let world = World::new();
    let zero_sum = (0..=u16::MAX).any(|word| {
        let mut bytes = data(&word.to_be_bytes());
        assert!(world.forward(&mut bytes).is_ok());
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
    assert_eq!(world.refusal(data(b"")[..41].to_vec()), Reason::Truncated);
    assert_eq!(world.refusal(vec![0; 13]), Reason::Truncated);
}

#[test]
fn bytes_behind_the_packet_are_not_carried_along() {
    let world = World::new();
    let mut padded = data(b"short");
    padded.resize(60, 0);
    assert!(world.forward(&mut padded).is_ok(), "the padding of the shortest frame is fine");
    let mut long = data(&[7; 100]);
    long.push(0);
    assert_eq!(world.refusal(long), Reason::LengthMismatch);
}

#[test]
fn strangers_and_other_ports_are_no_flow() {
    let world = World::new();
    let stranger = SocketAddrV4::new(*CONNECTOR.ip(), CONNECTOR.port() + 1);
    assert_eq!(world.refusal(frame(stranger, RELAY, 64, 0, b"x")), Reason::NoFlow);
    let other_port = SocketAddrV4::new(*RELAY.ip(), 443);
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
    assert!(world.forward(&mut data(&payload)).is_ok());
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
    assert!(world.forward(&mut data(&[0; 1252])).is_ok());
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
    let passed = (0..200).filter(|_| world.forward(&mut data(&[0; 1000])).is_ok()).count();
    assert_eq!(passed, 87, "seven eighths of the burst");
    assert_eq!(world.slot.limited_packets.load(), 113);
    assert_eq!(world.slot.limited_bytes.load(), 113_000);
}

#[test]
fn a_filling_bucket_marks_packets_that_can_bear_it() {
    let world = World::new();
    world.limit(100_000, 100_000);
    let ecn = |tos: u8| {
        let mut bytes = frame(CONNECTOR, RELAY, 64, tos, &[0; 1000]);
        world.forward(&mut bytes).unwrap();
        received(&bytes).1.ecn.value()
    };
    let marks = (0..80).filter(|_| ecn(0b10) == 0b11).count();
    assert!(marks > 2, "{marks} of 80");
    assert_eq!(world.slot.marked_packets.load() as usize, marks);
    assert_eq!(ecn(0b00), 0b00, "not ECN-capable");
}
