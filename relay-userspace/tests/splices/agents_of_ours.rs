//! This project's own agents among those that know only the documented messages.

use relay_userspace::agent::{self, AgentSettings, ConnectError, OutgoingMessage, Reached};
use relay_userspace::clock::MonoTime;
use relay_userspace::protocol::body::Body;
use relay_userspace::protocol::byte_fields::Bytes;
use relay_userspace::protocol::flow_terms::Disconnect;
use relay_userspace::protocol::handshake::{Initiator, Known};
use relay_userspace::protocol::message::{AckStatus, AtlasMessage, MessageAck, Verify, VerifyStatus};

use super::by_hand::{answer_handshake, dial_handshake};
use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_ours_reaches_one_that_knows_only_the_documented_messages_if_that_is_allowed() {
    let relay = TestRelay::start("");
    let mut target = Agent::connected(&relay, 2).await;
    target.first.waits(2).await;
    let serving = tokio::spawn(async move {
        let peer = answer_handshake(&mut target.first, 2).await;
        assert_eq!(peer.node_id, key(1).node_id());
        let Message::Ping(Ping { ts, .. }) = target.first.receive().await else { panic!() };
        // It pings as well, before it answers.
        target.first.send(&Ping::new(1).into()).await;
        assert!(matches!(target.first.receive().await, Message::Pong(Pong { echo: 1, .. })));
        target.first.send(&Pong::new(77, ts).into()).await;
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

/// Agent 2, which agent 1 may reach, also where the relay can read.
fn served(relay: &TestRelay) -> agent::Agent {
    agent::Agent::spawn(AgentSettings {
        announce: true,
        accept: vec![key(1).node_id()],
        allow_readable_relay: true,
        ..relay.dialer(2)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_ours_is_reached_by_those_that_know_only_the_documented_messages_if_that_is_allowed() {
    let relay = TestRelay::start("");
    let ours = served(&relay);
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
        asking.send(&Disconnect::new("DISCONNECT_SHUTDOWN", None, None).into()).await;
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
    let ours = served(&relay);
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

impl TestRelay {
    /// What an agent of ours needs that only dials.
    fn dialer(&self, seed: u8) -> AgentSettings {
        let relay = format!("{}@{}", key(0).node_id(), self.address).parse().unwrap();
        let known_relays = self.directory.path().join(format!("known-{seed}"));
        AgentSettings::dialer(key(seed), format!("agent-{seed}"), vec![relay], known_relays)
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
