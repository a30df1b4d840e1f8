use super::super::*;
use super::*;
use crate::protocol::bind::COOKIE_PERIOD;
use crate::relay::datapath::TupleFault;

/// Where a target binds that speaks IPv6.
const B_V6: &str = "[2001:db8::2]:2000";

/// Two agents that have been offered to each other.
fn offered() -> (World, ConnId, ConnId, [FlowTerms; 2]) {
    let mut world = World::new();
    let source = world.connect(1);
    let target = world.reachable(2);
    let terms = world.offer(source, 1, 2);
    world.clear();
    (world, source, target, terms)
}

#[test]
fn a_first_bind_is_challenged_and_its_proof_binds_half() {
    let (mut world, .., terms) = offered();
    let (state, _) = world.bind(&terms[0], A, 100);
    assert_eq!(state, PairState::Half);
    assert!(world.flows.slots.is_empty());
    assert_eq!(world.state(&terms), Some(SessionState::Half));
}

#[test]
fn when_the_second_side_is_bound_the_flows_are_in_place_and_both_are_told() {
    let (mut world, .., terms) = offered();
    world.bind(&terms[0], A, 100);
    let (state, _) = world.bind(&terms[1], B, 7);
    assert_eq!(state, PairState::Paired);
    let unasked = world.answers(&terms[0], addr(A));
    assert_eq!(bound(&unasked).0, PairState::Paired);
    assert_eq!(unasked[0].counter, 100, "with the other side's own highest counter");
    let tuple = |agent| FlowTuple { agent: addr(agent), relay: relay() };
    assert_eq!(world.installed().tuples, [tuple(A), tuple(B)]);
    assert_eq!(world.installed().limit, LIMIT);
    assert_eq!(world.installed().deadlines, [world.now + LEASE; 2]);
}

#[test]
fn a_bound_tells_the_address_that_the_relay_sees() {
    let (mut world, .., terms) = offered();
    let challenge = world.ask(&terms[0], A, 1, Cookie::NONE);
    let answers = world.prove(&terms[0], A, 1, challenge[0].cookie);
    assert_eq!(answers[0].kind, BindKind::Bound { state: PairState::Half, reflexive: addr(A) });
}

#[test]
fn the_last_bounds_cookie_makes_the_next_bind_two_datagrams() {
    let (mut world, .., terms) = offered();
    let (_, cookie) = world.bind(&terms[0], A, 1);
    let (state, next) = bound(&world.ask(&terms[0], A, 2, cookie));
    assert_eq!(state, PairState::Half);
    assert!(next != cookie);
    let old = world.ask(&terms[0], A, 3, cookie);
    assert_eq!(old[0].kind, BindKind::Challenge, "a cookie is good for one bind");
}

#[test]
fn an_unasked_bounds_cookie_serves_the_next_bind() {
    let (mut world, .., terms) = offered();
    world.bind(&terms[0], A, 1);
    world.bind(&terms[1], B, 1);
    let (_, cookie) = bound(&world.answers(&terms[0], addr(A)));
    assert_eq!(bound(&world.ask(&terms[0], A, 2, cookie)).0, PairState::Paired);
}

#[test]
fn a_cookie_shown_from_another_address_is_challenged_there() {
    let (mut world, .., terms) = offered();
    let (_, cookie) = world.bind(&terms[0], A, 1);
    let answers = world.ask(&terms[0], "203.0.113.1:2001", 2, cookie);
    assert_eq!(answers[0].kind, BindKind::Challenge);
}

#[test]
fn a_bounds_cookie_outlives_one_renewal_of_the_secret_and_not_two() {
    let (mut world, .., terms) = offered();
    let (_, cookie) = world.bind(&terms[0], A, 1);
    world.now = world.now + COOKIE_PERIOD;
    let (_, cookie) = bound(&world.ask(&terms[0], A, 2, cookie));
    world.now = world.now + 2 * COOKIE_PERIOD;
    assert_eq!(world.ask(&terms[0], A, 3, cookie)[0].kind, BindKind::Challenge);
}

#[test]
fn a_challenge_is_good_for_five_seconds() {
    let (mut world, .., terms) = offered();
    let challenge = world.ask(&terms[0], A, 1, Cookie::NONE);
    world.pass(seconds(5));
    assert!(world.prove(&terms[0], A, 1, challenge[0].cookie).is_empty());
    assert_eq!(world.refusals(Refusal::BindNoChallenge), 1);
    let challenge = world.ask(&terms[0], A, 2, Cookie::NONE);
    assert_eq!(challenge[0].counter, 2);
    world.pass(Duration::from_millis(4999));
    assert_eq!(bound(&world.prove(&terms[0], A, 2, challenge[0].cookie)).0, PairState::Half);
}

#[test]
fn asking_again_meanwhile_gets_the_same_challenge_so_that_a_slow_path_gets_through() {
    let (mut world, .., terms) = offered();
    let first = world.ask(&terms[0], A, 10, Cookie::NONE);
    world.pass(Duration::from_millis(250));
    assert_eq!(world.ask(&terms[0], A, 11, Cookie::NONE), first);
    assert_eq!(bound(&world.prove(&terms[0], A, 10, first[0].cookie)).0, PairState::Half);
    assert!(world.prove(&terms[0], A, 10, first[0].cookie).is_empty(), "once");
}

#[test]
fn an_agent_whose_clock_was_set_back_is_challenged_anew() {
    let (mut world, .., terms) = offered();
    world.ask(&terms[0], A, 10, Cookie::NONE);
    assert_eq!(world.bind(&terms[0], A, 5).0, PairState::Half);
}

#[test]
fn a_challenge_to_another_tuple_replaces_the_one_before() {
    let (mut world, .., terms) = offered();
    let first = world.ask(&terms[0], A, 1, Cookie::NONE);
    world.ask(&terms[0], "203.0.113.1:2001", 2, Cookie::NONE);
    assert!(world.prove(&terms[0], A, 1, first[0].cookie).is_empty());
    assert_eq!(world.refusals(Refusal::BindNoChallenge), 1);
}

#[test]
fn challenges_collected_at_a_tuple_do_not_keep_consent_for_it_after_it_was_left() {
    let mut world = World::new();
    let (.., terms) = world.paired();
    world.pass(seconds(2));
    let hoard: Vec<_> = (10..18).map(|counter| world.ask(&terms[1], B, counter, Cookie::NONE)[0]).collect();
    let left = world.now;
    // Nothing is received at B from now on; A stays honest.
    let mut counter = 100;
    for challenge in hoard {
        world.pass(seconds(20));
        if world.state(&terms).is_none() {
            break;
        }
        counter += 1;
        world.bind(&terms[0], A, counter);
        assert!(world.prove(&terms[1], B, challenge.counter, challenge.cookie).is_empty());
    }
    assert_eq!(world.ended(), [EndReason::ConsentLost(Side::Target)]);
    assert!(world.now.since(left) <= seconds(80));
}

#[test]
fn a_challenge_is_void_once_another_session_has_proved_its_tuple() {
    let (mut world, .., first) = offered();
    let challenge = world.ask(&first[0], A, 5, Cookie::NONE);
    let second = world.second_offer();
    world.pass(seconds(1));
    world.bind(&second[0], A, 1);
    world.bind(&second[1], "203.0.113.4:2000", 1);
    assert!(world.prove(&first[0], A, 5, challenge[0].cookie).is_empty());
    assert_eq!(world.refusals(Refusal::BindNoChallenge), 1);
    assert_eq!(world.state(&second), Some(SessionState::Paired));
}

#[test]
fn a_spoofed_source_gets_nothing_installed() {
    let (mut world, .., terms) = offered();
    world.bind(&terms[1], B, 1);
    // The agent aims at a victim: the challenge goes there, and the agent cannot answer for it.
    let victim = "192.0.2.66:53";
    let challenge = world.ask(&terms[0], victim, 1, Cookie::NONE);
    assert_eq!(challenge.len(), 1);
    assert!(world.prove(&terms[0], victim, 1, Cookie([1; 16])).is_empty());
    assert!(world.prove(&terms[0], A, 1, challenge[0].cookie).is_empty(), "nor is it good elsewhere");
    assert_eq!((world.refusals(Refusal::BindCookie), world.refusals(Refusal::BindNoChallenge)), (1, 1));
    assert!(world.flows.slots.is_empty());
}

#[test]
fn a_wrong_mac_is_met_with_silence() {
    let (mut world, .., terms) = offered();
    let forged = FlowTerms { bind_key: terms[1].bind_key.clone(), ..terms[0].clone() };
    world.ask(&forged, A, 1, Cookie::NONE);
    assert!(world.binds.is_empty());
    assert_eq!(world.refusals(Refusal::BindMac), 1);
}

#[test]
fn a_bind_for_no_session_is_met_with_silence() {
    let (mut world, .., terms) = offered();
    let other = FlowTerms { session: SessionId([7; 16]), ..terms[0].clone() };
    assert!(world.ask(&other, A, 1, Cookie::NONE).is_empty());
    assert_eq!(world.refusals(Refusal::BindUnknownSession), 1);
}

#[test]
fn a_datagram_of_another_form_is_met_with_silence() {
    let mut world = World::new();
    let mut bytes = [0; BIND_LEN];
    bytes[..8].copy_from_slice(&magic().0);
    world.bind_bytes(addr(A), relay(), &bytes);
    assert!(world.binds.is_empty());
    assert_eq!(world.refusals(Refusal::BindMalformed), 1);
}

#[test]
fn a_relays_own_datagram_sent_back_is_met_with_silence() {
    let (mut world, .., terms) = offered();
    for kind in [BindKind::Challenge, BindKind::Bound { state: PairState::Half, reflexive: addr(A) }] {
        assert!(world.send_bind(&terms[0], addr(A), kind, 9, Cookie::NONE).is_empty());
    }
    assert_eq!(world.refusals(Refusal::BindDirection), 2);
}

#[test]
fn a_replayed_bind_is_met_with_silence() {
    let (mut world, .., terms) = offered();
    let challenge = world.ask(&terms[0], A, 5, Cookie::NONE);
    world.prove(&terms[0], A, 5, challenge[0].cookie);
    assert!(world.prove(&terms[0], A, 5, challenge[0].cookie).is_empty());
    assert!(world.ask(&terms[0], A, 5, Cookie::NONE).is_empty());
    assert!(world.ask(&terms[0], A, 4, Cookie::NONE).is_empty());
    assert_eq!(world.refusals(Refusal::BindReplayed), 3);
    let named =
        Event::Refused { refusal: Refusal::BindReplayed, times: 1, node: Some(node(1)), from: Some(addr(A)) };
    assert!(world.events.contains(&named), "its MAC proves whose it is");
}

#[test]
fn binds_from_addresses_no_agent_can_have_are_refused() {
    let (mut world, .., terms) = offered();
    let sources = [
        "127.0.0.1:2",
        "[::1]:2",
        "0.0.0.0:2",
        "[::]:2",
        "224.0.0.1:2",
        "[ff02::1]:2",
        "[fe80::1]:2",
        "255.255.255.255:2",
        "203.0.113.1:0",
        "[2001:db8::1]:0",
    ];
    for source in sources {
        assert!(world.ask(&terms[0], source, 1, Cookie::NONE).is_empty(), "{source}");
    }
    assert_eq!(world.refusals(Refusal::BindSourceAddress), sources.len() as u64);
}

#[test]
fn a_relay_on_loopback_takes_agents_on_loopback_but_not_itself() {
    let (mut world, .., terms) = offered();
    let here = addr("127.0.0.1:4433");
    let FlowTerms { session, side, .. } = terms[0];
    let bind = BindDatagram { kind: BindKind::Bind, side, session, counter: 1, cookie: Cookie::NONE };
    let bytes = bind.seal(&terms[0].bind_magic, &terms[0].bind_key);
    let World { rendezvous, flows, randomness, now, .. } = &mut world;
    rendezvous.bind(addr("127.0.0.1:2000"), here, &bytes, flows, randomness, *now);
    assert!(matches!(rendezvous.next_output(), Some(Output::Bind { .. })));
    rendezvous.bind(here, here, &bytes, flows, randomness, *now);
    assert_eq!(world.refusals(Refusal::BindSourceRelay), 1);
}

#[test]
fn a_bind_from_the_relays_own_address_is_refused() {
    let (mut world, .., terms) = offered();
    assert!(world.ask(&terms[0], "198.51.100.1:2000", 1, Cookie::NONE).is_empty());
    assert!(world.ask(&terms[0], "198.51.100.1:4433", 1, Cookie::NONE).is_empty());
    assert_eq!(world.refusals(Refusal::BindSourceRelay), 2);
}

#[test]
fn a_bind_from_a_live_control_tuple_is_refused() {
    let (mut world, source, _, terms) = offered();
    let (old, new) = ("203.0.113.1:1000", "203.0.113.1:1001");
    assert!(world.ask(&terms[0], old, 1, Cookie::NONE).is_empty());
    // The tuple is free once its connection has moved or gone.
    world.rendezvous.moved(source, addr(new));
    world.drain();
    assert_eq!(world.ask(&terms[0], old, 1, Cookie::NONE).len(), 1);
    assert!(world.ask(&terms[0], new, 1, Cookie::NONE).is_empty());
    assert_eq!(world.refusals(Refusal::BindSourceControl), 2);
    world.lose(source);
    assert_eq!(world.ask(&terms[0], new, 1, Cookie::NONE).len(), 1);
}

#[test]
fn a_control_connection_to_another_address_of_the_relay_leaves_the_tuple_free() {
    let (mut world, .., terms) = offered();
    let remote = addr("203.0.113.1:1001");
    let relay = Some(addr("198.51.100.2:4433").ip());
    let agent = Authenticated { conn: ConnId(77), node: node(3), name: String::new(), remote, relay };
    world.rendezvous.connected(agent, world.now);
    world.drain();
    assert_eq!(world.ask(&terms[0], "203.0.113.1:1001", 1, Cookie::NONE).len(), 1);
}

#[test]
fn a_move_that_finds_no_room_leaves_the_tuple_to_whoever_has_it() {
    let mut world = World::new();
    let (.., terms) = world.paired();
    let second = world.second_offer();
    let there = "203.0.113.77:1";
    world.bind(&second[0], there, 1);
    world.pass(seconds(1));
    let challenge = world.ask(&terms[0], there, 2, Cookie::NONE);
    world.flows.refuse = Some(InstallError::TableFull);
    assert!(world.prove(&terms[0], there, 2, challenge[0].cookie).is_empty());
    assert_eq!(world.state(&second), Some(SessionState::Half));
    assert_eq!(world.state(&terms), Some(SessionState::Paired));
}

#[test]
fn a_bind_from_the_other_sides_tuple_is_refused() {
    let (mut world, .., terms) = offered();
    world.bind(&terms[0], A, 1);
    assert!(world.ask(&terms[1], A, 1, Cookie::NONE).is_empty());
    assert_eq!(world.refusals(Refusal::BindSourcePeer), 1);
}

#[test]
fn a_side_is_challenged_at_most_eight_times_in_any_second() {
    let (mut world, .., terms) = offered();
    for counter in 1..=8 {
        assert_eq!(world.ask(&terms[0], A, counter, Cookie::NONE).len(), 1);
        world.pass(Duration::from_millis(100));
    }
    assert!(world.ask(&terms[0], A, 9, Cookie::NONE).is_empty());
    assert_eq!(world.refusals(Refusal::BindChallengeRate), 1);
    assert_eq!(world.ask(&terms[1], B, 9, Cookie::NONE).len(), 1, "the other side has its own share");
    world.pass(Duration::from_millis(200));
    assert_eq!(world.ask(&terms[0], A, 10, Cookie::NONE).len(), 1, "the first of the eight is a second old");
    assert!(world.ask(&terms[0], A, 11, Cookie::NONE).is_empty());
}

#[test]
fn a_bind_from_a_new_tuple_moves_the_flow_without_a_new_session() {
    let mut world = World::new();
    let (.., terms) = world.paired();
    let slot = world.slot();
    let (state, _) = world.bind(&terms[0], "203.0.113.77:9", 2);
    assert_eq!(state, PairState::Paired);
    assert_eq!(world.slot(), slot);
    assert_eq!(world.installed().tuples[0].agent, addr("203.0.113.77:9"));
    assert!(matches!(world.events[..], [Event::Moved { side: Side::Connector, .. }]));
    assert!(world.messages.is_empty());
}

#[test]
fn a_side_moves_at_most_once_a_second() {
    let mut world = World::new();
    let (.., terms) = world.paired();
    let (first, second) = ("203.0.113.77:1", "203.0.113.77:2");
    world.bind(&terms[0], first, 2);
    let challenge = world.ask(&terms[0], second, 3, Cookie::NONE);
    assert!(world.prove(&terms[0], second, 3, challenge[0].cookie).is_empty());
    assert_eq!(world.refusals(Refusal::BindMoveRate), 1);
    assert_eq!(world.installed().tuples[0].agent, addr(first));
    world.pass(seconds(1));
    assert_eq!(bound(&world.prove(&terms[0], second, 3, challenge[0].cookie)).0, PairState::Paired);
}

#[test]
fn a_late_proof_of_an_old_tuple_does_not_move_the_flow_back() {
    let mut world = World::new();
    let (.., terms) = world.paired();
    let old = world.ask(&terms[0], A, 2, Cookie::NONE);
    world.bind(&terms[0], "203.0.113.77:1", 3);
    world.pass(seconds(2));
    assert!(world.prove(&terms[0], A, 2, old[0].cookie).is_empty());
    assert_eq!(world.installed().tuples[0].agent, addr("203.0.113.77:1"));
}

#[test]
fn a_move_that_finds_no_room_leaves_the_old_tuple() {
    let mut world = World::new();
    let (.., terms) = world.paired();
    let challenge = world.ask(&terms[0], "203.0.113.77:1", 2, Cookie::NONE);
    world.flows.refuse = Some(InstallError::TableFull);
    assert!(world.prove(&terms[0], "203.0.113.77:1", 2, challenge[0].cookie).is_empty());
    assert_eq!(world.refusals(Refusal::TableFull), 1);
    assert_eq!(world.installed().tuples[0].agent, addr(A));
    world.bind(&terms[0], "203.0.113.77:2", 3);
}

#[test]
fn agents_of_different_families_are_joined() {
    let (mut world, .., terms) = offered();
    world.bind(&terms[0], A, 1);
    let (state, _) = world.bind(&terms[1], B_V6, 1);
    assert_eq!(state, PairState::Paired);
    let tuple = |agent| FlowTuple { agent: addr(agent), relay: relay_of(addr(agent)) };
    assert_eq!(world.installed().tuples, [tuple(A), tuple(B_V6)]);
}

#[test]
fn both_are_told_the_largest_datagram_again_when_a_bind_shows_another_family() {
    let (mut world, source, target, terms) = offered();
    assert_eq!(terms[0].max_datagram_bytes, 1472);
    let told = |world: &mut World, terms: &[FlowTerms; 2], max_datagram_bytes| {
        let [connector, target_terms] = terms.clone().map(|terms| FlowTerms { max_datagram_bytes, ..terms });
        assert_eq!(world.terms(), [(source, connector), (target, target_terms)]);
        world.clear();
    };
    world.bind(&terms[0], A, 1);
    assert!(world.terms().is_empty(), "as expected");
    world.bind(&terms[1], B_V6, 1);
    told(&mut world, &terms, 1452);
    world.bind(&terms[0], "[2001:db8::1]:2000", 2);
    assert!(world.terms().is_empty(), "IPv6 on both sides fits no more");
    world.pass(seconds(1));
    world.bind(&terms[1], B, 2);
    assert!(world.terms().is_empty(), "nor on one");
    world.bind(&terms[0], A, 3);
    told(&mut world, &terms, 1472);
}

#[test]
fn both_are_told_what_fits_the_smaller_interface_once_they_are_paired_and_when_it_changes() {
    let (mut world, .., terms) = offered();
    let told = |world: &mut World| {
        let told: Vec<u32> = world.terms().iter().map(|(_, terms)| terms.max_datagram_bytes).collect();
        world.clear();
        told
    };
    world.flows.mtus = [None, Some(1280)];
    world.bind(&terms[0], A, 1);
    assert!(told(&mut world).is_empty(), "nothing leaves yet");
    world.bind(&terms[1], B, 1);
    assert_eq!(told(&mut world), [1252, 1252]);
    world.pass(seconds(10));
    assert!(told(&mut world).is_empty(), "they know");
    world.bind(&terms[1], B_V6, 2);
    assert_eq!(told(&mut world), [1232, 1232]);
    world.flows.mtus = [Some(9000), None];
    world.pass(seconds(10));
    assert!(told(&mut world).is_empty(), "a hop that is not known for the moment takes what it took");
    world.flows.mtus = [Some(9000), Some(9000)];
    world.pass(seconds(10));
    assert_eq!(told(&mut world), [1452, 1452], "not more than paths elsewhere may be expected to take");
    world.flows.mtus = [Some(576), Some(576)];
    world.pass(seconds(10));
    assert_eq!(told(&mut world), [1200, 1200], "not less than QUIC can do with");
}

#[test]
fn a_move_that_is_refused_does_not_change_the_largest_datagram() {
    let mut world = World::new();
    let (.., terms) = world.paired();
    let challenge = world.ask(&terms[1], B_V6, 2, Cookie::NONE);
    world.flows.refuse = Some(InstallError::TableFull);
    world.prove(&terms[1], B_V6, 2, challenge[0].cookie);
    assert!(world.terms().is_empty());
}

#[test]
fn a_tuple_belongs_to_whoever_proved_it_last() {
    let mut world = World::new();
    let (source, _, first) = world.paired();
    let second = world.second_offer();
    // The NAT has given the first session's port to another agent.
    world.bind(&second[0], A, 1);
    assert!(world.flows.slots.is_empty(), "nothing of the first session is forwarded any more");
    assert_eq!(world.state(&first), Some(SessionState::Half));
    assert_eq!(world.terms(), [(source, FlowTerms { bind_now: true, ..first[0].clone() })]);
    let lost = Event::TupleLost { session: first[0].session, side: Side::Connector, to: second[0].session };
    assert!(world.events.contains(&lost));
    world.bind(&second[1], B.replace("2000", "3000").as_str(), 1);
    assert_eq!(world.flows.slots.len(), 1);
    // The first session binds from another port and goes on.
    let (state, _) = world.bind(&first[0], "203.0.113.1:2222", 2);
    assert_eq!(state, PairState::Paired);
    assert_eq!(bound(&world.answers(&first[1], addr(B))).0, PairState::Paired);
    assert_eq!(world.flows.slots.len(), 2);
}

#[test]
fn a_lost_tuple_is_not_won_back_with_an_old_cookie() {
    let (mut world, .., first) = offered();
    let (_, cookie) = world.bind(&first[0], A, 1);
    let second = world.second_offer();
    world.bind(&second[0], A, 1);
    assert_eq!(world.ask(&first[0], A, 2, cookie)[0].kind, BindKind::Challenge);
}

#[test]
fn what_a_session_carried_before_it_lost_a_tuple_still_counts() {
    let mut world = World::new();
    let (.., first) = world.paired();
    let slot = world.slot();
    world.flows.carry(slot, 5);
    let second = world.second_offer();
    world.bind(&second[0], A, 1);
    world.bind(&first[0], "203.0.113.1:2222", 2);
    let slot = world.slot();
    world.flows.carry(slot, 3);
    let sessions = world.rendezvous.sessions(&world.flows, world.now);
    let status = sessions.iter().find(|status| status.session == first[0].session).unwrap();
    assert_eq!(status.traffic.sides[0].packets_kernel, 8);
}

#[test]
fn a_full_table_is_told_to_both() {
    let (mut world, source, target, terms) = offered();
    world.bind(&terms[0], A, 1);
    let challenge = world.ask(&terms[1], B, 1, Cookie::NONE);
    world.flows.refuse = Some(InstallError::TableFull);
    assert!(world.prove(&terms[1], B, 1, challenge[0].cookie).is_empty());
    assert_eq!((world.relay_error_codes(source), world.relay_error_codes(target)), (vec![3004], vec![3004]));
    assert_eq!(world.state(&terms), None);
    assert_eq!(world.ended(), [EndReason::TableFull]);
    assert_eq!(world.refusals(Refusal::TableFull), 1);
}

#[test]
fn tuples_that_cannot_be_joined_are_told_to_both() {
    let (mut world, source, target, terms) = offered();
    world.bind(&terms[0], A, 1);
    let challenge = world.ask(&terms[1], B, 1, Cookie::NONE);
    world.flows.refuse = Some(InstallError::Tuple(TupleFault::Family));
    world.prove(&terms[1], B, 1, challenge[0].cookie);
    assert_eq!((world.relay_error_codes(source), world.relay_error_codes(target)), (vec![3003], vec![3003]));
    assert_eq!(world.ended(), [EndReason::TupleRefused(TupleFault::Family)]);
}

#[test]
fn what_a_side_was_asked_is_forgotten_once_it_makes_no_difference_and_not_before() {
    let mut world = World::new();
    let (.., terms) = world.paired();
    let questions = |world: &World| {
        let session = world.rendezvous.sessions.get(terms[0].session).unwrap();
        session.questions(Side::Target).is_some()
    };
    assert!(questions(&world), "to pair they were asked");
    world.pass(seconds(2));
    assert!(!questions(&world), "and have answered");
    let challenge = world.ask(&terms[1], "203.0.113.2:2001", 10, Cookie::NONE);
    world.pass(Duration::from_millis(4900));
    assert!(questions(&world), "the looks meanwhile have left it");
    let (state, _) = bound(&world.prove(&terms[1], "203.0.113.2:2001", 10, challenge[0].cookie));
    assert_eq!(state, PairState::Paired);
    world.pass(seconds(2));
    assert!(!questions(&world));
}
