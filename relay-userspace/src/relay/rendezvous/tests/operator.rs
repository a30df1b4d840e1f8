//! What the operator does to sessions and nodes.

use super::super::*;
use super::*;

#[test]
fn the_operator_ends_one_session_and_both_sides_are_told() {
    let mut world = World::new();
    let (source, target, terms) = world.paired();
    let session = terms[0].session;
    assert!(world.rendezvous.end_by_operator(session, &mut world.flows, world.now));
    world.drain();
    for conn in [source, target] {
        assert_eq!(world.disconnects(conn), [("DISCONNECT_OPERATOR", Some(session))]);
    }
    assert_eq!(world.ended(), [EndReason::Operator]);
    assert!(world.flows.slots.is_empty() && world.closed.is_empty(), "the connections stay");
    assert!(!world.rendezvous.end_by_operator(session, &mut world.flows, world.now), "it is no more");
    world.drain();
    assert_eq!(world.ended().len(), 1);
}

#[test]
fn the_operator_ends_all_sessions_of_a_node_on_whichever_side_and_nobody_elses() {
    let mut world = World::new();
    let (_, target, as_target) = world.paired();
    world.reachable(3);
    let as_connector = world.offer(target, 2, 3);
    let others = world.second_offer();
    assert_eq!(world.rendezvous.end_all_by_operator(&node(2), &mut world.flows, world.now), 2);
    world.drain();
    assert_eq!(
        [&as_target, &as_connector, &others].map(|terms| world.state(terms).is_some()),
        [false, false, true]
    );
    assert_eq!(world.rendezvous.end_all_by_operator(&node(2), &mut world.flows, world.now), 0);
    assert_eq!(
        world.rendezvous.end_all_by_operator(&node(99), &mut world.flows, world.now),
        0,
        "nor is it here"
    );
}

#[test]
fn a_relay_that_drains_takes_no_new_session_and_keeps_those_it_has() {
    let mut world = World::new();
    let (source, _, paired) = world.paired();
    let offered = world.offer(source, 1, 2);
    world.rendezvous.drain(Drain::default(), world.now);
    world.clear();
    world.message(source, connect(1, 2));
    world.message(source, connect(1, 77));
    assert_eq!(world.relay_error_codes(source), [ErrorCode::Draining.number(); 2], "whoever is asked for");
    assert_eq!(world.refusals(Refusal::Draining), 2);
    world.bind(&offered[0], "203.0.113.1:2001", 1);
    world.bind(&offered[1], "203.0.113.2:2001", 1);
    assert_eq!([&paired, &offered].map(|terms| world.state(terms)), [Some(SessionState::Paired); 2]);
}

#[test]
fn a_node_that_is_denied_goes_with_its_sessions_and_nobody_else() {
    let mut world = World::new();
    let (source, target, terms) = world.paired();
    let session = Some(terms[0].session);
    world.policy(|policy| {
        policy.access.deny.insert(node(2));
    });
    assert_eq!(world.disconnects(target), [("DISCONNECT_OPERATOR", session), ("DISCONNECT_OPERATOR", None)]);
    assert_eq!(world.disconnects(source), [("DISCONNECT_OPERATOR", session)]);
    assert_eq!(world.closed, [(target, 0)]);
    assert_eq!(world.ended(), [EndReason::AccessDenied]);
    assert!(world.flows.slots.is_empty());
    world.clear();
    let again = world.connect(2);
    assert_eq!(world.disconnects(again), [("DISCONNECT_OPERATOR", None)]);
    assert_eq!((&world.closed[..], world.refusals(Refusal::AccessDenied)), (&[(again, 0)][..], 1));
    world.message(again, announce(2));
    assert_eq!(world.rendezvous.peers(world.now).len(), 1, "what a denied node still says is not heard");
    world.policy(|policy| policy.access.deny.clear());
    world.reachable(2);
    world.offer(source, 1, 2);
}

#[test]
fn a_node_without_connection_that_is_denied_loses_its_sessions_too() {
    let mut world = World::new();
    let (_, target, terms) = world.paired();
    world.lose(target);
    world.policy(|policy| {
        policy.access.deny.insert(node(2));
    });
    assert_eq!(world.state(&terms), None);
    assert_eq!(world.rendezvous.nodes.iter().count(), 1);
}

#[test]
fn with_an_allow_list_only_those_on_it_stay_and_a_denied_one_is_not_among_them() {
    let mut world = World::new();
    let conns = [1, 2, 3].map(|seed| world.connect(seed));
    world.policy(|policy| {
        policy.access.allow = [node(1), node(2)].into();
        policy.access.deny = [node(2)].into();
    });
    assert_eq!(world.closed.iter().map(|(conn, _)| *conn).collect::<Vec<_>>(), conns[1..]);
    world.policy(|policy| policy.sessions_per_node = 3);
    assert_eq!(world.closed.len(), 2, "another policy with the same lists turns nobody out");
}

#[test]
fn a_target_that_ends_an_offer_has_refused_it() {
    let mut world = World::new();
    let source = world.connect(1);
    let target = world.reachable(2);
    let terms = world.offer(source, 1, 2);
    world.bind(&terms[0], A, 1);
    world.clear();
    world.message(target, disconnect(Some(terms[1].session)));
    let [error] = &world.relay_errors(source)[..] else { panic!("{:?}", world.messages) };
    assert_eq!((error.code, error.session), (ErrorCode::Refused.number(), Some(terms[0].session)));
    assert_eq!(error.target_id, Some(node(2).to_string()));
    assert_eq!(world.messages.len(), 1, "whoever has refused knows");
    assert_eq!(world.ended(), [EndReason::Refused]);
}
