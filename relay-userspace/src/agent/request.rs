//! What one agent asks of another: a Message at the beginning of a stream of their connection, answered by a MessageAck
//! or an Error.

use std::time::{Duration, SystemTime};

use super::peer::PeerConnection;
use super::streams::OWN_TOPICS;
use super::verification::unix_s;
use crate::identity::NodeId;
use crate::protocol::Message;
use crate::protocol::body::Body;
use crate::protocol::envelope::{HEADER_LEN, MAX_CONTROL_PAYLOAD_LEN};
use crate::protocol::flow_terms::ErrorMessage;
use crate::protocol::frames::FrameReader;
use crate::protocol::handshake::printable;
use crate::protocol::message::{AckStatus, AtlasMessage, MessageAck};

/// A peer has this long to answer a request, its own dialling included.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A Message to another agent, but for what the connection knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutgoingMessage {
    /// What it is about. Topics that begin with `net/` are the agents' own.
    pub topic: Option<String>,
    /// The id of the message it answers.
    pub reply_to: Option<String>,
    /// The content.
    pub body: Body,
}

impl OutgoingMessage {
    /// Whether its topic is the application's to choose.
    pub(super) fn check_topic(&self) -> Result<(), MessageError> {
        match self.topic.as_deref().filter(|topic| topic.starts_with(OWN_TOPICS)) {
            Some(topic) => Err(MessageError::OwnTopic(topic.to_owned())),
            None => Ok(()),
        }
    }

    /// The whole frame, from `me` to `peer`, and the id it has.
    pub(super) fn encode(self, me: NodeId, peer: NodeId) -> Result<(Vec<u8>, String), MessageError> {
        let OutgoingMessage { topic, reply_to, body } = self;
        let id = message_id();
        let message = AtlasMessage {
            id: id.clone(),
            from: me.to_string(),
            to: peer.to_string(),
            timestamp: unix_s(),
            reply_to,
            topic,
            body,
        };
        let frame = Message::from(message).encode().map_err(|error| MessageError::Gone(error.to_string()))?;
        let len = frame.len().saturating_sub(HEADER_LEN);
        if len > MAX_CONTROL_PAYLOAD_LEN {
            return Err(MessageError::TooLarge { len, max: MAX_CONTROL_PAYLOAD_LEN });
        }
        Ok((frame, id))
    }
}

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The id it was given: `msg_` and a UUID of version 7.
    pub msg_id: String,
    /// The peer's word for what it has done with it.
    pub status: AckStatus,
}

/// Why a message was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// It is larger than agents take.
    #[error("the message has {len} bytes, at most {max} are taken: send less, or a forward's stream")]
    TooLarge {
        /// Its payload in bytes.
        len: usize,
        /// What is taken.
        max: usize,
    },
    /// Its topic is not the application's.
    #[error("topics that begin with {OWN_TOPICS} are the agents' own: choose another than {0}")]
    OwnTopic(String),
    /// The peer has refused it.
    #[error("the peer refuses: {code} {message}")]
    Refused {
        /// An [`ErrorCode`](crate::protocol::ErrorCode)'s number.
        code: u32,
        /// The peer's words. All lines but the first are indented, so that none of them can be taken for one of ours.
        message: String,
    },
    /// The peer has not answered in time.
    #[error("the peer has not answered within {} s", ANSWER_TIMEOUT.as_secs())]
    Unanswered,
    /// The peer has answered with something else.
    #[error("the peer answers with {0}")]
    Strange(&'static str),
    /// The connection or stream is gone.
    #[error("{0}")]
    Gone(String),
}

impl MessageError {
    pub(super) fn refused(ErrorMessage { code, message, .. }: &ErrorMessage) -> MessageError {
        MessageError::Refused { code: *code, message: printable_lines(message) }
    }
}

/// A request that was accepted, and its stream.
pub(super) struct Accepted {
    pub delivery: Delivery,
    pub to_peer: quinn::SendStream,
    pub from_peer: quinn::RecvStream,
}

/// Sends a Message on a stream of its own and waits for its answer.
pub(super) async fn ask(
    connection: &PeerConnection,
    message: OutgoingMessage,
) -> Result<Accepted, MessageError> {
    let gone = |error: &dyn std::fmt::Display| MessageError::Gone(error.to_string());
    let (frame, msg_id) = message.encode(connection.me(), connection.peer().node_id)?;
    let exchange = async {
        let (mut to_peer, from_peer) = connection.quic().open_bi().await.map_err(|error| gone(&error))?;
        to_peer.write_all(&frame).await.map_err(|error| gone(&error))?;
        let mut from_peer = FrameReader::new(from_peer, MAX_CONTROL_PAYLOAD_LEN);
        match from_peer.next().await.map_err(|error| gone(&error))? {
            Some(Message::MessageAck(MessageAck { status, .. })) => {
                let delivery = Delivery { msg_id, status };
                Ok(Accepted { delivery, to_peer, from_peer: from_peer.into_inner() })
            }
            Some(Message::Error(error)) => Err(MessageError::refused(&error)),
            Some(other) => Err(MessageError::Strange(other.name())),
            None => Err(MessageError::Gone("the peer has closed the stream".to_owned())),
        }
    };
    tokio::time::timeout(ANSWER_TIMEOUT, exchange).await.unwrap_or(Err(MessageError::Unanswered))
}

/// What a peer says, in the lines it says it in: they may be for copying.
pub(super) fn printable_lines(text: &str) -> String {
    let lines: Vec<String> = text.lines().take(8).map(|line| printable(line, 256)).collect();
    lines.join("\n  ")
}

/// `msg_` and a UUID of version 7 (RFC 9562, section 5.7): milliseconds since the Unix epoch, then random bits.
fn message_id() -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (high, low) = (getrandom::u64().unwrap_or(0), getrandom::u64().unwrap_or(0));
    uuid_v7(u64::try_from(since.as_millis()).unwrap_or(0), high, low)
}

fn uuid_v7(unix_ms: u64, high: u64, low: u64) -> String {
    format!(
        "msg_{:08x}-{:04x}-7{:03x}-{:04x}-{:012x}",
        (unix_ms >> 16) as u32,
        unix_ms & 0xffff,
        high & 0xfff,
        0x8000 | (high >> 12) & 0x3fff,
        low & 0xffff_ffff_ffff
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_ids_are_uuids_of_version_7() {
        assert_eq!(uuid_v7(0x0192_4f8a_7b3c, 0, 0), "msg_01924f8a-7b3c-7000-8000-000000000000");
        assert_eq!(uuid_v7(u64::MAX, u64::MAX, u64::MAX), "msg_ffffffff-ffff-7fff-bfff-ffffffffffff");
    }

    #[test]
    fn what_a_peer_says_cannot_be_taken_for_a_line_of_ours() {
        assert_eq!(printable_lines("no\nConnected to x\n\u{1b}[2J"), "no\n  Connected to x\n  [2J");
    }
}
