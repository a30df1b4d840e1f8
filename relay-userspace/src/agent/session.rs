//! A session as the application sees it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use relay_common::Side;
use tokio::sync::{mpsc, watch};

use super::data_socket::DataSocket;
use super::error::SessionEnd;
use super::snapshot::{SessionSnapshot, SessionTraffic};
use crate::identity::NodeId;
use crate::protocol::SessionId;
use crate::protocol::bind::BindEvent;
use crate::protocol::flow_terms::{FlowTerms, Role};

/// One relayed connection between this agent and another. A cheap handle: the session lives on without it, and the
/// handle stays good after the session's end.
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

struct Inner {
    id: SessionId,
    peer: NodeId,
    side: Side,
    max_datagram_bytes: AtomicU32,
    socket: Arc<DataSocket>,
    end: watch::Sender<Option<SessionEnd>>,
    limited_packets: AtomicU64,
    limited_bytes: AtomicU64,
}

impl Session {
    pub(super) fn new(terms: &FlowTerms, socket: Arc<DataSocket>) -> Self {
        Session {
            inner: Arc::new(Inner {
                id: terms.session,
                peer: terms.peer,
                side: terms.side,
                max_datagram_bytes: terms.max_datagram_bytes.into(),
                socket,
                end: watch::Sender::new(None),
                limited_packets: AtomicU64::new(0),
                limited_bytes: AtomicU64::new(0),
            }),
        }
    }

    /// The session's id.
    pub fn id(&self) -> SessionId {
        self.inner.id
    }

    /// The other agent.
    pub fn peer(&self) -> NodeId {
        self.inner.peer
    }

    /// Which side this agent is.
    pub fn side(&self) -> Side {
        self.inner.side
    }

    /// The largest UDP payload that fits the whole path, in bytes. It changes if a side goes over to the other version
    /// of IP.
    pub fn max_datagram(&self) -> usize {
        self.inner.max_datagram_bytes.load(Ordering::Relaxed) as usize
    }

    /// What went through so far.
    pub fn traffic(&self) -> SessionTraffic {
        self.inner.socket.traffic()
    }

    /// Datagrams, and their bytes, that the relay says it has dropped for the session's limit.
    pub fn limited(&self) -> (u64, u64) {
        (self.inner.limited_packets.load(Ordering::Relaxed), self.inner.limited_bytes.load(Ordering::Relaxed))
    }

    /// Why the session has ended; None while it lives.
    pub fn end(&self) -> Option<SessionEnd> {
        self.inner.end.borrow().clone()
    }

    /// Waits for the session's end.
    pub async fn ended(&self) -> SessionEnd {
        let mut end = self.inner.end.subscribe();
        // The sender lives in `self`, so the wait cannot fail.
        let ended = end.wait_for(Option::is_some).await.ok().and_then(|end| end.clone());
        ended.unwrap_or(SessionEnd::Stopped)
    }

    /// The session in the form that is printed.
    pub fn snapshot(&self) -> SessionSnapshot {
        let (limited_packets, limited_bytes) = self.limited();
        SessionSnapshot {
            session: self.id().to_string(),
            peer: self.peer().to_string(),
            role: Role(self.side()).to_string(),
            relay: self.inner.socket.relay().to_string(),
            limited_packets,
            limited_bytes,
            traffic: self.traffic(),
        }
    }

    pub(super) fn socket(&self) -> &Arc<DataSocket> {
        &self.inner.socket
    }

    /// The relay has sent the terms again.
    pub(super) fn set_terms(&self, terms: &FlowTerms) {
        self.inner.max_datagram_bytes.store(terms.max_datagram_bytes, Ordering::Relaxed);
        self.inner.socket.set_terms(terms);
    }

    pub(super) fn set_end(&self, end: SessionEnd) {
        self.inner.end.send_replace(Some(end));
    }

    pub(super) fn add_limited(&self, packets: u64, bytes: u64) {
        self.inner.limited_packets.fetch_add(packets, Ordering::Relaxed);
        self.inner.limited_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("id", &self.id()).field("peer", &self.peer()).finish_non_exhaustive()
    }
}

/// What sessions and their users tell the driver.
#[derive(Debug)]
pub(super) enum SessionNews {
    /// The bind exchange has led to something.
    Bind(SessionId, BindEvent),
    /// One user more.
    UserCame(SessionId),
    /// One user less.
    UserGone(SessionId),
}

/// Keeps a session in use. Dropping it lets the session end.
#[derive(Debug)]
pub(super) struct SessionUser {
    session: SessionId,
    news: mpsc::UnboundedSender<SessionNews>,
}

impl SessionUser {
    /// One that the state has counted already.
    pub fn counted(session: SessionId, news: &mpsc::UnboundedSender<SessionNews>) -> Self {
        SessionUser { session, news: news.clone() }
    }

    /// One that is to be counted now.
    pub fn come(session: SessionId, news: &mpsc::UnboundedSender<SessionNews>) -> Self {
        // A driver that is gone counts nobody.
        let _told = news.send(SessionNews::UserCame(session));
        Self::counted(session, news)
    }
}

impl Drop for SessionUser {
    fn drop(&mut self) {
        let _told = self.news.send(SessionNews::UserGone(self.session));
    }
}
