//! Messages that peers send to this agent's application.

use tokio::sync::mpsc;

use super::reached::Path;
use super::refusal::Refusal;
use super::streams::{OWN_TOPICS, Refused};
use crate::identity::NodeId;
use crate::protocol::body::Body;
use crate::protocol::message::AtlasMessage;

/// A message from another agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncomingMessage {
    /// Its id, in the sender's words: it proves nothing and need not be unique.
    pub id: String,
    /// Who has sent it: proved, unless the relay could read it.
    pub from: NodeId,
    /// How it has come. What has come by [`Path::ReadableByRelay`] the relay can have altered or made up, and so can anybody
    /// with whom the sender shakes hands meanwhile: the documented handshake signs a bare challenge, which can be passed on.
    pub path: Path,
    /// The sender's clock, in seconds since the Unix epoch.
    pub timestamp: i64,
    /// The id of the message it answers.
    pub reply_to: Option<String>,
    /// What it is about.
    pub topic: Option<String>,
    /// The content: a JSON value.
    pub body: Body,
}

/// So many messages wait for the application; of more the senders are told to try later.
pub const INBOX_LEN: usize = 32;

/// Characters of an id. Ours have 40.
const MAX_ID_CHARS: usize = 64;

/// Puts a message that `peer` has sent by `path` into the inbox of `me`.
pub(super) fn take(
    me: NodeId,
    (peer, path): (NodeId, Path),
    accepted: bool,
    message: AtlasMessage,
    inbox: &mpsc::Sender<IncomingMessage>,
) -> Result<(), Refused> {
    let refused = |refusal, why: String| Err(Refused { refusal, why });
    if !accepted {
        let why = format!("not accepted; to accept it: [agent] accept = [\"{peer}\"]");
        return refused(Refusal::PeerNotAccepted, why);
    }
    let AtlasMessage { id, from, to, timestamp, reply_to, topic, body } = message;
    if from != peer.to_string() || to != me.to_string() {
        let why = format!("`from` must be {peer}, which has sent it, and `to` {me}, which has it now");
        return refused(Refusal::ForeignMessage, why);
    }
    if id.is_empty() || id.chars().count() > MAX_ID_CHARS || id.chars().any(|c| !c.is_ascii_graphic()) {
        let why = format!("`id` must have 1 to {MAX_ID_CHARS} visible ASCII characters");
        return refused(Refusal::ForeignMessage, why);
    }
    if let Some(own) = topic.as_deref().filter(|topic| topic.starts_with(OWN_TOPICS)) {
        let own: String = own.chars().take(64).collect();
        let why = format!(
            "topics that begin with {OWN_TOPICS} are the agents' own, and {own:?} is not served here"
        );
        return refused(Refusal::UnknownTopic, why);
    }
    let message = IncomingMessage { id, from: peer, path, timestamp, reply_to, topic, body };
    if inbox.try_send(message).is_err() {
        let why = format!("{INBOX_LEN} messages wait for the application already: try again later");
        return refused(Refusal::InboxFull, why);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: NodeId = NodeId::from_bytes([1; 32]);
    const PEER: NodeId = NodeId::from_bytes([2; 32]);
    const BY_RELAY: (NodeId, Path) = (PEER, Path::Relay);

    fn message() -> AtlasMessage {
        AtlasMessage {
            id: "msg_1".into(),
            from: PEER.to_string(),
            to: ME.to_string(),
            timestamp: 5,
            reply_to: Some("msg_0".into()),
            topic: Some("t".into()),
            body: Body::of(&[1, 2]).unwrap(),
        }
    }

    #[test]
    fn a_message_goes_to_the_application_with_the_sender_that_was_proved() {
        let (inbox, mut taken) = mpsc::channel(INBOX_LEN);
        take(ME, BY_RELAY, true, message(), &inbox).ok().unwrap();
        let IncomingMessage { id, from, path, timestamp, reply_to, topic, body } = taken.try_recv().unwrap();
        assert_eq!(path, Path::Relay);
        assert_eq!((id.as_str(), from, timestamp), ("msg_1", PEER, 5));
        assert_eq!(
            (reply_to.as_deref(), topic.as_deref(), body.as_str()),
            (Some("msg_0"), Some("t"), "[1,2]")
        );
    }

    #[test]
    fn a_message_in_another_name_or_for_another_or_without_a_usable_id_is_refused() {
        let (inbox, mut taken) = mpsc::channel(INBOX_LEN);
        let (me, peer) = (ME.to_string(), PEER.to_string());
        for wrong in [
            AtlasMessage { from: me.clone(), ..message() },
            AtlasMessage { to: peer, ..message() },
            AtlasMessage { to: String::new(), ..message() },
            AtlasMessage { id: String::new(), ..message() },
            AtlasMessage { id: "x".repeat(MAX_ID_CHARS + 1), ..message() },
            AtlasMessage { id: "a\nb".into(), ..message() },
        ] {
            let refused = take(ME, BY_RELAY, true, wrong.clone(), &inbox).err().unwrap();
            assert_eq!(refused.refusal, Refusal::ForeignMessage, "{wrong:?}");
        }
        assert!(taken.try_recv().is_err());
    }

    #[test]
    fn a_topic_of_the_agents_own_never_reaches_the_application() {
        let (inbox, mut taken) = mpsc::channel(INBOX_LEN);
        for path in [Path::Relay, Path::ReadableByRelay] {
            for topic in ["net/", "net/tcp", "net/udp", "net/other"] {
                let message = AtlasMessage { topic: Some(topic.into()), ..message() };
                let refused = take(ME, (PEER, path), true, message, &inbox).err().unwrap();
                assert_eq!(refused.refusal, Refusal::UnknownTopic, "{topic}");
            }
        }
        assert!(taken.try_recv().is_err());
        let message = AtlasMessage { topic: Some("network".into()), ..message() };
        take(ME, (PEER, Path::ReadableByRelay), true, message, &inbox).ok().unwrap();
        assert_eq!(taken.try_recv().unwrap().topic.as_deref(), Some("network"));
    }

    #[test]
    fn a_peer_that_is_not_accepted_any_more_sends_nothing() {
        let (inbox, _taken) = mpsc::channel(INBOX_LEN);
        let refused = take(ME, BY_RELAY, false, message(), &inbox).err().unwrap();
        assert_eq!(refused.refusal, Refusal::PeerNotAccepted);
        assert!(refused.why.contains("accept = [\"atlas_0202"), "{}", refused.why);
    }

    #[test]
    fn what_the_application_does_not_take_is_bounded() {
        let (inbox, taken) = mpsc::channel(INBOX_LEN);
        for _ in 0..INBOX_LEN {
            take(ME, BY_RELAY, true, message(), &inbox).ok().unwrap();
        }
        let refused = take(ME, BY_RELAY, true, message(), &inbox).err().unwrap();
        assert_eq!(refused.refusal, Refusal::InboxFull);
        assert_eq!(taken.len(), INBOX_LEN);
    }
}
