//! One frame through the whole decision, against a packet library of others.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "in a test a panic is a failure"
)]

mod sources;
mod vlan;
mod world;

use std::net::SocketAddr;

use proptest::prelude::{any, prop_assert_eq, proptest};
use relay_common::checksum::fold;
use relay_common::datagram::LONGEST_SUMMED;
use relay_common::next_hop::{Egress, Hop};
use relay_common::traffic::{Difference, Reading};
use relay_common::{BIND_LEN, Reason, Side};

use world::{
    CONNECTOR, CONNECTOR_V6, GATEWAY_MAC, INTERFACE, MAGIC, NOW, RELAY, RELAY_MAC, TARGET, TARGET_V6, World,
    data, data_v6, frame, received, relay_for,
};

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
        let counted = Difference { packets: 1, bytes: payload.len() as u64 };
        prop_assert_eq!(line.traffic.read().since(Reading::default()), counted);
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

/// The sum of a packet's pseudo header, as a sender leaves it to hardware to go on from.
fn with_unfinished_checksum(mut frame: Vec<u8>) -> Vec<u8> {
    let v6 = frame[12] == 0x86;
    let (addresses, length, check) = if v6 { (22..54, 58..60, 60) } else { (26..34, 38..40, 40) };
    let words = frame[addresses].chunks(2).chain([&frame[length]]);
    let sum: u32 = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum::<u32>() + 17;
    let folded = (sum & 0xffff) + (sum >> 16);
    frame[check..check + 2].copy_from_slice(&(folded as u16).to_be_bytes());
    frame
}

#[test]
fn a_packet_whose_checksum_is_left_to_hardware_goes_up_uncharged() {
    for (connector, target) in
        [(CONNECTOR, TARGET), (CONNECTOR, TARGET_V6), (CONNECTOR_V6, TARGET), (CONNECTOR_V6, TARGET_V6)]
    {
        let world = World::between(connector, target);
        world.limit(1_000_000, 100_000);
        let finished = frame(connector, relay_for(connector), 64, 0, b"payload");
        assert_eq!(world.refusal(with_unfinished_checksum(finished.clone())), Reason::UnfinishedChecksum);
        assert_eq!(world.slot.arrival.load(), 0);
        assert!(world.forward(&finished).is_ok());
    }
}

/// A packet of `payload`, whose first two bytes are chosen so that its checksum, which is right, is the sum of its pseudo header
/// as well.
pub(crate) fn finished_alike(from: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let made =
        |word: u16| frame(from, relay_for(from), 64, 0, &[&word.to_be_bytes(), &payload[2..]].concat());
    let check = |frame: &[u8]| {
        let at = if frame[12] == 0x86 { 60 } else { 40 };
        u16::from_be_bytes([frame[at], frame[at + 1]])
    };
    let without = made(0);
    let wanted = check(&with_unfinished_checksum(without.clone()));
    let finished = made(fold(u32::from(check(&without)) + u32::from(!wanted)));
    assert_eq!(with_unfinished_checksum(finished.clone()), finished);
    finished
}

proptest! {
    #[test]
    fn a_finished_checksum_that_is_the_pseudo_headers_sum_is_told_from_one_left_to_hardware(
        payload in proptest::collection::vec(any::<u8>(), 2..1400),
        damage in (0usize..1400, 1u8..),
        (from_v6, to_v6) in any::<(bool, bool)>(),
    ) {
        let connector = if from_v6 { CONNECTOR_V6 } else { CONNECTOR };
        let world = World::between(connector, if to_v6 { TARGET_V6 } else { TARGET });
        let finished = finished_alike(connector, &payload);
        let after = received(&world.forward(&finished).unwrap());
        prop_assert_eq!(&after.payload[2..], &payload[2..]);
        // Any other payload with the same checksum makes it an unfinished one. No change of one byte is a whole turn.
        let mut unfinished = finished;
        let headers = if from_v6 { 62 } else { 42 };
        unfinished[headers + damage.0 % payload.len()] ^= damage.1;
        prop_assert_eq!(world.refusal(unfinished), Reason::UnfinishedChecksum);
    }
}

#[test]
fn a_datagram_too_long_to_be_summed_goes_up_if_its_checksum_is_the_pseudo_headers_sum() {
    let world = World::new();
    world.interface.write(INTERFACE, RELAY_MAC, 9000);
    world.hop.write(&Hop { mtu: 9000, ..world.hop.copy().unwrap() });
    for (payload, expected) in
        [(LONGEST_SUMMED - 8, None), (LONGEST_SUMMED - 7, Some(Reason::UnfinishedChecksum))]
    {
        let decided = world.forward(&finished_alike(CONNECTOR, &vec![7; payload]));
        assert_eq!(decided.err(), expected, "{payload} bytes");
    }
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
    assert_eq!(world.marked.borrow()[..], vec![1000; marks], "each is told of with its payload");
    assert_eq!(ecn(0b00), 0b00, "not ECN-capable");
}
