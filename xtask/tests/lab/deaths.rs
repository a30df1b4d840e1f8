//! Killing one agent, the other, or the relay in the middle of a transfer: what is left notices, says why, and cleans up.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use xtask::answers::{AgentSessions, RelaySide};
use xtask::lab::Process;
use xtask::tcp_copy;
use xtask::tool::Tool;

use super::forwarder::Forwarder;
use super::hand_agent::{carries, paired};
use super::kept_maps::{exists, maps_of};
use super::raw_agents::run_inside;
use super::world::{FORWARDED, NOTICED_WITHIN, RELAY, SERVED, World, wait_for, wait_until_said};

/// How `net forward` says that its peer is gone, and why: a kill leaves nobody to tell it more.
const LOST: &str = "{\"event\":\"lost\",\"why\":\"the peer has not been heard for 30 s";

/// They wait for the same minute: one after the other they would take eight.
#[test]
fn a_death_in_the_middle_of_a_transfer_leaves_nothing_behind() {
    const NAME: &str = "a_death_in_the_middle_of_a_transfer_leaves_nothing_behind";
    let deaths: [fn(World, Forwarder); 4] =
        [the_connector_dies, the_target_dies, the_relay_dies, a_side_falls_silent];
    std::thread::scope(|scope| {
        for forwarder in [Forwarder::Kernel, Forwarder::Daemon] {
            for death in deaths {
                let Some(world) = World::new(NAME) else { return };
                scope.spawn(move || death(world, forwarder));
            }
        }
    });
}

fn the_connector_dies(world: World, forwarder: Forwarder) {
    let mut relay = forwarder.start_relay(&world, None);
    let mut target = world.deployment.start_target().unwrap();
    let Transfer { forward, mut sender, mut receiver } = start_transfer(&world);

    forward.kill();

    let since = Instant::now();
    wait_for_end(&mut sender, Duration::from_secs(5));
    world.wait_for_no_session(NOTICED_WITHIN.saturating_sub(since.elapsed()));
    println!(
        "{forwarder:?}, connector killed: the relay ended the session after {:.1} s",
        since.elapsed().as_secs_f64()
    );
    // The peer notices before consent runs out.
    wait_for_end_because(&mut relay, "target_left");
    wait_for("the end of the target's session", NOTICED_WITHIN, || {
        sessions_of_target(&world).is_empty().then_some(())
    });
    wait_for_end(&mut receiver, NOTICED_WITHIN);
    wait_until_said(&mut target, "the session has ended", Duration::from_secs(1));
    // Nobody else is disturbed: the next transfer works.
    transfer_works(&world);
    target.stop().unwrap();
    relay.stop().unwrap();
}

fn the_target_dies(world: World, forwarder: Forwarder) {
    let mut relay = forwarder.start_relay(&world, None);
    let target = world.deployment.start_target().unwrap();
    let Transfer { mut forward, mut sender, mut receiver } = start_transfer(&world);
    let [session] = world.sessions().try_into().unwrap();
    let tuple = session.sides[1].agent.unwrap();

    target.kill();

    let since = Instant::now();
    // The second NAT keeps ports, so whoever takes the dead process's port has its tuple.
    let thief = world.lab.agents[1].inside(|| UdpSocket::bind(("0.0.0.0", tuple.port())).unwrap()).unwrap();
    let forwarded_from_target =
        || world.sessions().first().map(|session| forwarded_from(forwarder, &session.sides[1]));
    let before = forwarded_from_target().unwrap();
    thief.send_to(b"from the old tuple", RELAY).unwrap();
    wait_for("a datagram from the tuple while consent is fresh", Duration::from_secs(2), || {
        (forwarded_from_target() > Some(before)).then_some(())
    });

    world.wait_for_no_session(NOTICED_WITHIN.saturating_sub(since.elapsed()));
    let closed_after = since.elapsed();
    println!(
        "{forwarder:?}, target killed: the relay ended the session after {:.1} s",
        closed_after.as_secs_f64()
    );
    assert!(closed_after <= NOTICED_WITHIN, "closed after {closed_after:?}");
    let forwarded = || forwarder.counted(&world, "forwarded");
    let no_flow = || forwarder.counted(&world, "no_flow");
    let (forwarded_before, no_flow_before) = (forwarded(), no_flow());
    for _ in 0..10 {
        thief.send_to(b"from the old tuple", RELAY).unwrap();
    }
    wait_for("the datagrams to be seen", Duration::from_secs(2), || {
        (no_flow() >= no_flow_before + 10).then_some(())
    });
    assert_eq!(forwarded(), forwarded_before, "a datagram from the old tuple was forwarded");

    wait_for_end_because(&mut relay, "connector_left");
    wait_for_end(&mut sender, NOTICED_WITHIN);
    wait_until_said(&mut forward, LOST, NOTICED_WITHIN);
    let _ = receiver.ended(); // it died with the target's socket or waits for nobody: the lab ends it
    forward.stop().unwrap();
    relay.stop().unwrap();
}

fn the_relay_dies(world: World, forwarder: Forwarder) {
    let relay = forwarder.start_relay(&world, None);
    let mut target = world.deployment.start_target().unwrap();
    let Transfer { mut forward, mut sender, mut receiver } = start_transfer(&world);
    let maps = maps_of(&relay);
    let in_kernel = forwarder == Forwarder::Kernel;
    assert_eq!(!maps.is_empty(), in_kernel, "the relay has maps");
    assert_eq!(has_xdp_program(&world), in_kernel, "the interface has a program");

    relay.kill();

    wait_for("the end of the maps and the program", Duration::from_secs(5), || {
        let gone = maps.iter().all(|map| !exists(*map)) && !has_xdp_program(&world);
        gone.then_some(())
    });
    let since = Instant::now();
    wait_until_said(&mut target, "not connected to the relay", NOTICED_WITHIN);
    wait_until_said(&mut target, "the session has ended", NOTICED_WITHIN);
    wait_until_said(&mut forward, LOST, NOTICED_WITHIN);
    println!(
        "{forwarder:?}, relay killed: the agents ended the session after {:.1} s",
        since.elapsed().as_secs_f64()
    );
    wait_for_end(&mut sender, NOTICED_WITHIN);
    wait_for_end(&mut receiver, NOTICED_WITHIN);
    assert!(sessions_of_target(&world).is_empty());
    forward.stop().unwrap();

    // A relay in its place is found by the agents themselves.
    let relay = forwarder.start_relay(&world, None);
    wait_for("the target's announcement", Duration::from_secs(60), || {
        world.deployment.is_announced(world.deployment.target.id()).then_some(())
    });
    transfer_works(&world);
    target.stop().unwrap();
    relay.stop().unwrap();
}

/// The target's control connection stays, but its data socket proves nothing any more, as behind a NAT that forgot it.
fn a_side_falls_silent(world: World, forwarder: Forwarder) {
    let mut relay = forwarder.start_relay(&world, None);

    let closed_after = run_inside(&world.lab.agents[0], async || {
        let [(_connector, mut near), (_target, far)] = paired().await;
        let silent_since = Instant::now();
        assert!(carries(&far, &near), "a datagram passes while consent is fresh");

        // The connector goes on proving its tuple, and both control connections stay.
        let mut proved = Instant::now();
        while !world.sessions().is_empty() && silent_since.elapsed() < 2 * NOTICED_WITHIN {
            if proved.elapsed() > Duration::from_secs(20) {
                near.prove();
                proved = Instant::now();
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let closed_after = silent_since.elapsed();
        assert!(!carries(&far, &near), "a datagram from the silent side's tuple was forwarded");
        assert!(!carries(&near, &far), "a datagram to the silent side's tuple was forwarded");
        closed_after
    });

    println!(
        "{forwarder:?}, a side fell silent: the relay closed the session after {:.1} s",
        closed_after.as_secs_f64()
    );
    assert!(closed_after <= NOTICED_WITHIN, "closed after {closed_after:?}");
    assert!(closed_after >= NOTICED_WITHIN - Duration::from_secs(15), "closed after {closed_after:?}");
    wait_for_end_because(&mut relay, "target_silent");
    relay.stop().unwrap();
}

/// A transfer that the default limit makes last for a minute.
struct Transfer {
    forward: Process,
    sender: Process,
    receiver: Process,
}

fn start_transfer(world: &World) -> Transfer {
    let deployment = &world.deployment;
    let file = world.random_file(64);
    let received = world.lab.directory().join("received");
    let forward = deployment.start_forward(FORWARDED, SERVED).unwrap();
    let receiver = tcp_copy::receive(deployment.target.host(), SERVED, &received).unwrap();
    let sender =
        tcp_copy::send(deployment.connector.host(), FORWARDED, &file, world.lab.directory()).unwrap();
    wait_for("the transfer's first MiB", Duration::from_secs(10), || {
        std::fs::metadata(&received).is_ok_and(|metadata| metadata.len() > 1 << 20).then_some(())
    });
    Transfer { forward, sender, receiver }
}

/// A small file goes through.
fn transfer_works(world: &World) {
    let deployment = &world.deployment;
    let file = world.lab.directory().join("small");
    std::fs::write(&file, [7; 100_000]).unwrap();
    let received = world.lab.directory().join("received-small");
    let _forward = deployment.start_forward(FORWARDED, SERVED).unwrap();
    let mut receiver = tcp_copy::receive(deployment.target.host(), SERVED, &received).unwrap();
    let _sender =
        tcp_copy::send(deployment.connector.host(), FORWARDED, &file, world.lab.directory()).unwrap();
    receiver.wait_success(Duration::from_secs(10)).unwrap();
    assert_eq!(std::fs::metadata(&received).unwrap().len(), 100_000);
}

/// The packets that `forwarder` has forwarded from a side.
fn forwarded_from(forwarder: Forwarder, side: &RelaySide) -> u64 {
    match forwarder {
        Forwarder::Kernel => side.packets_kernel,
        Forwarder::Daemon => side.packets_userspace,
    }
}

/// Waits until the relay's log has the end of a session for `reason`.
fn wait_for_end_because(relay: &mut Process, reason: &str) {
    let reason = format!(" reason={reason} ");
    let is_end = |line: &str| line.contains("session ended") && line.contains(&reason);
    relay
        .wait_until(&format!("a session's end with {reason}"), Duration::from_secs(1), |relay| {
            relay.log().lines().any(is_end).then_some(())
        })
        .unwrap();
}

fn wait_for_end(process: &mut Process, patience: Duration) {
    wait_for("the end of a process", patience, || process.ended().unwrap());
}

fn sessions_of_target(world: &World) -> Vec<xtask::answers::AgentSession> {
    world.deployment.target.json::<AgentSessions>("net sessions --json").unwrap().sessions
}

fn has_xdp_program(world: &World) -> bool {
    world.lab.relay.run(&Tool::new("ip").words("link show dev r0")).unwrap().contains("prog/xdp")
}
