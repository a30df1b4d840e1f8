//! End-to-end connections: how they come about, and how they end.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::UdpSocket;

use super::{Network, node};
use crate::agent::{Agent, AgentSettings, ConnectError, PeerConnection, SessionEnd};

#[tokio::test]
async fn two_agents_connect_and_ping_end_to_end() {
    let net = Network::start().await;
    let (alice, _bob) = (net.dialer(1), net.server(2, &[1], &[]).await);
    let connection = alice.connect(node(2)).await.unwrap();
    assert_eq!((connection.peer().node_id, connection.peer().name.as_str()), (node(2), "agent 2"));
    let sample = connection.ping().await.unwrap();
    assert!(sample.round_trip < Duration::from_secs(1));
    assert!((sample.answered_unix_s - sample.sent_unix_s).abs() <= 1);

    let again = alice.connect(node(2)).await.unwrap();
    assert_eq!(again.session().id(), connection.session().id(), "one session is shared");
    let sessions = alice.sessions().await.sessions;
    assert_eq!(sessions.len(), 1);
    assert_eq!((sessions[0].role.as_str(), sessions[0].peer.clone()), ("connector", node(2).to_string()));
    assert!(sessions[0].traffic.datagrams_sent > 0 && sessions[0].traffic.bytes_received > 0);
    assert!(!alice.peers().await.peers[0].announced);
}

#[tokio::test]
async fn a_session_ends_with_its_last_connection_and_the_relay_is_told() {
    let net = Network::start().await;
    let (alice, _bob) = (net.dialer(1), net.server(2, &[1], &[]).await);
    let connection = alice.connect(node(2)).await.unwrap();
    let session = connection.session().clone();
    drop(connection);
    assert_eq!(session.ended().await, SessionEnd::Closed);
    net.relay.until(|state| state.disconnected.contains(&session.id())).await;
}

#[tokio::test]
async fn shutdown_tells_the_peer_and_the_relay() {
    let net = Network::start().await;
    let (alice, bob) = (net.dialer(1), net.server(2, &[1], &[]).await);
    let connection = bob_to_alice(&net, &alice, &bob).await;
    bob.shutdown().await;
    let why = connection.closed().await;
    assert!(why.contains("being stopped"), "{why}");
    net.relay.until(|state| state.goodbyes == 1).await;
}

#[tokio::test]
async fn an_agent_that_crashed_connects_again_at_once() {
    let net = Network::start().await;
    let _bob = net.server(2, &[1], &[]).await;
    let crashing =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let settings = net.dialing(1);
    let connected = crashing.spawn(async move {
        let alice = Agent::spawn(settings);
        let connection = alice.connect(node(2)).await.unwrap();
        (alice, connection)
    });
    let (alice, connection) = connected.await.unwrap();
    let first = connection.session().id();
    // Nobody is told: as after SIGKILL, the sockets are just gone.
    crashing.shutdown_background();

    let reborn = net.dialer(1);
    let again = reborn.connect(node(2)).await.unwrap();
    assert_ne!(again.session().id(), first);
    again.ping().await.unwrap();
    drop((alice, connection));
}

#[tokio::test]
async fn agents_that_dial_each_other_at_the_same_time_both_connect() {
    let net = Network::start().await;
    let alice = Agent::spawn(net.serving(1, &[2], &[]));
    let bob = Agent::spawn(net.serving(2, &[1], &[]));
    net.relay.until(|state| state.announces == 2).await;
    let (from_alice, from_bob) = tokio::join!(alice.connect(node(2)), bob.connect(node(1)));
    let (from_alice, from_bob) = (from_alice.unwrap(), from_bob.unwrap());
    from_alice.ping().await.unwrap();
    from_bob.ping().await.unwrap();
    drop(from_alice);
    from_bob.ping().await.unwrap();
}

#[tokio::test]
async fn no_relay_at_all_is_told_at_once() {
    let net = Network::start().await;
    let lonely = Agent::spawn(AgentSettings { relays: Vec::new(), ..net.dialing(1) });
    assert!(matches!(lonely.connect(node(2)).await, Err(ConnectError::NoRelay)));
    let nobody = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = format!("127.0.0.1:{}", nobody.local_addr().unwrap().port());
    let unreached = Agent::spawn(AgentSettings { relays: vec![address.parse().unwrap()], ..net.dialing(1) });
    let error = unreached.connect(node(2)).await.unwrap_err();
    assert!(matches!(&error, ConnectError::RelaysUnreachable(why) if why.contains("no answer")), "{error}");
}

#[tokio::test]
async fn a_blocked_data_path_fails_the_connection_and_says_so() {
    let net = Network::start().await;
    net.relay.data_blocked.store(true, Ordering::Relaxed);
    let (alice, _bob) = (net.dialer(1), net.server(2, &[1], &[]).await);
    let error = alice.connect(node(2)).await.unwrap_err();
    assert!(matches!(error, ConnectError::NotPaired { .. }), "{error}");
}

#[tokio::test]
async fn a_session_survives_the_control_connection() {
    let net = Network::start().await;
    let (alice, _bob) = (net.dialer(1), net.server(2, &[1], &[]).await);
    let connection = alice.connect(node(2)).await.unwrap();
    net.relay.drop_control_connections();
    net.relay.until(|state| state.announces >= 2).await;
    connection.ping().await.unwrap();
    assert_eq!(connection.session().end(), None);
}

async fn bob_to_alice(net: &Network, alice: &Agent, bob: &Agent) -> PeerConnection {
    net.relay.until(|state| state.announces >= 1).await;
    let connection = alice.connect(bob.node_id()).await.unwrap();
    connection.ping().await.unwrap();
    connection
}

#[tokio::test]
async fn a_target_that_connects_back_has_a_session_of_its_own() {
    let net = Network::start().await;
    let bob = net.server(2, &[1], &[]).await;
    let alice = net.server(1, &[2], &[]).await;
    net.relay.until(|state| state.announces >= 2).await;
    let there = alice.connect(node(2)).await.unwrap();
    let back = bob.connect(node(1)).await.unwrap();
    there.ping().await.unwrap();
    back.ping().await.unwrap();
    assert_ne!(back.session().id(), there.session().id());
    assert_eq!(back.session().side(), relay_common::Side::Connector);
}
