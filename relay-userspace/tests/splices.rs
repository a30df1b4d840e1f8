//! Agents that know only the documented messages, made by hand, over a real relay: their streams are joined.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "in a test a panic is a failure"
)]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quinn::{
    Connection, ConnectionError, Endpoint, ReadError, RecvStream, SendStream, TransportConfig, VarInt,
};
use relay_userspace::admin::{self, Request};
use relay_userspace::agent::{self, AgentSettings, ConnectError, OutgoingMessage, Reached};
use relay_userspace::clock::MonoTime;
use relay_userspace::config::{AtlasRoot, Config};
use relay_userspace::identity::NodeKey;
use relay_userspace::protocol::Message;
use relay_userspace::protocol::body::Body;
use relay_userspace::protocol::byte_fields::Bytes;
use relay_userspace::protocol::envelope::{HEADER_LEN, MAX_CONTROL_PAYLOAD_LEN};
use relay_userspace::protocol::flow_terms::{
    Disconnect, ReadyStatus, RelayAnnounce, RelayConnect, RelayReady,
};
use relay_userspace::protocol::frames::{FrameReader, write_frame};
use relay_userspace::protocol::handshake::{Initiator, Known, Peer, Progress, Responder};
use relay_userspace::protocol::message::{
    AckStatus, AtlasMessage, MessageAck, Ping, Pong, Verify, VerifyStatus,
};
use relay_userspace::relay::Relay;
use relay_userspace::relay::report::{self, Peers, Sessions, Status};
use relay_userspace::tls;
use tempfile::TempDir;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Long enough for a loaded machine: nothing here waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_that_know_only_the_documented_messages_handshake_through_the_relay() {
    let relay = TestRelay::start("");
    let mut target = Agent::connected(&relay, 2).await;
    target.first.waits(2).await;
    let mut source = Agent::connected(&relay, 1).await;
    source.first.is_paired_with(1, 2).await;
    handshake(&mut source.first, 1, &mut target.first, 2).await;

    let sessions = relay.sessions().await.sessions;
    let [session] = &sessions[..] else { panic!("{sessions:?}") };
    assert_eq!((session.state.as_str(), session.path.as_str()), ("paired", "stream (readable by the relay)"));
    assert_eq!((session.path.as_str(), session.rate_bytes_per_s), (report::STREAM, 1_048_576));
    let ids = [1, 2].map(|seed| key(seed).node_id().to_string());
    assert_eq!([session.connector.clone(), session.target.clone()], ids);
    for (side, agent) in session.sides.iter().zip([&source, &target]) {
        assert_eq!(side.agent.as_deref(), Some(&*agent.endpoint.local_addr().unwrap().to_string()));
        assert!(side.bytes > 100 && side.packets_userspace == 0, "{session:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_target_gets_what_the_connector_has_sent_right_behind_its_connect_and_nothing_before() {
    let relay = TestRelay::start("");
    let mut target = Agent::connected(&relay, 2).await;
    target.first.waits(2).await;
    let source = Agent::connected(&relay, 1).await;
    let mut asking = source.open().await;
    // One write: the relay may have read all of it before it has decided.
    let mut bytes = connect(1, 2).encode().unwrap();
    bytes.extend(b"no frame, and not whole");
    asking.send.write_all(&bytes).await.unwrap();
    asking.send.finish().unwrap();
    assert_eq!(target.first.rest().await.unwrap(), b"no frame, and not whole");
    asking.is_ready(2).await;
    target.first.send.write_all(b"back").await.unwrap();
    target.first.send.finish().unwrap();
    assert_eq!(asking.rest().await.unwrap(), b"back");
    relay.until_no_sessions().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_of_which_the_relay_has_read_a_part_when_it_joins_the_streams_goes_to_the_peer_whole() {
    let relay = TestRelay::start("");
    let mut target = Agent::connected(&relay, 2).await;
    target.first.waits(2).await;
    let frame = Message::from(Ping { ts: 77 }).encode().unwrap();
    let (begin, rest) = frame.split_at(HEADER_LEN + 2);
    target.first.send.write_all(begin).await.unwrap();
    // As a rule the relay has read it when it answers what came after it; all of it goes to the peer in any case.
    let mut other = target.open().await;
    other.pings(1).await;
    let mut source = Agent::connected(&relay, 1).await;
    source.first.is_paired_with(1, 2).await;
    target.first.send.write_all(rest).await.unwrap();
    assert_eq!(source.first.receive().await, Ping { ts: 77 }.into());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_pairing_takes_one_waiting_stream_and_the_control_stream_goes_on() {
    let relay = TestRelay::start("");
    let mut target = Agent::connected(&relay, 2).await;
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let mut stream = target.open().await;
        stream.waits(2).await;
        waiting.push(stream);
    }
    let source = Agent::connected(&relay, 1).await;
    let mut joined = Vec::new();
    for stream in &mut waiting {
        let mut asking = source.open().await;
        asking.is_paired_with(1, 2).await;
        handshake(&mut asking, 1, stream, 2).await;
        joined.push(asking);
    }
    assert!(!relay.peers().await.peers.iter().any(|peer| peer.announced));
    let mut asking = source.open().await;
    asking.send(&connect(1, 2)).await;
    let Message::RelayError(error) = asking.receive().await else { panic!() };
    assert_eq!(error.code, 3001, "as if it had never announced itself");
    // Its first stream is still the relay's, and it can announce itself again.
    target.first.pings(5).await;
    target.first.waits(2).await;
    asking.is_paired_with(1, 2).await;
    handshake(&mut asking, 1, &mut target.first, 2).await;
    assert_eq!(relay.sessions().await.sessions.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_connect_leaves_its_stream_to_the_relay() {
    let relay = TestRelay::start("");
    let mut source = Agent::connected(&relay, 1).await;
    let mut bytes = connect(1, 2).encode().unwrap();
    bytes.extend(Message::from(Ping { ts: 9 }).encode().unwrap());
    source.first.send.write_all(&bytes).await.unwrap();
    let Message::RelayError(error) = source.first.receive().await else { panic!() };
    assert_eq!(error.code, 3001);
    assert!(matches!(source.first.receive().await, Message::Pong(Pong { echo: 9, .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_that_speak_flows_and_those_that_do_not_are_told_of_each_other() {
    let relay = TestRelay::start("");
    let mut flows = Agent::connected(&relay, 1).await;
    let node_id = key(1).node_id().to_string();
    let announce = RelayAnnounce { node_id, timestamp: unix_s(), flow: Some(1), allow: None };
    flows.first.send(&announce.into()).await;
    assert!(matches!(flows.first.receive().await, Message::RelayReady(_)));
    let mut documented = Agent::connected(&relay, 2).await;
    documented.first.waits(2).await;

    let Message::RelayConnect(asked) = connect(1, 2) else { panic!() };
    flows.first.send(&RelayConnect { flow: Some(1), ..asked }.into()).await;
    let Message::RelayError(error) = flows.first.receive().await else { panic!() };
    assert_eq!(error.code, 3008, "{}", error.message);
    let mut asking = documented.open().await;
    asking.send(&connect(2, 1)).await;
    let Message::RelayError(error) = asking.receive().await else { panic!() };
    assert_eq!(error.code, 3003, "{}", error.message);
    // As the first was told: without flow.
    let mut asking = flows.open().await;
    asking.is_paired_with(1, 2).await;
    handshake(&mut asking, 1, &mut documented.first, 2).await;
    let control = relay.ask::<Status>(Request::Status).await.control;
    assert_eq!((control["documented_only"], control["flow_only"]), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_arrives_with_its_code_and_so_does_a_stop() {
    let relay = TestRelay::start("");
    let (source, mut asking, target, mut waiting) = paired(&relay).await;
    asking.send.reset(VarInt::from_u32(42)).unwrap();
    assert!(matches!(waiting.rest().await, Err(ReadError::Reset(code)) if code == VarInt::from_u32(42)));
    asking.stop(43);
    assert_eq!(waiting.send.stopped().await.unwrap(), Some(VarInt::from_u32(43)));
    relay.until_no_sessions().await;
    drop((source, target));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_closes_resets_the_peers_stream_and_the_peer_stays() {
    let relay = TestRelay::start("");
    let (mut source, mut asking, target, _waiting) = paired(&relay).await;
    target.connection.close(0_u8.into(), b"gone");
    assert!(matches!(asking.rest().await, Err(ReadError::Reset(code)) if code == VarInt::from_u32(0)));
    source.first.pings(3).await;
    relay.until_no_sessions().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pairing_on_which_nothing_passes_for_idle_timeout_ends_and_its_agents_stay() {
    let relay = TestRelay::start_with("", |config| config.transport.idle_timeout = Duration::from_secs(3));
    let (mut source, mut asking, mut target, mut waiting) = paired(&relay).await;
    asking.send.write_all(b"once").await.unwrap();
    assert!(matches!(asking.rest().await, Err(ReadError::Reset(code)) if code == VarInt::from_u32(0)));
    assert!(matches!(waiting.rest().await, Err(ReadError::Reset(code)) if code == VarInt::from_u32(0)));
    source.first.pings(1).await;
    target.first.pings(1).await;
    relay.until_no_sessions().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_stops_ends_pairings_and_is_gone_at_once() {
    let relay = TestRelay::start("");
    let (_source, mut asking, _target, _waiting) = paired(&relay).await;
    relay.shutdown.cancel();
    assert!(timeout(PATIENCE, asking.rest()).await.expect("it is told").is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn pairings_whose_receivers_do_not_read_leave_the_senders_control_stream_alone() {
    let relay = TestRelay::start("relay_bandwidth_limit = 0");
    let target = Agent::connected(&relay, 2).await;
    let mut source = Agent::connected(&relay, 1).await;
    let mut unread = Vec::new();
    let mut writers = Vec::new();
    for _ in 0..4 {
        let mut waiting = target.open().await;
        waiting.waits(2).await;
        let mut asking = source.open().await;
        asking.is_paired_with(1, 2).await;
        unread.push(waiting);
        let (written, seen) = tokio::sync::watch::channel(0);
        tokio::spawn(async move {
            // It stands still before the end.
            while asking.send.write_all(&[7; 1_000]).await.is_ok() {
                written.send_modify(|bytes| *bytes += 1_000);
            }
        });
        writers.push(seen);
    }
    for mut written in writers {
        let enough = written.wait_for(|written| *written >= 100_000);
        timeout(PATIENCE, enough).await.expect("the relay takes as much").unwrap();
    }
    // Four times as much is more than one connection's window: and still it is heard.
    timeout(PATIENCE, source.first.pings(3)).await.expect("the relay answers");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_has_at_most_max_streams_per_conn_open_at_once() {
    let relay = TestRelay::start("max_streams_per_conn = 3");
    let agent = Agent::connected(&relay, 1).await;
    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut stream = agent.open().await;
        stream.pings(1).await;
        streams.push(stream);
    }
    // The handshake's is the third. The fourth has to wait until one is over.
    let mut fourth = std::pin::pin!(agent.connection.open_bi());
    let opened = tokio::select! {
        biased;
        opened = &mut fourth => Some(opened),
        () = std::future::ready(()) => None,
    };
    assert!(opened.is_none(), "no more than three");
    let mut over = streams.pop().unwrap();
    over.send.finish().unwrap();
    over.rest().await.unwrap();
    timeout(PATIENCE, fourth).await.expect("a place is free").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_its_agent_has_finished_waits_no_more() {
    let relay = TestRelay::start("");
    let target = Agent::connected(&relay, 2).await;
    let mut waiting = target.open().await;
    waiting.waits(2).await;
    waiting.send.finish().unwrap();
    waiting.rest().await.unwrap();
    relay.until(async |relay| !relay.peers().await.peers.iter().any(|peer| peer.announced)).await;
    let mut source = Agent::connected(&relay, 1).await;
    source.first.send(&connect(1, 2)).await;
    let Message::RelayError(error) = source.first.receive().await else { panic!() };
    assert_eq!(error.code, 3001);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_ours_reaches_one_that_knows_only_the_documented_messages_if_that_is_allowed() {
    let relay = TestRelay::start("");
    let mut target = Agent::connected(&relay, 2).await;
    target.first.waits(2).await;
    let serving = tokio::spawn(async move {
        let peer = answer_handshake(&mut target.first, 2).await;
        assert_eq!(peer.node_id, key(1).node_id());
        let Message::Ping(Ping { ts }) = target.first.receive().await else { panic!() };
        // It pings as well, before it answers.
        target.first.send(&Ping { ts: 1 }.into()).await;
        assert!(matches!(target.first.receive().await, Message::Pong(Pong { echo: 1, .. })));
        target.first.send(&Pong { ts: 77, echo: ts }.into()).await;
        let Message::Message(message) = target.first.receive().await else { panic!() };
        let ack = MessageAck { msg_id: message.id, status: AckStatus::Received };
        target.first.send(&ack.into()).await;
        assert!(matches!(target.first.receive().await, Message::Disconnect(_)));
        assert!(target.first.rest().await.unwrap().is_empty());
        target.first.send.finish().unwrap();
        target
    });
    let ours = agent::Agent::spawn(AgentSettings { allow_readable_relay: true, ..relay.dialer(1) });
    let reached = ours.reach(key(2).node_id()).await.unwrap();
    assert_eq!(reached.path().to_string(), "relay, readable by it");
    assert_eq!((reached.peer().node_id, reached.peer().name.as_str()), (key(2).node_id(), "by hand"));
    assert_eq!(reached.ping().await.unwrap().answered_unix_s, 77);
    let Reached::Readable(connection) = reached else { panic!() };
    assert_eq!(connection.relay(), relay.address.to_string());
    let delivery = connection.send(OutgoingMessage::default()).await.unwrap();
    assert_eq!(delivery.status, AckStatus::Received);
    connection.close().await;
    serving.await.unwrap();
    relay.until_no_sessions().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_ours_refuses_a_relay_that_could_read_and_names_the_key_that_would_permit_it() {
    let relay = TestRelay::start("");
    let mut target = Agent::connected(&relay, 2).await;
    target.first.waits(2).await;
    let ours = agent::Agent::spawn(relay.dialer(1));
    let error = ours.reach(key(2).node_id()).await.unwrap_err();
    assert!(matches!(error, ConnectError::ReadableRelay { .. }), "{error}");
    assert!(error.to_string().contains("[agent] allow_readable_relay = true"), "{error}");
    assert_eq!(ours.sessions().await.refused["readable_relay"], 1);
    // What asks for datagrams alone is told the same.
    let error = ours.connect(key(2).node_id()).await.unwrap_err().to_string();
    assert!(error.contains("3008") && error.contains("[agent] allow_readable_relay = true"), "{error}");
    assert!(relay.sessions().await.sessions.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_ours_is_reached_by_those_that_know_only_the_documented_messages_if_that_is_allowed() {
    let relay = TestRelay::start("");
    let served = AgentSettings {
        announce: true,
        accept: vec![key(1).node_id()],
        allow_readable_relay: true,
        ..relay.dialer(2)
    };
    let ours = agent::Agent::spawn(served);
    let source = Agent::connected(&relay, 1).await;
    // Once for each: it waits again after a pairing.
    for _ in 0..2 {
        let mut asking = source.open().await;
        asking.is_paired_in_time_with(1, 2).await;
        let peer = dial_handshake(&mut asking, 1, 2).await;
        assert_eq!((peer.node_id, peer.name.as_str()), (key(2).node_id(), "agent-2"));
        asking.pings(9).await;
        asking.send(&message("msg_1", 1, 2).into()).await;
        let Message::MessageAck(ack) = asking.receive().await else { panic!() };
        assert_eq!((ack.msg_id.as_str(), ack.status), ("msg_1", AckStatus::Accepted));
        let taken = ours.accept_message().await.unwrap();
        assert_eq!(
            (taken.id.as_str(), taken.from, taken.path),
            ("msg_1", key(1).node_id(), agent::Path::ReadableByRelay)
        );
        asking.send(&message("msg_2", 3, 2).into()).await;
        let Message::Error(error) = asking.receive().await else { panic!() };
        assert_eq!((error.code, error.ref_msg_id.as_deref()), (2003, Some("msg_2")));
        asking
            .send(&Disconnect { reason: "DISCONNECT_SHUTDOWN".into(), note: None, session: None }.into())
            .await;
        // It ends its direction, too.
        asking.send.finish().unwrap();
        assert!(asking.rest().await.unwrap().is_empty());
    }
    // It still takes flows, and whom it does not accept does not learn that it is here.
    let mut stranger = Agent::connected(&relay, 3).await;
    stranger.first.send(&connect(3, 2)).await;
    let Message::RelayError(error) = stranger.first.receive().await else { panic!() };
    assert_eq!(error.code, 3001);
    let flows = agent::Agent::spawn(relay.dialer(1));
    let reached = flows.reach(key(2).node_id()).await.unwrap();
    assert_eq!(reached.path().to_string(), "relay");
    reached.ping().await.unwrap();
    drop(ours);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_ours_answers_nobody_on_a_stream_who_is_not_whom_it_accepts() {
    let relay = TestRelay::start("");
    let served = AgentSettings {
        announce: true,
        accept: vec![key(1).node_id()],
        allow_readable_relay: true,
        ..relay.dialer(2)
    };
    let ours = agent::Agent::spawn(served);
    let source = Agent::connected(&relay, 1).await;
    // The relay lets node 1 through; what it then says it is, is another thing.
    let mut asking = source.open().await;
    asking.is_paired_in_time_with(1, 2).await;
    let (_, hello) =
        Initiator::new(&key(3), "other", Known::Node(key(2).node_id()), MonoTime::now(), unix_s());
    asking.send(&hello).await;
    assert!(matches!(asking.receive().await, Message::Error(error) if error.code == 1002));
    let mut asking = source.open().await;
    asking.is_paired_in_time_with(1, 2).await;
    asking.send(&hello_of_node_1()).await;
    let Message::HelloAck(ack) = asking.receive().await else { panic!() };
    let signature = Bytes(key(3).sign(&ack.challenge.0).to_vec());
    asking.send(&Verify { signature, challenge: ack.challenge }.into()).await;
    assert!(
        matches!(asking.receive().await, Message::VerifyAck(ack) if ack.status == VerifyStatus::Rejected)
    );
    let counted = async || {
        let refused = ours.sessions().await.refused;
        (refused["peer_not_accepted"], refused["handshake_failed"])
    };
    relay.until(async |_| counted().await == (1, 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_ours_waits_on_no_stream_unless_that_is_allowed() {
    let relay = TestRelay::start("");
    let served = AgentSettings { announce: true, accept: vec![key(1).node_id()], ..relay.dialer(2) };
    let _ours = agent::Agent::spawn(served);
    relay.until(async |relay| relay.peers().await.peers.iter().any(|peer| peer.announced)).await;
    let mut source = Agent::connected(&relay, 1).await;
    source.first.send(&connect(1, 2)).await;
    let Message::RelayError(error) = source.first.receive().await else { panic!() };
    assert_eq!(error.code, 3003, "{}", error.message);
}

/// Two agents, each with a control stream, and a joined stream of each.
async fn paired(relay: &TestRelay) -> (Agent, Stream, Agent, Stream) {
    let target = Agent::connected(relay, 2).await;
    let mut waiting = target.open().await;
    waiting.waits(2).await;
    let source = Agent::connected(relay, 1).await;
    let mut asking = source.open().await;
    asking.is_paired_with(1, 2).await;
    (source, asking, target, waiting)
}

/// The documented handshake between two agents, the connector as initiator, and a Ping after it.
async fn handshake(from: &mut Stream, initiator: u8, to: &mut Stream, responder: u8) {
    let (target, connector) =
        tokio::join!(dial_handshake(from, initiator, responder), answer_handshake(to, responder));
    assert_eq!([connector.node_id, target.node_id], [initiator, responder].map(|seed| key(seed).node_id()));
    from.send(&Ping { ts: 5 }.into()).await;
    assert_eq!(to.receive().await, Ping { ts: 5 }.into());
    to.send(&Pong { ts: 6, echo: 5 }.into()).await;
    assert_eq!(from.receive().await, Pong { ts: 6, echo: 5 }.into());
}

/// The connector's part: whom it has found.
async fn dial_handshake(stream: &mut Stream, seed: u8, peer: u8) -> Peer {
    let known = Known::Node(key(peer).node_id());
    let (mut initiator, hello) = Initiator::new(&key(seed), "by hand", known, MonoTime::now(), unix_s());
    stream.send(&hello).await;
    loop {
        match initiator.handle(stream.receive().await, MonoTime::now()).unwrap() {
            Progress::Send(message) => stream.send(&message).await,
            Progress::Done { peer, .. } => return *peer,
        }
    }
}

/// The target's part: who has come.
async fn answer_handshake(stream: &mut Stream, seed: u8) -> Peer {
    let (drift, now) = (Duration::from_secs(300), MonoTime::now());
    let mut responder = Responder::new(&key(seed), "by hand", Known::Nothing, [3; 32], drift, now);
    loop {
        match responder.handle(stream.receive().await, MonoTime::now(), unix_s()).unwrap() {
            Progress::Send(answer) => stream.send(&answer).await,
            Progress::Done { send, peer } => {
                stream.send(&send.unwrap()).await;
                return *peer;
            }
        }
    }
}

fn hello_of_node_1() -> Message {
    Initiator::new(&key(1), "one", Known::Nothing, MonoTime::now(), unix_s()).1
}

fn message(id: &str, from: u8, to: u8) -> AtlasMessage {
    let [from, to] = [from, to].map(|seed| key(seed).node_id().to_string());
    let (reply_to, topic) = (None, Some("greeting".to_owned()));
    AtlasMessage { id: id.to_owned(), from, to, timestamp: unix_s(), reply_to, topic, body: Body::default() }
}

/// A relay on loopback with a root of its own.
struct TestRelay {
    address: SocketAddr,
    directory: TempDir,
    shutdown: CancellationToken,
}

impl TestRelay {
    fn start(transport: &str) -> TestRelay {
        TestRelay::start_with(transport, |_| {})
    }

    fn start_with(transport: &str, change: impl FnOnce(&mut Config)) -> TestRelay {
        let directory = tempfile::tempdir().unwrap();
        let text = format!(
            "[transport]\nenable_relay = true\noffer_relay = true\n{transport}\n\
             [datapath]\nmode = \"userspace\"\nmax_sessions = 16\n"
        );
        let root = AtlasRoot::at(directory.path());
        let mut config = Config::parse(&text, Path::new("config.toml"), &root).unwrap();
        config.network.port = 0;
        change(&mut config);
        let shutdown = CancellationToken::new();
        let relay = Relay::start(&config, None, key(0), "relay", shutdown.clone()).unwrap();
        TestRelay { address: ([127, 0, 0, 1], relay.local_addr().port()).into(), directory, shutdown }
    }

    /// What an agent of ours needs that only dials.
    fn dialer(&self, seed: u8) -> AgentSettings {
        let relay = format!("{}@{}", key(0).node_id(), self.address).parse().unwrap();
        let known_relays = self.directory.path().join(format!("known-{seed}"));
        AgentSettings::dialer(key(seed), format!("agent-{seed}"), vec![relay], known_relays)
    }

    async fn ask<T: serde::de::DeserializeOwned>(&self, request: Request) -> T {
        let socket = AtlasRoot::at(self.directory.path()).admin_socket();
        let answer = tokio::task::spawn_blocking(move || admin::ask(&socket, request)).await.unwrap();
        serde_json::from_value(answer.unwrap()).unwrap()
    }

    async fn peers(&self) -> Peers {
        self.ask(Request::Peers).await
    }

    async fn sessions(&self) -> Sessions {
        self.ask(Request::Sessions).await
    }

    async fn until_no_sessions(&self) {
        self.until(async |relay| relay.sessions().await.sessions.is_empty()).await;
    }

    async fn until(&self, holds: impl AsyncFn(&TestRelay) -> bool) {
        let until = async {
            while !holds(self).await {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, until).await.expect("the relay comes to it");
    }
}

impl Drop for TestRelay {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// An agent made by hand.
struct Agent {
    endpoint: Endpoint,
    connection: Connection,
    /// The stream of the handshake.
    first: Stream,
}

/// One of its streams.
struct Stream {
    send: SendStream,
    receive: Option<FrameReader<RecvStream>>,
}

impl Agent {
    /// The handshake with the relay is done.
    async fn connected(relay: &TestRelay, seed: u8) -> Agent {
        let mut endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
        let mut config = tls::client_config(&key(seed), tls::ALPN_RELAY, Some(key(0).node_id())).unwrap();
        let mut transport = TransportConfig::default();
        transport
            .keep_alive_interval(Some(Duration::from_millis(300)))
            .stream_receive_window(16_384_u32.into());
        config.transport_config(Arc::new(transport));
        endpoint.set_default_client_config(config);
        let connection = endpoint.connect(relay.address, tls::SERVER_NAME).unwrap().await.unwrap();
        let mut first = Stream::open(&connection).await.unwrap();
        let (mut initiator, hello) =
            Initiator::new(&key(seed), "agent", key(0).public(), MonoTime::now(), unix_s());
        first.send(&hello).await;
        loop {
            match initiator.handle(first.receive().await, MonoTime::now()).unwrap() {
                Progress::Send(message) => first.send(&message).await,
                Progress::Done { .. } => return Agent { endpoint, connection, first },
            }
        }
    }

    async fn open(&self) -> Stream {
        Stream::open(&self.connection).await.unwrap()
    }
}

impl Stream {
    async fn open(connection: &Connection) -> Result<Stream, ConnectionError> {
        let (send, receive) = connection.open_bi().await?;
        Ok(Stream { send, receive: Some(FrameReader::new(receive, MAX_CONTROL_PAYLOAD_LEN)) })
    }

    async fn send(&mut self, message: &Message) {
        write_frame(&mut self.send, message).await.unwrap();
    }

    #[track_caller]
    fn receive(&mut self) -> impl Future<Output = Message> {
        let asked_at = std::panic::Location::caller();
        async move {
            let next = timeout(PATIENCE, self.receive.as_mut().unwrap().next()).await;
            next.unwrap_or_else(|_elapsed| panic!("no message for {asked_at}")).unwrap().unwrap()
        }
    }

    /// Everything to the stream's end.
    async fn rest(&mut self) -> Result<Vec<u8>, ReadError> {
        let (mut receive, begun) = self.receive.take().unwrap().into_parts();
        let mut all = begun.to_vec();
        while let Some(chunk) =
            timeout(PATIENCE, receive.read_chunk(usize::MAX, true)).await.expect("an end")?
        {
            all.extend_from_slice(&chunk.bytes);
        }
        Ok(all)
    }

    fn stop(&mut self, code: u32) {
        let (mut receive, _) = self.receive.take().unwrap().into_parts();
        receive.stop(VarInt::from_u32(code)).unwrap();
    }

    /// The relay answers a Ping on it.
    async fn pings(&mut self, ts: i64) {
        self.send(&Ping { ts }.into()).await;
        let answer = self.receive().await;
        assert!(matches!(answer, Message::Pong(Pong { echo, .. }) if echo == ts), "{answer:?}");
    }

    /// Announces node `seed` on it.
    async fn waits(&mut self, seed: u8) {
        let node_id = key(seed).node_id().to_string();
        self.send(&RelayAnnounce { node_id, timestamp: unix_s(), flow: None, allow: None }.into()).await;
        assert_eq!(self.receive().await, RelayReady::documented(ReadyStatus::Waiting, None).into());
    }

    /// `source` asks on it for `target`, and gets it.
    async fn is_paired_with(&mut self, source: u8, target: u8) {
        self.send(&connect(source, target)).await;
        self.is_ready(target).await;
    }

    /// As [`Stream::is_paired_with`]; the target may need a moment until it waits.
    async fn is_paired_in_time_with(&mut self, source: u8, target: u8) {
        let paired = async {
            loop {
                self.send(&connect(source, target)).await;
                match self.receive().await {
                    Message::RelayReady(ready) => return ready,
                    Message::RelayError(error) => {
                        assert!([3001, 3003, 3005].contains(&error.code), "{error:?}")
                    }
                    other => panic!("{other:?}"),
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let ready = timeout(PATIENCE, paired).await.expect("the target waits");
        assert_eq!(ready, RelayReady::documented(ReadyStatus::Ready, Some(key(target).node_id())));
    }

    async fn is_ready(&mut self, target: u8) {
        let ready = RelayReady::documented(ReadyStatus::Ready, Some(key(target).node_id()));
        assert_eq!(self.receive().await, ready.into());
    }
}

fn key(seed: u8) -> NodeKey {
    NodeKey::from_seed(&[seed; 32])
}

fn unix_s() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

fn connect(source: u8, target: u8) -> Message {
    let [source_id, target_id] = [source, target].map(|seed| key(seed).node_id().to_string());
    RelayConnect { source_id, target_id, timestamp: Some(unix_s()), flow: None }.into()
}
