//! Agents against a relay that is just good enough: it verifies, pairs, binds and copies datagrams.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as StdMutex};
use std::time::Duration;

use relay_common::{BIND_LEN, Side};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;

use super::verification::respond;
use super::*;
use crate::clock::MonoTime;
use crate::config::Allow;
use crate::protocol::bind::{BindDatagram, BindKey, BindKind, BindMagic, Cookie, PairState, UnverifiedBind};
use crate::protocol::envelope::MAX_CONTROL_PAYLOAD_LEN;
use crate::protocol::flow_terms::{
    Disconnect, FlowTerms, ReadyStatus, RelayError, RelayReady, disconnect_reason,
};
use crate::protocol::frames::{FrameReader, write_frame};
use crate::protocol::handshake::Responder;
use crate::protocol::{ErrorCode, Message, SessionId};
use crate::refusals::RefusalReason as _;
use crate::tls;

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
async fn tcp_is_forwarded_both_ways_with_half_close() {
    let net = Network::start().await;
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = HostPort::from_str(&target.local_addr().unwrap().to_string()).unwrap();
    let (alice, _bob) = (net.dialer(1), net.server(2, &[1], &[&to.to_string()]).await);
    let mut forward = alice.forward("127.0.0.1:0".parse().unwrap(), node(2), to).await.unwrap();
    assert!(matches!(forward.next_event().await, Some(ForwardEvent::Session(_))));

    let service = tokio::spawn(async move {
        let (mut tcp, _) = target.accept().await.unwrap();
        let mut request = Vec::new();
        tcp.read_to_end(&mut request).await.unwrap();
        request.reverse();
        tcp.write_all(&request).await.unwrap();
    });
    let sent: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let mut tcp = TcpStream::connect(forward.local_addr()).await.unwrap();
    tcp.write_all(&sent).await.unwrap();
    tcp.shutdown().await.unwrap();
    let mut back = Vec::new();
    tcp.read_to_end(&mut back).await.unwrap();
    back.reverse();
    assert!(back == sent, "{} bytes came back of {}", back.len(), sent.len());
    service.await.unwrap();
    assert!(forward.traffic().bytes_sent > 3_000_000);
}

#[tokio::test]
async fn a_reset_of_one_tcp_connection_resets_the_other() {
    let net = Network::start().await;
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = HostPort::from_str(&target.local_addr().unwrap().to_string()).unwrap();
    let (alice, _bob) = (net.dialer(1), net.server(2, &[1], &[&to.to_string()]).await);
    let forward = alice.forward("127.0.0.1:0".parse().unwrap(), node(2), to).await.unwrap();
    for client_resets in [true, false] {
        let mut near = TcpStream::connect(forward.local_addr()).await.unwrap();
        near.write_all(b"x").await.unwrap();
        let (mut far, _) = target.accept().await.unwrap();
        far.read_exact(&mut [0]).await.unwrap();
        let (resets, mut hears) = if client_resets { (near, far) } else { (far, near) };
        socket2::SockRef::from(&resets).set_linger(Some(Duration::ZERO)).unwrap();
        drop(resets);
        let error = hears.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn what_the_peer_does_not_permit_is_refused_and_the_missing_line_named() {
    let net = Network::start().await;
    let (alice, bob) = (net.dialer(1), net.server(2, &[1], &["127.0.0.1:1"]).await);
    let mut forward =
        alice.forward("127.0.0.1:0".parse().unwrap(), node(2), "127.0.0.1:2".parse().unwrap()).await.unwrap();
    let mut tcp = TcpStream::connect(forward.local_addr()).await.unwrap();
    assert_eq!(tcp.read(&mut [0]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    forward.next_event().await;
    let Some(ForwardEvent::Failed { why, .. }) = forward.next_event().await else {
        panic!("no failure told")
    };
    assert!(why.contains("2003") && why.contains("[[agent.allow]]") && why.contains("127.0.0.1:2"), "{why}");
    let refused = bob.sessions().await.refused;
    assert_eq!(refused.get("forward_not_permitted"), Some(&1));
    assert_eq!(refused.values().sum::<u64>(), 1, "{refused:?}");
    assert_eq!(refused.len(), Refusal::ALL.len(), "every reason is listed");
}

#[tokio::test]
async fn what_is_permitted_may_change_while_the_agent_runs() {
    let net = Network::start().await;
    let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = HostPort::from_str(&service.local_addr().unwrap().to_string()).unwrap();
    let (alice, bob) = (net.dialer(1), net.server(2, &[1], &[]).await);
    let mut forward = alice.forward("127.0.0.1:0".parse().unwrap(), node(2), to.clone()).await.unwrap();
    let Some(ForwardEvent::Session(session)) = forward.next_event().await else { panic!("no session") };
    let mut tcp = TcpStream::connect(forward.local_addr()).await.unwrap();
    assert_eq!(tcp.read(&mut [0]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);

    let allow = vec![Allow { peer: node(1), to }];
    bob.inspector().permit(config::Agent { accept: vec![node(1)], allow, ..Default::default() }).await;
    let _near = TcpStream::connect(forward.local_addr()).await.unwrap();
    service.accept().await.unwrap();
    assert_eq!(session.end(), None, "the session has gone on");

    bob.inspector().permit(config::Agent::default()).await;
    net.relay.until(|state| state.disconnected.contains(&session.id())).await;
    assert!(bob.sessions().await.sessions.is_empty());
    // The relay has been told, too, whom it may offer.
    assert!(matches!(alice.connect_raw(node(2)).await, Err(ConnectError::Refused { code: 3001, .. })));
}

#[tokio::test]
async fn a_forward_outlives_its_session_and_connects_again() {
    let net = Network::start().await;
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = HostPort::from_str(&target.local_addr().unwrap().to_string()).unwrap();
    let (alice, _bob) = (net.dialer(1), net.server(2, &[1], &[&to.to_string()]).await);
    let mut forward = alice.forward("127.0.0.1:0".parse().unwrap(), node(2), to).await.unwrap();
    let Some(ForwardEvent::Session(first)) = forward.next_event().await else { panic!("no session") };
    net.relay.end(first.id(), disconnect_reason::IDLE);
    let Some(ForwardEvent::Lost { why }) = forward.next_event().await else { panic!("not lost") };
    assert!(why.contains("nothing was sent for too long"), "{why}");
    assert_eq!(first.end(), Some(SessionEnd::Idle));

    let _near = TcpStream::connect(forward.local_addr()).await.unwrap();
    target.accept().await.unwrap();
    let Some(ForwardEvent::Session(second)) = forward.next_event().await else { panic!("no session") };
    assert_ne!(first.id(), second.id());
}

#[tokio::test]
async fn peers_that_are_not_accepted_or_absent_look_the_same_to_the_dialler() {
    let net = Network::start().await;
    let (alice, _bob) = (net.dialer(1), net.server(2, &[3], &[]).await);
    for peer in [node(2), node(9)] {
        let error = alice.connect(peer).await.unwrap_err();
        assert!(matches!(error, ConnectError::Refused { code: 3001, .. }), "{error}");
        assert!(error.to_string().contains("[agent] accept"), "{error}");
    }
    assert!(matches!(alice.connect(node(1)).await, Err(ConnectError::Itself(_))));
}

#[tokio::test]
async fn a_relay_that_offers_a_peer_that_is_not_accepted_is_refused_by_the_target() {
    let net = Network::start().await;
    net.relay.state().ignores_allow_lists = true;
    let (alice, _bob) = (net.dialer(1), net.server(2, &[3], &[]).await);
    let connecting = tokio::spawn(async move { alice.connect(node(2)).await });
    net.relay.until(|state| !state.disconnected.is_empty()).await;
    connecting.abort();
}

#[tokio::test]
async fn a_connector_that_the_relay_passes_off_as_an_accepted_peer_is_refused() {
    let net = Network::start().await;
    net.relay.state().passes_off = Some(PassedOff { impostor: node(3), accepted: node(1) });
    let (mallory, bob) = (net.dialer(3), net.server(2, &[1], &[]).await);
    let error = mallory.connect(node(2)).await.unwrap_err();
    let refused = matches!(error, ConnectError::Handshake { .. } | ConnectError::EndToEnd { .. });
    assert!(refused, "paired, but refused end to end: {error}");
    assert_eq!(bob.sessions().await.refused.get("foreign_identity"), Some(&1));
}

#[tokio::test]
async fn a_target_that_the_relay_passes_off_as_the_one_asked_for_is_refused() {
    let net = Network::start().await;
    net.relay.state().passes_off = Some(PassedOff { impostor: node(3), accepted: node(2) });
    let (alice, _mallory) = (net.dialer(1), net.server(3, &[1], &[]).await);
    let error = alice.connect(node(2)).await.unwrap_err();
    assert!(matches!(&error, ConnectError::EndToEnd { peer, .. } if *peer == node(2)), "{error}");
}

#[tokio::test]
async fn terms_with_another_relays_magic_are_refused() {
    let net = Network::start().await;
    net.relay.state().magic = Some(BindMagic::of_relay(&key(201).public()));
    let (alice, _bob) = (net.dialer(1), net.server(2, &[1], &[]).await);
    let error = alice.connect(node(2)).await.unwrap_err();
    let foreign = SessionEnd::ForeignMagic { relay: net.relay.id };
    assert!(matches!(&error, ConnectError::Ended(end) if *end == foreign), "{error}");
    net.relay.until(|state| state.disconnected.len() == 2).await;
    assert_eq!(alice.sessions().await.refused.get("foreign_magic"), Some(&1));
}

#[tokio::test]
async fn raw_sessions_carry_datagrams_as_they_are() {
    let net = Network::start().await;
    let bob = net.agent(AgentSettings { incoming: Incoming::Raw, ..net.serving(2, &[1], &[]) }).await;
    let alice = net.dialer(1);
    let mut near = alice.connect_raw(node(2)).await.unwrap();
    let mut far = bob.accept_raw().await.unwrap();
    assert_eq!(far.session().id(), near.session().id());
    let largest = vec![7; near.max_datagram()];
    for datagram in [&b"first"[..], &[0; 96], &largest] {
        near.send(datagram).await.unwrap();
        assert_eq!(far.recv().await.unwrap(), datagram);
        far.send(datagram).await.unwrap();
        assert_eq!(near.recv().await.unwrap(), datagram);
    }
    let too_large = [largest.as_slice(), &[7]].concat();
    assert!(matches!(near.send(&too_large).await, Err(RawSendError::TooLarge { max: 1472, .. })));
    let traffic = near.session().traffic();
    assert_eq!((traffic.datagrams_sent, traffic.datagrams_received), (3, 3));
    assert_eq!(traffic.bytes_sent, 5 + 96 + 1472);

    net.relay.end(near.session().id(), disconnect_reason::CONSENT_LOST);
    assert!(near.recv().await.is_none());
    assert!(matches!(near.send(b"late").await, Err(RawSendError::Ended(SessionEnd::SideSilent { .. }))));
}

#[tokio::test]
async fn the_largest_datagram_follows_the_terms_of_the_relay() {
    let net = Network::start().await;
    let bob = net.agent(AgentSettings { incoming: Incoming::Raw, ..net.serving(2, &[1], &[]) }).await;
    let alice = net.dialer(1);
    let near = alice.connect_raw(node(2)).await.unwrap();
    let far = bob.accept_raw().await.unwrap();
    for largest in [1452, 1472] {
        net.relay.tell_max_datagram(near.session().id(), largest as u32);
        let told = async {
            while (near.max_datagram(), far.max_datagram()) != (largest, largest) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), told).await.expect("the terms arrive");
        assert_eq!(
            near.send(&vec![7; largest + 1]).await,
            Err(RawSendError::TooLarge { len: largest + 1, max: largest })
        );
    }
}

#[tokio::test]
async fn a_sender_is_held_to_the_sessions_rate() {
    let net = Network::start().await;
    net.relay.state().rate_bytes_per_s = 1 << 20;
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = HostPort::from_str(&target.local_addr().unwrap().to_string()).unwrap();
    let (alice, _bob) = (net.dialer(1), net.server(2, &[1], &[&to.to_string()]).await);
    let forward = alice.forward("127.0.0.1:0".parse().unwrap(), node(2), to).await.unwrap();
    let mut near = TcpStream::connect(forward.local_addr()).await.unwrap();
    let (mut far, _) = target.accept().await.unwrap();
    let started = std::time::Instant::now();
    tokio::spawn(async move { near.write_all(&vec![1; 1 << 20]).await.unwrap() });
    far.read_exact(&mut vec![0; 1 << 20]).await.unwrap();
    let took = started.elapsed();
    assert!(took > Duration::from_millis(900), "1 MiB at 1 MiB/s took {took:?}");
}

#[tokio::test]
async fn a_relay_with_another_key_than_remembered_is_refused_with_both_ids() {
    let net = Network::start().await;
    let known = net.known_relays(1);
    std::fs::write(&known, format!("{} {}\n", net.relay.control, node(77))).unwrap();
    let alice = net.dialer(1);
    let error = alice.connect(node(2)).await.unwrap_err().to_string();
    assert_eq!(alice.sessions().await.refused.get("relay_key"), Some(&1));
    for part in [node(77).to_string(), net.relay.id.to_string(), known.display().to_string()] {
        assert!(error.contains(&part), "{error}");
    }
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

/// A relay, and a directory for what agents remember.
struct Network {
    relay: FakeRelay,
    directory: tempfile::TempDir,
}

impl Network {
    async fn start() -> Self {
        Network { relay: FakeRelay::start().await, directory: tempfile::tempdir().unwrap() }
    }

    fn known_relays(&self, seed: u8) -> PathBuf {
        self.directory.path().join(format!("known_relays.{seed}"))
    }

    fn dialing(&self, seed: u8) -> AgentSettings {
        let relays = vec![self.relay.control.to_string().parse().unwrap()];
        AgentSettings::dialer(key(seed), format!("agent {seed}"), relays, self.known_relays(seed))
    }

    fn serving(&self, seed: u8, accept: &[u8], allow: &[&str]) -> AgentSettings {
        let accept: Vec<NodeId> = accept.iter().map(|seed| node(*seed)).collect();
        let rules = accept.iter().flat_map(|peer| allow.iter().map(|to| (*peer, to.parse().unwrap())));
        let allow = rules.map(|(peer, to)| Allow { peer, to }).collect();
        AgentSettings { announce: true, accept, allow, ..self.dialing(seed) }
    }

    fn dialer(&self, seed: u8) -> Agent {
        Agent::spawn(self.dialing(seed))
    }

    async fn server(&self, seed: u8, accept: &[u8], allow: &[&str]) -> Agent {
        self.agent(self.serving(seed, accept, allow)).await
    }

    /// An agent that has announced itself.
    async fn agent(&self, settings: AgentSettings) -> Agent {
        let agent = Agent::spawn(settings);
        self.relay.until(|state| state.announces >= 1).await;
        agent
    }
}

fn key(seed: u8) -> NodeKey {
    NodeKey::from_seed(&[seed; 32])
}

fn node(seed: u8) -> NodeId {
    key(seed).node_id()
}

struct FakeRelay {
    id: NodeId,
    control: SocketAddr,
    endpoint: quinn::Endpoint,
    state: Arc<StdMutex<RelayState>>,
    changed: Arc<tokio::sync::Notify>,
    data_blocked: Arc<AtomicBool>,
}

#[derive(Default)]
struct RelayState {
    rate_bytes_per_s: u64,
    /// In the terms; None: its own.
    magic: Option<BindMagic>,
    ignores_allow_lists: bool,
    passes_off: Option<PassedOff>,
    announces: usize,
    paired: u8,
    goodbyes: usize,
    disconnected: Vec<SessionId>,
    announced: HashMap<NodeId, (mpsc::UnboundedSender<Message>, Vec<String>)>,
    connections: HashMap<NodeId, (quinn::Connection, mpsc::UnboundedSender<Message>)>,
    sessions: HashMap<SessionId, RelaySession>,
}

/// The relay says `accepted` wherever it is `impostor` that is the side.
#[derive(Clone, Copy)]
struct PassedOff {
    impostor: NodeId,
    accepted: NodeId,
}

struct RelaySession {
    nodes: [NodeId; 2],
    keys: [BindKey; 2],
    /// Of each side.
    terms: [FlowTerms; 2],
    tuples: [Option<SocketAddr>; 2],
    highest: [u64; 2],
}

impl FakeRelay {
    async fn start() -> Self {
        let relay = key(200);
        let data = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let config = tls::server_config(&relay, tls::ALPN_RELAY).unwrap();
        let endpoint = quinn::Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
        let fake = FakeRelay {
            id: relay.node_id(),
            control: endpoint.local_addr().unwrap(),
            endpoint: endpoint.clone(),
            state: Arc::default(),
            changed: Arc::default(),
            data_blocked: Arc::default(),
        };
        let (state, changed, blocked) = (fake.state.clone(), fake.changed.clone(), fake.data_blocked.clone());
        tokio::spawn(carry_data(data.clone(), BindMagic::of_relay(&relay.public()), state.clone(), blocked));
        let data = data.local_addr().unwrap();
        tokio::spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let (state, changed) = (state.clone(), changed.clone());
                tokio::spawn(async move {
                    let Ok(connection) = incoming.await else { return };
                    serve_agent(connection, data, &state, &changed).await;
                });
            }
        });
        fake
    }

    fn state(&self) -> std::sync::MutexGuard<'_, RelayState> {
        self.state.lock().unwrap()
    }

    async fn until(&self, reached: impl Fn(&RelayState) -> bool) {
        let waiting = async {
            loop {
                let changed = self.changed.notified();
                if reached(&self.state()) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("the relay never got there");
    }

    fn end(&self, id: SessionId, reason: &str) {
        let mut state = self.state();
        let session = state.sessions.remove(&id).unwrap();
        for node in session.nodes {
            let told = Disconnect { reason: reason.into(), note: None, session: Some(id) };
            state.connections[&node].1.send(told.into()).unwrap();
        }
    }

    fn tell_max_datagram(&self, id: SessionId, max_datagram_bytes: u32) {
        let state = self.state();
        let RelaySession { nodes, terms, .. } = &state.sessions[&id];
        for (node, terms) in nodes.iter().zip(terms.clone()) {
            let terms = FlowTerms { max_datagram_bytes, ..terms };
            state.connections[node].1.send(RelayReady::with_terms(&terms).into()).unwrap();
        }
    }

    fn drop_control_connections(&self) {
        for (_, (connection, _)) in self.state().connections.drain() {
            connection.close(0_u8.into(), b"dropped");
        }
    }
}

impl Drop for FakeRelay {
    fn drop(&mut self) {
        self.endpoint.close(0_u8.into(), b"");
    }
}

async fn serve_agent(
    connection: quinn::Connection,
    data: SocketAddr,
    state: &StdMutex<RelayState>,
    changed: &tokio::sync::Notify,
) {
    let shown = tls::peer_key(&connection).unwrap();
    let Ok((mut to_agent, from_agent)) = connection.accept_bi().await else { return };
    let mut from_agent = FrameReader::new(from_agent, MAX_CONTROL_PAYLOAD_LEN);
    let responder =
        Responder::new(&key(200), "fake relay", shown, [9; 32], Duration::from_secs(300), MonoTime::now());
    let peer = respond(responder, &mut to_agent, &mut from_agent).await.unwrap();
    let (outgoing, mut to_send) = mpsc::unbounded_channel();
    state.lock().unwrap().connections.insert(peer.node_id, (connection.clone(), outgoing.clone()));
    let writing = tokio::spawn(async move {
        while let Some(message) = to_send.recv().await {
            if write_frame(&mut to_agent, &message).await.is_err() {
                return;
            }
        }
    });
    while let Ok(Some(message)) = from_agent.next().await {
        take_message(peer.node_id, message, &outgoing, data, &mut state.lock().unwrap());
        changed.notify_waiters();
    }
    writing.abort();
}

fn take_message(
    source: NodeId,
    message: Message,
    outgoing: &mpsc::UnboundedSender<Message>,
    data: SocketAddr,
    state: &mut RelayState,
) {
    match message {
        Message::RelayAnnounce(announce) => {
            state.announces += 1;
            state.announced.insert(source, (outgoing.clone(), announce.allow.unwrap()));
            outgoing.send(RelayReady::documented(ReadyStatus::Waiting, None).into()).unwrap();
        }
        Message::RelayConnect(connect) => {
            let target: NodeId = connect.target_id.parse().unwrap();
            let passed_off = state.passes_off;
            let reached = passed_off.filter(|it| it.accepted == target).map_or(target, |it| it.impostor);
            let named = passed_off.filter(|it| it.impostor == source).map_or(source, |it| it.accepted);
            let listed = state
                .announced
                .get(&reached)
                .filter(|(_, allow)| state.ignores_allow_lists || allow.contains(&named.to_string()));
            let Some((to_target, _)) = listed else {
                let (code, message) = (ErrorCode::TargetUnknown.number(), "no such agent".into());
                let refusal = RelayError { code, message, target_id: Some(connect.target_id), session: None };
                return outgoing.send(refusal.into()).unwrap();
            };
            state.paired += 1;
            let session = SessionId([state.paired; 16]);
            let bind_key = |side| BindKey::derive(&key(200), session, side, &source, &target);
            let terms = |side, peer| FlowTerms {
                session,
                peer,
                side,
                bind_key: bind_key(side),
                bind_magic: state.magic.unwrap_or_else(|| BindMagic::of_relay(&key(200).public())),
                rate_bytes_per_s: state.rate_bytes_per_s,
                burst_bytes: state.rate_bytes_per_s / 4,
                max_datagram_bytes: 1472,
                consent: Duration::from_secs(75),
                keepalive: Duration::from_secs(30),
                data_addresses: vec![data],
                bind_now: false,
            };
            let terms = [terms(Side::Connector, target), terms(Side::Target, named)];
            to_target.send(RelayReady::with_terms(&terms[1]).into()).unwrap();
            outgoing.send(RelayReady::with_terms(&terms[0]).into()).unwrap();
            let relayed = RelaySession {
                nodes: [source, reached],
                keys: Side::BOTH.map(bind_key),
                terms,
                tuples: [None; 2],
                highest: [0; 2],
            };
            state.sessions.insert(session, relayed);
        }
        Message::Disconnect(Disconnect { session: Some(session), .. }) => state.disconnected.push(session),
        Message::Disconnect(_) => state.goodbyes += 1,
        other => panic!("a relay does not expect {other:?}"),
    }
}

async fn carry_data(
    socket: Arc<UdpSocket>,
    magic: BindMagic,
    state: Arc<StdMutex<RelayState>>,
    blocked: Arc<AtomicBool>,
) {
    let mut buffer = [0; 65_536];
    loop {
        let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
        if blocked.load(Ordering::Relaxed) {
            continue;
        }
        let datagram = &buffer[..len];
        let sends = match <&[u8; BIND_LEN]>::try_from(datagram) {
            Ok(bind) if datagram.starts_with(&magic.0) => {
                answer_bind(bind, from, &magic, &mut state.lock().unwrap())
            }
            _ => {
                let state = state.lock().unwrap();
                let to = state.sessions.values().find_map(|session| match session.tuples {
                    [Some(a), Some(b)] if a == from => Some(b),
                    [Some(a), Some(b)] if b == from => Some(a),
                    _ => None,
                });
                to.map(|to| (to, datagram.to_vec())).into_iter().collect()
            }
        };
        for (to, bytes) in sends {
            socket.send_to(&bytes, to).await.unwrap();
        }
    }
}

fn answer_bind(
    bytes: &[u8; BIND_LEN],
    from: SocketAddr,
    magic: &BindMagic,
    state: &mut RelayState,
) -> Vec<(SocketAddr, Vec<u8>)> {
    let unverified = UnverifiedBind::parse(bytes, magic).unwrap();
    let Some(session) = state.sessions.get_mut(&unverified.session()) else { return Vec::new() };
    let side = unverified.side();
    let question = unverified.verify(&session.keys[side.index()]).unwrap();
    if question.kind == BindKind::Bind && session.tuples[side.index()] != Some(from) {
        let challenge = BindDatagram { kind: BindKind::Challenge, cookie: Cookie([3; 16]), ..question };
        return vec![(from, challenge.seal(magic, &session.keys[side.index()]).to_vec())];
    }
    session.tuples[side.index()] = Some(from);
    session.highest[side.index()] = question.counter;
    let paired = session.tuples.iter().all(Option::is_some);
    let told = if paired { &Side::BOTH[..] } else { &[side][..] };
    let bound = |side: &Side| {
        let reflexive = session.tuples[side.index()].unwrap();
        let state = if paired { PairState::Paired } else { PairState::Half };
        let bound = BindDatagram {
            kind: BindKind::Bound { state, reflexive },
            side: *side,
            session: question.session,
            counter: session.highest[side.index()],
            cookie: Cookie([4; 16]),
        };
        (reflexive, bound.seal(magic, &session.keys[side.index()]).to_vec())
    };
    told.iter().map(bound).collect()
}
