//! What a relay does with the sessions that the one before has left.

use super::super::*;
use super::*;
use crate::relay::datapath::{Identity, Left};
use crate::relay::prefix::Prefix;

/// The session of nodes 1 and 2 at [`A`] and [`B`], as it stands in the tables of a relay that died.
fn left(world: &World, terms: &[FlowTerms; 2]) -> (SlotId, Left) {
    let (slot, installed) = world.flows.slots.iter().next().expect("it is installed");
    let carried = world.flows.traffic(*slot);
    let identity = Identity {
        session: terms[0].session,
        nodes: [node(1), node(2)],
        counters: installed.counters,
        prefix: Some(Prefix::of(addr(A).ip())),
        since: world.now,
    };
    let mut left = Left::of(identity, Some(installed.tuples), installed.deadlines, carried, installed.limit);
    left.slot = Some(*slot);
    (*slot, left)
}

/// The relay dies, and another one with the same identity finds the same tables.
fn successor(world: World) -> World {
    let World { flows, now, .. } = world;
    World { flows, now, next_conn: 100, ..World::new() }
}

fn adopt(world: &mut World, left: &Left, is_banned: bool) -> Result<(), EndReason> {
    let adopted = world.rendezvous.adopt(left, is_banned, &mut world.flows, world.now);
    world.drain();
    adopted
}

#[test]
fn a_session_goes_on_and_its_agents_are_told_its_terms_when_they_come_back() {
    let mut world = World::new();
    let (_, _, terms) = world.paired();
    world.flows.carry(SlotId(0), 5);
    let (slot, left) = left(&world, &terms);
    let mut world = successor(world);
    assert_eq!(adopt(&mut world, &left, false), Ok(()));
    assert_eq!(world.state(&terms), Some(SessionState::Paired));
    let [status] = &world.rendezvous.sessions(&world.flows, world.now)[..] else { panic!("one") };
    assert_eq!(status.traffic.packets(), 5);
    let (source, target) = (world.connect(1), world.connect(2));
    let told: Vec<_> =
        world.terms().into_iter().map(|(conn, terms)| (conn, terms.session, terms.bind_key)).collect();
    let expected = [(source, 0), (target, 1)]
        .map(|(conn, side)| (conn, terms[side].session, terms[side].bind_key.clone()));
    assert_eq!(told, expected, "the same keys: a data socket goes on with the terms it has");
    // What its agents have proved before counts no more, and what they prove now does.
    assert!(world.ask(&terms[0], A, 1, Cookie::NONE).is_empty(), "a counter that was used");
    assert_eq!(world.bind(&terms[0], A, 2).0, PairState::Paired);
    assert_eq!(world.bind(&terms[1], B, 2).0, PairState::Paired);
    assert_eq!(world.flows.slots[&slot].deadlines, [world.now + LEASE; 2]);
    assert_eq!(world.flows.slots[&slot].counters, [2, 2]);
}

#[test]
fn sides_have_the_time_of_a_consent_to_prove_themselves_and_get_no_longer_lease_for_it() {
    let mut world = World::new();
    let (_, _, terms) = world.paired();
    let (slot, mut left) = left(&world, &terms);
    left.deadlines = [world.now + Duration::from_secs(90), world.now + 10 * LEASE];
    let mut world = successor(world);
    assert_eq!(adopt(&mut world, &left, false), Ok(()));
    assert_eq!(world.flows.slots[&slot].deadlines, [world.now + Duration::from_secs(90), world.now + LEASE]);
    world.pass(CONSENT - Duration::from_secs(1));
    assert_eq!(world.state(&terms), Some(SessionState::Paired));
    world.pass(Duration::from_secs(2));
    assert_eq!(world.ended(), [EndReason::ConsentLost(Side::Connector)]);
    assert!(world.flows.slots.is_empty());
}

#[test]
fn a_session_that_is_over_barred_or_banned_by_now_is_removed_and_said_to_have_ended() {
    let deny =
        |seed| move |world: &mut World| world.policy(|policy| policy.access.deny = [node(seed)].into());
    type Change = Box<dyn Fn(&mut World)>;
    let cases: [(Change, bool, EndReason); 4] = [
        (Box::new(deny(1)), false, EndReason::AccessDenied),
        (Box::new(deny(2)), false, EndReason::AccessDenied),
        (Box::new(|_| ()), true, EndReason::Banned),
        (Box::new(|world| world.now = world.now + LEASE), false, EndReason::LeaseOver),
    ];
    for (change, is_banned, reason) in cases {
        let mut world = World::new();
        let (_, _, terms) = world.paired();
        let (_, left) = left(&world, &terms);
        let mut world = successor(world);
        change(&mut world);
        assert_eq!(adopt(&mut world, &left, is_banned), Err(reason));
        assert_eq!((world.ended(), world.flows.slots.len()), (vec![reason], 0));
        assert_eq!(world.state(&terms), None);
    }
}

#[test]
fn todays_limit_applies_and_one_that_is_the_same_is_left_alone() {
    for limit in [LIMIT, Limit::per_second(77)] {
        let mut world = World::new();
        let (_, _, terms) = world.paired();
        let (slot, left) = left(&world, &terms);
        let mut world = successor(world);
        // Marks it, to see whether it is written.
        let mark = Limit { bytes_per_s: 1, burst_bytes: 1 };
        world.flows.slots.get_mut(&slot).unwrap().limit = mark;
        world.rendezvous.settings.limit = limit;
        assert_eq!(adopt(&mut world, &left, false), Ok(()));
        let expected = if limit == LIMIT { mark } else { limit };
        assert_eq!(world.flows.slots[&slot].limit, expected);
    }
}

#[test]
fn a_session_of_tables_that_are_others_now_is_put_into_them() {
    let mut world = World::new();
    let (_, _, terms) = world.paired();
    world.flows.carry(SlotId(0), 5);
    let (_, mut left) = left(&world, &terms);
    left.slot = None;
    let mut world = World { now: world.now, next_conn: 100, ..World::new() };
    assert_eq!(adopt(&mut world, &left, false), Ok(()));
    assert_eq!(world.state(&terms), Some(SessionState::Paired));
    let [status] = &world.rendezvous.sessions(&world.flows, world.now)[..] else { panic!("one") };
    assert_eq!(status.traffic.packets(), 5);
    // And where there is no room, it has ended.
    world.flows.refuse = Some(InstallError::TableFull);
    left.identity.session = SessionId([7; 16]);
    assert_eq!(adopt(&mut world, &left, false), Err(EndReason::TableFull));
    assert_eq!((world.ended(), world.flows.slots.len()), (vec![EndReason::TableFull], 1));
}

#[test]
fn a_session_whose_tuples_could_not_be_read_is_paired_again_once_both_sides_bind() {
    let mut world = World::new();
    let (_, _, terms) = world.paired();
    let (_, mut left) = left(&world, &terms);
    (left.slot, left.tuples) = (None, None);
    let mut world = World { now: world.now, next_conn: 100, ..World::new() };
    assert_eq!(adopt(&mut world, &left, false), Ok(()));
    assert!(world.flows.slots.is_empty());
    world.connect(1);
    world.connect(2);
    assert_eq!(world.bind(&terms[0], A, 2).0, PairState::Half);
    assert_eq!(world.bind(&terms[1], B, 2).0, PairState::Paired);
    assert_eq!(world.flows.slots.len(), 1);
}

#[test]
fn one_id_is_one_session() {
    let mut world = World::new();
    let (_, _, terms) = world.paired();
    let (_, mut left) = left(&world, &terms);
    left.slot = None;
    assert_eq!(adopt(&mut world, &left, false), Err(EndReason::Unreadable));
    assert_eq!(world.state(&terms), Some(SessionState::Paired));
}
