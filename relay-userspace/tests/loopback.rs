//! A real relay and real agents in one process, over loopback: no privilege, no lab.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "in a test a panic is a failure"
)]

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use relay_userspace::admin::{self, Request};
use relay_userspace::agent::{Agent, AgentSettings, Incoming};
use relay_userspace::config::{Allow, AtlasRoot, Config};
use relay_userspace::identity::{NodeId, NodeKey};
use relay_userspace::relay::report::{Peers, Sessions, Status};
use relay_userspace::relay::{Relay, StartError};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_ping_each_other_through_the_relay() {
    let relay = TestRelay::start("");
    let _target = relay.agent(2, &[key(1).node_id()], &[]);
    let source = relay.agent(1, &[], &[]);
    relay.until_announced(2).await;
    let connection = source.connect(key(2).node_id()).await.unwrap();
    for _ in 0..10 {
        connection.ping().await.unwrap();
    }
    let sessions = relay.sessions().await;
    let [session] = &sessions.sessions[..] else { panic!("{sessions:?}") };
    assert_eq!(session.state, "paired");
    assert_eq!(session.connector, key(1).node_id().to_string());
    assert!(session.sides.iter().all(|side| side.packets_userspace > 5 && side.bytes > 0), "{session:?}");
    let status = relay.status().await;
    assert_eq!(status.datapath, "userspace");
    assert!(status.userspace["forwarded"] > 10, "{status:?}");
    connection.close().await;
    source.shutdown().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tcp_port_is_forwarded_to_where_the_peer_permits() {
    let relay = TestRelay::start("relay_bandwidth_limit = 0");
    let echo = echo_server().await;
    let permitted = Allow { peer: key(1).node_id(), to: echo.to_string().parse().unwrap() };
    let _target = relay.agent(2, &[key(1).node_id()], &[permitted]);
    let source = relay.agent(1, &[], &[]);
    relay.until_announced(2).await;
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let forward = source.forward(any, key(2).node_id(), echo.to_string().parse().unwrap()).await.unwrap();
    let mut stream = TcpStream::connect(forward.local_addr()).await.unwrap();
    let sent: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    let (mut read, mut write) = stream.split();
    let mut received = vec![0; sent.len()];
    let (wrote, was_read) = tokio::join!(write.write_all(&sent), read.read_exact(&mut received));
    wrote.unwrap();
    was_read.unwrap();
    assert!(sent == received, "what comes back is what was sent");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_at_the_limit_is_paced_and_loses_nothing() {
    const MIB: usize = 1 << 20;
    let relay = TestRelay::start("relay_bandwidth_limit = 1048576");
    let sink = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = sink.local_addr().unwrap().to_string();
    let permitted = Allow { peer: key(1).node_id(), to: to.parse().unwrap() };
    let _target = relay.agent(2, &[key(1).node_id()], &[permitted]);
    let source = relay.agent(1, &[], &[]);
    relay.until_announced(2).await;
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let forward = source.forward(any, key(2).node_id(), to.parse().unwrap()).await.unwrap();
    let mut near = TcpStream::connect(forward.local_addr()).await.unwrap();
    let (mut far, _) = sink.accept().await.unwrap();
    let started = Instant::now();
    tokio::spawn(async move { near.write_all(&vec![7; 3 * MIB]).await.unwrap() });
    far.read_exact(&mut vec![0; 3 * MIB]).await.unwrap();
    let took = started.elapsed();
    // Three seconds' worth, less the burst.
    assert!(took > Duration::from_millis(2_700), "{took:?}");
    // What the agent counts is what the relay counts, once nothing is under way.
    let agreed = async {
        loop {
            let sessions = relay.sessions().await;
            let [session] = &sessions.sessions[..] else { panic!("{sessions:?}") };
            assert_eq!(session.limited_packets, 0, "{session:?}");
            let (relayed, sent) = (&session.sides[0], forward.traffic());
            if (relayed.packets_userspace, relayed.bytes) == (sent.datagrams_sent, sent.bytes_sent) {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), agreed).await.expect("agent and relay count the same");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_at_twice_the_limit_is_cut_to_it_and_told() {
    const LIMIT: f64 = 1_048_576.0;
    const DATAGRAM: usize = 1_000;
    let relay = TestRelay::start("relay_bandwidth_limit = 1048576");
    let target = relay.raw_agent(2, &[key(1).node_id()]);
    let source = relay.agent(1, &[], &[]);
    relay.until_announced(2).await;
    let sender = source.connect_raw(key(2).node_id()).await.unwrap();
    let mut receiver = target.accept_raw().await.unwrap();
    let session = sender.session().clone();
    let sending = tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_millis(5));
        let mut due = 0.0;
        loop {
            tick.tick().await;
            due += 2.0 * LIMIT * 0.005;
            while due >= DATAGRAM as f64 {
                due -= DATAGRAM as f64;
                sender.send(&[7; DATAGRAM]).await.unwrap();
            }
        }
    });
    let begin = Instant::now();
    // The burst is spent within the first second.
    while begin.elapsed() < Duration::from_secs(1) {
        receiver.recv().await.unwrap();
    }
    let (measured, mut bytes) = (Instant::now(), 0);
    while measured.elapsed() < Duration::from_secs(4) {
        bytes += receiver.recv().await.unwrap().len();
    }
    let rate = bytes as f64 / measured.elapsed().as_secs_f64();
    assert!((rate / LIMIT - 1.0).abs() < 0.02, "{rate} bytes/s");
    sending.abort();
    let (packets, dropped) = session.limited();
    assert!(packets > 1_000 && dropped == packets * DATAGRAM as u64, "{packets} packets, {dropped} bytes");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_peer_and_one_that_does_not_accept_look_the_same() {
    let relay = TestRelay::start("");
    let _target = relay.agent(2, &[], &[]);
    relay.until_announced(2).await;
    let source = relay.agent(1, &[], &[]);
    let denied = source.connect(key(2).node_id()).await.unwrap_err().to_string();
    let absent = source.connect(key(3).node_id()).await.unwrap_err().to_string();
    let same = |text: &str, who: u8| text.replace(&key(who).node_id().short(), "PEER");
    assert_eq!(same(&denied, 2), same(&absent, 3));
    assert!(denied.contains("3001"), "{denied}");
    let status = relay.status().await;
    assert_eq!((status.control["target_denies"], status.control["target_absent"]), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_relay_stops_its_agents_are_told_and_it_is_gone_at_once() {
    let relay = TestRelay::start("");
    let target = relay.agent(2, &[key(1).node_id()], &[]);
    let source = relay.agent(1, &[], &[]);
    relay.until_announced(2).await;
    let connection = source.connect(key(2).node_id()).await.unwrap();
    let address = relay.address;
    tokio::time::timeout(Duration::from_secs(4), relay.stop()).await.expect("it stops promptly");
    let why =
        tokio::time::timeout(Duration::from_secs(10), connection.closed()).await.expect("agents notice");
    assert!(!why.is_empty());
    // The port is free again.
    drop(std::net::UdpSocket::bind(address).unwrap());
    drop(target);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_one_line_that_says_what_to_do() {
    let relay = TestRelay::start("");
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path(), relay.address.port(), "");
    let error = Relay::start(&config, key(9), "second", CancellationToken::new()).unwrap_err();
    assert!(matches!(error, StartError::Port(_)));
    let text = error.to_string();
    assert!(text.contains("is in use") && !text.contains('\n'), "{text}");
    // And with the same root it is the admin socket that is taken.
    let config = self::config(relay.directory.path(), 0, "");
    let error = Relay::start(&config, key(9), "third", CancellationToken::new()).unwrap_err();
    assert!(matches!(error, StartError::Admin(_)), "{error}");
}

/// A relay on loopback with a root of its own.
struct TestRelay {
    relay: Relay,
    address: SocketAddr,
    key: NodeKey,
    directory: TempDir,
    shutdown: CancellationToken,
}

impl TestRelay {
    fn start(transport: &str) -> TestRelay {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path(), 0, transport);
        let shutdown = CancellationToken::new();
        let relay = Relay::start(&config, key(0), "relay", shutdown.clone()).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], relay.local_addr().port()));
        TestRelay { relay, address, key: key(0), directory, shutdown }
    }

    fn agent(&self, seed: u8, accept: &[NodeId], allow: &[Allow]) -> Agent {
        Agent::spawn(self.settings(seed, accept, allow))
    }

    fn raw_agent(&self, seed: u8, accept: &[NodeId]) -> Agent {
        Agent::spawn(AgentSettings { incoming: Incoming::Raw, ..self.settings(seed, accept, &[]) })
    }

    fn settings(&self, seed: u8, accept: &[NodeId], allow: &[Allow]) -> AgentSettings {
        AgentSettings {
            key: key(seed),
            name: format!("agent-{seed}"),
            relays: vec![format!("{}@{}", self.key.node_id(), self.address).parse().unwrap()],
            known_relays: self.directory.path().join(format!("known-{seed}")),
            announce: true,
            accept: accept.to_vec(),
            allow: allow.to_vec(),
            incoming: Incoming::EndToEnd,
        }
    }

    async fn ask<T: serde::de::DeserializeOwned>(&self, request: Request) -> T {
        let socket = AtlasRoot::at(self.directory.path()).admin_socket();
        let answer = tokio::task::spawn_blocking(move || admin::ask(&socket, request)).await.unwrap();
        serde_json::from_value(answer.unwrap()).unwrap()
    }

    async fn sessions(&self) -> Sessions {
        self.ask(Request::Sessions).await
    }

    async fn status(&self) -> Status {
        self.ask(Request::Status).await
    }

    async fn until_announced(&self, seed: u8) {
        let id = key(seed).node_id().to_string();
        let announced = async {
            loop {
                let peers: Peers = self.ask(Request::Peers).await;
                if peers.peers.iter().any(|peer| peer.node_id == id && peer.announced) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), announced).await.expect("the agent announces itself");
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.relay.stopped().await.unwrap();
    }
}

fn key(seed: u8) -> NodeKey {
    NodeKey::from_seed(&[seed; 32])
}

fn config(root: &Path, port: u16, transport: &str) -> Config {
    let text = format!(
        "[transport]\nenable_relay = true\noffer_relay = true\n{transport}\n[datapath]\nmode = \"userspace\"\nmax_sessions = 64\n"
    );
    let mut config = Config::parse(&text, Path::new("config.toml"), &AtlasRoot::at(root)).unwrap();
    config.network.port = port;
    config
}

/// A TCP server that sends back what it gets.
async fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _client_gone = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}
