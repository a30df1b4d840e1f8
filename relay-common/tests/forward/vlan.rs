//! Frames with a VLAN tag: they leave with the tag they came with, or go up.

use std::net::SocketAddr;

use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
use relay_common::{BIND_LEN, Reason};

use crate::finished_alike;
use crate::world::{CONNECTOR, CONNECTOR_V6, MAGIC, TARGET, TARGET_V6, World, data, frame, relay_for};

const VLAN: u16 = 5;

/// A session whose agents are both behind the VLAN.
fn in_vlan(connector: SocketAddr, target: SocketAddr) -> World {
    let world = World::between(connector, target);
    let mut hop = world.hop.copy().unwrap();
    hop.vlan = VLAN;
    world.hop.write(&hop);
    world
}

/// The frame with a tag of this kind and control information.
fn tagged_as(ether_type: u16, control: u16, frame: &[u8]) -> Vec<u8> {
    let (stations, rest) = frame.split_at(12);
    [stations, &ether_type.to_be_bytes(), &control.to_be_bytes(), rest].concat()
}

fn tagged(control: u16, frame: &[u8]) -> Vec<u8> {
    tagged_as(0x8100, control, frame)
}

proptest! {
    /// Whatever the families, the frame is the one without tag, with the tag it came with: priority bits included.
    #[test]
    fn a_tagged_packet_leaves_with_its_tag_and_is_else_as_without(
        payload in proptest::collection::vec(any::<u8>(), 0..1453),
        tos in any::<u8>(),
        priority in 0u16..16,
        connector_v6 in any::<bool>(),
        target_v6 in any::<bool>(),
    ) {
        let connector = if connector_v6 { CONNECTOR_V6 } else { CONNECTOR };
        let target = if target_v6 { TARGET_V6 } else { TARGET };
        let before = frame(connector, relay_for(connector), 64, tos, &payload);
        let without = World::between(connector, target).forward(&before).unwrap();
        let control = priority << 12 | VLAN;
        let after = in_vlan(connector, target).forward(&tagged(control, &before)).unwrap();
        prop_assert_eq!(after, tagged(control, &without));
    }

    #[test]
    fn a_tagged_packets_finished_checksum_is_told_from_one_left_to_hardware(
        payload in proptest::collection::vec(any::<u8>(), 2..1400),
        from_v6 in any::<bool>(),
    ) {
        let connector = if from_v6 { CONNECTOR_V6 } else { CONNECTOR };
        let world = in_vlan(connector, TARGET);
        let mut frame = tagged(VLAN, &finished_alike(connector, &payload));
        prop_assert!(world.forward(&frame).is_ok());
        let payload_at = if from_v6 { 66 } else { 46 };
        frame[payload_at] ^= 1;
        prop_assert_eq!(world.refusal(frame), Reason::UnfinishedChecksum);
    }

    /// Any damage to a tagged frame of a session: forwarded with payload and tag, or left alone.
    #[test]
    fn a_damaged_tagged_packet_is_never_forwarded_wrong(
        payload in proptest::collection::vec(any::<u8>(), 30..100),
        damage in proptest::collection::vec((0usize..46, any::<u8>()), 1..4),
    ) {
        let mut bytes = tagged(VLAN, &data(&payload));
        for (at, byte) in damage {
            bytes[at] = byte;
        }
        if let Ok(after) = in_vlan(CONNECTOR, TARGET).forward(&bytes) {
            prop_assert_eq!(&after[46..], &bytes[46..]);
            prop_assert_eq!(&after[12..16], &bytes[12..16]);
        }
    }
}

#[test]
fn a_tag_that_the_way_out_has_not_goes_up_uncharged() {
    let world = in_vlan(CONNECTOR, TARGET);
    world.limit(1_000_000, 100_000);
    assert_eq!(world.refusal(tagged(VLAN + 1, &data(b"x"))), Reason::VlanTagged);
    assert_eq!(world.refusal(data(b"x")), Reason::VlanMissing, "it would leave untagged");
    assert_eq!(World::new().refusal(tagged(VLAN, &data(b"x"))), Reason::VlanTagged, "it would leave tagged");
    assert_eq!(world.slot.arrival.load(), 0);
}

#[test]
fn tags_that_name_no_vlan_or_are_not_alone_go_up() {
    for world in [World::new(), in_vlan(CONNECTOR, TARGET)] {
        assert_eq!(world.refusal(tagged(0, &data(b"x"))), Reason::VlanTagged);
        assert_eq!(world.refusal(tagged(7 << 13, &data(b"x"))), Reason::VlanTagged, "priority alone");
        assert_eq!(world.refusal(tagged(VLAN, &tagged(VLAN, &data(b"x")))), Reason::VlanTagged);
        assert_eq!(world.refusal(tagged(VLAN, &tagged_as(0x88a8, VLAN, &data(b"x")))), Reason::VlanTagged);
        assert_eq!(world.refusal(tagged_as(0x88a8, VLAN, &data(b"x"))), Reason::VlanTagged);
        assert_eq!(world.refusal(tagged_as(0x88a8, 9, &tagged(VLAN, &data(b"x")))), Reason::VlanTagged);
    }
}

#[test]
fn what_a_tag_hides_has_its_usual_reason() {
    let world = in_vlan(CONNECTOR, TARGET);
    let changed = |at: usize, byte: u8| {
        let mut bytes = tagged(VLAN, &data(b"payload that is long enough not to be padded"));
        bytes[at] = byte;
        world.refusal(bytes)
    };
    assert_eq!(changed(17, 6), Reason::NotIp);
    assert_eq!(changed(18, 0x46), Reason::IpOptions);
    assert_eq!(changed(24, 0x20), Reason::Fragment);
    assert_eq!(changed(26, 1), Reason::TtlExpiring);
    assert_eq!(changed(27, 6), Reason::NotUdp);
    assert_eq!(changed(5, 3), Reason::OtherStation);
    assert_eq!(changed(37, 1), Reason::NoFlow);
    assert_eq!(world.refusal(&tagged(VLAN, &data(b""))[..45]), Reason::Truncated);
    assert_eq!(world.refusal(&tagged(VLAN, &data(b""))[..17]), Reason::Truncated);
    let mut bind = [0; BIND_LEN];
    bind[..8].copy_from_slice(&MAGIC);
    assert_eq!(world.refusal(tagged(VLAN, &data(&bind))), Reason::Bind);
    assert_eq!(world.refusal(tagged(VLAN, &data(&MAGIC))), Reason::BindMalformed);
}

#[test]
fn a_tag_counts_neither_for_the_mtu_nor_as_payload() {
    let world = in_vlan(CONNECTOR, TARGET);
    assert_eq!(world.forward(&tagged(VLAN, &data(&[0; 1472]))).unwrap().len(), 1518);
    assert_eq!(world.refusal(tagged(VLAN, &data(&[0; 1473]))), Reason::SuperFrame);
    let grows = in_vlan(CONNECTOR, TARGET_V6);
    assert_eq!(grows.forward(&tagged(VLAN, &data(&[0; 1452]))).unwrap().len(), 1518);
    assert_eq!(grows.refusal(tagged(VLAN, &data(&[0; 1453]))), Reason::TooBig);
}

#[test]
fn a_short_tagged_packet_may_be_padded_before_or_after_it_was_tagged() {
    let world = in_vlan(CONNECTOR, TARGET);
    for (len, padding_is_fine) in [(60, true), (64, true), (65, false)] {
        let mut bytes = tagged(VLAN, &data(b"short"));
        bytes.resize(len, 0);
        let after = world.forward(&bytes);
        assert_eq!(
            after.map(|after| after.len()),
            if padding_is_fine { Ok(len) } else { Err(Reason::LengthMismatch) }
        );
    }
}
