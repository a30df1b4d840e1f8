//! Messages between agents' applications, and streams that begin with something else.

use serde_json::json;

use super::{Network, node};
use crate::agent::{Agent, INBOX_LEN, MessageError, OutgoingMessage, PeerConnection, Whom};
use crate::protocol::body::Body;
use crate::protocol::envelope::MAX_CONTROL_PAYLOAD_LEN;
use crate::protocol::frames::{FrameReader, write_frame};
use crate::protocol::message::{AckStatus, AtlasMessage, Ping};
use crate::protocol::{ErrorCode, Message};

fn saying(value: &serde_json::Value) -> OutgoingMessage {
    OutgoingMessage { body: Body::of(value).unwrap(), ..OutgoingMessage::default() }
}

#[tokio::test]
async fn a_message_reaches_the_other_application_and_is_acknowledged() {
    let net = Network::start().await;
    let (alice, bob) = (net.dialer(1), net.server(2, &[1], &[]).await);
    let connection = alice.connect(node(2)).await.unwrap();
    let (topic, reply_to) = (Some("tasks".to_owned()), Some("msg_0".to_owned()));
    let body = Body::of(&json!({ "question": [42, null, "x"] })).unwrap();
    let message = OutgoingMessage { topic: topic.clone(), reply_to: reply_to.clone(), body: body.clone() };
    let delivery = connection.send(message).await.unwrap();
    assert_eq!(delivery.status, AckStatus::Accepted);
    let taken = bob.accept_message().await.unwrap();
    assert_eq!((taken.id, taken.from), (delivery.msg_id, node(1)));
    assert_eq!((taken.topic, taken.reply_to, taken.body), (topic, reply_to, body));
}

#[tokio::test]
async fn what_does_not_fit_a_message_is_not_sent() {
    let net = Network::start().await;
    let (alice, bob) = (net.dialer(1), net.server(2, &[1], &[]).await);
    let connection = alice.connect(node(2)).await.unwrap();
    // The body alone has 64 KiB.
    let large = saying(&json!("x".repeat(MAX_CONTROL_PAYLOAD_LEN - 2)));
    let error = connection.send(large).await.unwrap_err();
    assert!(matches!(error, MessageError::TooLarge { max: MAX_CONTROL_PAYLOAD_LEN, .. }), "{error}");
    let own =
        OutgoingMessage { topic: Some("net/forward".into()), ..saying(&json!({ "to": "127.0.0.1:1" })) };
    assert!(matches!(connection.send(own).await, Err(MessageError::OwnTopic(_))));
    let most = saying(&json!("x".repeat(MAX_CONTROL_PAYLOAD_LEN - 400)));
    connection.send(most.clone()).await.unwrap();
    assert_eq!(bob.accept_message().await.unwrap().body, most.body);
}

#[tokio::test]
async fn an_application_that_takes_no_messages_has_some_kept_and_the_rest_refused() {
    let net = Network::start().await;
    let (alice, bob) = (net.dialer(1), net.server(2, &[1], &[]).await);
    let connection = alice.connect(node(2)).await.unwrap();
    for number in 0..INBOX_LEN {
        connection.send(saying(&json!(number))).await.unwrap();
    }
    let error = connection.send(saying(&json!("one more"))).await.unwrap_err();
    let limited = ErrorCode::RateLimited.number();
    assert!(matches!(error, MessageError::Refused { code, .. } if code == limited), "{error}");
    assert_eq!(bob.sessions().await.refused["inbox_full"], 1);
    for number in 0..INBOX_LEN {
        assert_eq!(bob.accept_message().await.unwrap().body, saying(&json!(number)).body);
    }
    connection.send(saying(&json!("again"))).await.unwrap();
}

#[tokio::test]
async fn a_stream_that_begins_with_what_is_not_served_is_answered_with_an_error_and_counted() {
    let net = Network::start().await;
    let (alice, bob) = (net.dialer(1), net.server(2, &[1], &[]).await);
    let connection = alice.connect(node(2)).await.unwrap();
    let message = |topic: Option<&str>, from: u8| {
        Message::from(AtlasMessage {
            id: "msg_1".into(),
            from: node(from).to_string(),
            to: node(2).to_string(),
            timestamp: 0,
            reply_to: None,
            topic: topic.map(str::to_owned),
            body: Body::default(),
        })
    };
    let cases = [
        (message(Some("net/else"), 1), "unknown_topic", Some("msg_1")),
        (message(Some("net/forward"), 1), "malformed_request", Some("msg_1")),
        (message(Some("net/forward-udp"), 1), "malformed_request", Some("msg_1")),
        (message(None, 3), "foreign_message", Some("msg_1")),
        (Ping::new(0).into(), "unexpected_message", None),
    ];
    for (message, reason, reference) in cases {
        let before = refused(&bob, reason).await;
        let Some(Message::Error(error)) = answer_to(&connection, &message).await else { panic!("{reason}") };
        assert_eq!(error.code, ErrorCode::MessageRejected.number());
        assert_eq!(error.ref_msg_id.as_deref(), reference, "{reason}");
        assert_eq!(refused(&bob, reason).await, before + 1, "{reason}");
    }
}

#[tokio::test]
async fn an_operator_ends_the_sessions_with_a_peer_or_one_session() {
    let net = Network::start().await;
    let (alice, bob) = (net.dialer(1), net.server(2, &[1], &[]).await);
    let connection = alice.connect(node(2)).await.unwrap();
    let session = connection.session().id();
    assert_eq!(alice.inspector().disconnect(Whom::Peer(node(3))).await, 0);
    assert_eq!(alice.inspector().disconnect(Whom::Session(session)).await, 1);
    let why = connection.closed().await;
    assert!(why.contains("the operator has ended the session"), "{why}");
    // The relay tells the peer.
    net.relay.until(|state| state.disconnected.contains(&session)).await;

    let again = alice.connect(node(2)).await.unwrap();
    again.ping().await.unwrap();
    assert_eq!(bob.inspector().disconnect(Whom::Peer(node(1))).await, 2, "of the first nobody has told it");
    assert!(bob.sessions().await.sessions.is_empty());
    net.relay.until(|state| state.disconnected.contains(&again.session().id())).await;
}

async fn refused(agent: &Agent, reason: &str) -> u64 {
    agent.sessions().await.refused[reason]
}

/// What the peer answers to a stream that begins with `message`.
async fn answer_to(connection: &PeerConnection, message: &Message) -> Option<Message> {
    let (mut to_peer, from_peer) = connection.quic().open_bi().await.unwrap();
    write_frame(&mut to_peer, message).await.unwrap();
    FrameReader::new(from_peer, MAX_CONTROL_PAYLOAD_LEN).next().await.unwrap()
}
