//! What runs above the agents notices nothing of a restart.

use std::time::Duration;

use xtask::answers::{AgentSession, AgentSessions};
use xtask::tcp_copy;

use super::kept_relay::KeptRelay;
use super::world::{FORWARDED, NATIVE, SERVED, World, wait_for};

/// Enough for two events in the middle.
const MIB: u64 = 24;

#[test]
fn a_tcp_connection_through_two_agents_carries_a_file_whole_across_a_restart_and_a_kill() {
    const NAME: &str = "a_tcp_connection_through_two_agents_carries_a_file_whole_across_a_restart_and_a_kill";
    let Some(world) = World::new(NAME) else { return };
    let deployment = &world.deployment;
    let mut relay = KeptRelay::supervised_at(&world, NATIVE, 2 << 20);
    let _target = deployment.start_target().unwrap();
    let mut forward = deployment.start_forward(FORWARDED, SERVED).unwrap();
    let file = world.random_file(MIB);
    let received = world.lab.directory().join("received");
    let mut receiver = tcp_copy::receive(deployment.target.host(), SERVED, &received).unwrap();
    let mut sender =
        tcp_copy::send(deployment.connector.host(), FORWARDED, &file, world.lab.directory()).unwrap();
    let more = |mib: u64| {
        let arrived = || std::fs::metadata(&received).map_or(0, |metadata| metadata.len());
        let before = arrived();
        wait_for(&format!("{mib} MiB more"), Duration::from_secs(30), || {
            (arrived() >= before + (mib << 20)).then_some(())
        });
        assert!(arrived() < MIB << 20, "the file goes on");
    };
    more(2);
    let session = session_of_target(&world);

    relay.restart();

    more(4);
    relay.kill();
    more(2);
    relay.start();

    more(2);
    receiver.wait_success(Duration::from_secs(60)).unwrap();
    sender.wait_success(Duration::from_secs(5)).unwrap();
    assert!(std::fs::read(&file).unwrap() == std::fs::read(&received).unwrap(), "the file differs");
    let now = session_of_target(&world);
    assert_eq!((now.session, now.moves), (session.session, 0), "it is the session that it was");
    assert!(!forward.said().contains("\"lost\""), "{}", forward.said());
    assert!(forward.ended().unwrap().is_none(), "{}", forward.said());
}

fn session_of_target(world: &World) -> AgentSession {
    let sessions: AgentSessions = world.deployment.target.json("net sessions --json").unwrap();
    let [session] = sessions.sessions.try_into().unwrap();
    session
}
