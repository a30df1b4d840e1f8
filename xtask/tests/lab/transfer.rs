//! A file from agent to agent, with the real daemons: who forwarded it, and what the wire saw.

use std::collections::HashMap;
use std::time::Duration;

use xtask::answers::{AgentSessions, ForwardEvent, RelaySession};
use xtask::lab::Process;
use xtask::tcp_copy;

use super::capture::{Capture, Datagram};
use super::world::{FORWARDED, GENERIC, NATIVE, SERVED, USERSPACE, World};

const SIZE_MIB: u64 = 16;

/// Agents pace to it, so that no queue on the way overflows and every count must be the same.
const UNHURRIED: u64 = 20 << 20;

#[test]
fn the_kernel_forwards_a_file_and_adds_no_byte() {
    let Some(world) = World::new("the_kernel_forwards_a_file_and_adds_no_byte") else { return };

    let copied = copy_a_file(&world, NATIVE);

    let relayed = copied.kernel + copied.userspace;
    assert!(copied.kernel * 100 >= relayed * 99, "the kernel forwarded {} of {relayed}", copied.kernel);
    // Three counts of the same packets: the program's, the agents' own, and the captures'.
    assert_near(relayed, copied.agents_received, "the relay's count and the agents'");
    assert_near(copied.agents_sent, copied.agents_received, "datagrams sent and received");
    let [connector, target] = &copied.captured;
    let there = compare(connector, target);
    let back = compare(target, connector);
    assert_near(there + back, relayed, "the captures' count and the relay's");
    assert_eq!(world.lab.invalid_packets_at_nats().unwrap(), 0, "packets with wrong checksums");
}

#[test]
fn generic_mode_forwards_in_the_kernel_as_well() {
    let Some(world) = World::new("generic_mode_forwards_in_the_kernel_as_well") else { return };

    let copied = copy_a_file(&world, GENERIC);

    let relayed = copied.kernel + copied.userspace;
    assert!(copied.kernel * 100 >= relayed * 99, "the kernel forwarded {} of {relayed}", copied.kernel);
    assert_eq!(world.lab.invalid_packets_at_nats().unwrap(), 0, "packets with wrong checksums");
}

#[test]
fn the_daemon_forwards_a_file_without_xdp_and_adds_no_byte() {
    let Some(world) = World::new("the_daemon_forwards_a_file_without_xdp_and_adds_no_byte") else { return };

    let copied = copy_a_file(&world, USERSPACE);

    assert_eq!(copied.kernel, 0);
    assert_near(copied.userspace, copied.agents_received, "the relay's count and the agents'");
    let [connector, target] = &copied.captured;
    let received = compare(connector, target) + compare(target, connector);
    assert_near(received, copied.userspace, "the captures' count and the relay's");
    assert_eq!(world.lab.invalid_packets_at_nats().unwrap(), 0, "packets with wrong checksums");
}

/// What a transfer left behind.
struct Copied {
    kernel: u64,
    userspace: u64,
    agents_sent: u64,
    agents_received: u64,
    /// At the connector and at the target.
    captured: [Vec<Datagram>; 2],
}

/// Copies a file through the relay and checks that it is the same at both ends.
fn copy_a_file(world: &World, relay_options: &str) -> Copied {
    let deployment = &world.deployment;
    let directory = world.lab.directory();
    let _relay = deployment.start_relay(Some(UNHURRIED), relay_options).unwrap();
    let _target = deployment.start_target().unwrap();
    let captures = [0, 1].map(|agent| Capture::start(&world.lab, agent));
    let forward = deployment.start_forward(FORWARDED, SERVED).unwrap();
    let file = world.random_file(SIZE_MIB);
    let received = directory.join("received");
    let mut receiver = tcp_copy::receive(deployment.target.host(), SERVED, &received).unwrap();
    let mut sender = tcp_copy::send(deployment.connector.host(), FORWARDED, &file, directory).unwrap();
    receiver.wait_success(Duration::from_secs(60)).unwrap();
    sender.wait_success(Duration::from_secs(5)).unwrap();
    assert!(std::fs::read(&file).unwrap() == std::fs::read(&received).unwrap(), "the file differs");

    let [session]: [RelaySession; 1] = world.sessions().try_into().unwrap();
    let at_target: AgentSessions = deployment.target.json("net sessions --json").unwrap();
    let [at_target] = at_target.sessions.try_into().unwrap();
    let (sent, got) = end(forward);
    let [connector, target] = captures;
    Copied {
        kernel: session.sides.iter().map(|side| side.packets_kernel).sum(),
        userspace: session.sides.iter().map(|side| side.packets_userspace).sum(),
        agents_sent: sent + at_target.datagrams_sent,
        agents_received: got + at_target.datagrams_received,
        captured: [connector.finish(&world.lab.agents[0]), target.finish(&world.lab.agents[1])],
    }
}

/// Ends `net forward`, and gives the datagrams that it sent and received.
fn end(mut forward: Process) -> (u64, u64) {
    forward.signal(libc::SIGTERM);
    forward.wait_success(Duration::from_secs(5)).unwrap();
    let ended = forward.events().into_iter().find_map(|event| match event {
        ForwardEvent::Ended { datagrams_sent, datagrams_received } => {
            Some((datagrams_sent, datagrams_received))
        }
        _ => None,
    });
    ended.unwrap()
}

/// How many datagrams of the session went from `near` to `far`. Each that arrived is one that was sent, byte for byte.
fn compare(near: &[Datagram], far: &[Datagram]) -> u64 {
    // The session's sockets are those with the most traffic; the others are control connections.
    let mut arrived = HashMap::<u16, Vec<&[u8]>>::new();
    for datagram in far.iter().filter(|datagram| datagram.to.port() != 4433) {
        arrived.entry(datagram.to.port()).or_default().push(&datagram.payload);
    }
    let arrived = arrived.into_values().max_by_key(Vec::len).unwrap();
    let mut sent = HashMap::<&[u8], u64>::new();
    for datagram in near.iter().filter(|datagram| datagram.to.port() == 4433) {
        *sent.entry(&datagram.payload).or_default() += 1;
    }
    let mut same = 0;
    for payload in arrived {
        match sent.get_mut(payload) {
            Some(left @ 1..) => {
                *left -= 1;
                same += 1;
            }
            // The relay's own datagrams to this socket: all bind datagrams have one length.
            _ => assert_eq!(
                payload.len(),
                relay_common::BIND_LEN,
                "a datagram arrived that was not sent like this"
            ),
        }
    }
    same
}

/// Within one percent: a count is taken while acknowledgements still move.
fn assert_near(a: u64, b: u64, what: &str) {
    assert!(a.abs_diff(b) * 100 <= a.max(b), "{what}: {a} and {b}");
}
