//! A relay that is killed and started again with the same identity, as its agents' QUIC sees it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is a failure")]

mod node;

use std::net::SocketAddr;
use std::process::Child;
use std::time::Duration;

use node::{Node, free_port, signal, terminate, wait};
use quinn::{Connection, ConnectionError, Endpoint};
use relay_userspace::identity::NodeKey;
use relay_userspace::tls;

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_hears_from_the_successor_of_a_killed_relay_that_its_connection_is_no_more() {
    let relay = Node::relay();
    let (_endpoint, connection, mut successor) = connected_before_a_kill(&relay, &relay).await;

    say_anything(&connection).await;
    let why = tokio::time::timeout(PATIENCE, connection.closed()).await.expect("it hears");
    // Not that it has timed out.
    assert_eq!(why, ConnectionError::Reset);
    terminate(&successor);
    assert_eq!(wait(&mut successor, PATIENCE), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_of_another_identity_on_the_same_port_cannot_end_its_connections() {
    let [relay, other] = [Node::relay(), Node::relay()];
    let (_endpoint, connection, mut stranger) = connected_before_a_kill(&relay, &other).await;

    say_anything(&connection).await;
    // It goes on asking until its own patience ends.
    assert_eq!(connection.closed().await, ConnectionError::TimedOut);
    terminate(&stranger);
    assert_eq!(wait(&mut stranger, PATIENCE), Some(0));
}

/// A connection with `relay`, which is killed then, and the daemon of `next` on the same port.
async fn connected_before_a_kill(relay: &Node, next: &Node) -> (Endpoint, Connection, Child) {
    let port = free_port();
    let listen = format!("net listen --port {port} --datapath userspace");
    let mut killed = relay.start(&listen);
    relay.until_it_answers("net peers");
    let (endpoint, connection) = connected(port).await;
    signal(&killed, "KILL");
    killed.wait().unwrap();
    let successor = next.start(&listen);
    next.until_it_answers("net peers");
    (endpoint, connection, successor)
}

/// Sends a packet, unless the end is known already: QUIC may have asked for a sign of life by itself.
async fn say_anything(connection: &Connection) {
    if let Ok((mut stream, _)) = connection.open_bi().await {
        let _over_already = stream.write_all(b"anything").await;
    }
}

/// A connection that TLS has verified.
async fn connected(port: u16) -> (Endpoint, Connection) {
    let mut endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
    let mut config = tls::client_config(&NodeKey::from_seed(&[1; 32]), tls::ALPN_RELAY, None).unwrap();
    let mut transport = quinn::TransportConfig::default();
    transport.max_idle_timeout(Some(Duration::from_secs(5).try_into().unwrap()));
    config.transport_config(transport.into());
    endpoint.set_default_client_config(config);
    let relay = SocketAddr::from(([127, 0, 0, 1], port));
    let connection = endpoint.connect(relay, tls::SERVER_NAME).unwrap().await.unwrap();
    (endpoint, connection)
}
