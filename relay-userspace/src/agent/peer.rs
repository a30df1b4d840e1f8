//! A connection to another agent: QUIC end to end, over whatever path there is.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, watch};

use super::error::{ConnectError, SessionEnd};
use super::link::drained;
use super::peer_address::peer_address;
use super::peer_endpoint::{PeerEndpoint, transport};
use super::request::{self, Delivery, MessageError, OutgoingMessage};
use super::session::{Session, SessionUser};
use super::verification::{initiate, unix_s};
use crate::clock::MonoTime;
use crate::identity::{NodeId, NodeKey};
use crate::protocol::Message;
use crate::protocol::envelope::MAX_CONTROL_PAYLOAD_LEN;
use crate::protocol::flow_terms::{Disconnect, disconnect_reason};
use crate::protocol::frames::{FrameReader, write_frame};
use crate::protocol::handshake::{Initiator, Peer};
use crate::protocol::message::{Ping, Pong};
use crate::tls;

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
            write_frame(&mut control.to_peer, &Ping::new(sent_unix_s).into()).await.map_err(|_| ())?;
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
