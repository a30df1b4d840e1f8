//! Peers that know only the documented messages: a stream of each that the relay joins, and can read.
//!
//! Nothing here happens without `[agent] allow_readable_relay`. Asked for such a peer, the agent asks its relay to join a
//! stream to one on which the peer waits; and on each of its relays it waits for such peers itself. Over the joined stream
//! runs the documented handshake, the connector as initiator, then Message, MessageAck, Ping and Pong.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::{Mutex, Semaphore, mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::error::ConnectError;
use super::inbox::{self, IncomingMessage};
use super::peer::{PING_TIMEOUT, PingError, PingSample};
use super::reached::Path;
use super::refusal::{Refusal, RefusalLog};
use super::request::{ANSWER_TIMEOUT, Delivery, MessageError, OutgoingMessage};
use super::serving::Serving;
use super::settings::AgentSettings;
use super::state::PAIRING_TIMEOUT;
use super::verification::{initiate, respond_to, unix_s};
use crate::clock::MonoTime;
use crate::identity::{NodeId, NodeKey};
use crate::protocol::envelope::MAX_CONTROL_PAYLOAD_LEN;
use crate::protocol::flow_terms::{
    Disconnect, ErrorMessage, ReadyStatus, RelayAnnounce, RelayConnect, RelayReady, disconnect_reason,
};
use crate::protocol::frames::{FrameReader, write_frame};
use crate::protocol::handshake::{DEFAULT_MAX_CLOCK_DRIFT, Initiator, Known, Peer, Responder, printable};
use crate::protocol::message::{AckStatus, AtlasMessage, CHALLENGE_LEN, MessageAck, Ping, Pong};
use crate::protocol::{ErrorCode, Message};

/// A verified conversation with a peer that knows only the documented messages. **The relay can read and alter it.**
///
/// It is for a few questions and answers: a Ping of the peer's is answered only while an answer of it is awaited.
pub struct ReadableConnection {
    me: NodeId,
    relay: String,
    peer: Peer,
    stream: Mutex<Stream>,
}

/// A joined stream.
struct Stream {
    to_peer: SendStream,
    from_peer: FrameReader<RecvStream>,
    /// Pongs that nobody waits for any more and that are still to come.
    overdue: u32,
}

/// A relay that can be asked to join streams.
#[derive(Debug)]
pub(super) struct ReadableRelay {
    /// Its address and port.
    pub name: String,
    pub connection: Connection,
}

impl ReadableConnection {
    /// Whom it is with, in its own words: it has proved nothing that the relay could not.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The relay that can read it: its address and port.
    pub fn relay(&self) -> &str {
        &self.relay
    }

    /// Sends a Ping and waits for its Pong.
    ///
    /// # Errors
    /// No answer within [`PING_TIMEOUT`], or the stream is gone.
    pub async fn ping(&self) -> Result<PingSample, PingError> {
        let mut stream = self.stream.lock().await;
        let (sent_unix_s, started) = (unix_s(), Instant::now());
        let exchange = async {
            stream.send(&Ping::new(sent_unix_s).into()).await?;
            loop {
                if let Message::Pong(Pong { ts, .. }) = stream.next().await? {
                    match stream.overdue.checked_sub(1) {
                        Some(less) => stream.overdue = less,
                        None => return Ok(ts),
                    }
                }
            }
        };
        match timeout(PING_TIMEOUT, exchange).await {
            Ok(Ok(answered_unix_s)) => {
                Ok(PingSample { round_trip: started.elapsed(), sent_unix_s, answered_unix_s })
            }
            Ok(Err(why)) => Err(PingError::Gone(why)),
            Err(_elapsed) => {
                stream.overdue += 1;
                Err(PingError::Timeout)
            }
        }
    }

    /// Sends a message to the peer's application and waits for its answer.
    ///
    /// # Errors
    /// It is too large, the peer refuses it or does not answer within 10 seconds, or the stream is gone.
    pub async fn send(&self, message: OutgoingMessage) -> Result<Delivery, MessageError> {
        message.check_topic()?;
        let (frame, msg_id) = message.encode(self.me, self.peer.node_id)?;
        let mut stream = self.stream.lock().await;
        let exchange = async {
            stream.to_peer.write_all(&frame).await.map_err(|error| MessageError::Gone(error.to_string()))?;
            loop {
                match stream.next().await.map_err(MessageError::Gone)? {
                    Message::MessageAck(ack) if ack.msg_id == msg_id => {
                        return Ok(Delivery { msg_id, status: ack.status });
                    }
                    Message::Error(error) => return Err(MessageError::refused(&error)),
                    _ => {}
                }
            }
        };
        timeout(ANSWER_TIMEOUT, exchange).await.unwrap_or(Err(MessageError::Unanswered))
    }

    /// Says goodbye, and waits a moment until the relay has it.
    pub async fn close(self) {
        let mut stream = self.stream.into_inner();
        let goodbye = Disconnect::new(disconnect_reason::SHUTDOWN, None, None);
        // The peer may be gone already.
        if stream.send(&goodbye.into()).await.is_ok() && stream.to_peer.finish().is_ok() {
            let _arrived = timeout(GOODBYE, stream.to_peer.stopped()).await;
        }
    }
}

impl fmt::Debug for ReadableConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("ReadableConnection");
        shown.field("peer", &self.peer.node_id).field("relay", &self.relay).finish_non_exhaustive()
    }
}

/// A closing stream gets this long to say so.
const GOODBYE: Duration = Duration::from_millis(250);

impl Stream {
    async fn open(connection: &Connection) -> Result<Stream, String> {
        let (to_peer, from_peer) = connection.open_bi().await.map_err(|error| error.to_string())?;
        let from_peer = FrameReader::new(from_peer, MAX_CONTROL_PAYLOAD_LEN);
        Ok(Stream { to_peer, from_peer, overdue: 0 })
    }

    async fn send(&mut self, message: &Message) -> Result<(), String> {
        write_frame(&mut self.to_peer, message).await.map_err(|error| error.to_string())
    }

    /// The next message that is an answer. A Ping among them is answered.
    async fn next(&mut self) -> Result<Message, String> {
        loop {
            match self.from_peer.next().await {
                Ok(Some(Message::Ping(Ping { ts, .. }))) => {
                    self.send(&Pong::new(unix_s(), ts).into()).await?;
                }
                Ok(Some(Message::Disconnect(goodbye))) => {
                    return Err(format!("the peer has said goodbye: {}", printable(&goodbye.reason, 64)));
                }
                Ok(Some(message)) => return Ok(message),
                Ok(None) => return Err("the stream has ended".to_owned()),
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

/// Asks each relay in turn for a stream joined to one on which `peer` waits, and verifies the peer as far as that goes.
pub(super) async fn dial(
    key: &NodeKey,
    name: &str,
    peer: NodeId,
    relays: Vec<ReadableRelay>,
) -> Result<ReadableConnection, ConnectError> {
    let mut refusal = None;
    for relay in relays {
        let asked = timeout(PAIRING_TIMEOUT, ask(key.node_id(), peer, &relay)).await;
        let silent = || Err(ConnectError::RelaySilent { relay: relay.name.clone() });
        let mut stream = match asked.unwrap_or_else(|_elapsed| silent()) {
            Ok(stream) => stream,
            Err(error) => {
                refusal.get_or_insert(error);
                continue;
            }
        };
        let initiator = Initiator::new(key, name, Known::Node(peer), MonoTime::now(), unix_s());
        let verified = initiate(initiator, &mut stream.to_peer, &mut stream.from_peer).await;
        let verified = verified.map_err(|fault| ConnectError::Handshake { peer, fault })?;
        tracing::warn!(relay = relay.name, %peer, "connected through a relay that can read what is sent");
        let me = key.node_id();
        return Ok(ReadableConnection { me, relay: relay.name, peer: verified, stream: stream.into() });
    }
    Err(refusal.unwrap_or(ConnectError::NoRelay))
}

async fn ask(me: NodeId, peer: NodeId, relay: &ReadableRelay) -> Result<Stream, ConnectError> {
    let failed = |why: String| ConnectError::EndToEnd { peer, why };
    let mut stream = Stream::open(&relay.connection).await.map_err(failed)?;
    let connect = RelayConnect {
        source_id: me.to_string(),
        target_id: peer.to_string(),
        timestamp: Some(unix_s()),
        flow: None,
    };
    stream.send(&connect.into()).await.map_err(failed)?;
    match stream.next().await.map_err(failed)? {
        Message::RelayReady(RelayReady { status: ReadyStatus::Ready, .. }) => Ok(stream),
        Message::RelayError(error) => Err(ConnectError::Refused {
            relay: relay.name.clone(),
            peer,
            code: error.code,
            message: printable(&error.message, 256),
        }),
        other => Err(failed(format!("the relay answers with {}", other.name()))),
    }
}

/// Waits on relays for peers that know only the documented messages, if that is allowed.
#[derive(Debug)]
pub(super) struct Waiting {
    target: Option<Target>,
    stop: CancellationToken,
}

/// What such peers are answered with.
#[derive(Clone, Debug)]
struct Target {
    key: NodeKey,
    name: String,
    accept: Arc<watch::Sender<BTreeSet<NodeId>>>,
    refusals: RefusalLog,
    inbox: mpsc::Sender<IncomingMessage>,
}

/// Peers that are served at once over the streams of one relay, which can read them. Each may have a message of 64 KiB under
/// way. What comes by one relay takes nothing from the others: whoever fills these places may be that relay itself.
const MAX_READABLE_PEERS: usize = 32;

/// After a stream that came to nothing the next one waits this long.
const PAUSE: Duration = Duration::from_secs(1);

/// A peer that says nothing for so long is gone: it sends a Ping every 60 s.
const PEER_IDLE: Duration = Duration::from_secs(240);

impl Waiting {
    pub fn new(settings: &AgentSettings, serving: &Serving) -> Waiting {
        let target = (settings.announce && settings.allow_readable_relay).then(|| Target {
            key: serving.key.clone(),
            name: serving.name.clone(),
            accept: Arc::new(watch::Sender::new(settings.accept.iter().copied().collect())),
            refusals: serving.refusals.clone(),
            inbox: serving.inbox.clone(),
        });
        Waiting { target, stop: CancellationToken::new() }
    }

    /// Others may connect from now on.
    pub fn accept(&self, accept: &[NodeId]) {
        if let Some(target) = &self.target {
            target.accept.send_replace(accept.iter().copied().collect());
        }
    }

    /// Waits on a relay's connection for as long as that lives.
    pub fn wait_on(&self, connection: &Connection) {
        if let Some(target) = self.target.clone() {
            let (connection, stop) = (connection.clone(), self.stop.clone());
            tokio::spawn(async move { stop.run_until_cancelled(target.wait_on(connection)).await });
        }
    }

    /// Ends everything.
    pub fn stop(&self) {
        self.stop.cancel();
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Target {
    async fn wait_on(self, connection: Connection) {
        let places = Arc::new(Semaphore::new(MAX_READABLE_PEERS));
        // Dropping it ends those who are served.
        let mut served = tokio::task::JoinSet::new();
        while connection.close_reason().is_none() {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            while served.try_join_next().is_some() {}
            match self.first_message(&connection).await {
                Ok((first, stream)) => {
                    let target = self.clone();
                    served.spawn(async move {
                        target.serve(first, stream).await;
                        drop(place);
                    });
                }
                Err(why) => {
                    tracing::debug!(why, "no peer has come on a stream that the relay can read");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Waits on a stream until a peer says something.
    async fn first_message(&self, connection: &Connection) -> Result<(Message, Stream), String> {
        let mut stream = Stream::open(connection).await?;
        let accept = self.accept.borrow().iter().map(NodeId::to_string).collect();
        let announce = RelayAnnounce {
            node_id: self.key.node_id().to_string(),
            timestamp: unix_s(),
            flow: None,
            // It comes before the announcement with `flow`, or after it.
            allow: Some(accept),
        };
        stream.send(&announce.into()).await?;
        match stream.next().await? {
            Message::RelayReady(RelayReady { status: ReadyStatus::Waiting, .. }) => {}
            Message::RelayError(error) => return Err(printable(&error.message, 256)),
            other => return Err(format!("the relay answers with {}", other.name())),
        }
        let first = stream.next().await?;
        Ok((first, stream))
    }

    /// Serves a peer whose first message has come.
    async fn serve(&self, first: Message, mut stream: Stream) {
        let claimed = match &first {
            Message::Hello(hello) => hello.node_id.parse::<NodeId>().ok(),
            _ => None,
        };
        // Whoever only claims to be another fails at the handshake.
        if let Some(stranger) = claimed.filter(|claimed| !self.accept.borrow().contains(claimed)) {
            let why = format!("not accepted; to accept it: [agent] accept = [\"{stranger}\"]");
            self.refusals.refuse(Refusal::PeerNotAccepted, &stranger, &why);
            let error = ErrorMessage::new(ErrorCode::HandshakeFailed, "this agent does not accept that node");
            return stream.last_word(error.into()).await;
        }
        let mut challenge = [0; CHALLENGE_LEN];
        if let Err(error) = getrandom::fill(&mut challenge) {
            return tracing::error!(%error, "the operating system gives no random numbers");
        }
        let responder = Responder::new(
            &self.key,
            &self.name,
            Known::Nothing,
            challenge,
            DEFAULT_MAX_CLOCK_DRIFT,
            MonoTime::now(),
        );
        let whom = claimed.map_or_else(|| "unknown".to_owned(), |claimed| claimed.to_string());
        let peer = match respond_to(first, responder, &mut stream.to_peer, &mut stream.from_peer).await {
            Ok(peer) => peer.node_id,
            Err(fault) => {
                if fault.is_ours() {
                    self.refusals.refuse(Refusal::HandshakeFailed, &whom, &fault);
                }
                return;
            }
        };
        tracing::warn!(%peer, "the peer is connected through a relay that can read what is sent");
        let why = self.converse(peer, &mut stream).await;
        tracing::info!(%peer, why, "the peer's stream is over");
    }

    /// Answers a peer until it leaves.
    async fn converse(&self, peer: NodeId, stream: &mut Stream) -> String {
        loop {
            let message = match timeout(PEER_IDLE, stream.next()).await {
                Ok(Ok(message)) => message,
                Ok(Err(why)) => return why,
                Err(_elapsed) => return format!("silent for {} s", PEER_IDLE.as_secs()),
            };
            let answer = match message {
                Message::Pong(_) | Message::MessageAck(_) | Message::Error(_) => continue,
                Message::Message(message) => self.deliver(peer, message),
                other => self.refuse(peer, &other),
            };
            if let Err(why) = stream.send(&answer).await {
                return why;
            }
        }
    }

    /// Hands a message to the application.
    fn deliver(&self, peer: NodeId, message: AtlasMessage) -> Message {
        let id = message.id.clone();
        let accepted = self.accept.borrow().contains(&peer);
        match inbox::take(self.key.node_id(), (peer, Path::ReadableByRelay), accepted, message, &self.inbox) {
            Ok(()) => MessageAck { msg_id: id, status: AckStatus::Accepted }.into(),
            Err(refused) => {
                self.refusals.refuse(refused.refusal, &peer, &refused.why);
                let error = ErrorMessage::new(refused.code(), refused.why);
                ErrorMessage { ref_msg_id: Some(id), ..error }.into()
            }
        }
    }

    fn refuse(&self, peer: NodeId, message: &Message) -> Message {
        let why = format!("no {} on this stream", message.name());
        self.refusals.refuse(Refusal::UnexpectedMessage, &peer, &why);
        ErrorMessage::new(ErrorCode::MessageRejected, why).into()
    }
}

impl Stream {
    /// Says something and ends.
    async fn last_word(mut self, message: Message) {
        if self.send(&message).await.is_ok() && self.to_peer.finish().is_ok() {
            let _arrived = timeout(GOODBYE, self.to_peer.stopped()).await;
        }
    }
}
