//! Agents that know only the documented messages, made by hand, over a real relay: their streams are joined.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "in a test a panic is a failure"
)]

#[path = "splices/agents_of_ours.rs"]
mod agents_of_ours;
#[path = "splices/by_hand.rs"]
mod by_hand;
mod relay_on_loopback;

use std::time::Duration;

use quinn::{ReadError, VarInt};
use relay_userspace::admin::Request;
use relay_userspace::protocol::Message;
use relay_userspace::protocol::envelope::HEADER_LEN;
use relay_userspace::protocol::flow_terms::{RelayAnnounce, RelayConnect};
use relay_userspace::protocol::message::{Ping, Pong};
use relay_userspace::relay::report::{self, Sessions, Status};
use relay_userspace::relay::stopping::Stopping;
use tokio::time::timeout;

use by_hand::{Agent, Stream, connect, handshake};
use relay_on_loopback::{TestRelay, key, unix_s};

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
    let frame = Message::from(Ping::new(77)).encode().unwrap();
    let (begin, rest) = frame.split_at(HEADER_LEN + 2);
    target.first.send.write_all(begin).await.unwrap();
    // As a rule the relay has read it when it answers what came after it; all of it goes to the peer in any case.
    let mut other = target.open().await;
    other.pings(1).await;
    let mut source = Agent::connected(&relay, 1).await;
    source.first.is_paired_with(1, 2).await;
    target.first.send.write_all(rest).await.unwrap();
    assert_eq!(source.first.receive().await, Ping::new(77).into());
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
    bytes.extend(Message::from(Ping::new(9)).encode().unwrap());
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
    let (relay, _running) =
        TestRelay::start_with("", |config| config.transport.idle_timeout = Duration::from_secs(3)).unwrap();
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
    relay.stopper.stop(Stopping::End);
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

impl TestRelay {
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
