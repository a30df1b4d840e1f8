//! Several hosts with one identity.

use super::super::*;
use super::*;

fn newer(world: &mut World, nth: u16) -> ConnId {
    world.connect_from(1, addr(&format!("203.0.113.1:{}", 2000 + nth)))
}

/// Lets time pass while everybody answers pings.
fn pass_with_pongs(world: &mut World, span: Duration) {
    let until = world.now + span;
    while world.now < until {
        world.pass(seconds(30).min(until.since(world.now)));
        for conn in std::mem::take(&mut world.pings) {
            world.message(conn, Pong::new(0, 0));
        }
    }
}

#[test]
fn a_node_is_replaced_six_times_an_hour_and_then_the_one_that_is_announced_stays() {
    let mut world = World::new();
    let began = world.now;
    let mut present = world.reachable(1);
    for nth in 0..6 {
        pass_with_pongs(&mut world, seconds(60));
        world.clear();
        let next = newer(&mut world, nth);
        world.message(next, announce(1));
        assert_eq!(world.disconnects(present), [("DISCONNECT_REPLACED", None)]);
        present = next;
    }
    for nth in 6..20 {
        world.clear();
        let next = newer(&mut world, nth);
        world.message(next, announce(1));
        assert_eq!(world.error_codes(next), [ErrorCode::RateLimited.number()]);
        assert_eq!(world.closed, [(next, ErrorCode::RateLimited.number())]);
        assert!(world.disconnects(present).is_empty(), "the one that is announced hears nothing of it");
    }
    assert_eq!(world.refusals(Refusal::ReplacedTooOften), 14);
    let peers = world.rendezvous.peers(world.now);
    assert!(peers.len() == 1 && peers[0].announced);

    // The first of the six was a minute after the beginning.
    let left = (began + seconds(3660)).since(world.now);
    pass_with_pongs(&mut world, left - Duration::from_millis(1));
    let early = newer(&mut world, 30);
    world.message(early, announce(1));
    assert_eq!(world.refusals(Refusal::ReplacedTooOften), 15);
    pass_with_pongs(&mut world, Duration::from_millis(1));
    world.clear();
    let next = newer(&mut world, 31);
    world.message(next, announce(1));
    assert_eq!(world.disconnects(present), [("DISCONNECT_REPLACED", None)]);
}

#[test]
fn an_agent_that_reconnects_after_its_connection_is_gone_replaces_nobody() {
    let mut world = World::new();
    for nth in 0..20 {
        let conn = newer(&mut world, nth);
        world.message(conn, announce(1));
        world.lose(conn);
    }
    assert_eq!(world.refusals(Refusal::ReplacedTooOften), 0);
    assert!(world.closed.is_empty());
}

#[test]
fn who_was_not_let_in_is_once_the_one_that_was_announced_is_gone() {
    let mut world = World::new();
    let mut present = world.reachable(1);
    for nth in 0..6 {
        present = newer(&mut world, nth);
        world.message(present, announce(1));
    }
    let refused = newer(&mut world, 6);
    world.message(refused, announce(1));
    assert_eq!(world.refusals(Refusal::ReplacedTooOften), 1);
    world.lose(present);
    let again = newer(&mut world, 7);
    world.clear();
    world.message(again, announce(1));
    assert!(world.closed.is_empty() && world.error_codes(again).is_empty());
    assert!(world.rendezvous.peers(world.now)[0].announced);
}

#[test]
fn sessions_stay_with_the_connection_that_stays() {
    let mut world = World::new();
    let (_, mut present, terms) = world.paired();
    let newer = |world: &mut World, nth: u16| {
        let conn = world.connect_from(2, addr(&format!("203.0.113.2:{}", 3000 + nth)));
        world.message(conn, announce(2));
        conn
    };
    for nth in 0..6 {
        present = newer(&mut world, nth);
    }
    world.clear();
    newer(&mut world, 6);
    assert!(world.terms().is_empty());
    assert_eq!(world.state(&terms), Some(SessionState::Paired));
    world.message(present, disconnect(Some(terms[1].session)));
    assert_eq!(world.ended(), [EndReason::Left(Side::Target)]);
}
