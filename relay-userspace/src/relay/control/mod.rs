//! The agents' control connections: QUIC, the handshake, and frames in and out.
//!
//! Tasks that carry messages between streams and the driver, over bounded channels both ways. They decide nothing beyond
//! the handshake: who may do what is the rendezvous' business.

mod admission;
mod conversation;
mod frames;
mod introduction;
mod message_rate;
mod places;
mod probe;
mod reset_key;
mod rules;
mod seats;
mod unfinished;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quinn::{
    Connection, Endpoint, EndpointConfig, Incoming, TokioRuntime, TransportConfig, ValidationTokenConfig,
    VarInt,
};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use self::rules::{ControlPolicy, Rules};

use self::admission::{Admission, Attempt, Verdict};
use self::frames::say_and_close;
use self::introduction::{Introduced, Rejection, TurnedAway};
use self::message_rate::MessageRates;
use self::places::{Full, Place, Places};
use self::reset_key::{RESET_INTERVAL, reset_key};
use self::rules::lock;
use self::seats::Seats;
use super::bans::BanSubject;
use super::forwarder::{ConnectionIds, QuicSocket};
use super::prefix::Prefix;
use super::rendezvous::{Authenticated, ConnId, Refusal, StreamNumber};
use super::splice::{Half, SEND_WINDOW, STREAM_WINDOW};
use crate::clock::MonoTime;
use crate::control_transport::control_transport;
use crate::identity::{NodeId, NodeKey};
use crate::protocol::flow_terms::ErrorMessage;
use crate::protocol::message::NotTaken;
use crate::protocol::{ErrorCode, Message};
use crate::refusals::{RefusalReason as _, Tally};
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
        /// How long the handshake took, from the first packet that was answered on.
        handshake: Duration,
    },
    /// A message has come.
    Message {
        /// The connection.
        conn: ConnId,
        /// The stream it came on; the answer goes there.
        stream: StreamNumber,
        /// The message.
        message: Message,
        /// Nothing more is read of the stream until this is dropped: what follows may be for a peer.
        held: Option<Held>,
    },
    /// The agent has finished or reset a stream.
    StreamOver {
        /// The connection.
        conn: ConnId,
        /// The stream.
        stream: StreamNumber,
    },
    /// A message has come of a type that the rendezvous does not take.
    NotTaken {
        /// The connection.
        conn: ConnId,
        /// The stream it came on; the answer goes there.
        stream: StreamNumber,
        /// What the answer needs of it.
        message: NotTaken,
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
    /// Give a stream away, once what was sent before is on its way. What was not read of it as a whole frame goes with it.
    HandOver {
        /// The stream.
        stream: StreamNumber,
        /// What keeps it from being read.
        held: Option<Held>,
        /// Where it goes. Dropped if the stream is gone.
        to: oneshot::Sender<Half>,
    },
    /// The end, once what was sent before has arrived.
    Close {
        /// QUIC application close code.
        code: u32,
        /// QUIC close reason.
        reason: &'static str,
        /// What the agent has done to be blamed for, if that is why.
        blamed: Option<Refusal>,
    },
}

/// Keeps a stream from being read further, until it is dropped.
#[derive(Debug)]
pub struct Held(#[expect(dead_code, reason = "it is there to be dropped")] oneshot::Sender<()>);

/// What the listener goes by as long as it runs; the rest is [`Rules`].
#[derive(Clone, Debug)]
pub struct ControlSettings {
    /// The relay's identity.
    pub key: NodeKey,
    /// The relay's name.
    pub name: String,
    /// Streams an agent may have open at once.
    pub max_streams_per_conn: u32,
    /// A connection without a sign of life ends after this.
    pub idle_timeout: Duration,
}

/// Unread bytes that a connection may have on its way to us, those of joined streams apart.
const RECEIVE_WINDOW: u32 = 256 * 1024;

/// The relay's QUIC endpoint over the port that the forwarder shares with it.
///
/// # Errors
/// The key cannot be used for TLS, or the runtime refuses.
pub fn endpoint(
    settings: &ControlSettings,
    socket: Arc<QuicSocket>,
    connection_ids: &ConnectionIds,
) -> Result<Endpoint, EndpointError> {
    let mut endpoint = EndpointConfig::new(reset_key(&settings.key));
    endpoint.min_reset_interval(RESET_INTERVAL);
    let ids = connection_ids.clone();
    endpoint.cid_generator(move || Box::new(ids.clone()));
    // With the bit set in every packet, no QUIC packet can begin as a bind datagram does.
    endpoint.grease_quic_bit(false);
    let mut server = tls::server_config(&settings.key, tls::ALPN_RELAY)?;
    server.max_incoming(1024).incoming_buffer_size(64 * 1024).incoming_buffer_size_total(16 * 1024 * 1024);
    // An agent connects once in a long while: one token spares it the Retry next time.
    let mut tokens = ValidationTokenConfig::default();
    tokens.sent(1);
    server.validation_token_config(tokens);
    server.transport_config(Arc::new(transport(settings)?));
    Ok(Endpoint::new_with_abstract_socket(endpoint, Some(server), socket, Arc::new(TokioRuntime))?)
}

fn transport(settings: &ControlSettings) -> Result<TransportConfig, EndpointError> {
    let mut transport = control_transport();
    transport
        .max_concurrent_bidi_streams(settings.max_streams_per_conn.into())
        .receive_window(RECEIVE_WINDOW.into())
        .stream_receive_window(STREAM_WINDOW.into())
        .send_window(SEND_WINDOW.into())
        .max_idle_timeout(Some(settings.idle_timeout.try_into().map_err(|_| EndpointError::IdleTimeout)?));
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
    rules: Arc<Rules>,
    events: mpsc::Sender<ControlEvent>,
    shutdown: CancellationToken,
) {
    let listener = Arc::new(Listener {
        settings,
        rules,
        events,
        admission: Mutex::default(),
        pending: Arc::default(),
        seats: Seats::new(),
        rates: Arc::default(),
        banned: Mutex::default(),
        probes: Arc::default(),
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
    rules: Arc<Rules>,
    events: mpsc::Sender<ControlEvent>,
    admission: Mutex<Admission>,
    /// Handshakes under way.
    pending: Arc<Places>,
    /// Connections.
    seats: Arc<Seats<Connection>>,
    rates: Arc<Mutex<MessageRates>>,
    /// How often somebody was banned.
    banned: Mutex<Tally>,
    /// Places of probes under way.
    probes: Arc<Places>,
}

impl Listener {
    /// Decides whether a connection attempt is worth a handshake.
    async fn admit(&self, incoming: Incoming) -> Option<(Incoming, Place)> {
        let (from, now, policy) = (incoming.remote_address(), MonoTime::now(), self.rules.policy());
        let prefix = Prefix::of(from.ip());
        let (under_way, of_prefix) = self.pending.taken(prefix);
        let attempt = Attempt {
            validated: incoming.remote_address_validated(),
            banned: self.rules.bans().left(BanSubject::Prefix(prefix), now).is_some(),
            seats_full: self.seats.full(prefix, policy.connections),
            under_way,
            of_prefix,
        };
        let verdict = lock(&self.admission).judge(&attempt, &policy, now);
        let refusal = match verdict {
            Verdict::Begin => return Some((incoming, self.pending.take(prefix))),
            Verdict::Retry => {
                let _cannot_fail = incoming.retry();
                Refusal::RetryDemanded
            }
            Verdict::Refuse(refusal) => {
                incoming.refuse();
                refusal
            }
            Verdict::Ignore(refusal) => {
                incoming.ignore();
                refusal
            }
        };
        self.refused(refusal, None, from).await;
        None
    }

    /// A connection from its first packet to its end.
    async fn attend(&self, conn: ConnId, incoming: Incoming, pending: Place) {
        let (from, begun) = (incoming.remote_address(), Instant::now());
        let introduced = self.introduce(incoming).await;
        let handshake = begun.elapsed();
        drop(pending);
        let introduced = match introduced {
            Ok(introduced) => introduced,
            Err(rejection) => return self.reject(rejection, from).await,
        };
        let (node, connection) = (introduced.peer.node_id, introduced.connection.clone());
        // They may have been banned while they shook hands.
        if let Some(TurnedAway { refusal, code, text }) = self.banned(node, from) {
            let Introduced { connection, mut send, .. } = introduced;
            let error = ErrorMessage::new(code, text.as_str());
            say_and_close(&connection, &mut send, &[error.into()], code, &text).await;
            return self.refused(refusal, Some(node), from).await;
        }
        let limits = self.rules.policy().connections;
        let _seat = match self.seats.take(node, Prefix::of(from.ip()), connection, limits) {
            Ok((seat, None)) => seat,
            Ok((seat, Some(older))) => {
                let code = VarInt::from_u32(ErrorCode::Limited.number());
                older.close(code, b"a newer connection of this agent has its place, for want of another");
                self.refused(Refusal::GaveWay, Some(node), older.remote_address()).await;
                seat
            }
            Err(full) => {
                let Introduced { connection, mut send, .. } = introduced;
                let error = ErrorMessage::new(ErrorCode::Limited, NO_SEAT);
                say_and_close(&connection, &mut send, &[error.into()], ErrorCode::Limited, NO_SEAT).await;
                return self.refused(connections_full(full), Some(node), from).await;
            }
        };
        self.converse(conn, introduced, from, handshake).await;
    }

    async fn reject(&self, rejection: Rejection, from: SocketAddr) {
        let Rejection { refusal, node, detail, blamed } = rejection;
        let named = node.map(|node| node.to_string()).unwrap_or_default();
        tracing::debug!(%from, node = named, reason = refusal.name(), detail, "handshake failed");
        if blamed {
            self.blame(node, from, refusal);
        }
        self.refused(refusal, node, from).await;
    }

    /// Counts what somebody has done towards a ban: a node's, if it has proved who it is, else its prefix's, whose address
    /// was proved. True: it is banned for that.
    fn blame(&self, node: Option<NodeId>, from: SocketAddr, refusal: Refusal) -> bool {
        let (now, prefix) = (MonoTime::now(), Prefix::of(from.ip()));
        let (subject, banned) = match node {
            Some(node) => (BanSubject::Node(node), self.rules.bans().violation(node, refusal, now)),
            None => (BanSubject::Prefix(prefix), self.rules.bans().failure(prefix, refusal, now)),
        };
        if let Some(times) = banned.then(|| lock(&self.banned).count(now)).flatten() {
            tracing::warn!(%subject, %from, reason = refusal.name(), times, "banned: `atlas-relay bans` lists who is");
        }
        banned
    }

    async fn refused(&self, refusal: Refusal, node: Option<NodeId>, from: SocketAddr) {
        let _driver_gone = self.events.send(ControlEvent::Refused { refusal, node, from }).await;
    }
}

/// What an agent is told for which there is no seat.
const NO_SEAT: &str = "the relay has as many agents as it may";

fn connections_full(full: Full) -> Refusal {
    match full {
        Full::All => Refusal::ConnectionsFull,
        Full::Prefix => Refusal::PrefixConnectionsFull,
    }
}

/// The wall clock, in seconds since the Unix epoch.
pub(super) fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
