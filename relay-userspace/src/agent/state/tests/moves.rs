//! Sessions that move from relay to relay.

use super::two_agents::World;
use super::*;
use crate::agent::state::moves::{MOVE_WITHIN, OLD_PATH_LINGERS, UNDECIDED};

/// Until a silent path is noticed, another asked for, paired, and the old one is done with.
const MOVED: Duration = Duration::from_secs(10);

#[test]
fn a_session_moves_to_the_next_relay_when_its_own_dies_and_its_users_keep_it() {
    for carries in [Use::EndToEnd, Use::Raw] {
        let mut world = World::new(2, carries);
        let session = world.connected(0, carries);
        assert_eq!(world.relay_of(0, session), Some(0));
        world.kill(0);
        world.pass(MOVED);
        assert_eq!(world.relay_of(0, session), Some(1), "{carries:?}");
        assert_eq!(world.agents[1].handles.len(), 1, "the target's application has what it had");
        assert!(world.agents[1].handles.values().all(|handle| handle.end.is_none()));
        world.pass(Duration::from_secs(100));
        world.assert_settled(1);
        assert_eq!(world.agents[0].moves, 1);
    }
}

#[test]
fn a_relay_that_is_dead_when_it_is_asked_is_passed_over() {
    let mut world = World::new(2, Use::EndToEnd);
    world.kill(0);
    world.connect(0, Use::EndToEnd);
    world.pass(Duration::from_secs(5));
    assert!(world.agents[0].failed.is_empty());
    let [origin] = world.agents[0].handles.keys().copied().collect::<Vec<_>>()[..] else { panic!() };
    assert_eq!(world.relay_of(0, origin), Some(1));
    world.pass(MOVED);
    world.assert_settled(1);
}

#[test]
fn a_relay_over_which_nothing_is_paired_is_passed_over_too() {
    let mut world = World::new(2, Use::EndToEnd);
    world.relays[0].data_open = false;
    world.connect(0, Use::EndToEnd);
    world.pass(Duration::from_secs(8));
    let [origin] = world.agents[0].handles.keys().copied().collect::<Vec<_>>()[..] else { panic!() };
    assert_eq!(world.relay_of(0, origin), Some(1));
    world.pass(MOVED);
    world.assert_settled(1);
}

#[test]
fn two_agents_that_have_each_asked_the_other_move_a_session_each() {
    let mut world = World::new(3, Use::EndToEnd);
    let sessions = [0, 1].map(|agent| world.connected(agent, Use::EndToEnd));
    world.kill(0);
    world.pass(MOVED);
    for (agent, session) in sessions.into_iter().enumerate() {
        assert_eq!(world.relay_of(agent, session), Some(1));
        assert_eq!(world.agents[agent].moves, 1);
    }
    world.pass(Duration::from_secs(600));
    world.assert_settled(2);
    assert_eq!(world.agents.each_ref().map(|agent| agent.moves), [1, 1], "nobody moves back or again");
}

#[test]
fn a_session_stays_where_it_has_moved_when_the_first_relay_returns_and_new_ones_prefer_that() {
    let mut world = World::new(2, Use::Raw);
    let session = world.connected(0, Use::Raw);
    world.kill(0);
    world.pass(MOVED);
    world.revive(0);
    world.pass(Duration::from_secs(600));
    assert_eq!((world.relay_of(0, session), world.agents[0].moves), (Some(1), 1));
    let next = world.connected(0, Use::Raw);
    assert_eq!(world.relay_of(0, next), Some(0));
    world.pass(MOVED);
    world.assert_settled(2);
}

#[test]
fn with_one_relay_a_session_waits_for_its_return() {
    for goodbye in [false, true] {
        let mut world = World::new(1, Use::EndToEnd);
        let session = world.connected(0, Use::EndToEnd);
        if goodbye {
            world.stop(0)
        } else {
            world.kill(0)
        }
        world.pass(Duration::from_secs(8));
        assert_eq!(world.relay_of(0, session), Some(0), "it waits");
        world.revive(0);
        world.pass(MOVED);
        assert_eq!((world.relay_of(0, session), world.agents[0].moves), (Some(0), 1), "goodbye: {goodbye}");
        assert!(world.agents[1].handles.values().all(|handle| handle.end.is_none()));
        world.pass(Duration::from_secs(100));
        world.assert_settled(1);
    }
}

#[test]
fn a_relay_that_stops_and_does_not_return_ends_its_sessions_with_its_own_reason() {
    let mut world = World::new(1, Use::EndToEnd);
    let session = world.connected(0, Use::EndToEnd);
    world.stop(0);
    world.pass(MOVE_WITHIN - Duration::from_secs(1));
    assert_eq!(world.agents[0].handles[&session].end, None);
    world.pass(Duration::from_secs(2));
    for agent in &world.agents {
        assert!(agent.handles.values().all(|handle| handle.end == Some(SessionEnd::RelayStops)));
    }
    world.assert_settled(0);
}

#[test]
fn a_relay_that_stops_hands_its_sessions_on_at_once() {
    for carries in [Use::EndToEnd, Use::Raw] {
        let mut world = World::new(2, carries);
        let session = world.connected(0, carries);
        world.stop(0);
        assert_eq!(world.relay_of(0, session), Some(1), "{carries:?}: without any time passing");
        assert_eq!(world.agents[1].handles.len(), 1);
        world.pass(MOVED);
        world.assert_settled(1);
    }
}

#[test]
fn a_session_whose_relay_has_lost_its_daemon_moves_while_data_flows_and_receives_on_both_paths() {
    for carries in [Use::EndToEnd, Use::Raw] {
        let mut world = World::new(2, carries);
        let session = world.connected(0, carries);
        world.relays[0].headless = true;
        while world.agents[0].moves == 0 {
            assert_eq!(world.agents[0].paths.len(), 1);
            world.pass(Duration::from_millis(250));
            assert!(world.now.mono.since(NOW.mono) < Duration::from_secs(60), "before consent runs out");
        }
        assert_eq!(world.relay_of(0, session), Some(1));
        assert_eq!(world.agents[0].paths.len(), 2, "the old path is received on");
        world.pass(OLD_PATH_LINGERS - Duration::from_millis(250));
        assert_eq!(world.agents[0].paths.len(), 2);
        world.pass(Duration::from_millis(500));
        assert_eq!(world.agents[0].paths.len(), 1);
        world.pass(Duration::from_secs(100));
        assert!(world.agents[1].handles.values().all(|handle| handle.end.is_none()), "{carries:?}");
        assert_eq!(world.agents[1].handles.len(), 1);
        assert_eq!(world.agents[1].paths.len(), 1);
    }
}

#[test]
fn a_path_that_is_sound_again_before_there_is_another_stays() {
    let mut world = World::new(2, Use::EndToEnd);
    let session = world.connected(0, Use::EndToEnd);
    world.relays[1].alive = false;
    world.relays[0].data_open = false;
    world.pass(Duration::from_secs(6));
    world.relays[0].data_open = true;
    world.pass(Duration::from_secs(300));
    assert_eq!((world.relay_of(0, session), world.agents[0].moves), (Some(0), 0));
    world.assert_settled(1);
}

#[test]
fn a_session_that_is_dropped_while_it_moves_leaves_nothing_behind() {
    let mut world = World::new(2, Use::EndToEnd);
    let session = world.connected(0, Use::EndToEnd);
    world.relays[1].data_open = false; // the move hangs half way
    world.kill(0);
    world.pass(Duration::from_secs(6));
    assert_eq!(world.agents[0].paths.len(), 2);
    world.drop_handle(0, session);
    assert!(world.agents[0].paths.is_empty());
    let there = world.agents[1].handles.keys().copied().collect::<Vec<_>>();
    there.into_iter().for_each(|session| world.drop_handle(1, session));
    world.pass(Duration::from_secs(100));
    world.assert_settled(0);
}

#[test]
fn however_relays_come_and_go_a_session_asks_them_a_few_times_a_minute() {
    let mut world = World::new(2, Use::EndToEnd);
    world.connected(0, Use::EndToEnd);
    let since = world.now.mono;
    for round in 0..120 {
        let (dies, comes) = (round % 2, 1 - round % 2);
        world.revive(comes);
        world.kill(dies);
        world.pass(Duration::from_secs(10));
    }
    let mut minutes = std::collections::BTreeMap::<u64, usize>::new();
    for (at, _) in &world.agents[0].asked {
        *minutes.entry(at.since(since).as_secs() / 60).or_default() += 1;
    }
    assert!(minutes.values().all(|asked| *asked <= 20), "questions in each minute: {minutes:?}");
}

#[test]
fn a_relay_that_refuses_at_once_is_asked_a_few_times_a_minute() {
    let mut world = World::new(2, Use::EndToEnd);
    world.connected(0, Use::EndToEnd);
    world.relays[1].announced = [false; 2];
    world.kill(0);
    world.pass(Duration::from_secs(60));
    let asked = world.agents[0].asked.iter().filter(|(_, relay)| *relay == RelayIndex(1)).count();
    assert!((5..=9).contains(&asked), "{asked} questions in a minute");
}

#[test]
fn a_second_raw_session_over_another_relay_is_one_of_its_own_if_the_first_does_well() {
    let mut world = World::new(2, Use::Raw);
    let first = world.connected(0, Use::Raw);
    for _ in 0..10 {
        world.agents[0].state.round_trip(RelayIndex(0), Duration::from_millis(100));
        world.agents[0].state.round_trip(RelayIndex(1), Duration::from_millis(10));
    }
    let second = world.connected(0, Use::Raw);
    assert_eq!([first, second].map(|session| world.relay_of(0, session)), [Some(0), Some(1)]);
    assert_eq!(world.agents[1].handles.len(), 1, "the target does not know yet");
    world.pass(UNDECIDED);
    assert_eq!(world.agents[1].handles.len(), 2);
    world.pass(Duration::from_secs(100));
    world.assert_settled(2);
    assert_eq!(world.agents[1].moves, 0);
}

#[test]
fn of_several_raw_sessions_with_a_peer_the_target_moves_none() {
    let mut world = World::new(2, Use::Raw);
    let sessions = [0; 2].map(|_| world.connected(0, Use::Raw));
    world.kill(0);
    world.pass(MOVED);
    for session in sessions {
        assert_eq!(world.relay_of(0, session), Some(1), "whoever asked knows which is which");
    }
    assert_eq!((world.agents[1].moves, world.agents[1].handles.len()), (0, 4), "the target gets new ones");
    world.pass(Duration::from_secs(100));
    world.assert_settled(2);
}

#[test]
fn a_peer_that_is_silent_behind_a_relay_that_answers_is_sought_over_the_others_alone() {
    let mut world = World::new(1, Use::EndToEnd);
    let session = world.connected(0, Use::EndToEnd);
    let silent = BindEvent::Path(PathHealth::PeerSilent);
    let now = world.now;
    world.agents[0].state.bind_event(session, silent, now);
    world.pass(Duration::from_secs(60));
    assert_eq!(world.agents[0].asked.len(), 1, "its own relay is not asked again");

    let mut world = World::new(2, Use::EndToEnd);
    let session = world.connected(0, Use::EndToEnd);
    let now = world.now;
    world.agents[0].state.bind_event(session, silent, now);
    world.pass(MOVED);
    assert_eq!(world.relay_of(0, session), Some(1));
    world.assert_settled(1);

    let mut world = World::new(2, Use::Raw);
    let session = world.connected(0, Use::Raw);
    let now = world.now;
    world.agents[0].state.bind_event(session, silent, now);
    world.pass(MOVED);
    assert_eq!(world.relay_of(0, session), Some(0), "datagrams may be for a listener");
}

#[test]
fn requests_ask_the_relay_with_the_shortest_round_trip_first() {
    let mut agent = agent(false, 3);
    for relay in 0..3 {
        agent.up(relay);
    }
    for (relay, ms) in [(0, 80), (1, 20), (2, 50)] {
        agent.state.round_trip(RelayIndex(relay), Duration::from_millis(ms));
    }
    agent.state.connect(RequestId(1), peer(), Use::EndToEnd, NOW);
    assert!(matches!(agent.outputs()[..], [Output::Send(RelayIndex(1), Message::RelayConnect(_))]));
    agent.refuse(1, 3001);
    assert!(matches!(agent.outputs()[..], [Output::Send(RelayIndex(2), Message::RelayConnect(_))]));
}

#[test]
fn a_session_that_the_peer_asked_for_is_no_way_to_dial_it() {
    let mut agent = agent(true, 1);
    agent.up(0);
    agent.ready(Side::Target, peer());
    agent.paired();
    agent.outputs();
    agent.state.connect(RequestId(1), peer(), Use::EndToEnd, NOW);
    assert!(matches!(agent.outputs()[..], [Output::Send(_, Message::RelayConnect(_))]));
}
