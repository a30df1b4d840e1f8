//! The agents' control connections: QUIC, the handshake, and frames in and out.
//!
//! Tasks that carry messages between streams and the driver, over bounded channels both ways. They decide nothing beyond
//! the handshake: who may do what is the rendezvous' business.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quinn::{
    Connection, Endpoint, EndpointConfig, Incoming, RecvStream, SendStream, TokioRuntime, TransportConfig,
    VarInt,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::forwarder::{ConnectionIds, QuicSocket};
use super::rendezvous::{Authenticated, ConnId, Refusal};
use super::unfinished::{Metered, Share, Unfinished};
use crate::clock::MonoTime;
use crate::identity::{NodeId, NodeKey};
use crate::protocol::envelope::MAX_CONTROL_PAYLOAD_LEN;
use crate::protocol::flow_terms::ErrorMessage;
use crate::protocol::frames::{FrameError, FrameReader, write_frame};
use crate::protocol::handshake::{self, HandshakeError, Peer, Progress, Responder};
use crate::protocol::message::CHALLENGE_LEN;
use crate::protocol::{ErrorCode, Message, WireError};
use crate::tls::{self, TlsError};

/// What has happened on control connections, in order for each connection.
#[derive(Debug)]
pub enum ControlEvent {
    /// An agent has finished the handshake. What is put into `outbox` is sent to it.
    Connected {
        /// The agent.
        agent: Authenticated,
        /// Takes what is to be sent. Full: the agent does not read.
        outbox: mpsc::Sender<ToAgent>,
    },
    /// A message has come.
    Message {
        /// The connection.
        conn: ConnId,
        /// The stream it came on; the answer goes there.
        stream: StreamNumber,
        /// The message.
        message: Message,
    },
    /// The agent's address has changed.
    Moved {
        /// The connection.
        conn: ConnId,
        /// Its address now.
        remote: SocketAddr,
    },
    /// The connection is over.
    Closed {
        /// The connection.
        conn: ConnId,
        /// Why, for people.
        reason: String,
    },
    /// Somebody was turned away.
    Refused {
        /// Why.
        refusal: Refusal,
        /// Who, if it was proved.
        node: Option<NodeId>,
        /// Where from.
        from: SocketAddr,
    },
}

/// What is sent to an agent.
#[derive(Debug)]
pub enum ToAgent {
    /// A message.
    Message {
        /// The stream to send it on; if that is gone, the first one.
        stream: StreamNumber,
        /// The message.
        message: Message,
    },
    /// The end, once what was sent before has arrived.
    Close {
        /// QUIC application close code.
        code: u32,
        /// QUIC close reason.
        reason: &'static str,
    },
}

/// A stream of one connection, in the order the agent opened them. 0 is the handshake's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamNumber(pub u32);

/// What the listener goes by.
#[derive(Clone, Debug)]
pub struct ControlSettings {
    /// The relay's identity.
    pub key: NodeKey,
    /// The relay's name.
    pub name: String,
    /// Connections held at once.
    pub max_connections: usize,
    /// Streams an agent may have open at once.
    pub max_streams_per_conn: u32,
    /// A connection without a sign of life ends after this.
    pub idle_timeout: Duration,
    /// How far the clock in a Hello may be off.
    pub max_clock_drift: Duration,
}

/// Handshakes under way at once. More are not looked at; what they cost is bounded by this.
const MAX_PENDING: usize = 256;

/// With more handshakes under way than this, an address has to prove itself by a Retry first.
const RETRY_ABOVE: usize = 64;

/// Messages that may wait for an agent that does not read.
const OUTBOX_LEN: usize = 64;

/// An agent's address is looked at this often.
const LOOK_AT_ADDRESS: Duration = Duration::from_secs(1);

/// An agent that takes longer than this to make room for a message does not read.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);

/// How long a connection that is given up may take to hear why.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Unread bytes that a connection may have on its way to us.
const RECEIVE_WINDOW: VarInt = VarInt::from_u32(256 * 1024);

/// The relay's QUIC endpoint over the port that the forwarder shares with it.
///
/// # Errors
/// The key cannot be used for TLS, or the runtime refuses.
pub fn endpoint(
    settings: &ControlSettings,
    socket: Arc<QuicSocket>,
    connection_ids: &ConnectionIds,
) -> Result<Endpoint, EndpointError> {
    let mut endpoint = EndpointConfig::default();
    let ids = connection_ids.clone();
    endpoint.cid_generator(move || Box::new(ids.clone()));
    // With the bit set in every packet, no QUIC packet can begin as a bind datagram does.
    endpoint.grease_quic_bit(false);
    let mut server = tls::server_config(&settings.key, tls::ALPN_RELAY)?;
    server.max_incoming(1024).incoming_buffer_size(64 * 1024).incoming_buffer_size_total(16 * 1024 * 1024);
    server.transport_config(Arc::new(transport(settings)?));
    Ok(Endpoint::new_with_abstract_socket(endpoint, Some(server), socket, Arc::new(TokioRuntime))?)
}

fn transport(settings: &ControlSettings) -> Result<TransportConfig, EndpointError> {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(settings.max_streams_per_conn.into())
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .receive_window(RECEIVE_WINDOW)
        .stream_receive_window(RECEIVE_WINDOW)
        .send_window(256 * 1024)
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(settings.idle_timeout.try_into().map_err(|_| EndpointError::IdleTimeout)?))
        // Control messages are small: probing for larger packets would cost more than it brings.
        .mtu_discovery_config(None);
    Ok(transport)
}

/// The endpoint cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The TLS configuration.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The runtime.
    #[error("the QUIC endpoint cannot start: {0}")]
    Io(#[from] io::Error),
    /// QUIC cannot express it.
    #[error("transport.idle_timeout is too long for QUIC")]
    IdleTimeout,
}

/// Accepts connections until `shutdown`, and tells `events` what happens on them. Returns when the last one is gone.
pub async fn serve(
    endpoint: Endpoint,
    settings: ControlSettings,
    events: mpsc::Sender<ControlEvent>,
    shutdown: CancellationToken,
) {
    let listener = Arc::new(Listener {
        pending: Arc::new(Semaphore::new(MAX_PENDING)),
        places: Arc::new(Semaphore::new(settings.max_connections)),
        settings,
        events,
    });
    let mut connections = JoinSet::new();
    let mut next = 0;
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            () = shutdown.cancelled() => None,
        };
        let Some(incoming) = incoming else { break };
        while connections.try_join_next().is_some() {}
        if let Some((incoming, pending)) = listener.admit(incoming).await {
            next += 1;
            let listener = Arc::clone(&listener);
            connections.spawn(async move { listener.attend(ConnId(next), incoming, pending).await });
        }
    }
    while connections.join_next().await.is_some() {}
}

struct Listener {
    settings: ControlSettings,
    events: mpsc::Sender<ControlEvent>,
    /// Handshakes under way.
    pending: Arc<Semaphore>,
    /// Connections.
    places: Arc<Semaphore>,
}

impl Listener {
    /// Decides whether a connection attempt is worth a handshake.
    async fn admit(&self, incoming: Incoming) -> Option<(Incoming, OwnedSemaphorePermit)> {
        let from = incoming.remote_address();
        if self.places.available_permits() == 0 {
            incoming.refuse();
            self.refused(Refusal::ConnectionsFull, None, from).await;
            return None;
        }
        let under_way = MAX_PENDING - self.pending.available_permits();
        if under_way > RETRY_ABOVE && !incoming.remote_address_validated() {
            let _cannot_fail = incoming.retry();
            self.refused(Refusal::RetryDemanded, None, from).await;
            return None;
        }
        match Arc::clone(&self.pending).try_acquire_owned() {
            Ok(pending) => Some((incoming, pending)),
            Err(_) => {
                incoming.ignore();
                self.refused(Refusal::HandshakesFull, None, from).await;
                None
            }
        }
    }

    /// A connection from its first packet to its end.
    async fn attend(&self, conn: ConnId, incoming: Incoming, pending: OwnedSemaphorePermit) {
        let from = incoming.remote_address();
        let introduced = self.introduce(incoming).await;
        drop(pending);
        let introduced = match introduced {
            Ok(introduced) => introduced,
            Err(Rejection { refusal, node, detail }) => {
                let named = node.map(|node| node.to_string()).unwrap_or_default();
                tracing::debug!(%from, node = named, reason = refusal.name(), detail, "handshake failed");
                return self.refused(refusal, node, from).await;
            }
        };
        let Ok(_place) = Arc::clone(&self.places).try_acquire_owned() else {
            let text = "the relay has as many agents as it may";
            let error = ErrorMessage::new(ErrorCode::Limited, text);
            let Introduced { connection, mut send, peer, .. } = introduced;
            say_and_close(&connection, &mut send, &[error.into()], ErrorCode::Limited, text).await;
            return self.refused(Refusal::ConnectionsFull, Some(peer.node_id), from).await;
        };
        self.converse(conn, introduced).await;
    }

    /// TLS and the four handshake messages, in [`handshake::TIMEOUT`] altogether.
    async fn introduce(&self, incoming: Incoming) -> Result<Introduced, Rejection> {
        let deadline = Instant::now() + handshake::TIMEOUT;
        let late = |node| Rejection { refusal: Refusal::HandshakeTimeout, node, detail: String::new() };
        let connection = timeout_at(deadline, incoming)
            .await
            .map_err(|_| late(None))?
            .map_err(|error| Rejection::tls(&error))?;
        let key = tls::peer_key(&connection).map_err(|error| Rejection::tls(&error))?;
        let node = Some(key.node_id());
        let failed = |detail: String| Rejection { refusal: Refusal::HandshakeFailed, node, detail };
        let (mut send, receive) = match timeout_at(deadline, connection.accept_bi()).await {
            Ok(opened) => opened.map_err(|error| failed(error.to_string()))?,
            Err(_) => {
                let code = ErrorCode::HandshakeTimeout.number();
                connection.close(VarInt::from_u32(code), b"no stream was opened in time");
                return Err(late(node));
            }
        };
        let mut challenge = [0; CHALLENGE_LEN];
        getrandom::fill(&mut challenge).map_err(|error| failed(error.to_string()))?;
        let ControlSettings { key: own, name, max_clock_drift, .. } = &self.settings;
        let mut responder = Responder::new(own, name, key, challenge, *max_clock_drift, MonoTime::now());
        let unfinished = Unfinished::default();
        let mut reader = Reader::new(receive, &unfinished);
        loop {
            let progress = match timeout_at(deadline, reader.next()).await {
                Ok(Ok(Some(message))) => responder.handle(message, MonoTime::now(), unix_seconds()),
                Ok(Ok(None)) => return Err(failed("the agent has closed the stream".to_owned())),
                Ok(Err(error)) => {
                    if let Some(code) = refusal_code(&error) {
                        let answer = [ErrorMessage::new(code, error.to_string()).into()];
                        say_and_close(&connection, &mut send, &answer, code, "bad frame").await;
                    }
                    return Err(Rejection {
                        refusal: frame_refusal(&error),
                        node,
                        detail: error.to_string(),
                    });
                }
                Err(_) => Err(HandshakeError::Timeout),
            };
            let (answer, done) = match progress {
                Ok(Progress::Send(answer)) => (Some(answer), None),
                Ok(Progress::Done { send, peer }) => (send, Some(peer)),
                Err(error) => {
                    let (refusal, code) = (handshake_refusal(&error), error.code());
                    say_and_close(&connection, &mut send, &error.refusal(), code, "handshake failed").await;
                    return Err(Rejection { refusal, node, detail: error.to_string() });
                }
            };
            if let Some(answer) = answer {
                let written = timeout_at(deadline, write_frame(&mut send, &answer)).await;
                written.map_err(|_| late(node))?.map_err(|error| failed(error.to_string()))?;
            }
            if let Some(peer) = done {
                return Ok(Introduced { connection, peer, send, reader, unfinished });
            }
        }
    }

    /// Carries messages both ways until the connection ends.
    async fn converse(&self, conn: ConnId, introduced: Introduced) {
        let Introduced { connection, peer, send, reader, unfinished } = introduced;
        let mut remote = connection.remote_address();
        let (outbox, mut to_agent) = mpsc::channel(OUTBOX_LEN);
        let agent = Authenticated { conn, node: peer.node_id, name: peer.name, remote };
        if self.events.send(ControlEvent::Connected { agent, outbox }).await.is_err() {
            return connection.close(VarInt::from_u32(0), b"the relay stops");
        }
        let mut streams = BTreeMap::from([(StreamNumber(0), send)]);
        let mut readers = JoinSet::new();
        readers.spawn(read(conn, StreamNumber(0), reader, self.events.clone()));
        let mut opened = 0;
        let mut look = interval(LOOK_AT_ADDRESS);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let reason = loop {
            tokio::select! {
                order = to_agent.recv() => match order {
                    Some(ToAgent::Message { stream, message }) => {
                        if !write(&mut streams, stream, &message).await {
                            self.refused(Refusal::SlowReader, Some(peer.node_id), remote).await;
                            connection.close(VarInt::from_u32(0), b"what was sent was not read");
                            break "it does not read what it is sent".to_owned();
                        }
                    }
                    Some(ToAgent::Close { code, reason }) => {
                        finish_and_close(&connection, &mut streams, code, reason).await;
                        break reason.to_owned();
                    }
                    // The driver has given the agent up without a word: it does not read, or the daemon ends.
                    None => {
                        connection.close(VarInt::from_u32(0), b"given up");
                        break "given up".to_owned();
                    }
                },
                Some(ended) = readers.join_next() => match ended {
                    Ok((stream, Ok(()))) => {
                        // The agent has finished its direction. On the first stream it says nothing more then.
                        if stream != StreamNumber(0) {
                            streams.remove(&stream);
                        }
                    }
                    Ok((stream, Err(error))) => {
                        if let Some(code) = refusal_code(&error) {
                            self.refused(frame_refusal(&error), Some(peer.node_id), remote).await;
                            let answer = ErrorMessage::new(code, error.to_string());
                            let _slow_or_not = write(&mut streams, stream, &answer.into()).await;
                            finish_and_close(&connection, &mut streams, code.number(), "bad frame").await;
                            break error.to_string();
                        }
                        streams.remove(&stream);
                    }
                    Err(_) => {
                        connection.close(VarInt::from_u32(ErrorCode::Internal.number()), b"internal error");
                        break "a reader has failed".to_owned();
                    }
                },
                accepted = connection.accept_bi() => match accepted {
                    Ok((send, receive)) => {
                        opened += 1;
                        let stream = StreamNumber(opened);
                        streams.insert(stream, send);
                        let reader = Reader::new(receive, &unfinished);
                        readers.spawn(read(conn, stream, reader, self.events.clone()));
                    }
                    Err(error) => break error.to_string(),
                },
                _ = look.tick() => {
                    let now = connection.remote_address();
                    if now != remote {
                        remote = now;
                        let _driver_gone = self.events.send(ControlEvent::Moved { conn, remote }).await;
                    }
                }
            }
        };
        drop(to_agent);
        let _driver_gone = self.events.send(ControlEvent::Closed { conn, reason }).await;
    }

    async fn refused(&self, refusal: Refusal, node: Option<NodeId>, from: SocketAddr) {
        let _driver_gone = self.events.send(ControlEvent::Refused { refusal, node, from }).await;
    }
}

/// A connection whose handshake is done.
struct Introduced {
    connection: Connection,
    peer: Peer,
    send: SendStream,
    reader: Reader,
    unfinished: Unfinished,
}

/// Reads the frames of one stream on its connection's account.
struct Reader {
    frames: FrameReader<Metered<RecvStream>>,
    share: Share,
}

impl Reader {
    fn new(stream: RecvStream, unfinished: &Unfinished) -> Reader {
        let (stream, share) = unfinished.meter(stream);
        Reader { frames: FrameReader::new(stream, MAX_CONTROL_PAYLOAD_LEN), share }
    }

    /// The next message; None at the stream's end. Cancel safe.
    async fn next(&mut self) -> Result<Option<Message>, FrameError> {
        let message = self.frames.next().await;
        self.share.settle();
        message
    }
}

/// A handshake that failed.
struct Rejection {
    refusal: Refusal,
    node: Option<NodeId>,
    detail: String,
}

impl Rejection {
    fn tls(error: &dyn std::error::Error) -> Rejection {
        Rejection { refusal: Refusal::TlsFailed, node: None, detail: error.to_string() }
    }
}

/// Passes the messages of one stream on to the driver, at the driver's pace.
async fn read(
    conn: ConnId,
    stream: StreamNumber,
    mut reader: Reader,
    events: mpsc::Sender<ControlEvent>,
) -> (StreamNumber, Result<(), FrameError>) {
    loop {
        match reader.next().await {
            Ok(Some(message)) => {
                if events.send(ControlEvent::Message { conn, stream, message }).await.is_err() {
                    return (stream, Ok(()));
                }
            }
            Ok(None) => return (stream, Ok(())),
            Err(error) => return (stream, Err(error)),
        }
    }
}

/// Writes to a stream, or to the first if that one is gone. A stream that fails is dropped; the connection tells when it
/// is over. False if the agent does not read.
async fn write(
    streams: &mut BTreeMap<StreamNumber, SendStream>,
    stream: StreamNumber,
    message: &Message,
) -> bool {
    let stream = if streams.contains_key(&stream) { stream } else { StreamNumber(0) };
    let Some(send) = streams.get_mut(&stream) else { return true };
    match timeout(WRITE_PATIENCE, write_frame(send, message)).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::debug!(%error, message = message.name(), "a message was not sent");
            streams.remove(&stream);
            true
        }
        Err(_) => false,
    }
}

/// Closes a connection once the agent has everything that was written, or after [`LAST_WORDS`].
async fn finish_and_close(
    connection: &Connection,
    streams: &mut BTreeMap<StreamNumber, SendStream>,
    code: u32,
    reason: &str,
) {
    let arrived = async {
        for send in streams.values_mut() {
            let _already_finished = send.finish();
            let _stopped_or_arrived = send.stopped().await;
        }
    };
    let _too_slow = timeout(LAST_WORDS, arrived).await;
    connection.close(VarInt::from_u32(code), reason.as_bytes());
}

async fn say_and_close(
    connection: &Connection,
    send: &mut SendStream,
    messages: &[Message],
    code: ErrorCode,
    reason: &str,
) {
    let said = async {
        for message in messages {
            if write_frame(send, message).await.is_err() {
                return;
            }
        }
        let _already_finished = send.finish();
        let _stopped_or_arrived = send.stopped().await;
    };
    let _too_slow = timeout(LAST_WORDS, said).await;
    connection.close(VarInt::from_u32(code.number()), reason.as_bytes());
}

fn handshake_refusal(error: &HandshakeError) -> Refusal {
    match error {
        HandshakeError::ClockDrift { .. } => Refusal::ClockDrift,
        HandshakeError::Timeout => Refusal::HandshakeTimeout,
        _ => Refusal::HandshakeFailed,
    }
}

/// The code to refuse a frame with; none if the stream itself has failed.
fn refusal_code(error: &FrameError) -> Option<ErrorCode> {
    match error {
        FrameError::Stream(error) if error.kind() == io::ErrorKind::QuotaExceeded => {
            Some(ErrorCode::PayloadTooLarge)
        }
        error => error.code(),
    }
}

fn frame_refusal(error: &FrameError) -> Refusal {
    match error {
        FrameError::Stream(error) if error.kind() == io::ErrorKind::QuotaExceeded => Refusal::FrameTooLarge,
        FrameError::Wire(WireError::UnknownType(_)) => Refusal::UnknownMessage,
        FrameError::Wire(WireError::PayloadTooLarge { .. }) => Refusal::FrameTooLarge,
        _ => Refusal::BadFrame,
    }
}

/// The wall clock, in seconds since the Unix epoch.
pub(super) fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
