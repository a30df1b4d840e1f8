//! QUIC between two agents, over whatever path there is.

use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use relay_common::Side;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinSet;

use super::data_socket::DataSocket;
use super::error::{ConnectError, SessionEnd};
use super::forward::datagrams::{self, Flows};
use super::inbox::IncomingMessage;
use super::link::drained;
use super::peer_address::peer_address;
use super::permitted::Permitted;
use super::refusal::{Refusal, RefusalLog};
use super::request::{self, Delivery, MessageError, OutgoingMessage};
use super::session::{Session, SessionNews, SessionUser};
use super::streams;
use super::verification::{initiate, respond, unix_s};
use super::virtual_socket::VirtualSocket;
use crate::clock::MonoTime;
use crate::identity::{NodeId, NodeKey};
use crate::protocol::envelope::MAX_CONTROL_PAYLOAD_LEN;
use crate::protocol::flow_terms::{Disconnect, ErrorMessage, disconnect_reason};
use crate::protocol::frames::{FrameReader, write_frame};
use crate::protocol::handshake::{DEFAULT_MAX_CLOCK_DRIFT, Initiator, Peer, Responder};
use crate::protocol::message::{CHALLENGE_LEN, Ping, Pong};
use crate::protocol::{ErrorCode, Message, SessionId};
use crate::tls::{self, TlsError};

/// A verified connection to another agent. Clones share it; it closes with the last.
#[derive(Clone)]
pub struct PeerConnection {
    inner: Arc<ConnectionInner>,
}

struct ConnectionInner {
    me: NodeId,
    endpoint: Arc<PeerEndpoint>,
    connection: quinn::Connection,
    control: Mutex<Control>,
    peer: Peer,
    session: Session,
    /// Why the connection is gone, once it is.
    gone: watch::Receiver<Option<String>>,
}

impl Drop for ConnectionInner {
    fn drop(&mut self) {
        self.connection.close(0_u8.into(), b"closed");
    }
}

/// The first stream, after the handshake: Ping, Pong, Disconnect.
struct Control {
    to_peer: quinn::SendStream,
    from_peer: FrameReader<quinn::RecvStream>,
    /// Pongs that nobody waits for any more and that are still to come.
    overdue: u32,
}

/// One answered ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PingSample {
    /// From Ping to Pong, end to end.
    pub round_trip: Duration,
    /// When the Ping was sent, by our clock, in seconds since the Unix epoch.
    pub sent_unix_s: i64,
    /// When the Pong was sent, by the peer's clock, in seconds since the Unix epoch.
    pub answered_unix_s: i64,
}

/// A Pong that takes longer does not count.
pub const PING_TIMEOUT: Duration = Duration::from_secs(5);

impl PeerConnection {
    /// Whom it is with.
    pub fn peer(&self) -> &Peer {
        &self.inner.peer
    }

    /// The session it runs over.
    pub fn session(&self) -> &Session {
        &self.inner.session
    }

    /// The QUIC connection, for streams of the application's own. Stream 0 is taken; the peer's agent expects a Message on
    /// each new one, and a UDP flow's number before each datagram.
    pub fn quic(&self) -> &quinn::Connection {
        &self.inner.connection
    }

    pub(super) fn me(&self) -> NodeId {
        self.inner.me
    }

    /// Sends a message to the peer's application and waits for its agent's answer.
    ///
    /// # Errors
    /// It is too large, the peer refuses it or does not answer within 10 seconds, or the connection is gone.
    pub async fn send(&self, message: OutgoingMessage) -> Result<Delivery, MessageError> {
        message.check_topic()?;
        // Dropping its stream ends it in order.
        request::ask(self, message).await.map(|accepted| accepted.delivery)
    }

    /// Sends a Ping and waits for its Pong.
    ///
    /// # Errors
    /// No answer within [`PING_TIMEOUT`], or the connection is gone.
    pub async fn ping(&self) -> Result<PingSample, PingError> {
        let mut control = self.inner.control.lock().await;
        let control = &mut *control;
        let sent_unix_s = unix_s();
        let started = Instant::now();
        let exchange = async {
            write_frame(&mut control.to_peer, &Ping { ts: sent_unix_s }.into()).await.map_err(|_| ())?;
            loop {
                match control.from_peer.next().await {
                    Ok(Some(Message::Pong(Pong { ts, .. }))) => match control.overdue.checked_sub(1) {
                        Some(less) => control.overdue = less,
                        None => return Ok(ts),
                    },
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => return Err(()),
                }
            }
        };
        match tokio::time::timeout(PING_TIMEOUT, exchange).await {
            Ok(Ok(answered_unix_s)) => {
                Ok(PingSample { round_trip: started.elapsed(), sent_unix_s, answered_unix_s })
            }
            Ok(Err(())) => {
                // Whatever has ended the stream ends the connection, or should.
                self.inner.connection.close(0_u8.into(), b"the control stream has ended");
                Err(PingError::Gone(self.closed().await))
            }
            Err(_elapsed) => {
                control.overdue += 1;
                Err(PingError::Timeout)
            }
        }
    }

    /// Waits until the connection is gone and tells why.
    pub async fn closed(&self) -> String {
        let mut gone = self.inner.gone.clone();
        let why = gone.wait_for(Option::is_some).await;
        why.ok().and_then(|why| why.clone()).unwrap_or_else(|| SessionEnd::Stopped.to_string())
    }

    /// Says goodbye and closes.
    pub async fn close(&self) {
        let goodbye = Disconnect::new(disconnect_reason::SHUTDOWN, None, None);
        let mut control = self.inner.control.lock().await;
        // The peer may be gone already.
        let _sent = write_frame(&mut control.to_peer, &goodbye.into()).await;
        self.inner.connection.close(0_u8.into(), b"closed");
        drained(&self.inner.endpoint.endpoint).await;
    }
}

impl fmt::Debug for PeerConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerConnection").field("peer", &self.inner.peer.node_id).finish_non_exhaustive()
    }
}

/// Why a ping has no round trip.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PingError {
    /// No Pong in time.
    #[error("no answer within {} s", PING_TIMEOUT.as_secs())]
    Timeout,
    /// The connection is gone.
    #[error("the connection is gone: {0}")]
    Gone(String),
}

/// What the driver hands to whoever has asked for a connection.
#[derive(Debug)]
pub(super) struct EndToEndPath {
    pub endpoint: Arc<PeerEndpoint>,
    pub session: Session,
    pub user: SessionUser,
}

/// QUIC to and from one peer, on its virtual socket.
#[derive(Debug)]
pub(super) struct PeerEndpoint {
    peer: NodeId,
    socket: Arc<VirtualSocket>,
    endpoint: quinn::Endpoint,
    /// Why the last path is gone.
    end: OnceLock<SessionEnd>,
}

/// The most that an unread stream may hold, in bytes; twice that for a connection. At 100 ms round trip it is room for
/// 670 Mbit/s.
const STREAM_WINDOW: u32 = 8 << 20;

/// Two agents that lost each other notice after this time.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const KEEP_ALIVE: Duration = Duration::from_secs(8);

/// Connections of one peer that are served at once. A command makes one, and a forward one.
const MAX_CONNECTIONS: usize = 32;

/// Concurrent forwards and messages of one connection.
const MAX_STREAMS: u32 = 256;

impl PeerEndpoint {
    pub fn new(key: &NodeKey, session: &Session, serve: bool) -> Result<Arc<Self>, EndpointError> {
        let peer = session.peer();
        let socket =
            VirtualSocket::new(&key.node_id(), &peer, session.id(), session.side(), session.socket());
        let mut config = quinn::EndpointConfig::default();
        // Relay and packet path tell QUIC from bind datagrams by this bit.
        config.grease_quic_bit(false);
        config
            .max_udp_payload_size(max_udp_payload(session))
            .map_err(|e| EndpointError::Config(e.to_string()))?;
        let server = match serve {
            false => None,
            true => {
                let mut server = tls::server_config(key, tls::ALPN_PEER)?;
                // Only this peer can reach it. A peer that moves to another session comes by another address.
                server.migration(true).max_incoming(16).transport_config(transport(session));
                Some(server)
            }
        };
        let endpoint = quinn::Endpoint::new_with_abstract_socket(
            config,
            server,
            socket.clone(),
            Arc::new(quinn::TokioRuntime),
        )
        .map_err(|e| EndpointError::Config(e.to_string()))?;
        Ok(Arc::new(PeerEndpoint { peer, socket, endpoint, end: OnceLock::new() }))
    }

    pub fn add_path(&self, session: SessionId, side: Side, path: Arc<DataSocket>) {
        self.socket.add(session, side, path);
    }

    pub fn prefer_path(&self, session: SessionId) {
        self.socket.prefer(session);
    }

    /// Sends on that session's path from now on, and something at once: the peer learns of the path from what comes by it.
    pub fn move_to_path(&self, session: SessionId) {
        self.socket.prefer(session);
        // To QUIC it is a change of its own address, after which every connection pings.
        if let Err(error) = self.endpoint.rebind_abstract(self.socket.clone()) {
            tracing::debug!(peer = %self.peer, %error, "the peer was not pinged");
        }
    }

    /// Drops a path; with the last, everything on the endpoint ends. True if it was the last.
    pub fn remove_path(&self, session: SessionId, end: &SessionEnd) -> bool {
        if self.socket.remove(session) > 0 {
            return false;
        }
        let _first = self.end.set(end.clone());
        self.endpoint.close(0_u8.into(), end.to_string().as_bytes());
        true
    }

    /// Says goodbye to everything on the endpoint while there is still a path.
    pub async fn say_goodbye(&self) {
        let _first = self.end.set(SessionEnd::Stopped);
        self.endpoint.close(0_u8.into(), b"the agent is being stopped");
        drained(&self.endpoint).await;
    }

    fn why_gone(&self, error: &quinn::ConnectionError) -> String {
        match error {
            // The session's end closes the endpoint.
            quinn::ConnectionError::LocallyClosed => {
                self.end.get().map_or_else(|| "closed here".to_owned(), SessionEnd::to_string)
            }
            quinn::ConnectionError::TimedOut => format!(
                "the peer has not been heard for {} s: it is gone, or the path is broken; connect again",
                IDLE_TIMEOUT.as_secs()
            ),
            quinn::ConnectionError::ApplicationClosed(close) => {
                format!("the peer has closed the connection: {close}")
            }
            other => other.to_string(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum EndpointError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("QUIC endpoint: {0}")]
    Config(String),
}

/// Dials over a paired session and verifies the peer.
pub(super) async fn dial(
    key: &NodeKey,
    name: &str,
    path: EndToEndPath,
) -> Result<PeerConnection, ConnectError> {
    let EndToEndPath { endpoint, session, user } = path;
    let peer = session.peer();
    let failed = |why: String| ConnectError::EndToEnd { peer, why };
    let mut config =
        tls::client_config(key, tls::ALPN_PEER, Some(peer)).map_err(|error| failed(error.to_string()))?;
    config.transport_config(transport(&session));
    let connecting = endpoint
        .endpoint
        .connect_with(config, peer_address(&peer), tls::SERVER_NAME)
        .map_err(|error| failed(error.to_string()))?;
    let connection = tokio::time::timeout(super::state::PAIRING_TIMEOUT, connecting)
        .await
        .map_err(|_| failed("the peer does not answer on the relayed path".to_owned()))?
        .map_err(|error| failed(endpoint.why_gone(&error)))?;
    let gone = |error: quinn::ConnectionError| failed(endpoint.why_gone(&error));
    let key_shown = tls::peer_key(&connection).map_err(|error| failed(error.to_string()))?;
    let (mut to_peer, from_peer) = connection.open_bi().await.map_err(gone)?;
    let mut from_peer = FrameReader::new(from_peer, MAX_CONTROL_PAYLOAD_LEN);
    let initiator = Initiator::new(key, name, key_shown, MonoTime::now(), unix_s());
    let verified = initiate(initiator, &mut to_peer, &mut from_peer).await.map_err(|fault| {
        connection.close(fault.code().number().into(), fault.to_string().as_bytes());
        ConnectError::Handshake { peer, fault }
    })?;
    let (tell, gone) = watch::channel(None);
    tokio::spawn(attend(endpoint.clone(), connection.clone(), tell, user));
    let control = Mutex::new(Control { to_peer, from_peer, overdue: 0 });
    let me = key.node_id();
    let inner = ConnectionInner { me, endpoint, connection, control, peer: verified, session, gone };
    Ok(PeerConnection { inner: Arc::new(inner) })
}

/// Keeps the session in use for as long as the connection lives, whether or not the application looks at it, and tells
/// why it is gone.
async fn attend(
    endpoint: Arc<PeerEndpoint>,
    connection: quinn::Connection,
    tell: watch::Sender<Option<String>>,
    _user: SessionUser,
) {
    // The first reason is the one: the session ends next, and closes what is closed already.
    let error = connection.closed().await;
    let why = endpoint.why_gone(&error);
    if error != quinn::ConnectionError::LocallyClosed {
        tracing::warn!(peer = %endpoint.peer, why, "the connection to the peer is gone");
    }
    tell.send_replace(Some(why));
}

/// What serving needs to know.
#[derive(Clone, Debug)]
pub(super) struct Serving {
    pub key: NodeKey,
    pub name: String,
    /// What is permitted at present.
    pub permitted: Arc<watch::Sender<Arc<Permitted>>>,
    pub refusals: RefusalLog,
    /// Messages for the application.
    pub inbox: mpsc::Sender<IncomingMessage>,
    pub news: mpsc::UnboundedSender<SessionNews>,
}

/// Answers the peer's connections until the endpoint closes.
pub(super) async fn serve(endpoint: Arc<PeerEndpoint>, serving: Serving) {
    let mut connections = JoinSet::new();
    while let Some(incoming) = endpoint.endpoint.accept().await {
        while connections.try_join_next().is_some() {}
        if connections.len() >= MAX_CONNECTIONS {
            let why = format!("it has {MAX_CONNECTIONS} connections; more are taken when others have ended");
            serving.refusals.refuse(Refusal::ConnectionsFull, &endpoint.peer, &why);
            incoming.refuse();
            continue;
        }
        let (endpoint, serving) = (endpoint.clone(), serving.clone());
        connections.spawn(async move {
            let peer = endpoint.peer;
            match serve_connection(&endpoint, incoming, &serving).await {
                Ok(why) => tracing::info!(%peer, why, "the peer's connection is over"),
                Err(why) => tracing::warn!(%peer, why, "the peer's connection failed"),
            }
        });
    }
    // Without an endpoint they end by themselves, and say why.
    connections.detach_all();
}

async fn serve_connection(
    endpoint: &Arc<PeerEndpoint>,
    incoming: quinn::Incoming,
    serving: &Serving,
) -> Result<String, String> {
    let refused = |refusal: Refusal, why: String| {
        serving.refusals.refuse(refusal, &endpoint.peer, &why);
        Err(why)
    };
    let connection = match incoming.await {
        Ok(connection) => connection,
        // Found here: what the peer finds comes as a ConnectionClosed.
        Err(error @ quinn::ConnectionError::TransportError(_)) => {
            return refused(Refusal::TlsFailed, error.to_string());
        }
        Err(error) => return Err(error.to_string()),
    };
    tokio::select! {
        outcome = serve_connected(endpoint, &connection, serving) => outcome,
        never = keep_in_use(endpoint, &connection, &serving.news) => match never {},
    }
}

/// A connection that has moved to another session's path is noticed within this time. QUIC does not tell.
const PATH_CHECK: Duration = Duration::from_secs(1);

/// Keeps the session in use that a peer's connection comes by at present.
async fn keep_in_use(
    endpoint: &PeerEndpoint,
    connection: &quinn::Connection,
    news: &mpsc::UnboundedSender<SessionNews>,
) -> Infallible {
    let mut check = tokio::time::interval(PATH_CHECK);
    let mut user: Option<(SessionId, SessionUser)> = None;
    loop {
        check.tick().await;
        // A session that is over takes its users with it.
        let Some(session) = endpoint.socket.session_of(connection.remote_address()) else { continue };
        if user.as_ref().is_none_or(|(known, _)| *known != session) {
            user = Some((session, SessionUser::come(session, news)));
        }
    }
}

async fn serve_connected(
    endpoint: &Arc<PeerEndpoint>,
    connection: &quinn::Connection,
    serving: &Serving,
) -> Result<String, String> {
    let refused = |refusal: Refusal, why: String| {
        serving.refusals.refuse(refusal, &endpoint.peer, &why);
        Err(why)
    };
    let key = match tls::peer_key(connection) {
        Ok(key) => key,
        Err(error) => return refused(Refusal::TlsFailed, error.to_string()),
    };
    if key.node_id() != endpoint.peer {
        let why = format!("{} answers where the relay has named another", key.node_id());
        let outcome = refused(Refusal::ForeignIdentity, why);
        connection.close(ErrorCode::InvalidIdentity.number().into(), b"not the peer the relay has named");
        return outcome;
    }
    let mut challenge = [0; CHALLENGE_LEN];
    getrandom::fill(&mut challenge).map_err(|error| error.to_string())?;
    let stream = tokio::time::timeout(crate::protocol::handshake::TIMEOUT, connection.accept_bi()).await;
    let (mut to_peer, from_peer) = match stream {
        Ok(stream) => stream.map_err(|error| endpoint.why_gone(&error))?,
        Err(_elapsed) => {
            connection.close(ErrorCode::HandshakeTimeout.number().into(), b"no handshake");
            return refused(Refusal::HandshakeTimeout, "no handshake within its time".to_owned());
        }
    };
    let mut from_peer = FrameReader::new(from_peer, MAX_CONTROL_PAYLOAD_LEN);
    let responder =
        Responder::new(&serving.key, &serving.name, key, challenge, DEFAULT_MAX_CLOCK_DRIFT, MonoTime::now());
    if let Err(fault) = respond(responder, &mut to_peer, &mut from_peer).await {
        // The refusal is on its way; the peer closes.
        let _closed = tokio::time::timeout(Duration::from_secs(1), connection.closed()).await;
        connection.close(fault.code().number().into(), fault.to_string().as_bytes());
        let why = format!("handshake: {fault}");
        return if fault.is_ours() { refused(Refusal::HandshakeFailed, why) } else { Err(why) };
    }
    tracing::info!(peer = %endpoint.peer, "the peer is connected, end to end");
    tokio::select! {
        why = answer_pings(endpoint.peer, &serving.refusals, &mut to_peer, &mut from_peer) => {
            connection.close(0_u8.into(), b"closed");
            Ok(why)
        }
        error = serve_streams(endpoint, connection, serving) => Ok(endpoint.why_gone(&error)),
    }
}

async fn answer_pings(
    peer: NodeId,
    refusals: &RefusalLog,
    to_peer: &mut quinn::SendStream,
    from_peer: &mut FrameReader<quinn::RecvStream>,
) -> String {
    loop {
        let answer: Message = match from_peer.next().await {
            Ok(Some(Message::Ping(Ping { ts }))) => Pong { ts: unix_s(), echo: ts }.into(),
            Ok(Some(Message::Pong(_))) => continue,
            Ok(Some(Message::Disconnect(_))) => return "the peer has said goodbye".to_owned(),
            Ok(Some(other)) => {
                let why = format!("no {} on this stream", other.name());
                refusals.refuse(Refusal::UnexpectedMessage, &peer, &why);
                ErrorMessage::new(ErrorCode::MessageRejected, why).into()
            }
            Ok(None) => return "the peer has closed the control stream".to_owned(),
            // The connection itself tells why.
            Err(error) if error.code().is_none() => std::future::pending().await,
            Err(error) => {
                refusals.refuse(Refusal::BadFrame, &peer, &error);
                return error.to_string();
            }
        };
        if write_frame(to_peer, &answer).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

async fn serve_streams(
    endpoint: &Arc<PeerEndpoint>,
    connection: &quinn::Connection,
    serving: &Serving,
) -> quinn::ConnectionError {
    let flows = Flows::new(connection.clone(), endpoint.peer, serving.refusals.clone());
    tokio::spawn(flows.clone().deliver_all());
    loop {
        match connection.accept_bi().await {
            Ok((to_peer, from_peer)) => {
                let (peer, serving, flows) = (endpoint.peer, serving.clone(), flows.clone());
                tokio::spawn(async move {
                    streams::serve(peer, &serving, &flows, to_peer, from_peer).await;
                });
            }
            Err(error) => return error,
        }
    }
}

fn transport(session: &Session) -> Arc<quinn::TransportConfig> {
    let mut discovery = quinn::MtuDiscoveryConfig::default();
    discovery.upper_bound(max_udp_payload(session));
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_idle_timeout(quinn::IdleTimeout::try_from(IDLE_TIMEOUT).ok())
        .keep_alive_interval(Some(KEEP_ALIVE))
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window((2 * STREAM_WINDOW).into())
        .send_window(2 * u64::from(STREAM_WINDOW))
        .max_concurrent_bidi_streams(MAX_STREAMS.into())
        .max_concurrent_uni_streams(0_u8.into())
        .datagram_receive_buffer_size(Some(datagrams::QUEUE_BYTES))
        .datagram_send_buffer_size(datagrams::QUEUE_BYTES)
        .mtu_discovery_config(Some(discovery));
    Arc::new(transport)
}

/// Neither we nor the peer probe for more than the relay says fits. If it says less later, QUIC notices that large
/// datagrams are lost (RFC 8899 section 4.3).
fn max_udp_payload(session: &Session) -> u16 {
    u16::try_from(session.max_datagram()).unwrap_or(u16::MAX).max(1200)
}
