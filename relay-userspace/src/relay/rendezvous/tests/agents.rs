use super::super::*;
use super::*;
use crate::protocol::flow_terms::{ErrorMessage, ReadyStatus};
use crate::protocol::message::{AckStatus, BootstrapDiscoverRequest, MessageAck, Ping};

#[test]
fn an_announcing_agent_is_told_to_wait_and_is_listed() {
    let mut world = World::new();
    let conn = world.connect(1);
    assert!(!world.rendezvous.peers(world.now)[0].announced);
    world.message(conn, announce(1));
    let Message::RelayReady(ready) = &world.messages[0].1 else { panic!("{:?}", world.messages) };
    assert_eq!((ready.status, &ready.peer_id, &ready.session), (ReadyStatus::Waiting, &None, &None));
    world.pass(seconds(7));
    let peer = &world.rendezvous.peers(world.now)[0];
    assert_eq!((peer.node, peer.announced, peer.connected), (node(1), true, seconds(7)));
    assert_eq!(peer.name, "agent-1");
}

#[test]
fn a_node_is_asked_on_the_connection_that_others_reach_it_by_else_on_its_newest() {
    let mut world = World::new();
    let asked_on = |world: &World| world.rendezvous.asked_on(&node(1)).map(|asked| asked.conn);
    assert_eq!(asked_on(&world), None);
    let first = world.connect(1);
    let second = world.connect(1);
    assert_eq!(asked_on(&world), Some(second));
    world.message(first, announce(1));
    assert_eq!(asked_on(&world), Some(first));
    world.lose(first);
    assert_eq!(asked_on(&world), Some(second));
}

#[test]
fn an_agent_that_announces_itself_all_the_time_does_not_fill_the_log() {
    let mut world = World::new();
    let conn = world.connect(1);
    world.events.clear();
    let said = |world: &mut World| std::mem::take(&mut world.events);
    let line = |allowed, times| Event::Announced { node: node(1), flow: true, allowed, times };
    for _ in 0..10_000 {
        world.message(conn, announce(1));
    }
    assert_eq!(said(&mut world), [line(None, 1)]);
    world.pass(seconds(2));
    world.message(conn, announce(1));
    assert_eq!(said(&mut world), [], "nothing has changed");
    let choosy = || RelayAnnounce { allow: Some(vec![node(2).to_string()]), ..announce(1) };
    world.message(conn, choosy());
    assert_eq!(said(&mut world), [line(Some(1), 1)]);
    for _ in 0..5_000 {
        world.message(conn, announce(1));
        world.message(conn, choosy());
    }
    assert_eq!(said(&mut world), [], "each changes something, but they come too fast");
    world.pass(seconds(2));
    world.message(conn, announce(1));
    assert_eq!(said(&mut world), [line(None, 10_001)]);
}

#[test]
fn an_announce_in_another_nodes_name_costs_the_connection() {
    let mut world = World::new();
    let conn = world.connect(1);
    world.message(conn, announce(2));
    assert_eq!(world.error_codes(conn), [1004]);
    assert_eq!(world.closed, [(conn, 1004)]);
    assert_eq!(world.refusals(Refusal::ForeignIdentity), 1);
    assert!(world.rendezvous.peers(world.now).is_empty());
}

#[test]
fn a_malformed_node_id_costs_the_connection() {
    let mut world = World::new();
    let first = world.connect(1);
    world.message(first, RelayAnnounce { node_id: "node_1".to_owned(), ..announce(1) });
    let second = world.connect(2);
    world.message(second, RelayAnnounce { allow: Some(vec!["anyone".to_owned()]), ..announce(2) });
    assert_eq!(world.closed, [(first, 1004), (second, 1004)]);
    assert_eq!(world.refusals(Refusal::MalformedNodeId), 2);
}

#[test]
fn messages_of_a_connection_given_up_are_ignored() {
    let mut world = World::new();
    let conn = world.connect(1);
    world.message(conn, announce(2));
    world.clear();
    world.message(conn, announce(1));
    world.lose(conn);
    assert!(world.messages.is_empty() && world.events.is_empty());
}

#[test]
fn the_newer_connection_of_an_identity_wins_and_the_older_is_told() {
    let mut world = World::new();
    let older = world.reachable(1);
    let newer = world.connect_from(1, addr("203.0.113.1:1001"));
    assert!(world.closed.is_empty(), "connecting alone replaces nobody");
    world.message(newer, announce(1));
    assert_eq!(world.disconnects(older), [("DISCONNECT_REPLACED", None)]);
    assert_eq!(world.closed, [(older, 0)]);
    let peers = world.rendezvous.peers(world.now);
    assert_eq!(peers.len(), 1);
    assert!(peers[0].announced);
}

#[test]
fn announcing_again_on_the_same_connection_changes_the_allow_list() {
    let mut world = World::new();
    let target = world.reachable(2);
    world.message(target, RelayAnnounce { allow: Some(vec![]), ..announce(2) });
    assert!(world.closed.is_empty());
    let source = world.connect(1);
    world.message(source, connect(1, 2));
    assert_eq!(world.relay_error_codes(source), [3001]);
    world.message(target, announce(2));
    world.offer(source, 1, 2);
}

#[test]
fn the_newer_connection_inherits_the_sessions() {
    let mut world = World::new();
    let (_, target, terms) = world.paired();
    let newer = world.connect_from(2, addr("203.0.113.2:1001"));
    world.message(newer, announce(2));
    assert_eq!(world.terms(), [(newer, terms[1].clone())]);
    assert_eq!(world.state(&terms), Some(SessionState::Paired));
    assert_eq!(world.closed, [(target, 0)]);
}

#[test]
fn an_agent_that_reconnects_is_told_the_terms_of_its_sessions() {
    let mut world = World::new();
    let (source, _, terms) = world.paired();
    world.lose(source);
    assert_eq!(world.state(&terms), Some(SessionState::Paired), "the session outlives the connection");
    let again = world.connect(1);
    assert_eq!(world.terms(), [(again, terms[0].clone())]);
}

#[test]
fn a_second_connection_of_a_node_takes_over_its_sessions_when_the_first_is_lost() {
    let mut world = World::new();
    let (source, _, terms) = world.paired();
    let second = world.connect_from(1, addr("203.0.113.1:1001"));
    assert!(world.terms().is_empty(), "the first connection still is there");
    world.lose(source);
    assert_eq!(world.terms(), [(second, terms[0].clone())]);
}

#[test]
fn an_agent_that_disconnects_takes_its_sessions_with_it() {
    let mut world = World::new();
    let (source, target, terms) = world.paired();
    world.message(source, disconnect(None));
    assert_eq!(world.closed, [(source, 0)]);
    assert_eq!(world.disconnects(target), [("DISCONNECT_PEER_GONE", Some(terms[0].session))]);
    assert_eq!(world.ended(), [EndReason::Left(Side::Connector)]);
    assert!(world.flows.slots.is_empty());
}

#[test]
fn an_agent_is_pinged_every_minute_and_given_up_after_three_silent_ones() {
    let mut world = World::new();
    let conn = world.connect(1);
    world.pass(seconds(59));
    assert!(world.pings.is_empty());
    world.pass(seconds(1));
    assert_eq!(world.pings, [conn]);
    world.pass(seconds(120));
    assert_eq!(world.pings.len(), 3);
    assert!(world.closed.is_empty());
    world.pass(seconds(60));
    assert_eq!(world.disconnects(conn), [("DISCONNECT_IDLE", None)]);
    assert_eq!(world.closed, [(conn, 0)]);
    assert_eq!(world.refusals(Refusal::PingUnanswered), 1);
}

#[test]
fn a_pong_keeps_an_agent() {
    let mut world = World::new();
    let conn = world.connect(1);
    for _ in 0..10 {
        world.pass(seconds(150));
        world.message(conn, Pong::new(0, 0));
    }
    assert!(world.closed.is_empty());
}

#[test]
fn a_ping_is_answered_with_its_own_time() {
    let mut world = World::new();
    let conn = world.connect(1);
    world.message(conn, Ping::new(1_712_150_400));
    assert_eq!(world.pongs, [(conn, 1_712_150_400)]);
}

#[test]
fn messages_that_are_not_for_a_relay_are_refused_and_the_connection_stays() {
    let mut world = World::new();
    let conn = world.connect(1);
    world.message(conn, MessageAck { msg_id: "msg_1".to_owned(), status: AckStatus::Received });
    world.message(conn, BootstrapDiscoverRequest {});
    assert_eq!(world.error_codes(conn), [2003, 2003]);
    assert!(world.closed.is_empty());
    assert_eq!(world.refusals(Refusal::UnexpectedMessage), 2);
}

#[test]
fn an_agents_error_is_logged_and_not_answered() {
    let mut world = World::new();
    let conn = world.connect(1);
    world.clear();
    world.message(conn, ErrorMessage::new(ErrorCode::Internal, "out of memory"));
    let event =
        |times| Event::AgentReports { node: node(1), code: 5001, message: "out of memory".to_owned(), times };
    assert_eq!(world.events, [event(1)]);
    assert!(world.messages.is_empty());
    // One line a second for each connection, however many it sends.
    for _ in 0..1000 {
        world.message(conn, ErrorMessage::new(ErrorCode::Internal, "out of memory"));
    }
    world.pass(seconds(1));
    world.message(conn, ErrorMessage::new(ErrorCode::Internal, "out of memory"));
    assert_eq!(world.events, [event(1), event(1001)]);
}

#[test]
fn one_refusal_is_logged_once_a_second_with_the_number_of_them() {
    let mut world = World::new();
    let conn = world.connect(1);
    world.clear();
    for _ in 0..1000 {
        world.message(conn, BootstrapDiscoverRequest {});
    }
    world.pass(seconds(1));
    world.message(conn, BootstrapDiscoverRequest {});
    let refused = |times| Event::Refused {
        refusal: Refusal::UnexpectedMessage,
        times,
        node: Some(node(1)),
        from: Some(addr("203.0.113.1:1000")),
    };
    assert_eq!(world.events, [refused(1), refused(1000)]);
}

#[test]
fn a_migrated_agent_is_told_to_bind_at_once() {
    let mut world = World::new();
    let (source, ..) = world.paired();
    world.rendezvous.moved(source, addr("203.0.113.9:1"));
    world.rendezvous.moved(source, addr("203.0.113.9:1"));
    world.drain();
    let told = world.terms();
    assert_eq!(told.len(), 1);
    assert!(told[0].0 == source && told[0].1.bind_now);
    assert_eq!(world.rendezvous.peers(world.now)[0].address, addr("203.0.113.9:1"));
}

#[test]
fn when_the_relay_stops_everyone_is_told_and_nothing_is_forwarded() {
    let mut world = World::new();
    let (source, target, terms) = world.paired();
    world.rendezvous.shut_down(&mut world.flows, world.now);
    world.drain();
    for conn in [source, target] {
        let [session, connection] = [Some(terms[0].session), None].map(|what| ("DISCONNECT_SHUTDOWN", what));
        assert_eq!(world.disconnects(conn), [session, connection]);
    }
    assert_eq!(world.closed.len(), 2);
    assert!(world.flows.slots.is_empty());
    assert_eq!(world.ended(), [EndReason::Shutdown]);
    assert_eq!(world.rendezvous.next_deadline(), None);
}
