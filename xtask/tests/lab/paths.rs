//! What lies between the agents and the relay: NATs in every arrangement, and links of any MTU.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use relay_userspace::identity::NodeKey;
use xtask::answers::Status;
use xtask::deployment::Reached;
use xtask::lab::{Family, LabPlan, RELAY_ADDRESSES, RELAY_GATEWAYS, RELAY_SECOND_ADDRESSES, RelayPlan};
use xtask::tool::Tool;

use super::hand_agent::{HandAgent, HandBind, carries_bytes};
use super::raw_agents::run_inside;
use super::stream::with_stream;
use super::world::{NATIVE, RELAY, World, wait_for};

const MIXED: [Family; 2] = [Family::V4, Family::V6];

#[test]
fn agents_behind_one_nat_are_joined() {
    let Some(world) = world("agents_behind_one_nat_are_joined", &LabPlan::behind_one_nat()) else { return };
    let _relay = world.deployment.start_relay(Some(0), NATIVE).unwrap();

    let copied = world.copy_a_file();

    copied.assert_by_kernel();
    let [connector, target] = copied.session.sides.map(|side| side.agent.unwrap());
    assert_eq!(connector.ip(), target.ip(), "the NAT's address");
    assert_eq!(world.lab.invalid_packets_at_nats().unwrap(), 0, "packets with wrong checksums");
}

#[test]
fn agents_behind_nats_behind_a_nat_are_joined() {
    const NAME: &str = "agents_behind_nats_behind_a_nat_are_joined";
    let reached = Reached::by(MIXED, RELAY_ADDRESSES, RELAY.port());
    let Some(world) = World::planned(NAME, &LabPlan::behind_two_nats(), reached) else { return };
    let _relay = world.deployment.start_relay(Some(0), NATIVE).unwrap();

    world.copy_a_file().assert_by_kernel();

    assert_eq!(world.lab.invalid_packets_at_nats().unwrap(), 0, "packets with wrong checksums");
}

/// The relay has only private addresses. Its agents reach it at one public address and are told to send data to another.
#[test]
fn a_relay_behind_a_one_to_one_nat_is_used_at_the_address_that_it_advertises() {
    const NAME: &str = "a_relay_behind_a_one_to_one_nat_is_used_at_the_address_that_it_advertises";
    let plan = LabPlan { relay: RelayPlan::BehindOneToOneNat, ..LabPlan::default() };
    let reached = Reached::by(MIXED, RELAY_ADDRESSES, RELAY.port());
    let Some(world) = World::planned(NAME, &plan, reached) else { return };
    let nat = world.lab.relay_nat.as_ref().unwrap();
    nat.ip("addr add 10.9.0.3/24 dev wan\naddr add 2001:db8:9::3/64 dev wan\n").unwrap();
    let also = "add rule inet nat prerouting ip daddr 10.9.0.3 dnat ip to 172.16.0.2\n\
                add rule inet nat prerouting ip6 daddr 2001:db8:9::3 dnat ip6 to fd09:172::2\n";
    nat.run(&Tool::new("nft").words("-f -").input(also)).unwrap();
    let advertise = "[network]\nadvertise = [\"10.9.0.3:4433\", \"[2001:db8:9::3]:4433\"]\n";
    let _relay = world.deployment.start_relay_with(Some(0), advertise, NATIVE).unwrap();

    let copied = world.copy_a_file();

    copied.assert_by_kernel();
    assert_eq!(copied.at_target.relay, "[2001:db8:9::3]:4433");
    let relay = copied.session.sides.map(|side| side.relay.unwrap());
    assert_eq!(relay, ["172.16.0.2:4433", "[fd09:172::2]:4433"].map(|at| at.parse().unwrap()));
    assert_eq!(world.lab.invalid_packets_at_nats().unwrap(), 0, "packets with wrong checksums");
}

#[test]
fn a_path_of_mtu_1280_carries_a_file() {
    let Some(world) = world("a_path_of_mtu_1280_carries_a_file", &LabPlan::with_mtu(1280)) else { return };
    let _relay = world.deployment.start_relay(Some(0), NATIVE).unwrap();

    let copied = world.copy_a_file();

    copied.assert_by_kernel();
    assert_told(&world, 1252); // 1280 - 20 - 8
    assert_eq!(world.lab.invalid_packets_at_nats().unwrap(), 0, "packets with wrong checksums");
}

#[test]
fn a_path_of_mtu_9000_carries_a_file_and_datagrams_that_need_it() {
    const NAME: &str = "a_path_of_mtu_9000_carries_a_file_and_datagrams_that_need_it";
    let Some(world) = world(NAME, &LabPlan::with_mtu(9000)) else { return };
    let _relay = world.deployment.start_relay(Some(0), NATIVE).unwrap();

    world.copy_a_file().assert_by_kernel();

    // Agents are told what fits everywhere; a datagram that happens to fit more is forwarded.
    assert_told(&world, 1472);
    with_hand_session(&world, |near, far| {
        let forwarded = || world.status().kernel["forwarded"];
        let before = forwarded();
        assert!(carries_bytes(near, far, 8972) && carries_bytes(far, near, 8972));
        assert_eq!(forwarded() - before, 2);
    });
    assert_eq!(world.lab.invalid_packets_at_nats().unwrap(), 0, "packets with wrong checksums");
}

/// The first agent comes by an interface of MTU 1500, the second by one of 1280.
#[test]
fn nothing_is_forwarded_that_does_not_fit_the_interface_it_would_leave_by() {
    const NAME: &str = "nothing_is_forwarded_that_does_not_fit_the_interface_it_would_leave_by";
    let plan = LabPlan { relay: RelayPlan::TwoUplinks, ..LabPlan::default() };
    let second = SocketAddr::new(RELAY_SECOND_ADDRESSES.of(Family::V4), RELAY.port());
    let Some(world) = World::planned(NAME, &plan, Reached { connector: RELAY, target: second }) else {
        return;
    };
    let narrow = format!("link set r1 mtu 1280\nroute add 10.9.2.0/24 via {} dev r1\n", RELAY_GATEWAYS[1].v4);
    world.lab.relay.ip(&narrow).unwrap();
    world.lab.router.ip("link set ir1 mtu 1280\n").unwrap();
    let options = "--datapath xdp-native --interface r0 --interface r1";
    let _relay = world.deployment.start_relay(Some(0), options).unwrap();

    // The agents' QUIC finds a size that fits.
    let copied = world.copy_a_file();

    copied.assert_by_kernel();
    with_hand_session(&world, |near, far| {
        let before = world.status();
        assert!(carries_bytes(near, far, 1252), "fits exactly");
        assert!(!carries_bytes(near, far, 1253), "is too large by one byte");
        assert!(carries_bytes(far, near, 1252), "fits the other way");
        let after = world.status();
        let more = |reason: &str, counters: fn(&Status) -> &BTreeMap<String, u64>| {
            counters(&after)[reason] - counters(&before)[reason]
        };
        assert_eq!(more("forwarded", |status| &status.kernel), 2);
        assert_eq!(more("too_big", |status| &status.kernel), 1);
        assert_eq!(more("send_too_big", |status| &status.userspace), 1);
    });
    assert_told(&world, 1252);
    assert_eq!(world.lab.invalid_packets_at_nats().unwrap(), 0, "packets with wrong checksums");
}

#[test]
fn a_narrow_link_before_the_relay_alone_carries_a_file_both_ways() {
    const NAME: &str = "a_narrow_link_before_the_relay_alone_carries_a_file_both_ways";
    let plan = LabPlan { relay_mtu: 1280, ..LabPlan::default() };
    let reached = Reached::by(MIXED, RELAY_ADDRESSES, RELAY.port());
    let Some(world) = World::planned(NAME, &plan, reached) else { return };
    let _relay = world.deployment.start_relay(Some(0), NATIVE).unwrap();

    world.copy_a_file().assert_by_kernel();

    assert_told(&world, 1232); // 1280 - 40 - 8: translation to IPv6 adds 20
    assert_eq!(world.lab.invalid_packets_at_nats().unwrap(), 0, "packets with wrong checksums");
}

/// Agents of a session are told that datagrams of `largest` bytes fit.
fn assert_told(world: &World, largest: u64) {
    with_stream(world, |stream| {
        wait_for(&format!("a largest datagram of {largest} bytes"), Duration::from_secs(10), || {
            (stream.largest() == [largest; 2]).then_some(())
        });
    });
}

/// Calls `test` with a session between two agents by hand, each behind its NAT.
fn with_hand_session(world: &World, test: impl FnOnce(&HandBind, &HandBind) + Send) {
    run_inside(&world.lab.agents[0], async || {
        let mut target = HandAgent::verified(NodeKey::generate().unwrap()).await;
        target.announce().await;
        let mut connector = HandAgent::verified(NodeKey::generate().unwrap()).await;
        connector.connect(target.key.node_id()).await;
        let terms = connector.terms().await;
        let mut near = HandBind::new(terms);
        let terms = target.terms().await;
        let mut far = world.lab.agents[1].inside(|| HandBind::new(terms)).unwrap();
        near.prove();
        far.prove();
        test(&near, &far);
    });
}

fn world(name: &str, plan: &LabPlan) -> Option<World> {
    World::planned(name, plan, RELAY)
}
