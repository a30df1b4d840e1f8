//! Streams that a peer opens. Each begins with a Message, whose topic says what the stream is for.

use std::sync::Arc;

use tokio::io::AsyncRead;
use tokio::time::error::Elapsed;

use super::forward::datagrams::Flows;
use super::forward::{self, TCP_TOPIC, UDP_TOPIC, tcp, udp_far};
use super::inbox;
use super::reached::Path;
use super::refusal::Refusal;
use super::request::ANSWER_TIMEOUT;
use super::serving::Serving;
use crate::config::{ForwardProtocol, HostPort};
use crate::identity::NodeId;
use crate::protocol::envelope::MAX_CONTROL_PAYLOAD_LEN;
use crate::protocol::flow_terms::ErrorMessage;
use crate::protocol::frames::{FrameError, FrameReader, write_frame};
use crate::protocol::message::{AckStatus, AtlasMessage, MessageAck};
use crate::protocol::{ErrorCode, Message};

/// Topics that begin with this are the agents' own; all others are the application's.
pub(super) const OWN_TOPICS: &str = "net/";

/// A request that is refused.
pub(super) struct Refused {
    pub refusal: Refusal,
    /// The peer reads it too.
    pub why: String,
}

impl Refused {
    /// What the peer is told by.
    pub fn code(&self) -> ErrorCode {
        match self.refusal {
            Refusal::ForwardUnreachable => ErrorCode::Refused,
            Refusal::InboxFull => ErrorCode::RateLimited,
            _ => ErrorCode::MessageRejected,
        }
    }
}

/// Serves one stream of `peer`'s, to its end.
pub(super) async fn serve(
    peer: NodeId,
    serving: &Serving,
    flows: &Arc<Flows>,
    mut to_peer: quinn::SendStream,
    from_peer: quinn::RecvStream,
) {
    let mut from_peer = FrameReader::new(from_peer, MAX_CONTROL_PAYLOAD_LEN);
    let request = match first_message(&mut from_peer).await {
        Ok(Ok(Some(message))) => message,
        Ok(Ok(None)) => return,
        Err(_elapsed) => {
            let why = format!("no whole message within {} s", ANSWER_TIMEOUT.as_secs());
            serving.refusals.refuse(Refusal::StreamSilent, &peer, &why);
            return;
        }
        Ok(Err(error)) => {
            if let Some(code) = error.code() {
                serving.refusals.refuse(Refusal::BadFrame, &peer, &error);
                answer(&mut to_peer, ErrorMessage::new(code, error.to_string()).into()).await;
            }
            return;
        }
    };
    let stream = Stream { peer, serving, flows, to_peer, from_peer: from_peer.into_inner() };
    match request {
        Message::Message(message) => stream.serve(message).await,
        other => {
            let why = format!("a stream begins with a Message, not with {}", other.name());
            stream.refuse(None, Refused { refusal: Refusal::UnexpectedMessage, why }).await;
        }
    }
}

/// What a stream begins with; None if it has ended instead. Whoever opens streams and says nothing does not keep them.
async fn first_message<R: AsyncRead + Unpin>(
    from_peer: &mut FrameReader<R>,
) -> Result<Result<Option<Message>, FrameError>, Elapsed> {
    tokio::time::timeout(ANSWER_TIMEOUT, from_peer.next()).await
}

/// A stream after its first message.
struct Stream<'a> {
    peer: NodeId,
    serving: &'a Serving,
    flows: &'a Arc<Flows>,
    to_peer: quinn::SendStream,
    from_peer: quinn::RecvStream,
}

impl Stream<'_> {
    async fn serve(self, message: AtlasMessage) {
        match message.topic.as_deref() {
            Some(TCP_TOPIC) => self.forward_tcp(message).await,
            Some(UDP_TOPIC) => self.forward_udp(message).await,
            Some(topic) if topic.starts_with(OWN_TOPICS) => {
                let why = format!(
                    "of the topics that begin with {OWN_TOPICS}, {TCP_TOPIC} and {UDP_TOPIC} are served here"
                );
                self.refuse(Some(message.id), Refused { refusal: Refusal::UnknownTopic, why }).await;
            }
            _ => self.deliver(message).await,
        }
    }

    async fn deliver(mut self, message: AtlasMessage) {
        let (me, accepted) = (self.serving.key.node_id(), self.serving.permitted.borrow().accepts(self.peer));
        let id = message.id.clone();
        match inbox::take(me, (self.peer, Path::Relay), accepted, message, &self.serving.inbox) {
            Ok(()) => answer(&mut self.to_peer, acceptance(id).into()).await,
            Err(refused) => self.refuse(Some(id), refused).await,
        }
    }

    async fn forward_tcp(mut self, message: AtlasMessage) {
        let Stream { peer, serving, .. } = self;
        let permitted = serving.permitted.borrow().clone();
        // The request, as large as the peer likes, is not kept for as long as the forward lives.
        let AtlasMessage { id, body, .. } = message;
        let to = match forward::permitted(peer, ForwardProtocol::Tcp, &body, &permitted) {
            Ok(to) => to,
            Err(refused) => return self.refuse(Some(id), refused).await,
        };
        drop(body);
        let tcp = match tcp::reach(&to).await {
            Ok(tcp) => tcp,
            Err(why) => return self.refuse(Some(id), unreachable(&to, &why)).await,
        };
        if !self.accept(id).await {
            return;
        }
        tracing::info!(%peer, %to, "a forward begins");
        match tcp::splice(tcp, self.to_peer, self.from_peer, self.flows.connection()).await {
            Ok(()) => tracing::info!(%peer, %to, "a forward is done"),
            Err(why) => tracing::warn!(%peer, %to, why, "a forward was cut off"),
        }
    }

    async fn forward_udp(mut self, message: AtlasMessage) {
        let Stream { peer, serving, .. } = self;
        let permitted = serving.permitted.borrow().clone();
        let AtlasMessage { id, body, .. } = message;
        let to = match forward::permitted(peer, ForwardProtocol::Udp, &body, &permitted) {
            Ok(to) => to,
            Err(refused) => return self.refuse(Some(id), refused).await,
        };
        drop(body);
        let flow = match udp_far::open(&to, self.flows, self.to_peer.id()).await {
            Ok(flow) => flow,
            Err(why) => return self.refuse(Some(id), unreachable(&to, &why)).await,
        };
        if !self.accept(id).await {
            return;
        }
        tracing::info!(%peer, %to, "a UDP flow begins");
        let why = flow.carry(&mut self.from_peer).await;
        tracing::info!(%peer, %to, why, "a UDP flow is over");
    }

    /// Says yes. False if the peer does not hear it.
    async fn accept(&mut self, id: String) -> bool {
        match write_frame(&mut self.to_peer, &acceptance(id).into()).await {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(peer = %self.peer, %error, "the peer did not wait for its answer");
                false
            }
        }
    }

    async fn refuse(mut self, message_id: Option<String>, refused: Refused) {
        // One line in the log.
        self.serving.refusals.refuse(refused.refusal, &self.peer, &refused.why.replace('\n', " "));
        let error = ErrorMessage::new(refused.code(), refused.why);
        answer(&mut self.to_peer, ErrorMessage { ref_msg_id: message_id, ..error }.into()).await;
    }
}

fn acceptance(msg_id: String) -> MessageAck {
    MessageAck { msg_id, status: AckStatus::Accepted }
}

fn unreachable(to: &HostPort, why: &str) -> Refused {
    Refused { refusal: Refusal::ForwardUnreachable, why: format!("{to} cannot be reached: {why}") }
}

/// Sends the last message of a stream.
async fn answer(to_peer: &mut quinn::SendStream, message: Message) {
    if write_frame(to_peer, &message).await.is_ok() && to_peer.finish().is_ok() {
        // Dropping the stream before it is delivered would reset it.
        let _delivered = tokio::time::timeout(ANSWER_TIMEOUT, to_peer.stopped()).await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_does_not_say_what_it_wants_is_given_up_in_time() {
        let (mut near, far) = tokio::io::duplex(64);
        let begun = tokio::time::Instant::now();
        let dripping = tokio::spawn(async move {
            // Enough of a frame to look like one, again and again a little more.
            for byte in [0xac, 1, 1, 0x10, 0, 0, 0, 60, 0x85] {
                near.write_all(&[byte]).await.unwrap();
                tokio::time::sleep(Duration::from_secs(4)).await;
            }
        });
        assert!(first_message(&mut FrameReader::new(far, MAX_CONTROL_PAYLOAD_LEN)).await.is_err());
        assert_eq!(begun.elapsed(), ANSWER_TIMEOUT);
        dripping.abort();
    }
}
