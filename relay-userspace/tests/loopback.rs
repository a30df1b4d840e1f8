//! A real relay and real agents in one process, over loopback: no privilege, no lab.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "in a test a panic is a failure"
)]

mod echo;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use relay_userspace::admin::{self, Request};
use relay_userspace::agent::{
    Agent, AgentSettings, CongestionSettings, ConnectError, Incoming, RawSendError, SessionEnd,
};
use relay_userspace::config::{Allow, AtlasRoot, Config, ForwardProtocol, RelayAddress};
use relay_userspace::identity::{NodeId, NodeKey};
use relay_userspace::protocol::ErrorCode;
use relay_userspace::relay::report::{Drain, Ended, Peers, Sessions, Status};
use relay_userspace::relay::stopping::Stopping;
use relay_userspace::relay::{Relay, StartError};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use echo::echo_server;

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

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
    let permitted = Allow {
        peer: key(1).node_id(),
        to: echo.to_string().parse().unwrap(),
        protocol: ForwardProtocol::Tcp,
    };
    let _target = relay.agent(2, &[key(1).node_id()], &[permitted]);
    let source = relay.agent(1, &[], &[]);
    relay.until_announced(2).await;
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let forward = source.forward(any, key(2).node_id(), echo.to_string().parse().unwrap()).await.unwrap();
    echoes(forward.local_addr(), 1_000_000).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_at_the_limit_is_paced_and_loses_next_to_nothing() {
    const MIB: usize = 1 << 20;
    let relay = TestRelay::start("relay_bandwidth_limit = 1048576");
    let sink = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = sink.local_addr().unwrap().to_string();
    let permitted = Allow { peer: key(1).node_id(), to: to.parse().unwrap(), protocol: ForwardProtocol::Tcp };
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
            let (relayed, sent) = (&session.sides[0], forward.traffic());
            // Nothing would be lost if the relay's reader never had to wait for a processor: after a pause longer than
            // the burst it finds more than the bucket holds.
            assert!(session.limited_packets * 100 <= sent.datagrams_sent, "{session:?}");
            if relayed.packets_userspace + session.limited_packets == sent.datagrams_sent
                && relayed.bytes + session.limited_bytes == sent.bytes_sent
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
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
    // Never more than the rate and one burst. That it is not less either is measured in the lab, where nothing else
    // runs beside it.
    let burst = LIMIT / 4.0 + DATAGRAM as f64;
    let (begin, mut bytes) = (Instant::now(), 0.0);
    while begin.elapsed() < Duration::from_secs(3) {
        bytes += receiver.recv().await.unwrap().len() as f64;
        assert!(
            bytes <= LIMIT * begin.elapsed().as_secs_f64() + burst,
            "{bytes} bytes in {:?}",
            begin.elapsed()
        );
    }
    // The relay tells every 5 s, counted from the pairing.
    let told = async {
        while session.limited().1 == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), told).await.expect("the sender is told");
    sending.abort();
    let (packets, dropped) = session.limited();
    assert!(packets > 1_000 && dropped == packets * DATAGRAM as u64, "{packets} packets, {dropped} bytes");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_of_one_identity_reach_one_peer_at_once() {
    let relay = TestRelay::start("relay_bandwidth_limit = 0");
    let echo = echo_server().await;
    let permitted = Allow {
        peer: key(1).node_id(),
        to: echo.to_string().parse().unwrap(),
        protocol: ForwardProtocol::Tcp,
    };
    let _target = relay.agent(2, &[key(1).node_id()], &[permitted]);
    relay.until_announced(2).await;
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let dialer = || Agent::spawn(AgentSettings { announce: false, ..relay.settings(1, &[], &[]) });
    let (first, second) = (dialer(), dialer());
    let to = || echo.to_string().parse().unwrap();
    let one = first.forward(any, key(2).node_id(), to()).await.unwrap();
    echoes(one.local_addr(), 10_000).await;
    let other = second.forward(any, key(2).node_id(), to()).await.unwrap();
    echoes(other.local_addr(), 10_000).await;
    echoes(one.local_addr(), 300_000).await;
    echoes(other.local_addr(), 300_000).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_reach_each_other_whichever_version_of_ip_they_speak() {
    let relay = TestRelay::start("relay_bandwidth_limit = 0");
    let echo = echo_server().await;
    for (number, [near, far]) in [[V6, V6], [V4, V6], [V6, V4]].into_iter().enumerate() {
        let (one, other) = (10 + number as u8, 20 + number as u8);
        let permitted = Allow {
            peer: key(one).node_id(),
            to: echo.to_string().parse().unwrap(),
            protocol: ForwardProtocol::Tcp,
        };
        let settings = relay.settings(other, &[key(one).node_id()], &[permitted]);
        let target = Agent::spawn(AgentSettings { relays: vec![relay.pinned(far)], ..settings });
        relay.until_announced(other).await;
        let settings = relay.settings(one, &[], &[]);
        let source = Agent::spawn(AgentSettings { relays: vec![relay.pinned(near)], ..settings });
        let connection = source.connect(key(other).node_id()).await.unwrap();
        connection.ping().await.unwrap();

        let any = SocketAddr::new(near, 0);
        let to = echo.to_string().parse().unwrap();
        let forward = source.forward(any, key(other).node_id(), to).await.unwrap();
        echoes(forward.local_addr(), 300_000).await;

        let sessions = relay.sessions().await.sessions;
        let own = sessions.iter().find(|session| session.connector == key(one).node_id().to_string());
        let session = own.unwrap_or_else(|| panic!("{sessions:?}"));
        for (side, address) in session.sides.iter().zip([near, far]) {
            let agent: SocketAddr = side.agent.as_deref().unwrap().parse().unwrap();
            assert_eq!((agent.ip(), side.relay.as_deref()), (address, Some(&*relay.at(address).to_string())));
            assert!(side.packets_userspace > 5 && side.bytes > 200_000, "{session:?}");
        }
        drop((forward, connection));
        source.shutdown().await;
        target.shutdown().await;
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pair_is_told_the_largest_datagram_that_fits_both_sides() {
    let relay = TestRelay::start("relay_bandwidth_limit = 0");
    for (number, (near, far, largest)) in
        [(V4, V4, 1472), (V4, V6, 1452), (V6, V4, 1452), (V6, V6, 1452)].into_iter().enumerate()
    {
        let (one, other) = (10 + number as u8, 20 + number as u8);
        let settings = relay.settings(other, &[key(one).node_id()], &[]);
        let target = Agent::spawn(AgentSettings {
            relays: vec![relay.pinned(far)],
            incoming: Incoming::Raw,
            ..settings
        });
        relay.until_announced(other).await;
        let settings = relay.settings(one, &[], &[]);
        let source = Agent::spawn(AgentSettings { relays: vec![relay.pinned(near)], ..settings });
        let mut near = source.connect_raw(key(other).node_id()).await.unwrap();
        let mut far = target.accept_raw().await.unwrap();
        assert_eq!((near.max_datagram(), far.max_datagram()), (largest, largest));
        near.send(&vec![1; largest]).await.unwrap();
        assert_eq!(far.recv().await.unwrap(), vec![1; largest]);
        far.send(&vec![2; largest]).await.unwrap();
        assert_eq!(near.recv().await.unwrap(), vec![2; largest]);
        let too_large = near.send(&vec![3; largest + 1]).await.unwrap_err();
        assert_eq!(too_large, RawSendError::TooLarge { len: largest + 1, max: largest });
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_given_by_its_ipv6_address_alone_is_remembered_by_its_key() {
    let relay = TestRelay::start("");
    let settings = relay.settings(1, &[], &[]);
    let place = relay.at(V6).to_string();
    let known = settings.known_relays.clone();
    let by_address = AgentSettings { relays: vec![place.parse().unwrap()], ..settings };
    let agent = Agent::spawn(by_address.clone());
    relay.until_announced(1).await;
    assert_eq!(std::fs::read_to_string(&known).unwrap(), format!("{place} {}\n", relay.key.node_id()));
    agent.shutdown().await;

    std::fs::write(&known, format!("{place} {}\n", key(9).node_id())).unwrap();
    let agent = Agent::spawn(by_address);
    let error = agent.connect(key(2).node_id()).await.unwrap_err().to_string();
    assert!(error.contains(&key(9).node_id().to_string()), "{error}");
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
async fn when_the_tables_are_full_one_more_is_told_so_and_those_inside_go_on() {
    let relay = TestRelay::start_for(1, "");
    let target = relay.raw_agent(2, &[key(1).node_id(), key(3).node_id()]);
    relay.until_announced(2).await;
    let first = relay.agent(1, &[], &[]);
    let near = first.connect_raw(key(2).node_id()).await.unwrap();
    let mut far = target.accept_raw().await.unwrap();

    let one_more = relay.agent(3, &[], &[]);
    let error = one_more.connect_raw(key(2).node_id()).await.unwrap_err();

    let ConnectError::Ended(SessionEnd::ByRelay { reason, .. }) = &error else { panic!("{error}") };
    assert_eq!(*reason, ErrorCode::TableFull.to_string());
    let text = error.to_string();
    assert!(text.contains("3004 ERR_TABLE_FULL (no room in the flow table)"), "{text}");
    assert_eq!(relay.status().await.control["table_full"], 1);
    let sessions = relay.sessions().await.sessions;
    assert_eq!(sessions.len(), 1, "{sessions:?}");
    near.send(b"goes on").await.unwrap();
    assert_eq!(far.recv().await.unwrap(), &b"goes on"[..]);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_relay_stops_it_is_gone_at_once_and_agents_that_find_no_other_say_so() {
    let relay = TestRelay::start("");
    let target = relay.agent(2, &[key(1).node_id()], &[]);
    let source = relay.agent(1, &[], &[]);
    relay.until_announced(2).await;
    let connection = source.connect(key(2).node_id()).await.unwrap();
    let address = relay.address;
    tokio::time::timeout(Duration::from_secs(4), relay.stop()).await.expect("it stops promptly");
    // The port is free again.
    drop(std::net::UdpSocket::bind(address).unwrap());
    // They wait for its return, but not as long as their own QUIC would for each other.
    let why =
        tokio::time::timeout(Duration::from_secs(60), connection.closed()).await.expect("agents notice");
    assert!(why.contains("the relay is stopping"), "{why}");
    drop(target);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_one_line_that_says_what_to_do() {
    let relay = TestRelay::start("");
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path(), relay.address.port(), "");
    let error = Relay::start(&config, None, key(9), "second").unwrap_err();
    assert!(matches!(error, StartError::Port(_)));
    let text = error.to_string();
    assert!(text.contains("is in use") && !text.contains('\n'), "{text}");
    // And with the same root it is the admin socket that is taken.
    let config = self::config(relay.directory.path(), 0, "");
    let error = Relay::start(&config, None, key(9), "third").unwrap_err();
    assert!(matches!(error, StartError::Admin(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_ends_sessions_and_lets_no_new_ones_begin() {
    let relay = TestRelay::start("");
    let target = relay.raw_agent(2, &[key(1).node_id()]);
    relay.until_announced(2).await;
    let source = relay.agent(1, &[], &[]);
    for by_node in [false, true] {
        let near = source.connect_raw(key(2).node_id()).await.unwrap();
        let _far = target.accept_raw().await.unwrap();
        let id = relay.sessions().await.sessions[0].session.parse().unwrap();
        let request = match by_node {
            true => Request::EndSessionsOf { node: key(2).node_id() },
            false => Request::EndSession { session: id },
        };
        assert_eq!(relay.ask::<Ended>(request).await, Ended { sessions: 1 });
        let end = near.session().ended().await.to_string();
        assert!(end.contains("DISCONNECT_OPERATOR (ended by the relay's operator)"), "{end}");
        let none = relay.refuses(Request::EndSession { session: id }).await;
        assert!(none.contains(&id.to_string()) && none.contains("net sessions"), "{none}");
    }
    assert_eq!(relay.sessions().await.sessions, []);

    assert!(!relay.status().await.draining);
    let near = source.connect_raw(key(2).node_id()).await.unwrap();
    let drain = relay.ask::<Drain>(Request::Drain { deadline_s: None, hint: None }).await;
    assert_eq!(drain, Drain { sessions: 1, left_s: None, hint: None });
    let status = relay.status().await;
    assert_eq!((status.draining, status.drain), (true, Some(drain)));
    let error = source.connect_raw(key(2).node_id()).await.unwrap_err().to_string();
    assert!(error.contains("is about to stop"), "{error}");
    drop(near);
    // The session was the last: nobody has to stop it.
    relay.relay.stopped().await.unwrap();
}

/// A relay on loopback with a root of its own.
struct TestRelay {
    relay: Relay,
    address: SocketAddr,
    key: NodeKey,
    directory: TempDir,
}

impl TestRelay {
    fn start(transport: &str) -> TestRelay {
        TestRelay::start_for(64, transport)
    }

    /// As [`TestRelay::start`], with room for so many sessions.
    fn start_for(max_sessions: u32, transport: &str) -> TestRelay {
        let directory = tempfile::tempdir().unwrap();
        let mut config = config(directory.path(), 0, transport);
        config.datapath.max_sessions = max_sessions;
        let relay = Relay::start(&config, None, key(0), "relay").unwrap();
        let address = SocketAddr::new(V4, relay.local_addr().port());
        TestRelay { relay, address, key: key(0), directory }
    }

    /// Its port on `address`.
    fn at(&self, address: IpAddr) -> SocketAddr {
        SocketAddr::new(address, self.address.port())
    }

    /// Its port on `address` and its id, as a configuration has them.
    fn pinned(&self, address: IpAddr) -> RelayAddress {
        format!("{}@{}", self.key.node_id(), self.at(address)).parse().unwrap()
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
            relays: vec![self.pinned(V4)],
            known_relays: self.directory.path().join(format!("known-{seed}")),
            announce: true,
            accept: accept.to_vec(),
            allow: allow.to_vec(),
            incoming: Incoming::EndToEnd,
            sessions_per_peer: 4,
            congestion: CongestionSettings::default(),
            allow_readable_relay: false,
        }
    }

    async fn ask<T: serde::de::DeserializeOwned>(&self, request: Request) -> T {
        let socket = AtlasRoot::at(self.directory.path()).admin_socket();
        let answer = tokio::task::spawn_blocking(move || admin::ask(&socket, request)).await.unwrap();
        serde_json::from_value(answer.unwrap()).unwrap()
    }

    /// Why a request is not done.
    async fn refuses(&self, request: Request) -> String {
        let socket = AtlasRoot::at(self.directory.path()).admin_socket();
        let answer = tokio::task::spawn_blocking(move || admin::ask(&socket, request)).await.unwrap();
        answer.unwrap_err().to_string()
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
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), announced).await.expect("the agent announces itself");
    }

    async fn stop(self) {
        self.relay.stop(Stopping::End);
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

/// What is sent to `address` comes back as it is.
async fn echoes(address: SocketAddr, bytes: u32) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let sent: Vec<u8> = (0..bytes).map(|n| (n % 251) as u8).collect();
    let (mut read, mut write) = stream.split();
    let mut received = vec![0; sent.len()];
    let (wrote, was_read) = tokio::join!(write.write_all(&sent), read.read_exact(&mut received));
    wrote.unwrap();
    was_read.unwrap();
    assert!(sent == received, "what comes back is what was sent");
}
