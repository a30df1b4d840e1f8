//! Real relays and real agents in one process, over loopback: relays fall silent, stop and return, and what agents have
//! open stays open.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "in a test a panic is a failure"
)]

mod echo;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Duration;

use relay_userspace::agent::{
    Agent, AgentSettings, Forward, Incoming, PeerConnection, PingError, RawSession, SessionEvent,
};
use relay_userspace::config::{Allow, AtlasRoot, Config, ForwardProtocol};
use relay_userspace::identity::NodeKey;
use relay_userspace::relay::Relay;
use relay_userspace::relay::stopping::Stopping;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use echo::echo_server;

/// What survives takes seconds, and longer on a loaded machine; the agents' own QUIC gives up after 30 s of silence.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn what_agents_have_open_outlives_a_relay_that_falls_silent() {
    let network = Network::start().await;
    let mut open = Open::through(&network).await;
    open.until_connected_to_both(&network).await;
    let mut events = open.source.session_events();

    network.first.silent.store(true, Ordering::Relaxed);

    open.goes_on().await;
    for _ in 0..2 {
        let (session, event) = events.next().await.unwrap();
        let SessionEvent::Moved { relay, .. } = event else { panic!("{session:?}: {event:?}") };
        assert_eq!(relay, network.second.place());
    }
    assert_eq!(open.relays(), [network.second.place(); 2]);
    assert_eq!([open.connection.session().moves(), open.near.session().moves()], [1, 1]);
    assert_eq!(open.far.session().id(), open.near.session().id(), "both sides know it by one id");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_agents_have_open_outlives_a_relay_that_stops() {
    let mut network = Network::start().await;
    let mut open = Open::through(&network).await;
    open.until_connected_to_both(&network).await;

    network.first.stop().await;

    open.goes_on().await;
    assert_eq!(open.relays(), [network.second.place(); 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_agents_have_open_outlives_the_restart_of_the_only_relay() {
    let mut network = Network::start().await;
    let mut open = Open::through(&network).await;

    network.first.stop().await;
    network.first.start();

    open.goes_on().await;
    assert_eq!(open.relays(), [network.first.place(); 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_shows_the_relay_of_a_session_and_the_round_trips_of_all() {
    let network = Network::start().await;
    let open = Open::through(&network).await;
    open.until_connected_to_both(&network).await;
    let peers = open.source.peers().await.peers;
    assert_eq!(peers.len(), 2);
    assert!(peers.iter().all(|relay| relay.round_trip_us.is_some()), "{peers:?}");
    let sessions = open.source.sessions().await.sessions;
    assert_eq!(sessions.len(), 2);
    for session in sessions {
        assert_eq!((session.relay.parse(), session.moves), (Ok(network.first.place()), 0));
        assert!(session.relay_round_trip_us.is_some_and(|us| us > 0));
    }
}

/// Everything that two agents can have open with each other, from the same source.
struct Open {
    source: Agent,
    targets: [Agent; 2],
    connection: PeerConnection,
    forwarded: TcpStream,
    _forward: Forward,
    near: RawSession,
    far: RawSession,
}

impl Open {
    async fn through(network: &Network) -> Open {
        let echo = echo_server().await;
        let to = echo.to_string().parse().unwrap();
        let permitted = Allow { peer: key(1).node_id(), to, protocol: ForwardProtocol::Tcp };
        let accept = vec![key(1).node_id()];
        let served = AgentSettings { accept, allow: vec![permitted], announce: true, ..network.settings(2) };
        let raw = AgentSettings { key: key(3), incoming: Incoming::Raw, ..served.clone() };
        let targets = [Agent::spawn(served), Agent::spawn(raw)];
        for target in &targets {
            until_announced(target, 1).await;
        }
        let source = Agent::spawn(network.settings(1));
        let connection = source.connect(key(2).node_id()).await.unwrap();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let to = echo.to_string().parse().unwrap();
        let forward = source.forward(any, key(2).node_id(), to).await.unwrap();
        let near = source.connect_raw(key(3).node_id()).await.unwrap();
        let far = targets[1].accept_raw().await.unwrap();
        let forwarded = TcpStream::connect(forward.local_addr()).await.unwrap();
        let mut open = Open { source, targets, connection, forwarded, _forward: forward, near, far };
        open.goes_on().await;
        open
    }

    /// From now on the second relay could be used as well.
    async fn until_connected_to_both(&self, network: &Network) {
        assert_eq!(self.relays(), [network.first.place(); 2]);
        network.second.silent.store(false, Ordering::Relaxed);
        for target in &self.targets {
            until_announced(target, 2).await;
        }
        until(async || self.source.peers().await.peers.len() == 2).await;
    }

    /// The relays of the end-to-end and the raw session.
    fn relays(&self) -> [SocketAddr; 2] {
        [self.connection.session(), self.near.session()]
            .map(|session| session.snapshot().relay.parse().unwrap())
    }

    /// All of it carries something, in both directions.
    async fn goes_on(&mut self) {
        let Open { connection, forwarded, near, far, .. } = self;
        let pings = async {
            while let Err(error) = connection.ping().await {
                assert_eq!(error, PingError::Timeout, "the connection is still there");
            }
        };
        let tcp = async {
            forwarded.write_all(b"through TCP").await.unwrap();
            forwarded.read_exact(&mut [0; 11]).await.unwrap();
        };
        let all = async { tokio::join!(pings, tcp, exchange(near, far)) };
        tokio::time::timeout(PATIENCE, all).await.expect("everything goes on");
    }
}

/// Each side sends until it has heard what the other has begun to send just now.
async fn exchange(near: &mut RawSession, far: &mut RawSession) {
    static ROUND: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let round = ROUND.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    let mut heard = [false; 2];
    while heard != [true; 2] {
        tokio::select! {
            _ = tick.tick() => {
                near.send(&round).await.unwrap();
                far.send(&round).await.unwrap();
            }
            datagram = near.recv() => heard[0] |= datagram.expect("the session lives")[..] == round,
            datagram = far.recv() => heard[1] |= datagram.expect("the session lives")[..] == round,
        }
    }
}

/// Two relays, of which the second is silent at first.
struct Network {
    first: TestRelay,
    second: TestRelay,
    directory: TempDir,
}

impl Network {
    async fn start() -> Network {
        let [first, second] = [TestRelay::start_as(101).await, TestRelay::start_as(102).await];
        second.silent.store(true, Ordering::Relaxed);
        Network { first, second, directory: tempfile::tempdir().unwrap() }
    }

    fn settings(&self, seed: u8) -> AgentSettings {
        let pinned =
            |relay: &TestRelay| format!("{}@{}", relay.key.node_id(), relay.place()).parse().unwrap();
        let relays = vec![pinned(&self.first), pinned(&self.second)];
        let known = self.directory.path().join("known");
        AgentSettings::dialer(key(seed), format!("agent-{seed}"), relays, known)
    }
}

/// A relay behind something that passes its datagrams on, or does not.
struct TestRelay {
    key: NodeKey,
    running: Option<Relay>,
    directory: TempDir,
    /// Another one after each start: what is behind the front is nobody else's business.
    port: Arc<AtomicU16>,
    front: SocketAddr,
    silent: Arc<AtomicBool>,
}

impl TestRelay {
    async fn start_as(seed: u8) -> TestRelay {
        let front = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let silent = Arc::new(AtomicBool::new(false));
        let mut relay = TestRelay {
            key: key(seed),
            running: None,
            directory: tempfile::tempdir().unwrap(),
            port: Arc::default(),
            front: front.local_addr().unwrap(),
            silent: silent.clone(),
        };
        relay.start();
        tokio::spawn(pass_on(Arc::new(front), relay.port.clone(), silent));
        relay
    }

    /// Where agents reach it.
    fn place(&self) -> SocketAddr {
        self.front
    }

    fn start(&mut self) {
        let config = config(self.directory.path());
        let relay = Relay::start(&config, None, self.key.clone(), "relay").unwrap();
        self.port.store(relay.local_addr().port(), Ordering::Relaxed);
        self.running = Some(relay);
    }

    async fn stop(&mut self) {
        let relay = self.running.take().unwrap();
        relay.stop(Stopping::End);
        relay.stopped().await.unwrap();
    }
}

/// Passes datagrams on between agents and the relay, from a port of its own for each socket of theirs, until it is to be
/// silent.
async fn pass_on(front: Arc<UdpSocket>, relay: Arc<AtomicU16>, silent: Arc<AtomicBool>) {
    let mut backs = HashMap::<SocketAddr, Arc<UdpSocket>>::new();
    let mut buffer = vec![0; 65_536];
    loop {
        let (len, agent) = front.recv_from(&mut buffer).await.unwrap();
        if silent.load(Ordering::Relaxed) {
            continue;
        }
        let back = match backs.entry(agent) {
            Entry::Occupied(back) => back.into_mut(),
            Entry::Vacant(place) => {
                let back = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
                tokio::spawn(pass_back(back.clone(), front.clone(), agent, silent.clone()));
                place.insert(back)
            }
        };
        // A relay that is stopped refuses them.
        let relay = (Ipv4Addr::LOCALHOST, relay.load(Ordering::Relaxed));
        let _sent = back.send_to(&buffer[..len], relay).await;
    }
}

async fn pass_back(back: Arc<UdpSocket>, front: Arc<UdpSocket>, agent: SocketAddr, silent: Arc<AtomicBool>) {
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok(len) = back.recv(&mut buffer).await else { continue };
        if !silent.load(Ordering::Relaxed) {
            let _sent = front.send_to(&buffer[..len], agent).await;
        }
    }
}

async fn until_announced(agent: &Agent, relays: usize) {
    until(async || agent.peers().await.peers.iter().filter(|relay| relay.announced).count() == relays).await;
}

async fn until(mut reached: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !reached().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("it comes to that");
}

fn key(seed: u8) -> NodeKey {
    NodeKey::from_seed(&[seed; 32])
}

fn config(root: &Path) -> Config {
    let text = "[transport]\nenable_relay = true\noffer_relay = true\n[datapath]\nmode = \"userspace\"\nmax_sessions = 64\n";
    let mut config = Config::parse(text, Path::new("config.toml"), &AtlasRoot::at(root)).unwrap();
    config.network.port = 0;
    config
}
