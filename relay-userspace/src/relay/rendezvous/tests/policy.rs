//! Quotas: each refused with its own reason, each changeable while the relay runs.

use super::super::*;
use super::*;

/// The code and the reason that `source`'s connect to `target` is refused with.
fn refused(world: &mut World, conn: ConnId, [source, target]: [u8; 2], refusal: Refusal) -> u32 {
    let before = world.refusals(refusal);
    world.clear();
    world.message(conn, connect(source, target));
    assert_eq!(world.refusals(refusal), before + 1, "{:?}", world.messages);
    let [code] = world.relay_error_codes(conn)[..] else { panic!("{:?}", world.messages) };
    code
}

#[test]
fn offers_of_a_source_are_as_many_as_the_policy_says_now() {
    let mut world = World::new();
    let source = world.connect(1);
    for target in 2..=5 {
        world.reachable(target);
    }
    world.policy(|policy| policy.offers_per_source = 2);
    world.offer(source, 1, 2);
    world.offer(source, 1, 3);
    assert_eq!(refused(&mut world, source, [1, 4], Refusal::SourceOffers), ErrorCode::Limited.number());
    world.policy(|policy| policy.offers_per_source = 3);
    world.offer(source, 1, 4);
    world.policy(|policy| policy.offers_per_source = 1);
    assert!(world.ended().is_empty(), "what there is stays");
    assert_eq!(refused(&mut world, source, [1, 5], Refusal::SourceOffers), ErrorCode::Limited.number());
}

#[test]
fn offers_to_a_target_are_as_many_as_the_policy_says_now() {
    let mut world = World::new();
    world.reachable(200);
    world.policy(|policy| policy.offers_per_target = 1);
    let sources = [1, 2, 3].map(|seed| world.connect(seed));
    let terms = world.offer(sources[0], 1, 200);
    world.bind(&terms[0], A, 1);
    assert_eq!(refused(&mut world, sources[1], [2, 200], Refusal::TargetOffers), ErrorCode::Busy.number());
    world.policy(|policy| policy.offers_per_target = 2);
    world.offer(sources[1], 2, 200);
    assert!(world.relay_error_codes(sources[0]).is_empty());
}

#[test]
fn sessions_of_a_node_are_as_many_as_the_policy_says_now() {
    let mut world = World::new();
    world.policy(|policy| policy.sessions_per_node = 1);
    let (source, _, terms) = world.paired();
    world.reachable(3);
    assert_eq!(refused(&mut world, source, [1, 3], Refusal::SourceSessions), ErrorCode::Limited.number());
    let other = world.connect(4);
    assert_eq!(refused(&mut world, other, [4, 2], Refusal::TargetSessions), ErrorCode::Busy.number());
    world.policy(|policy| policy.sessions_per_node = 2);
    world.offer(source, 1, 3);
    world.offer(other, 4, 2);
    assert_eq!(world.state(&terms), Some(SessionState::Paired));
}

#[test]
fn sessions_that_a_prefix_has_asked_for_are_as_many_as_the_policy_says_now() {
    let mut world = World::new();
    for target in [100, 101, 102] {
        world.reachable(target);
    }
    world.policy(|policy| policy.sessions_per_prefix = 2);
    // Three agents in one household.
    let sources: [ConnId; 3] =
        [1, 2, 3].map(|seed| world.connect_from(seed, addr(&format!("[2001:db8:0:12{seed}::{seed}]:1000"))));
    let first = world.offer(sources[0], 1, 100);
    world.offer(sources[1], 2, 101);
    assert_eq!(
        refused(&mut world, sources[2], [3, 102], Refusal::PrefixSessions),
        ErrorCode::Limited.number()
    );
    let elsewhere = world.connect_from(4, addr("[2001:db8:0:200::1]:1000"));
    world.offer(elsewhere, 4, 102);
    // An agent that moves takes nothing with it.
    world.rendezvous.moved(sources[0], addr("[2001:db8:0:200::2]:1000"));
    assert_eq!(
        refused(&mut world, sources[2], [3, 102], Refusal::PrefixSessions),
        ErrorCode::Limited.number()
    );
    world.message(sources[0], disconnect(Some(first[0].session)));
    world.offer(sources[2], 3, 102);
    world.policy(|policy| policy.sessions_per_prefix = 3);
    world.offer(sources[1], 2, 102);
    let counted: Vec<u32> =
        world.rendezvous.sessions.prefixes().iter().map(|(_, sessions)| sessions).collect();
    assert_eq!(counted.iter().sum::<u32>(), 4);
    world.pass(OFFER_LIFETIME);
    assert_eq!(
        world.rendezvous.sessions.prefixes().iter().count(),
        0,
        "prefixes without sessions are forgotten"
    );
}

#[test]
fn sessions_are_charged_to_where_an_agent_has_shaken_hands_wherever_it_seems_to_be_now() {
    let mut world = World::new();
    for target in [100, 101, 102] {
        world.reachable(target);
    }
    world.policy(|policy| policy.sessions_per_prefix = 1);
    let elsewhere = addr("203.0.113.2:1000");
    let victim = world.connect_from(1, elsewhere);
    let forger = world.connect_from(2, addr("203.0.113.3:1000"));
    world.rendezvous.moved(forger, elsewhere);
    let first = world.offer(forger, 2, 100);
    // Neither is it the victim's, nor does it make room at home.
    world.offer(victim, 1, 101);
    refused(&mut world, forger, [2, 102], Refusal::PrefixSessions);
    // One that it had before it moved on makes room where it was charged.
    world.rendezvous.moved(forger, addr("203.0.113.4:1000"));
    world.message(forger, disconnect(Some(first[0].session)));
    world.offer(forger, 2, 102);
    refused(&mut world, victim, [1, 100], Refusal::PrefixSessions);
}

#[test]
fn to_be_asked_for_costs_a_prefix_nothing() {
    let mut world = World::new();
    world.policy(|policy| policy.sessions_per_prefix = 1);
    world.reachable(2);
    for source in [1, 3, 4] {
        let conn = world.connect(source);
        world.offer(conn, source, 2);
    }
}

#[test]
fn agents_beyond_those_that_may_be_announced_are_told_so_and_stay_connected() {
    let mut world = World::new();
    world.policy(|policy| policy.announced_agents = 2);
    let announced = [1, 2].map(|seed| world.reachable(seed));
    let late = world.connect(3);
    world.message(late, announce(3));
    assert_eq!(world.error_codes(late), [ErrorCode::Limited.number()]);
    assert_eq!(world.refusals(Refusal::AnnouncedFull), 1);
    assert!(world.closed.is_empty());
    world.offer(late, 3, 1);
    // Those that are announced may say so again, and from elsewhere.
    world.clear();
    world.message(announced[0], announce(1));
    let newer = world.connect_from(2, addr("203.0.113.2:1001"));
    world.message(newer, announce(2));
    assert_eq!(world.refusals(Refusal::AnnouncedFull), 1);
    world.message(newer, disconnect(None));
    world.clear();
    world.message(late, announce(3));
    assert!(world.error_codes(late).is_empty());
    assert_eq!(world.rendezvous.nodes.announced(), 2);
}

#[test]
fn as_many_messages_may_wait_as_the_widest_policy_so_far_makes_us_say_at_once() {
    let mut world = World::new();
    assert_eq!(world.rendezvous.most_waiting(), 256);
    for (sessions, waiting) in [(1, 256), (1000, 4000), (64, 4000), (u32::MAX, 16_384)] {
        world.policy(|policy| policy.sessions_per_node = sessions);
        assert_eq!(world.rendezvous.most_waiting(), waiting, "{sessions}");
    }
}

#[test]
fn what_one_input_makes_us_tell_an_agent_with_all_its_sessions_may_wait_for_it() {
    let mut world = World::new();
    world.policy(|policy| (policy.sessions_per_node, policy.offers_per_target) = (100, 100));
    let target = world.reachable(200);
    for source in 1..=25 {
        let conn = world.connect(source);
        for port in 3000..3004 {
            let terms = world.offer(conn, source, 200);
            world.bind(&terms[0], &format!("203.0.113.{source}:{port}"), 1);
            world.bind(&terms[1], &format!("198.18.{source}.200:{port}"), 1);
        }
    }
    let most = world.rendezvous.most_waiting();
    let told = |world: &mut World| {
        world.drain();
        let to_target = world.messages.drain(..).filter(|(conn, _)| *conn == target).count();
        assert!(to_target <= most, "{to_target} messages at once, {most} may wait");
        to_target
    };
    world.clear();
    world.rendezvous.set_limit(Limit::per_second(1), &mut world.flows, world.now);
    assert_eq!(told(&mut world), 100);
    world.rendezvous.moved(target, addr("203.0.113.200:7"));
    assert_eq!(told(&mut world), 100);
    world.rendezvous.end_all_by_operator(&node(200), &mut world.flows, world.now);
    assert_eq!(told(&mut world), 100);
}
