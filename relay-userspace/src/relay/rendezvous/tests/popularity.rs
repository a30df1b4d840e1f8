//! An agent that everybody wants.

use super::super::*;
use super::*;

/// Terms of offers that `conn` was told.
fn told(world: &World, conn: ConnId) -> usize {
    world.terms().iter().filter(|(to, _)| *to == conn).count()
}

fn open_offers(world: &World) -> usize {
    world.rendezvous.sessions.iter().filter(|session| session.is_offer()).count()
}

#[test]
fn thousands_of_connects_to_one_agent_are_all_answered_and_it_hears_of_few() {
    let mut world = World::new();
    let target = world.reachable(200);
    let sources: Vec<(u8, ConnId)> = (1..=150).map(|seed| (seed, world.connect(seed))).collect();
    world.clear();
    let mut connects = 0;
    for _ in 0..16 {
        for (seed, conn) in &sources {
            world.message(*conn, connect(*seed, 200));
            connects += 1;
        }
    }
    assert_eq!(told(&world, target), 64, "twice as many at once as may be open");
    assert_eq!(open_offers(&world), 32);
    let to_sources = |world: &World| -> usize {
        sources.iter().map(|(_, conn)| told(world, *conn) + refused(world, *conn)).sum()
    };
    assert_eq!(to_sources(&world), connects, "each is answered once");
    assert!(world.messages.len() <= connects + 64 + 3 * 32, "and nobody is told more than of its own offers");
    assert_eq!(world.refusals(Refusal::TargetRate) as usize, connects - 64);
    let to_target = world.messages.iter().filter(|(conn, _)| *conn == target).count();
    assert!(to_target <= world.rendezvous.most_waiting(), "so it is not taken for one that does not read");

    world.clear();
    for _ in 0..10 {
        world.pass(Duration::from_millis(100));
        for (seed, conn) in &sources {
            world.message(*conn, connect(*seed, 200));
        }
    }
    assert_eq!(told(&world, target), 32, "and then as many a second as may be open");
    assert!(world.closed.is_empty());
}

/// Answers to connects that did not become offers.
fn refused(world: &World, conn: ConnId) -> usize {
    world.relay_errors(conn).iter().filter(|error| error.session.is_none()).count()
}

#[test]
fn whoever_means_it_is_paired_while_thousands_ask() {
    let mut world = World::new();
    world.reachable(200);
    let crowd: Vec<(u8, ConnId)> = (1..=100).map(|seed| (seed, world.connect(seed))).collect();
    let honest = world.connect(150);
    let ask =
        |world: &mut World| crowd.iter().for_each(|(seed, conn)| world.message(*conn, connect(*seed, 200)));
    for _ in 0..10 {
        ask(&mut world);
    }
    // It asks again as it is told to, and binds within a round trip.
    let terms = loop {
        world.pass(Duration::from_millis(250));
        world.clear();
        world.message(honest, connect(150, 200));
        if told(&world, honest) == 1 {
            let terms: Vec<FlowTerms> = world.terms().into_iter().map(|(_, terms)| terms).collect();
            break <[FlowTerms; 2]>::try_from(terms).unwrap();
        }
        assert_eq!(world.relay_error_codes(honest), [ErrorCode::Busy.number()]);
        ask(&mut world);
    };
    ask(&mut world);
    world.pass(Duration::from_millis(100));
    world.bind(&terms[0], "203.0.113.150:2000", 1);
    ask(&mut world);
    world.bind(&terms[1], B, 1);
    assert_eq!(world.state(&terms), Some(SessionState::Paired));
}

#[test]
fn identities_of_one_address_are_in_each_others_way_before_they_are_in_others() {
    let mut world = World::new();
    world.reachable(200);
    let honest = world.connect(150);
    let first = world.offer(honest, 150, 200);
    for seed in 1..=40 {
        world.pass(Duration::from_millis(50));
        let conn = world.connect_from(seed, addr(&format!("203.0.113.1:{}", 1000 + u16::from(seed))));
        world.message(conn, connect(seed, 200));
    }
    assert_eq!(world.refusals(Refusal::TargetRate), 0);
    assert_eq!(open_offers(&world), 32);
    assert_eq!(world.ended(), [EndReason::Displaced; 9]);
    assert_eq!(world.state(&first), Some(SessionState::Offered), "the oldest of all, but from elsewhere");
}
