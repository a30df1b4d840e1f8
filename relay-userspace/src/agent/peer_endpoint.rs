//! One peer's QUIC endpoint: a virtual socket over all paths that there are to that peer.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use relay_common::Side;

use super::data_socket::DataSocket;
use super::error::SessionEnd;
use super::forward::datagrams;
use super::link::drained;
use super::session::Session;
use super::virtual_socket::VirtualSocket;
use crate::identity::{NodeId, NodeKey};
use crate::protocol::SessionId;
use crate::protocol::bind::BindClient;
use crate::protocol::handshake::printable;
use crate::tls::{self, TlsError};

/// QUIC to and from one peer, on its virtual socket.
#[derive(Debug)]
pub(super) struct PeerEndpoint {
    pub peer: NodeId,
    pub socket: Arc<VirtualSocket>,
    pub endpoint: quinn::Endpoint,
    /// Why the last path is gone.
    end: OnceLock<SessionEnd>,
}

/// The most that an unread stream may hold, in bytes; twice that for a connection. At 100 ms round trip it is room for
/// 670 Mbit/s.
const STREAM_WINDOW: u32 = 8 << 20;

/// Two agents that lost each other notice after this time.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const KEEP_ALIVE: Duration = Duration::from_secs(8);

// An idle session goes on without a relay's daemon, even if one of these is lost.
const _: () = assert!(BindClient::HEARD_LATELY.as_secs() > 2 * KEEP_ALIVE.as_secs());

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

    /// Why a connection on it is gone.
    pub fn why_gone(&self, error: &quinn::ConnectionError) -> String {
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
                printable(&format!("the peer has closed the connection: {close}"), 256)
            }
            other => printable(&other.to_string(), 256),
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

/// The transport parameters of a connection over `session`'s path.
pub(super) fn transport(session: &Session) -> Arc<quinn::TransportConfig> {
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
