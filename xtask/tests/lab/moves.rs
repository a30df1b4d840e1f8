//! Sessions go on while the networks under them change: NATs forget, gateways and routes move, interfaces come and go.

use std::net::SocketAddr;
use std::time::Duration;

use xtask::answers::RelaySession;
use xtask::deployment::Reached;
use xtask::lab::{
    AGENT_INTERFACE, Family, LabPlan, MappedPorts, NatPlan, Process, RELAY_ADDRESSES, RELAY_GATEWAY_DEVICE,
    RELAY_GATEWAYS, RELAY_SECOND_ADDRESSES, RELAY_SECOND_GATEWAY_DEVICE, RelayPlan,
};
use xtask::tcp_copy;
use xtask::tool::Tool;

use super::stream::{Stream, only_session, wait_for_kernel, with_stream};
use super::world::{FORWARDED, NATIVE, RELAY, SERVED, World, wait_for};

const NATIVE_TWICE: &str = "--datapath xdp-native --interface r0 --interface r1";
const GENERIC_TWICE: &str = "--datapath xdp-generic --interface r0 --interface r1";

/// The connector by IPv4 and the target by IPv6: what holds here holds for both.
const MIXED: [Family; 2] = [Family::V4, Family::V6];

/// An agent notices a lost mapping after a second of sending without hearing, proves its new tuple in two round trips,
/// and may have to repeat that: at 100 datagrams a second it may take two and a half times that second, no more.
const MOST_LOST: u64 = 250;

#[test]
fn a_nat_that_moves_its_mappings_in_the_middle_of_a_transfer_costs_a_moment() {
    const NAME: &str = "a_nat_that_moves_its_mappings_in_the_middle_of_a_transfer_costs_a_moment";
    let Some(world) = mixed(NAME, RelayPlan::Public) else { return };
    let deployment = &world.deployment;
    let _relay = deployment.start_relay(Some(2 << 20), NATIVE).unwrap();
    let _target = deployment.start_target().unwrap();
    let _forward = deployment.start_forward(FORWARDED, SERVED).unwrap();
    let file = world.random_file(16);
    let received = world.lab.directory().join("received");
    let mut receiver = tcp_copy::receive(deployment.target.host(), SERVED, &received).unwrap();
    let arrived = || std::fs::metadata(&received).map_or(0, |metadata| metadata.len());
    with_stream(&world, |stream| {
        let mut sender =
            tcp_copy::send(deployment.connector.host(), FORWARDED, &file, world.lab.directory()).unwrap();
        let Reached { connector, target } = deployment.reached();
        for (nat, relay) in [connector, target].into_iter().enumerate() {
            let before = arrived();
            wait_for("a MiB of the file", Duration::from_secs(20), || {
                (arrived() > before + (1 << 20)).then_some(())
            });
            let (sessions, tuples) = sessions_and_tuples(&world, nat);
            stream.gaps();

            world.lab.move_mappings(nat, 20_000, relay).unwrap();

            wait_for("both sessions' new tuples", Duration::from_secs(20), || {
                let (now, tuples_now) = sessions_and_tuples(&world, nat);
                assert_eq!(now, sessions, "no new pairing");
                let moved = tuples_now.iter().all(|tuple| (20_000..21_000).contains(&tuple.port()));
                moved.then_some(())
            });
            stream.wait_for_more(50, Duration::from_secs(20));
            println!("NAT {nat} moved {tuples:?}; at connector and target: {:?}", print_gaps(stream));
        }
        receiver.wait_success(Duration::from_secs(60)).unwrap();
        sender.wait_success(Duration::from_secs(5)).unwrap();
    });
    assert!(std::fs::read(&file).unwrap() == std::fs::read(&received).unwrap(), "the file differs");
    assert_eq!(world.lab.invalid_packets_at_nats().unwrap(), 0, "packets with wrong checksums");
}

#[test]
fn an_idle_session_outlives_what_nats_remember() {
    const NAME: &str = "an_idle_session_outlives_what_nats_remember";
    // An agent lets 15 s pass in silence: one NAT remembers longer, the other does not.
    let [remembers, forgets] = [20, 8].map(|seconds| NatPlan {
        udp_timeout: Some(Duration::from_secs(seconds)),
        ..NatPlan::on_internet(MappedPorts::Random)
    });
    let plan = LabPlan { nats: vec![remembers, forgets], ..LabPlan::default() };
    let Some(world) = World::planned(NAME, &plan, RELAY) else { return };
    let _relay = world.deployment.start_relay(None, NATIVE).unwrap();

    with_stream(&world, |stream| {
        let before = only_session(&world);
        stream.pause(true);
        wait_for("a new tuple of the side whose NAT forgets", Duration::from_secs(40), || {
            (only_session(&world).sides[1].agent != before.sides[1].agent).then_some(())
        });
        // The NAT has forgotten it once more when this is over, and the other would have without keepalives.
        xtask::interrupt::sleep(Duration::from_secs(10)).unwrap();
        let idle = only_session(&world);
        assert_eq!(idle.session, before.session, "no new pairing");
        assert_eq!(idle.sides[0].agent, before.sides[0].agent, "a mapping that was kept alive");

        stream.pause(false);

        stream.wait_for_more(50, Duration::from_secs(20));
        println!("after idling, at connector and target: {:?}", print_gaps(stream));
        wait_for_kernel(&world, &before.session, 50);
        assert_ne!(only_session(&world).sides[1].agent, before.sides[1].agent);
    });
}

#[test]
fn a_gateway_that_changes_its_mac_address_is_followed() {
    const NAME: &str = "a_gateway_that_changes_its_mac_address_is_followed";
    let Some(world) = mixed(NAME, RelayPlan::Public) else { return };
    let _relay = world.deployment.start_relay(None, NATIVE).unwrap();
    with_stream(&world, |stream| {
        let session = only_session(&world).session;
        // As routers do that take another's place: it tells its neighbours, in both families.
        let router = &world.lab.router;
        let announce = ["ipv4", "ipv6"].map(|family| {
            let what = if family == "ipv4" { "arp_notify" } else { "ndisc_notify" };
            format!("net/{family}/conf/{RELAY_GATEWAY_DEVICE}/{what}")
        });
        router.set(&announce.each_ref().map(String::as_str), "1").unwrap();
        stream.gaps();

        router.ip(&format!("link set {RELAY_GATEWAY_DEVICE} address 02:00:00:00:00:99\n")).unwrap();

        stream.wait_for_more(50, Duration::from_secs(20));
        wait_for_kernel(&world, &session, 50);
        println!("the gateway changed its MAC address; at connector and target: {:?}", print_gaps(stream));
    });
    assert_eq!(world.lab.invalid_packets_at_nats().unwrap(), 0, "packets with wrong checksums");
}

#[test]
fn a_gateway_whose_neighbour_entry_ages_is_asked_after_while_the_kernel_forwards() {
    const NAME: &str = "a_gateway_whose_neighbour_entry_ages_is_asked_after_while_the_kernel_forwards";
    let Some(world) = mixed(NAME, RelayPlan::Public) else { return };
    // Entries age in a second or two instead of half a minute.
    for (setting, time) in [("base_reachable_time_ms", "1000"), ("delay_first_probe_time", "1")] {
        let names = ["ipv4", "ipv6"].map(|family| format!("net/{family}/neigh/r0/{setting}"));
        world.lab.relay.set(&names.each_ref().map(String::as_str), time).unwrap();
    }
    let _relay = world.deployment.start_relay(None, NATIVE).unwrap();
    with_stream(&world, |stream| {
        let daemon = |session: &RelaySession| session.sides.each_ref().map(|side| side.packets_userspace);
        // The first datagrams go up while the gateway is looked for, and a daemon that waits for a CPU counts them later.
        let before = wait_for("the daemon to be done with the beginning", Duration::from_secs(20), || {
            let before = only_session(&world);
            wait_for_kernel(&world, &before.session, 50);
            (daemon(&only_session(&world)) == daemon(&before)).then_some(before)
        });
        stream.gaps();

        for gateway in [RELAY_GATEWAYS[0].of(Family::V4), RELAY_GATEWAYS[0].of(Family::V6)] {
            let states = |words: &'static str| {
                wait_for(&format!("{gateway} in one of the states {words}"), Duration::from_secs(20), || {
                    let show = Tool::new("ip").words("neighbour show").arg(gateway.to_string());
                    let entry = world.lab.relay.run(&show).unwrap();
                    words.split(' ').any(|state| entry.contains(state)).then_some(())
                });
            };
            states("STALE DELAY PROBE");
            states("REACHABLE");
            states("STALE DELAY PROBE");
        }

        wait_for_kernel(&world, &before.session, 100);
        let reasons = world.status().kernel;
        assert_eq!(daemon(&only_session(&world)), daemon(&before), "packets that went up: {reasons:?}");
        println!("neighbour entries aged; at connector and target: {:?}", print_gaps(stream));
    });
}

#[test]
fn a_route_that_moves_to_another_interface_is_followed() {
    const NAME: &str = "a_route_that_moves_to_another_interface_is_followed";
    let Some(world) = mixed(NAME, RelayPlan::TwoUplinks) else { return };
    let _relay = world.deployment.start_relay(None, NATIVE_TWICE).unwrap();
    with_stream(&world, |stream| {
        let session = only_session(&world).session;
        let second = RELAY_GATEWAYS[1];
        let before = packets_received(&world, RELAY_SECOND_GATEWAY_DEVICE);
        stream.gaps();

        world
            .lab
            .relay
            .ip(&format!(
                "route replace 0.0.0.0/0 via {} dev r1\nroute replace ::/0 via {} dev r1\n",
                second.v4, second.v6
            ))
            .unwrap();

        // What comes by the first leaves by the second.
        wait_for("the relay's packets on the second uplink", Duration::from_secs(20), || {
            (packets_received(&world, RELAY_SECOND_GATEWAY_DEVICE) > before + 100).then_some(())
        });
        wait_for_kernel(&world, &session, 50);
        stream.wait_for_more(50, Duration::from_secs(20));
        println!("the route moved; at connector and target: {:?}", print_gaps(stream));
    });
    assert_eq!(world.lab.invalid_packets_at_nats().unwrap(), 0, "packets with wrong checksums");
}

#[test]
fn an_interface_that_goes_down_and_comes_up_forwards_again() {
    const NAME: &str = "an_interface_that_goes_down_and_comes_up_forwards_again";
    let Some(world) = mixed(NAME, RelayPlan::Public) else { return };
    let _relay = world.deployment.start_relay(None, NATIVE).unwrap();
    with_stream(&world, |stream| {
        let session = only_session(&world).session;
        let relay = &world.lab.relay;

        relay.ip("link set r0 down\n").unwrap();
        xtask::interrupt::sleep(Duration::from_millis(500)).unwrap();
        // The kernel has removed the routes, and the addresses of IPv6.
        let (gateway, own) = (RELAY_GATEWAYS[0], RELAY_ADDRESSES);
        relay
            .ip(&format!(
                "link set r0 up\naddr replace {}/64 dev r0\nroute replace 0.0.0.0/0 via {}\nroute replace ::/0 via {}\n",
                own.v6, gateway.v4, gateway.v6
            ))
            .unwrap();

        stream.wait_for_more(50, Duration::from_secs(30));
        wait_for_kernel(&world, &session, 50);
        println!("the interface was down; at connector and target: {:?}", print_gaps(stream));

        // The cable alone: routes and addresses stay.
        let router = &world.lab.router;
        router.ip(&format!("link set {RELAY_GATEWAY_DEVICE} down\n")).unwrap();
        xtask::interrupt::sleep(Duration::from_millis(500)).unwrap();
        router
            .ip(&format!(
                "link set {RELAY_GATEWAY_DEVICE} up\naddr replace {}/64 dev {RELAY_GATEWAY_DEVICE}\n",
                gateway.v6
            ))
            .unwrap();

        stream.wait_for_more(50, Duration::from_secs(30));
        wait_for_kernel(&world, &session, 50);
        println!("the cable was out; at connector and target: {:?}", print_gaps(stream));
    });
}

#[test]
fn an_agent_whose_address_changes_keeps_its_control_connection_and_its_sessions() {
    const NAME: &str = "an_agent_whose_address_changes_keeps_its_control_connection_and_its_sessions";
    let Some(world) = World::new(NAME) else { return };
    let mut relay = world.deployment.start_relay(None, NATIVE).unwrap();
    let target = world.deployment.start_target().unwrap();
    with_stream(&world, |stream| {
        let session = only_session(&world).session;
        stream.gaps();

        let agent = &world.lab.agents[1];
        let readdressed = format!(
            "addr del 192.168.2.2/24 dev {AGENT_INTERFACE}\naddr add 192.168.2.3/24 dev {AGENT_INTERFACE}\n\
             route replace 0.0.0.0/0 via 192.168.2.1\n"
        );
        agent.ip(&readdressed).unwrap();

        let migrated = |line: &str| {
            line.contains("control connection migrated") && line.contains(world.deployment.target.id())
        };
        let says_so = |relay: &Process| relay.log().lines().any(migrated).then_some(());
        relay.wait_until("the daemon's migrated connection", Duration::from_secs(20), says_so).unwrap();
        stream.wait_for_more(50, Duration::from_secs(20));
        wait_for_kernel(&world, &session, 50);
        println!("an agent's address changed; at connector and target: {:?}", print_gaps(stream));
    });
    assert!(!target.said().contains("not connected to the relay"), "{}", target.said());
    assert!(world.deployment.is_announced(world.deployment.target.id()));
    target.stop().unwrap();
}

#[test]
fn agents_that_come_by_different_interfaces_are_joined_by_the_kernel() {
    joined_across_interfaces(
        "agents_that_come_by_different_interfaces_are_joined_by_the_kernel",
        NATIVE_TWICE,
    );
}

#[test]
fn agents_that_come_by_different_interfaces_are_joined_in_generic_mode() {
    joined_across_interfaces(
        "agents_that_come_by_different_interfaces_are_joined_in_generic_mode",
        GENERIC_TWICE,
    );
}

fn joined_across_interfaces(name: &str, relay_options: &str) {
    let plan = LabPlan { relay: RelayPlan::TwoUplinks, ..LabPlan::default() };
    let reached = Reached {
        connector: RELAY,
        target: SocketAddr::new(RELAY_SECOND_ADDRESSES.of(Family::V4), RELAY.port()),
    };
    let Some(world) = World::planned(name, &plan, reached) else { return };
    // The second agent's NAT is reached by the second interface.
    world.lab.relay.ip(&format!("route add 10.9.2.0/24 via {} dev r1\n", RELAY_GATEWAYS[1].v4)).unwrap();
    let _relay = world.deployment.start_relay(Some(0), relay_options).unwrap();
    let received = [RELAY_GATEWAY_DEVICE, RELAY_SECOND_GATEWAY_DEVICE];
    let before = received.map(|device| packets_received(&world, device));

    let copied = world.copy_a_file();

    copied.assert_by_kernel();
    // What the target sends leaves by the first, what the connector sends by the second.
    let [connector, target] = copied.session.sides.each_ref().map(|side| side.packets_kernel);
    for ((device, before), sent) in received.into_iter().zip(before).zip([target, connector]) {
        let packets = packets_received(&world, device) - before;
        assert!(packets >= sent, "{packets} packets of the relay came to {device}, {sent} were forwarded");
    }
    assert_eq!(world.lab.invalid_packets_at_nats().unwrap(), 0, "packets with wrong checksums");
}

fn mixed(name: &str, relay: RelayPlan) -> Option<World> {
    let plan = LabPlan { relay, ..LabPlan::default() };
    World::planned(name, &plan, Reached::by(MIXED, RELAY_ADDRESSES, RELAY.port()))
}

/// The ids of all sessions, and the tuples of the agents behind NAT `nat`.
fn sessions_and_tuples(world: &World, nat: usize) -> (Vec<String>, Vec<SocketAddr>) {
    let mut sessions = world.sessions();
    sessions.sort_by(|a, b| a.session.cmp(&b.session));
    sessions.into_iter().map(|session| (session.session, session.sides[nat].agent.unwrap())).unzip()
}

/// Packets that the router has received by `device`.
fn packets_received(world: &World, device: &str) -> u64 {
    let table = world.lab.router.run(&Tool::new("cat").arg("/proc/net/dev")).unwrap();
    let line = table.lines().find_map(|line| line.trim().strip_prefix(&format!("{device}:"))).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The gaps since the last look, of which none is longer than a lost mapping takes.
fn print_gaps(stream: &Stream) -> [String; 2] {
    stream.gaps().map(|gap| {
        assert!(gap.datagrams <= MOST_LOST, "{} datagrams were lost in a row", gap.datagrams);
        format!("{:.2} s, {} datagrams", gap.time.as_secs_f64(), gap.datagrams)
    })
}
