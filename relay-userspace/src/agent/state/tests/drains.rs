//! Relays that are about to stop.

use super::two_agents::{World, hint_of};
use super::*;
use crate::agent::state::drains::MOST_HINTED;
use crate::agent::state::moves::OLD_PATH_LINGERS;

/// Until both agents are connected to another relay, the session is moved, and the old path done with.
const MOVED: Duration = Duration::from_secs(10);

const BOTH: [Use; 2] = [Use::EndToEnd, Use::Raw];

#[test]
fn sessions_move_to_the_relay_that_a_draining_one_names_and_their_users_keep_them() {
    for carries in BOTH {
        let mut world = World::where_some_are_unknown(1, 2, carries);
        let session = world.connected(0, carries);
        world.drain(0, Some(&hint_of(1).to_string()));
        assert_eq!(world.relay_of(0, session), Some(0), "it is not connected to yet");
        while world.agents[0].moves == 0 {
            assert_eq!(world.agents[0].paths.len(), 1);
            world.pass(Duration::from_millis(250));
            assert!(world.now.mono.since(NOW.mono) < MOVED, "it moves");
        }
        assert_eq!(world.relay_of(0, session), Some(1), "{carries:?}");
        assert_eq!(world.agents[0].paths.len(), 2, "the old path is received on");
        world.pass(OLD_PATH_LINGERS + Duration::from_millis(500));
        assert!(world.relays[0].sessions.is_empty(), "the old relay hears that it is not needed any more");
        assert_eq!(world.agents[1].handles.len(), 1, "the target's application has what it had");
        assert!(
            world.agents.iter().flat_map(|agent| agent.handles.values()).all(|handle| handle.end.is_none())
        );
        world.pass(Duration::from_secs(100));
        world.assert_settled(1);
        assert_eq!(world.agents[0].moves, 1);
    }
}

#[test]
fn a_raw_session_is_taken_over_by_its_successor_without_being_decided_about() {
    let mut world = World::new(2, Use::Raw);
    let session = world.connected(0, Use::Raw);
    world.drain(0, None);
    assert_eq!(world.relay_of(0, session), Some(1), "without any time passing");
    assert_eq!((world.agents[1].moves, world.agents[1].handles.len()), (1, 1));
}

#[test]
fn a_target_that_hears_of_the_drain_after_its_connector_takes_the_successor_then() {
    let mut world = World::new(2, Use::Raw);
    let session = world.connected(0, Use::Raw);
    world.tell_drain(0, 0, None);
    world.pass(Duration::from_millis(250));
    assert_eq!((world.relay_of(0, session), world.agents[1].moves), (Some(1), 0));
    world.tell_drain(0, 1, None);
    world.pass(Duration::from_millis(250));
    assert_eq!((world.agents[1].moves, world.agents[1].handles.len()), (1, 1));
    world.pass(Duration::from_secs(100));
    world.assert_settled(1);
}

#[test]
fn without_a_hint_sessions_move_to_another_relay_of_the_agents_own() {
    for carries in BOTH {
        let mut world = World::new(3, carries);
        let session = world.connected(0, carries);
        world.drain(0, None);
        world.pass(MOVED);
        assert_eq!(world.relay_of(0, session), Some(1));
        world.assert_settled(1);
    }
}

#[test]
fn a_hint_at_a_relay_of_the_agents_own_is_that_one_and_comes_before_the_preferred_one() {
    for hint in [hint_of(2).to_string(), hint_of(2).to_string().replace("relay2", "elsewhere")] {
        let mut world = World::new(3, Use::EndToEnd);
        for agent in &mut world.agents {
            agent.state.relay_is(RelayIndex(2), hint_of(2).node);
        }
        let session = world.connected(0, Use::EndToEnd);
        world.drain(0, Some(&hint));
        world.pass(MOVED);
        assert_eq!(world.relay_of(0, session), Some(2), "{hint}");
        assert_eq!(world.agents[0].knows.len(), 3, "and is not connected to twice");
        world.assert_settled(1);
    }
}

#[test]
fn without_any_other_relay_a_session_stays_until_the_relay_stops() {
    let mut world = World::new(1, Use::EndToEnd);
    let session = world.connected(0, Use::EndToEnd);
    world.drain(0, None);
    world.pass(Duration::from_secs(300));
    assert_eq!(world.relay_of(0, session), Some(0));
    assert_eq!(world.agents[0].asked.len(), 1, "a relay that takes no sessions is not asked for one");
    world.stop(0);
    world.pass(Duration::from_secs(30));
    assert_eq!(world.agents[0].handles[&session].end, Some(SessionEnd::RelayStops));
}

#[test]
fn a_hint_at_a_relay_that_does_not_answer_leaves_sessions_where_they_are_until_it_does() {
    let mut world = World::where_some_are_unknown(1, 2, Use::EndToEnd);
    world.relays[1].alive = false;
    let session = world.connected(0, Use::EndToEnd);
    world.drain(0, Some(&hint_of(1).to_string()));
    world.pass(Duration::from_secs(60));
    assert_eq!((world.relay_of(0, session), world.agents[0].moves), (Some(0), 0));
    world.revive(1);
    world.pass(MOVED);
    assert_eq!(world.relay_of(0, session), Some(1));
    world.assert_settled(1);
}

#[test]
fn a_relay_known_by_a_hint_is_left_once_the_other_is_back_and_nothing_uses_it() {
    let mut world = World::where_some_are_unknown(1, 2, Use::EndToEnd);
    let session = world.connected(0, Use::EndToEnd);
    world.drain(0, Some(&hint_of(1).to_string()));
    world.pass(MOVED);
    world.stop(0);
    world.revive(0);
    world.pass(Duration::from_secs(60));
    assert_eq!(world.relay_of(0, session), Some(1), "what has moved stays");
    assert!(world.agents[0].knows.contains(&1));
    let next = world.connected(0, Use::Raw);
    assert_eq!(world.relay_of(0, next), Some(0), "new sessions go through the configured one");
    world.drop_handle(0, session);
    world.pass(Duration::from_secs(60));
    assert!(!world.agents[0].knows.contains(&1));
    world.drain(0, Some(&hint_of(1).to_string()));
    world.pass(MOVED);
    assert_eq!(world.relay_of(0, next), Some(1), "and is followed again when it is named again");
}

#[test]
fn a_session_that_is_paired_only_when_its_relay_drains_already_moves_then() {
    let mut agent = agent(false, 2);
    agent.up(0);
    agent.up(1);
    agent.state.connect(RequestId(1), peer(), Use::EndToEnd, NOW);
    agent.ready(Side::Connector, peer());
    agent.drain(0, None);
    agent.outputs();
    agent.paired();
    let outputs = agent.outputs();
    assert!(
        matches!(
            outputs[..],
            [
                Output::Paired(SESSION),
                Output::Connected(..),
                Output::Send(RelayIndex(1), Message::RelayConnect(_))
            ]
        ),
        "{outputs:?}"
    );
}

#[test]
fn a_path_that_is_sound_does_not_keep_a_session_at_a_draining_relay() {
    let mut world = World::where_some_are_unknown(1, 2, Use::EndToEnd);
    let session = world.connected(0, Use::EndToEnd);
    world.drain(0, Some(&hint_of(1).to_string()));
    let now = world.now;
    for health in [PathHealth::Silent, PathHealth::Sound] {
        world.agents[0].state.bind_event(session, BindEvent::Path(health), now);
    }
    world.pass(MOVED);
    assert_eq!(world.relay_of(0, session), Some(1));
}

#[test]
fn a_request_waits_for_the_named_relay_and_says_what_is_the_matter_if_there_is_none() {
    let mut agent = agent(false, 1);
    agent.up(0);
    agent.drain(0, Some(&hint_of(1).to_string()));
    agent.outputs();
    agent.state.connect(RequestId(1), peer(), Use::EndToEnd, NOW);
    assert!(agent.outputs().is_empty());
    agent.state.relay_up(RelayIndex(1), NOW);
    assert!(matches!(agent.outputs()[..], [Output::Send(RelayIndex(1), Message::RelayConnect(_))]));

    let mut agent = agent_that_takes(Use::EndToEnd, false, 1);
    agent.up(0);
    agent.drain(0, None);
    agent.state.connect(RequestId(1), peer(), Use::EndToEnd, NOW);
    let [Output::Failed(_, error)] = &agent.outputs()[..] else { panic!() };
    assert_eq!(error.to_string(), "no relay can be reached: relay0:4433: it is about to stop");
}

#[test]
fn hints_that_cannot_be_meant_are_refused_counted_and_move_nothing_there() {
    let me = NodeId::from_bytes([1; 32]);
    let own = hint_of(0);
    for (hint, why) in [
        ("relay1:4433".to_owned(), "is malformed"),
        (format!("{}@relay1", own.node), "is malformed"),
        ("atlas_12@relay1:4433".to_owned(), "is malformed"),
        (format!("{}@relay1:4433\n{}", own.node, "x".repeat(10_000)), "is malformed"),
        (format!("{}@{}:4433", own.node, "x".repeat(254)), "is malformed"),
        (format!("{me}@relay1:4433"), "itself"),
        (own.to_string(), "itself"),
        (own.to_string().replace("relay0", "relay1"), "itself"),
        (format!("{me}@relay0:4433").replace(&me.to_string(), &hint_of(9).node.to_string()), "itself"),
        (hint_of(9).to_string().replace("relay9", "relay1"), "another node id"),
    ] {
        let mut agent = agent(false, 2);
        agent.state.relay_is(RelayIndex(0), own.node);
        agent.state.relay_is(RelayIndex(1), hint_of(1).node);
        agent.up(0);
        agent.drain(0, Some(&hint));
        let outputs = agent.outputs();
        let [Output::Refused { refusal: Refusal::RelayHint, whom, why: said }] = &outputs[..] else {
            panic!("{hint}: {outputs:?}")
        };
        assert_eq!(whom, "relay0:4433");
        assert!(said.contains(why) && said.len() < 400, "{hint}: {said}");
    }
}

#[test]
fn no_more_relays_than_a_few_are_followed_however_many_are_named() {
    let mut agent = agent(false, 1);
    agent.up(0);
    for at in 1..=MOST_HINTED {
        agent.drain(0, Some(&hint_of(at).to_string()));
        assert!(matches!(agent.outputs()[..], [Output::Follow { .. }]));
        agent.drain(0, Some(&hint_of(at).to_string()));
        assert!(agent.outputs().is_empty(), "it is followed already");
    }
    agent.drain(0, Some(&hint_of(MOST_HINTED + 1).to_string()));
    assert!(matches!(agent.outputs()[..], [Output::Refused { refusal: Refusal::RelayHint, .. }]));
}

impl Agent {
    fn drain(&mut self, relay: usize, hint: Option<&str>) {
        let drain = Disconnect::new(disconnect_reason::DRAIN, None, None);
        let told = Disconnect { relay: hint.map(str::to_owned), ..drain };
        self.state.message(RelayIndex(relay), told.into(), NOW);
    }
}
