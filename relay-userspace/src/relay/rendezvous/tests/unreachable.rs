//! What a source sees of an agent that it may not reach: the same in all cases, so that it cannot tell who is here.

use super::super::*;
use super::*;

/// All that is sent, to whomever and in which order.
type Sent = Vec<(ConnId, Vec<u8>)>;

/// What is sent when node 1 asks for node 2 after `before`.
fn seen(before: impl FnOnce(&mut World)) -> Sent {
    seen_when(before, |world, source| world.message(source, connect(1, 2)))
}

fn seen_when(before: impl FnOnce(&mut World), ask: impl FnOnce(&mut World, ConnId)) -> Sent {
    let mut world = World::new();
    let source = world.connect(1);
    before(&mut world);
    world.clear();
    ask(&mut world, source);
    assert!(world.closed.is_empty() && world.pings.is_empty() && world.binds.is_empty());
    assert_eq!(world.rendezvous.sessions.total(), 0, "nor is anything kept");
    world.messages.iter().map(|(conn, message)| (*conn, message.encode().unwrap())).collect()
}

/// Node 1 asks for node 2, which is banned.
fn ask_for_banned(world: &mut World, source: ConnId) {
    let World { rendezvous, flows, randomness, now, .. } = world;
    let end = StreamEnd { conn: source, stream: StreamNumber::FIRST };
    rendezvous.asked_for_banned(end, &connect(1, 2), flows, randomness, *now);
    world.drain();
    assert_eq!(world.refusals(Refusal::TargetAbsent) + world.refusals(Refusal::TargetDenies), 0);
    assert_eq!(world.refusals(Refusal::TargetBanned), 1);
}

fn announced_to(world: &mut World, allow: Option<Vec<String>>, flow: Option<u32>) -> ConnId {
    let target = world.connect(2);
    world.message(target, RelayAnnounce { allow, flow, ..announce(2) });
    target
}

fn everyone() -> Option<Vec<String>> {
    None
}

fn others() -> Option<Vec<String>> {
    Some(vec![node(3).to_string()])
}

#[test]
fn an_agent_that_is_absent_banned_or_does_not_accept_the_source_looks_the_same_to_the_byte() {
    let absent = seen(|_| {});
    let [(to, bytes)] = &absent[..] else { panic!("one answer: {absent:?}") };
    let Message::RelayError(error) = Message::decode_frame(bytes).unwrap() else { panic!("a RelayError") };
    assert_eq!((*to, error.code, error.session), (ConnId(1), ErrorCode::TargetUnknown.number(), None));

    let cases: [(&str, Sent); 8] = [
        (
            "connected only",
            seen(|world| {
                world.connect(2);
            }),
        ),
        (
            "accepts others",
            seen(|world| {
                announced_to(world, others(), Some(FLOW));
            }),
        ),
        (
            "accepts nobody",
            seen(|world| {
                announced_to(world, Some(Vec::new()), Some(FLOW));
            }),
        ),
        (
            "accepts others and knows only documented messages",
            seen(|world| {
                announced_to(world, others(), None);
            }),
        ),
        (
            "gone",
            seen(|world| {
                let target = announced_to(world, everyone(), Some(FLOW));
                world.lose(target);
            }),
        ),
        (
            "banned",
            seen_when(
                |world| {
                    announced_to(world, everyone(), Some(FLOW));
                },
                ask_for_banned,
            ),
        ),
        (
            "denied by the operator",
            seen(|world| {
                announced_to(world, everyone(), Some(FLOW));
                world.policy(|policy| {
                    policy.access.deny.insert(node(2));
                });
            }),
        ),
        (
            "accepts others, and the relay carries too much",
            seen(|world| {
                announced_to(world, others(), Some(FLOW));
                world.policy(|policy| policy.relay_total_limit = 1);
                world.rendezvous.throughput.add(1_000_000, world.now);
                world.pass(seconds(1));
            }),
        ),
    ];
    for (case, seen) in cases {
        assert_eq!(seen, absent, "{case}");
    }
}

#[test]
fn a_ban_ends_no_connection_and_no_session_and_begins_none() {
    let mut world = World::new();
    let (source, _, terms) = world.paired();
    ask_for_banned(&mut world, source);
    assert_eq!(world.relay_error_codes(source), [ErrorCode::TargetUnknown.number()]);
    assert_eq!(world.state(&terms), Some(SessionState::Paired));
    assert!(world.closed.is_empty());
    world.offer(source, 1, 2);
}
