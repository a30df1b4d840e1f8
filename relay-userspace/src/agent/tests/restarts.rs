//! A relay whose daemon makes way for another one.

use std::time::Duration;

use super::{Network, node};
use crate::agent::{AgentSettings, Incoming, SessionEvent};
use crate::protocol::flow_terms::RelayReady;

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn agents_come_back_to_a_relay_that_restarts_and_their_applications_notice_nothing() {
    let net = Network::start().await;
    let bob = net.agent(AgentSettings { incoming: Incoming::Raw, ..net.serving(2, &[1], &[]) }).await;
    let alice = net.dialer(1);
    let mut events = [&alice, &bob].map(|agent| agent.session_events());
    let mut near = alice.connect_raw(node(2)).await.unwrap();
    let mut far = bob.accept_raw().await.unwrap();
    let id = near.session().id();
    for events in &mut events {
        assert_eq!(events.next().await.unwrap().1, SessionEvent::Paired);
    }
    let tuples = net.relay.state().sessions[&id].tuples;

    net.relay.restart();
    let back = async {
        while [1, 2].iter().any(|seed| !net.relay.state().connections.contains_key(&node(*seed))) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, back).await.expect("they connect again");
    net.relay.until(|state| state.announces == 2).await;
    {
        // As a successor does that has found the session.
        let state = net.relay.state();
        let session = &state.sessions[&id];
        for (node, terms) in session.nodes.iter().zip(&session.terms) {
            state.connections[node].1.send(RelayReady::with_terms(terms).into()).unwrap();
        }
    }
    near.send(b"there").await.unwrap();
    assert_eq!(far.recv().await.unwrap()[..], b"there"[..]);
    far.send(b"and back").await.unwrap();
    assert_eq!(near.recv().await.unwrap()[..], b"and back"[..]);

    {
        let state = net.relay.state();
        assert_eq!(state.sessions[&id].tuples, tuples, "the data sockets are those they were");
        assert_eq!((state.disconnected.len(), state.paired), (0, 1), "no other session was asked for");
    }
    assert_eq!((near.session().id(), near.session().moves(), near.session().end()), (id, 0, None));
    for (agent, mut events) in [alice, bob].into_iter().zip(events) {
        agent.shutdown().await;
        let (_, next) = events.next().await.unwrap();
        assert!(
            matches!(next, SessionEvent::Ended { .. }),
            "nothing between its pairing and its end: {next:?}"
        );
    }
}
