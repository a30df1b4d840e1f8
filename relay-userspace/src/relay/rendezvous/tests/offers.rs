use super::super::*;
use super::*;

#[test]
fn a_connect_offers_both_sides_to_each_other_with_keys_of_their_own() {
    let mut world = World::new();
    let source = world.connect(1);
    let target = world.reachable(2);
    world.message(source, connect(1, 2));
    let [(to_source, connector), (to_target, target_terms)] = &world.terms()[..] else { panic!() };
    assert_eq!((*to_source, *to_target), (source, target));
    assert_eq!((connector.side, connector.peer), (Side::Connector, node(2)));
    assert_eq!((target_terms.side, target_terms.peer), (Side::Target, node(1)));
    assert_eq!(connector.session, target_terms.session);
    assert!(connector.bind_key != target_terms.bind_key);
    assert_eq!(connector.bind_magic, magic());
    assert_eq!((connector.rate_bytes_per_s, connector.burst_bytes), (LIMIT.bytes_per_s, LIMIT.burst_bytes));
    assert_eq!((connector.consent, connector.keepalive), (CONSENT, KEEPALIVE));
    assert_eq!(connector.max_datagram_bytes, 1472);
    assert_eq!(world.rendezvous.sessions(&world.flows, world.now)[0].state, SessionState::Offered);
    assert!(world.flows.slots.is_empty(), "no flow before both tuples are proved");
}

#[test]
fn an_agent_that_speaks_ipv6_makes_the_largest_datagram_smaller() {
    let (v4, v6) = (["203.0.113.1:1000", "203.0.113.2:1000"], ["[2001:db8::1]:1000", "[2001:db8::2]:1000"]);
    for (source, target, largest) in
        [(v4[0], v4[1], 1472), (v6[0], v4[1], 1452), (v4[0], v6[1], 1452), (v6[0], v6[1], 1452)]
    {
        let mut world = World::new();
        let source = world.connect_from(1, addr(source));
        let target = world.connect_from(2, addr(target));
        world.message(target, announce(2));
        let offered = world.offer(source, 1, 2).map(|terms| terms.max_datagram_bytes);
        assert_eq!(offered, [largest; 2]);
    }
}

#[test]
fn advertised_addresses_are_passed_on() {
    let mut world = World::new();
    world.rendezvous.settings.advertise = vec![addr("192.0.2.77:4433")];
    let source = world.connect(1);
    world.reachable(2);
    assert_eq!(world.offer(source, 1, 2)[1].data_addresses, [addr("192.0.2.77:4433")]);
}

#[test]
fn a_connect_in_another_nodes_name_costs_the_connection() {
    let mut world = World::new();
    let conn = world.connect(1);
    world.reachable(2);
    world.message(conn, connect(3, 2));
    assert_eq!((world.error_codes(conn), &world.closed[..]), (vec![1004], &[(conn, 1004)][..]));
    assert_eq!(world.refusals(Refusal::ForeignIdentity), 1);
}

#[test]
fn a_connect_to_oneself_costs_the_connection() {
    let mut world = World::new();
    let conn = world.reachable(1);
    world.message(conn, connect(1, 1));
    assert_eq!((world.error_codes(conn), &world.closed[..]), (vec![1004], &[(conn, 1004)][..]));
    assert_eq!(world.refusals(Refusal::ConnectToSelf), 1);
}

#[test]
fn a_connect_to_something_that_is_no_node_id_costs_the_connection() {
    let mut world = World::new();
    let conn = world.connect(1);
    world.message(conn, RelayConnect { target_id: "bob".to_owned(), ..connect(1, 2) });
    assert_eq!(world.closed, [(conn, 1004)]);
    assert_eq!(world.refusals(Refusal::MalformedNodeId), 1);
}

#[test]
fn a_source_on_the_allow_list_is_offered() {
    let mut world = World::new();
    let source = world.connect(1);
    let target = world.connect(2);
    world.message(target, RelayAnnounce { allow: Some(vec![node(1).to_string()]), ..announce(2) });
    world.offer(source, 1, 2);
}

#[test]
fn a_target_whose_connection_is_lost_is_absent() {
    let mut world = World::new();
    let source = world.connect(1);
    let target = world.reachable(2);
    world.lose(target);
    world.message(source, connect(1, 2));
    assert_eq!(world.relay_error_codes(source), [3001]);
}

#[test]
fn an_agent_that_speaks_flows_and_one_that_does_not_are_told_that_of_each_other() {
    let mut world = World::new();
    let source = world.connect(1);
    world.reachable(2);
    world.message(source, RelayConnect { flow: None, ..connect(1, 2) });
    let documented = world.connect(3);
    world.message(documented, RelayAnnounce { flow: None, ..announce(3) });
    world.message(source, connect(1, 3));
    assert_eq!(world.relay_error_codes(source), [3003, 3008]);
    assert_eq!((world.refusals(Refusal::FlowOnly), world.refusals(Refusal::DocumentedOnly)), (1, 1));
}

#[test]
fn an_offer_dies_after_ten_seconds_and_both_are_told() {
    let mut world = World::new();
    let source = world.connect(1);
    let target = world.reachable(2);
    let terms = world.offer(source, 1, 2);
    world.bind(&terms[0], A, 1);
    world.clear();
    world.pass(Duration::from_millis(9999));
    assert_eq!(world.state(&terms), Some(SessionState::Half));
    world.pass(Duration::from_millis(1));
    assert_eq!(world.state(&terms), None);
    assert_eq!((world.relay_error_codes(source), world.relay_error_codes(target)), (vec![3007], vec![3007]));
    let to_source = &world.relay_errors(source)[0];
    assert_eq!(to_source.target_id, Some(node(2).to_string()));
    assert_eq!(to_source.session, Some(terms[0].session));
    assert_eq!(world.ended(), [EndReason::OfferExpired]);
}

#[test]
fn a_source_has_at_most_eight_offers_open() {
    let mut world = World::new();
    let source = world.connect(1);
    for target in 2..=10 {
        world.reachable(target);
    }
    for target in 2..=9 {
        world.offer(source, 1, target);
    }
    world.message(source, connect(1, 10));
    // The bound is the node's, not the connection's.
    let other = world.connect_from(1, addr("203.0.113.1:1001"));
    world.message(other, connect(1, 10));
    assert_eq!((world.relay_error_codes(source), world.relay_error_codes(other)), (vec![3005], vec![3005]));
    assert_eq!(world.refusals(Refusal::SourceOffers), 2);
    world.pass(seconds(10));
    world.offer(source, 1, 10);
}

#[test]
fn a_third_offer_to_one_target_takes_the_place_of_the_first() {
    let mut world = World::new();
    let source = world.connect(1);
    let target = world.reachable(2);
    let [first, second] = [(); 2].map(|()| {
        world.pass(Duration::from_millis(1));
        world.offer(source, 1, 2)
    });
    world.pass(Duration::from_millis(1));
    let third = world.offer(source, 1, 2);
    assert_eq!([&first, &second, &third].map(|terms| world.state(terms).is_some()), [false, true, true]);
    assert_eq!(world.ended(), [EndReason::Displaced]);
    assert_eq!((world.relay_error_codes(source), world.relay_error_codes(target)), (vec![3005], vec![3005]));
}

#[test]
fn identities_that_do_not_bind_keep_nobody_out_of_a_target() {
    let mut world = World::new();
    world.reachable(200);
    let mut first = None;
    for source in 1..=16 {
        let conn = world.connect(source);
        for _ in 0..2 {
            world.pass(Duration::from_millis(1));
            let terms = world.offer(conn, source, 200);
            first.get_or_insert(terms);
        }
    }
    // The first of all is being bound: it stays.
    let first = first.unwrap();
    world.bind(&first[0], A, 1);
    let late = world.connect(100);
    world.clear();
    world.offer(late, 100, 200);
    assert!(world.relay_error_codes(late).is_empty());
    assert_eq!(world.state(&first), Some(SessionState::Half));
    assert_eq!(world.ended(), [EndReason::Displaced]);
}

#[test]
fn a_target_has_at_most_thirty_two_offers_open_whose_connectors_have_bound() {
    let mut world = World::new();
    world.reachable(200);
    for source in 1..=32 {
        let conn = world.connect(source);
        let terms = world.offer(conn, source, 200);
        world.bind(&terms[0], &format!("203.0.113.{source}:2000"), 1);
    }
    let late = world.connect(100);
    world.message(late, connect(100, 200));
    assert_eq!(world.relay_error_codes(late), [3002]);
    assert_eq!(world.refusals(Refusal::TargetOffers), 1);
}

#[test]
fn a_pair_has_at_most_four_sessions() {
    let mut world = World::new();
    let source = world.connect(1);
    world.reachable(2);
    for port in 3000..3004 {
        pair_up(&mut world, source, [1, 2], port);
    }
    world.message(source, connect(1, 2));
    assert_eq!(world.relay_error_codes(source), [3005]);
    assert_eq!(world.refusals(Refusal::PairSessions), 1);
    world.reachable(3);
    world.offer(source, 1, 3);
}

#[test]
fn a_node_has_at_most_sixty_four_sessions_as_either_side() {
    let mut world = World::new();
    world.reachable(200);
    for source in 1..=16 {
        let conn = world.connect(source);
        for port in 3000..3004 {
            pair_up(&mut world, conn, [source, 200], port);
        }
    }
    world.pass(seconds(1));
    let conn = world.connect(100);
    world.reachable(101);
    world.message(conn, connect(100, 200));
    assert_eq!(world.refusals(Refusal::TargetSessions), 1);
    let full = world.connect_from(200, addr("203.0.113.200:1001"));
    world.message(full, connect(200, 101));
    assert_eq!(world.refusals(Refusal::SourceSessions), 1);
    assert_eq!((world.relay_error_codes(conn), world.relay_error_codes(full)), (vec![3002], vec![3005]));
}

#[test]
fn a_connection_asks_at_most_four_times_a_second_after_the_first_sixteen() {
    let mut world = World::new();
    let source = world.connect(1);
    for _ in 0..17 {
        world.message(source, connect(1, 2));
    }
    let codes = world.relay_error_codes(source);
    assert_eq!((codes[..16].to_vec(), codes[16]), (vec![3001; 16], 3005));
    assert_eq!(world.refusals(Refusal::ConnectRate), 1);
    world.clear();
    world.pass(seconds(1));
    for _ in 0..5 {
        world.message(source, connect(1, 2));
    }
    assert_eq!(world.relay_error_codes(source), [3001, 3001, 3001, 3001, 3005]);
}

/// A paired session between two nodes, at ports of their own.
fn pair_up(world: &mut World, conn: ConnId, [source, target]: [u8; 2], port: u16) {
    let terms = world.offer(conn, source, target);
    world.bind(&terms[0], &format!("203.0.113.{source}:{port}"), 1);
    world.bind(&terms[1], &format!("198.18.{source}.{target}:{port}"), 1);
    world.clear();
}

#[test]
fn a_paired_session_is_no_offer_any_more() {
    let mut world = World::new();
    let (source, ..) = world.paired();
    for _ in 0..2 {
        world.offer(source, 1, 2);
    }
    assert!(world.ended().is_empty());
}

#[test]
fn an_offer_survives_the_loss_of_a_control_connection() {
    let mut world = World::new();
    let source = world.connect(1);
    world.reachable(2);
    let terms = world.offer(source, 1, 2);
    world.lose(source);
    world.clear();
    let again = world.connect(1);
    assert_eq!(world.terms(), [(again, terms[0].clone())]);
}
