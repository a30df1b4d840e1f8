//! Sources that no agent can have: their tuples are never bound (the rendezvous refuses them, and `FlowTable` again, as
//! their tests say), so their packets are of no flow and go up.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use relay_common::Reason;

use crate::world::{CONNECTOR, CONNECTOR_V6, RELAY, RELAY_V6, TARGET, TARGET_V6, World, data, frame};

#[test]
fn sources_that_no_agent_can_have_are_no_flow() {
    let world = World::new();
    for source in [
        Ipv4Addr::new(224, 0, 0, 1),
        Ipv4Addr::BROADCAST,
        Ipv4Addr::LOCALHOST,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::new(10, 9, 1, 255),
    ] {
        let source = SocketAddr::new(IpAddr::V4(source), CONNECTOR.port());
        assert_eq!(world.refusal(frame(source, RELAY, 64, 0, b"x")), Reason::NoFlow, "{source}");
    }
    let world = World::between(CONNECTOR_V6, TARGET_V6);
    for source in [
        Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
        Ipv6Addr::LOCALHOST,
        Ipv6Addr::UNSPECIFIED,
        Ipv4Addr::new(10, 9, 1, 2).to_ipv6_mapped(),
    ] {
        let source = SocketAddr::new(IpAddr::V6(source), CONNECTOR_V6.port());
        assert_eq!(world.refusal(frame(source, RELAY_V6, 64, 0, b"x")), Reason::NoFlow, "{source}");
    }
}

#[test]
fn the_relay_itself_as_source_is_no_flow() {
    // Also from its own port, and to the address that an agent's packets leave by: a packet of ours that came back.
    for (connector, target, relay) in [(CONNECTOR, TARGET, RELAY), (CONNECTOR_V6, TARGET_V6, RELAY_V6)] {
        let world = World::between(connector, target);
        let other_port = SocketAddr::new(relay.ip(), connector.port());
        assert_eq!(world.refusal(frame(relay, relay, 64, 0, b"x")), Reason::NoFlow);
        assert_eq!(world.refusal(frame(other_port, relay, 64, 0, b"x")), Reason::NoFlow);
        assert_eq!(world.refusal(frame(relay, target, 64, 0, b"x")), Reason::NoFlow);
        assert_eq!(world.refusal(frame(relay, connector, 64, 0, b"x")), Reason::NoFlow);
    }
}

#[test]
fn packets_to_multicast_and_broadcast_are_no_flow_or_of_another_station() {
    let world = World::new();
    for destination in [Ipv4Addr::BROADCAST, Ipv4Addr::new(224, 0, 0, 1), Ipv4Addr::new(10, 9, 0, 255)] {
        let destination = SocketAddr::new(IpAddr::V4(destination), RELAY.port());
        assert_eq!(world.refusal(frame(CONNECTOR, destination, 64, 0, b"x")), Reason::NoFlow);
    }
    for station in [[0xff; 6], [1, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]] {
        let mut bytes = data(b"x");
        bytes[..6].copy_from_slice(&station);
        assert_eq!(world.refusal(bytes), Reason::OtherStation);
    }
}

/// The link-layer source says who handed the frame over, which decides nothing: it is neither looked at nor answered, and
/// is replaced. The tuple is what a flow is recognised by, so a group address there cannot make a packet of a session.
#[test]
fn the_link_layer_source_decides_nothing_and_is_replaced() {
    let world = World::new();
    let usual = world.forward(&data(b"x")).unwrap();
    for station in [[0xff; 6], [1, 0, 0x5e, 0, 0, 1], [0; 6]] {
        let mut bytes = data(b"x");
        bytes[6..12].copy_from_slice(&station);
        assert_eq!(world.forward(&bytes).unwrap(), usual);
    }
}
