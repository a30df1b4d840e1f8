//! What an application hears of its sessions.

use std::time::Duration;

use super::{Network, node};
use crate::agent::{AgentSettings, Incoming, Remedy, Session, SessionEnd, SessionEvent, SessionEvents};
use crate::protocol::ErrorCode;
use crate::protocol::flow_terms::{ErrorMessage, FlowTerms, RelayReady, disconnect_reason};

#[tokio::test]
async fn both_applications_hear_of_a_session_from_its_pairing_to_its_end() {
    let net = Network::start().await;
    let bob = net.agent(AgentSettings { incoming: Incoming::Raw, ..net.serving(2, &[1], &[]) }).await;
    let alice = net.dialer(1);
    let (mut at_bob, mut at_alice) = (bob.session_events(), alice.session_events());
    let near = alice.connect_raw(node(2)).await.unwrap();
    let id = near.session().id();
    for (events, peer) in [(&mut at_alice, 2), (&mut at_bob, 1)] {
        let (session, event) = next(events).await;
        assert_eq!((session.id(), session.peer(), event), (id, node(peer), SessionEvent::Paired));
    }

    let notice = ErrorMessage {
        session: Some(id),
        packets: Some(3),
        bytes: Some(4_000),
        ..ErrorMessage::new(ErrorCode::RateLimited, "dropped")
    };
    net.relay.state().connections[&node(1)].1.send(notice.into()).unwrap();
    assert_eq!(next(&mut at_alice).await.1, SessionEvent::Limited { packets: 3, bytes: 4_000 });

    net.relay.end(id, disconnect_reason::CONSENT_LOST);
    for events in [&mut at_alice, &mut at_bob] {
        let (session, event) = next(events).await;
        let SessionEvent::Ended { why } = event else { panic!("{event:?}") };
        assert_eq!((session.id(), &why), (id, &SessionEnd::SideSilent { note: None }));
        assert_eq!((session.end().as_ref(), why.remedy()), (Some(&why), Remedy::TryAgain));
    }
}

#[tokio::test]
async fn a_session_that_the_relay_sees_at_another_address_has_moved() {
    let net = Network::start().await;
    let _bob = net.agent(AgentSettings { incoming: Incoming::Raw, ..net.serving(2, &[1], &[]) }).await;
    let alice = net.dialer(1);
    let mut events = alice.session_events();
    let near = alice.connect_raw(node(2)).await.unwrap();
    let id = near.session().id();
    assert_eq!(next(&mut events).await.1, SessionEvent::Paired);

    let elsewhere = "192.0.2.9:9".parse().unwrap();
    {
        let mut state = net.relay.state();
        state.sees_agents_at = Some(elsewhere);
        let terms = FlowTerms { bind_now: true, ..state.sessions[&id].terms[0].clone() };
        state.connections[&node(1)].1.send(RelayReady::with_terms(&terms).into()).unwrap();
    }

    let (_, event) = next(&mut events).await;
    let SessionEvent::Moved { reflexive, relay } = event else { panic!("{event:?}") };
    assert_eq!((reflexive, relay.to_string()), (elsewhere, near.session().snapshot().relay));
}

#[tokio::test]
async fn when_the_agent_is_stopped_its_sessions_end_and_then_nothing_more_is_heard() {
    let net = Network::start().await;
    let _bob = net.agent(AgentSettings { incoming: Incoming::Raw, ..net.serving(2, &[1], &[]) }).await;
    let alice = net.dialer(1);
    let mut events = alice.session_events();
    let _near = alice.connect_raw(node(2)).await.unwrap();
    assert_eq!(next(&mut events).await.1, SessionEvent::Paired);
    alice.shutdown().await;
    assert_eq!(next(&mut events).await.1, SessionEvent::Ended { why: SessionEnd::Stopped });
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn whoever_does_not_listen_misses_the_oldest_events_and_is_told_how_many() {
    const NOTICES: u64 = SessionEvents::QUEUE as u64 + 10;
    let net = Network::start().await;
    let _bob = net.agent(AgentSettings { incoming: Incoming::Raw, ..net.serving(2, &[1], &[]) }).await;
    let alice = net.dialer(1);
    let mut events = alice.session_events();
    let near = alice.connect_raw(node(2)).await.unwrap();
    for number in 1..=NOTICES {
        let notice = ErrorMessage {
            session: Some(near.session().id()),
            packets: Some(1),
            bytes: Some(number),
            ..ErrorMessage::new(ErrorCode::RateLimited, "dropped")
        };
        net.relay.state().connections[&node(1)].1.send(notice.into()).unwrap();
    }
    let counted = async {
        while near.session().limited().0 < NOTICES {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), counted).await.expect("the session itself counts all");

    let oldest_kept = NOTICES - SessionEvents::QUEUE as u64 + 1;
    assert_eq!(next(&mut events).await.1, SessionEvent::Limited { packets: 1, bytes: oldest_kept });
    // The notices before it, and the pairing.
    assert_eq!(events.missed(), oldest_kept);
}

async fn next(events: &mut SessionEvents) -> (Session, SessionEvent) {
    let event = tokio::time::timeout(Duration::from_secs(20), events.next()).await;
    event.expect("something happens").expect("the agent runs")
}
