use super::super::*;
use super::*;

#[test]
fn a_proof_extends_its_side_by_the_lease() {
    let mut world = World::new();
    let (.., terms) = world.paired();
    let paired_at = world.now;
    world.pass(seconds(30));
    world.bind(&terms[0], A, 2);
    assert_eq!(world.installed().deadlines, [world.now + LEASE, paired_at + LEASE]);
}

#[test]
fn a_session_whose_one_side_fell_silent_is_closed_within_75_seconds() {
    let mut world = World::new();
    let (source, target, terms) = world.paired();
    let silent_since = world.now;
    let slot = world.slot();
    for counter in 2..=6 {
        world.pass(seconds(14));
        world.flows.carry(slot, 1);
        world.bind(&terms[0], A, counter);
    }
    world.pass(CONSENT - seconds(70) - Duration::from_millis(1));
    assert_eq!(world.state(&terms), Some(SessionState::Paired));
    world.pass(Duration::from_millis(1));
    assert_eq!(world.state(&terms), None);
    let closed_after = world.now.since(silent_since);
    assert!(closed_after + seconds(2) <= seconds(75), "{closed_after:?}: nothing is left for a late timer");
    assert!(world.flows.slots.is_empty());
    assert_eq!(world.ended(), [EndReason::ConsentLost(Side::Target)]);
    for conn in [source, target] {
        assert_eq!(world.disconnects(conn), [("DISCONNECT_CONSENT_LOST", Some(terms[0].session))]);
    }
}

#[test]
fn a_session_that_lost_a_tuple_and_does_not_bind_again_ends_for_lack_of_consent() {
    let mut world = World::new();
    let (.., first) = world.paired();
    let second = world.second_offer();
    world.bind(&second[0], A, 1);
    for counter in 2..=3 {
        world.pass(seconds(25));
        world.bind(&first[1], B, counter);
    }
    world.clear();
    world.pass(seconds(25));
    assert_eq!(world.ended(), [EndReason::ConsentLost(Side::Connector)]);
}

#[test]
fn a_session_without_a_packet_ends_after_the_idle_timeout() {
    let mut world = World::new();
    let (source, _, terms) = world.paired();
    let mut counter = 1;
    world.pass_with_keepalives(IDLE - seconds(1), &terms, &mut counter);
    assert_eq!(world.state(&terms), Some(SessionState::Paired));
    world.pass(seconds(1));
    assert_eq!(world.ended(), [EndReason::Idle]);
    let to_source = world.disconnects(source);
    assert!(to_source.contains(&("DISCONNECT_IDLE", Some(terms[0].session))), "{to_source:?}");
}

#[test]
fn a_relayed_packet_keeps_a_session_for_another_idle_timeout() {
    let mut world = World::new();
    let (.., terms) = world.paired();
    let mut counter = 1;
    world.pass_with_keepalives(seconds(200), &terms, &mut counter);
    let slot = world.slot();
    world.flows.carry(slot, 1);
    world.pass_with_keepalives(IDLE - seconds(1), &terms, &mut counter);
    assert_eq!(world.state(&terms), Some(SessionState::Paired));
    // Traffic is looked at every 5 s at least, so that much later at most.
    world.pass_with_keepalives(seconds(6), &terms, &mut counter);
    assert_eq!(world.ended(), [EndReason::Idle]);
}

#[test]
fn either_side_may_end_a_session_and_the_other_is_told() {
    for leaver in Side::BOTH {
        let mut world = World::new();
        let (source, target, terms) = world.paired();
        let (leaving, left) = if leaver == Side::Connector { (source, target) } else { (target, source) };
        world.message(leaving, disconnect(Some(terms[0].session)));
        assert_eq!(world.ended(), [EndReason::Left(leaver)]);
        assert_eq!(world.disconnects(left), [("DISCONNECT_PEER_GONE", Some(terms[0].session))]);
        assert!(world.disconnects(leaving).is_empty());
        assert!(world.closed.is_empty(), "the connections stay");
        assert!(world.flows.slots.is_empty());
        // Both may say so at once.
        world.message(left, disconnect(Some(terms[0].session)));
        assert_eq!(world.refusals(Refusal::ForeignSession), 0);
    }
}

#[test]
fn nobody_else_may_end_a_session() {
    let mut world = World::new();
    let (.., terms) = world.paired();
    let stranger = world.connect(9);
    world.message(stranger, disconnect(Some(terms[0].session)));
    assert_eq!(world.state(&terms), Some(SessionState::Paired));
    assert_eq!(world.refusals(Refusal::ForeignSession), 1);
}

#[test]
fn a_new_limit_reaches_flows_and_agents() {
    let mut world = World::new();
    let (source, target, terms) = world.paired();
    let limit = Limit::per_second(5_242_880);
    world.rendezvous.set_limit(limit, &mut world.flows, world.now);
    world.drain();
    assert_eq!(world.installed().limit, limit);
    let (rate_bytes_per_s, burst_bytes) = (limit.bytes_per_s, limit.burst_bytes);
    let expected = terms.map(|terms| FlowTerms { rate_bytes_per_s, burst_bytes, ..terms });
    let [connector, target_terms] = expected;
    assert_eq!(world.terms(), [(source, connector), (target, target_terms)]);
}

#[test]
fn agents_are_told_once_what_the_limit_has_dropped() {
    let mut world = World::new();
    let (source, target, terms) = world.paired();
    let slot = world.slot();
    let traffic = &mut world.flows.slots.get_mut(&slot).unwrap().traffic;
    (traffic.limited_packets, traffic.limited_bytes) = (10, 12_000);
    world.pass(seconds(11));
    let session = terms[0].session;
    for conn in [source, target] {
        let notices = world.notices(conn);
        let [notice] = notices[..] else { panic!("{notices:?}") };
        assert_eq!((notice.code, notice.session), (4001, Some(session)));
        assert_eq!((notice.packets, notice.bytes), (Some(10), Some(12_000)));
    }
    assert!(world.events.contains(&Event::Limited { session, packets: 10, bytes: 12_000, first: true }));
}

#[test]
fn a_limited_agent_hears_within_a_second_and_then_once_a_second() {
    let mut world = World::new();
    let (source, _, terms) = world.paired();
    let slot = world.slot();
    // Whatever was seen before it began: long enough to lie at any place between two looks.
    world.pass(Duration::from_millis(3_300));
    let (mut told, mut heard_at) = (0, Vec::new());
    let began = world.now;
    for _ in 0..50 {
        let traffic = &mut world.flows.slots.get_mut(&slot).unwrap().traffic;
        traffic.limited_packets += 3;
        traffic.limited_bytes += 3_600;
        world.pass(Duration::from_millis(100));
        for notice in world.notices(source) {
            told += notice.packets.unwrap();
            heard_at.push(world.now.since(began));
        }
        world.messages.clear();
    }
    world.pass(seconds(1));
    told += world.notices(source).iter().map(|notice| notice.packets.unwrap()).sum::<u64>();
    assert!(heard_at[0] <= seconds(1), "{heard_at:?}");
    assert!(heard_at.windows(2).all(|pair| pair[1] - pair[0] >= seconds(1)), "{heard_at:?}");
    assert_eq!(heard_at.len(), 5, "{heard_at:?}");
    assert_eq!(told, 150, "and of all packets");
    assert_eq!(world.state(&terms), Some(SessionState::Paired));
}

#[test]
fn an_event_between_two_looks_does_not_make_a_notice_come_early() {
    let mut world = World::new();
    let (source, _, terms) = world.paired();
    let slot = world.slot();
    let mut notices = 0;
    for _ in 0..20 {
        world.flows.slots.get_mut(&slot).unwrap().traffic.limited_packets += 1;
        world.now = world.now + Duration::from_millis(100);
        // As when a consent or idle deadline falls between two looks.
        world.rendezvous.examine(terms[0].session, &mut world.flows, world.now);
        world.drain();
        notices += world.notices(source).len();
        world.messages.clear();
    }
    assert_eq!(notices, 2);
}

#[test]
fn a_listing_shows_state_tuples_and_proofs() {
    let mut world = World::new();
    let (.., terms) = world.paired();
    world.pass(seconds(12));
    world.bind(&terms[1], B, 2);
    world.pass(seconds(3));
    let [status] = &world.rendezvous.sessions(&world.flows, world.now)[..] else { panic!() };
    assert_eq!((status.connector, status.target), (node(1), node(2)));
    assert_eq!((status.state, status.age, status.limit), (SessionState::Paired, seconds(15), LIMIT));
    assert_eq!(status.sides[0].agent, Some(addr(A)));
    assert_eq!(status.sides[1].relay, Some(relay()));
    let proofs = status.sides.each_ref().map(|side| side.last_proof);
    assert_eq!(proofs, [Some(seconds(15)), Some(seconds(3))]);
}

#[test]
fn a_session_has_one_entry_in_the_timers_however_often_its_sides_prove_their_tuples() {
    let mut world = World::new();
    let (.., terms) = world.paired();
    let mut cookies = terms.each_ref().map(|_| Cookie::NONE);
    world.pass(seconds(20));
    for round in 0..100 {
        for (side, at) in [(0, A), (1, B)] {
            cookies[side] = match round {
                0 => world.bind(&terms[side], at, 10).1,
                round => bound(&world.ask(&terms[side], at, 10 + round, cookies[side])).1,
            };
        }
    }
    assert_eq!(world.rendezvous.looks.len(), 1);
    world.pass(seconds(72));
    assert_eq!(world.state(&terms), Some(SessionState::Paired));
    world.pass(seconds(1));
    assert_eq!(world.ended(), [EndReason::ConsentLost(Side::Connector)]);
}

#[test]
fn a_node_is_known_as_long_as_it_is_connected_or_has_sessions() {
    let mut world = World::new();
    let (source, target, terms) = world.paired();
    let known = |world: &World| world.rendezvous.nodes.iter().count();
    world.lose(source);
    assert_eq!(known(&world), 2, "its session goes on");
    world.message(target, disconnect(Some(terms[1].session)));
    assert_eq!(known(&world), 1);
    world.lose(target);
    assert_eq!(known(&world), 0);
}
