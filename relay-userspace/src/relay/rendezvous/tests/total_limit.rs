//! `quotas.relay_total_limit`: what all sessions carry together, and what follows.

use super::super::*;
use super::*;

const MB: u64 = 1_000_000;

/// The one paired session carries so much in each of so many seconds.
fn carry(world: &mut World, bytes_per_s: u64, count: u64) {
    let slot = world.slot();
    for _ in 0..count {
        let traffic = &mut world.flows.slots.get_mut(&slot).unwrap().traffic;
        let [connector, target] = &mut traffic.sides;
        connector.packets_kernel += 1;
        connector.bytes += bytes_per_s / 4;
        target.bytes += bytes_per_s - bytes_per_s / 4;
        world.pass(seconds(1));
    }
}

fn measured(world: &mut World) -> u64 {
    world.rendezvous.relayed_bytes_per_s(world.now)
}

#[test]
fn above_the_limit_new_sessions_are_refused_and_those_there_are_go_on() {
    let mut world = World::new();
    let (source, _, terms) = world.paired();
    world.policy(|policy| policy.relay_total_limit = 2 * MB);
    carry(&mut world, 2 * MB, 10);
    assert_eq!(measured(&mut world), 2 * MB);
    let other = world.connect(3);
    world.offer(other, 3, 2);
    carry(&mut world, 2 * MB + 5, 6);
    world.clear();
    for (conn, seed) in [(source, 1), (other, 3)] {
        world.message(conn, connect(seed, 2));
        assert_eq!(world.relay_error_codes(conn), [ErrorCode::Limited.number()]);
    }
    assert_eq!(world.refusals(Refusal::TotalLimit), 2);
    assert_eq!(world.state(&terms), Some(SessionState::Paired));
    world.policy(|policy| policy.relay_total_limit = 0);
    world.offer(other, 3, 2);
}

#[test]
fn new_sessions_begin_again_once_less_is_carried() {
    let mut world = World::new();
    world.paired();
    world.policy(|policy| policy.relay_total_limit = MB);
    carry(&mut world, 10 * MB, 5);
    let other = world.connect(3);
    world.message(other, connect(3, 2));
    assert_eq!(world.refusals(Refusal::TotalLimit), 1);
    carry(&mut world, MB / 2, 6);
    assert_eq!(measured(&mut world), MB / 2);
    world.offer(other, 3, 2);
}

#[test]
fn what_a_session_carried_after_the_last_look_counts_when_it_ends() {
    let mut world = World::new();
    let (source, _, terms) = world.paired();
    let slot = world.slot();
    world.flows.slots.get_mut(&slot).unwrap().traffic.sides[1].bytes = 5 * MB;
    world.message(source, disconnect(Some(terms[0].session)));
    world.pass(seconds(1));
    assert_eq!(measured(&mut world), MB);
}

#[test]
fn a_session_that_loses_its_tuple_counts_no_byte_twice() {
    let mut world = World::new();
    world.paired();
    carry(&mut world, 5 * MB, 1);
    let second = world.second_offer();
    world.bind(&second[0], A, 1);
    assert!(world.flows.slots.is_empty(), "the first has lost its flows");
    world.pass(seconds(3));
    assert_eq!(measured(&mut world), MB);
}
