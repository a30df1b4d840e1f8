//! A session as the application sees it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use relay_common::Side;
use tokio::sync::{mpsc, watch};

use super::data_socket::DataSocket;
use super::error::SessionEnd;
use super::lock;
use super::session_path::SessionPath;
use super::snapshot::{SessionSnapshot, SessionTraffic};
use crate::identity::NodeId;
use crate::protocol::SessionId;
use crate::protocol::bind::BindEvent;
use crate::protocol::flow_terms::{FlowTerms, Role};

/// One relayed connection between this agent and another. A cheap handle: the session lives on without it, and the
/// handle stays good after the session's end.
///
/// If its relay dies and both agents share another, it moves there: it has another id then, and everything that uses it
/// goes on.
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

struct Inner {
    peer: NodeId,
    side: Side,
    /// The id that it began with: what its users are counted under.
    origin: SessionId,
    paths: Mutex<Paths>,
    moves: AtomicU64,
    end: watch::Sender<Option<SessionEnd>>,
    limited_packets: AtomicU64,
    limited_bytes: AtomicU64,
}

struct Paths {
    present: Arc<SessionPath>,
    /// Left, and still received on.
    left: Vec<Arc<SessionPath>>,
    /// Through paths that are gone.
    past: SessionTraffic,
}

impl Session {
    pub(super) fn new(terms: &FlowTerms, path: Arc<SessionPath>) -> Self {
        Session {
            inner: Arc::new(Inner {
                peer: terms.peer,
                side: terms.side,
                origin: terms.session,
                paths: Paths { present: path, left: Vec::new(), past: SessionTraffic::default() }.into(),
                moves: AtomicU64::new(0),
                end: watch::Sender::new(None),
                limited_packets: AtomicU64::new(0),
                limited_bytes: AtomicU64::new(0),
            }),
        }
    }

    /// The session's id, at the relay that it goes through at present.
    pub fn id(&self) -> SessionId {
        self.path().id()
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
    /// of IP, or the session to another relay.
    pub fn max_datagram(&self) -> usize {
        self.path().max_datagram()
    }

    /// What went through so far, by whichever relay.
    pub fn traffic(&self) -> SessionTraffic {
        let paths = lock(&self.inner.paths);
        let living = paths.left.iter().chain([&paths.present]).map(|path| path.socket().traffic());
        living.fold(paths.past, SessionTraffic::plus)
    }

    /// Datagrams, and their bytes, that the relay says it has dropped for the session's limit.
    pub fn limited(&self) -> (u64, u64) {
        (self.inner.limited_packets.load(Ordering::Relaxed), self.inner.limited_bytes.load(Ordering::Relaxed))
    }

    /// How often it has moved to another relay.
    pub fn moves(&self) -> u64 {
        self.inner.moves.load(Ordering::Relaxed)
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
        let path = self.path();
        SessionSnapshot {
            session: path.id().to_string(),
            peer: self.peer().to_string(),
            role: Role(self.side()).to_string(),
            relay: path.socket().relay().to_string(),
            relay_round_trip_us: path.relay_round_trip_us(),
            moves: self.moves(),
            limited_packets,
            limited_bytes,
            traffic: self.traffic(),
        }
    }

    /// The id that it began with.
    pub(super) fn origin(&self) -> SessionId {
        self.inner.origin
    }

    /// The socket of the path that is sent on.
    pub(super) fn socket(&self) -> Arc<DataSocket> {
        self.path().socket().clone()
    }

    fn path(&self) -> Arc<SessionPath> {
        lock(&self.inner.paths).present.clone()
    }

    /// Sends on `path` from now on.
    pub(super) fn move_to(&self, path: Arc<SessionPath>) {
        let mut paths = lock(&self.inner.paths);
        let before = std::mem::replace(&mut paths.present, path);
        paths.left.push(before);
        self.inner.moves.fetch_add(1, Ordering::Relaxed);
    }

    /// A path that was left is not received on any more.
    pub(super) fn forget_path(&self, id: SessionId) {
        let mut paths = lock(&self.inner.paths);
        let (gone, left) = std::mem::take(&mut paths.left).into_iter().partition(|path| path.id() == id);
        paths.left = left;
        let gone: Vec<Arc<SessionPath>> = gone;
        paths.past = gone.iter().map(|path| path.socket().traffic()).fold(paths.past, SessionTraffic::plus);
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
    /// The session that began with this id has one user more.
    UserCame(SessionId),
    /// It has one user less.
    UserGone(SessionId),
}

/// Keeps the session that began with an id in use, wherever it moves. Dropping it lets the session end.
#[derive(Debug)]
pub(super) struct SessionUser {
    origin: SessionId,
    news: mpsc::UnboundedSender<SessionNews>,
}

impl SessionUser {
    /// One that the state has counted already.
    pub fn counted(origin: SessionId, news: &mpsc::UnboundedSender<SessionNews>) -> Self {
        SessionUser { origin, news: news.clone() }
    }

    /// One that is to be counted now.
    pub fn come(origin: SessionId, news: &mpsc::UnboundedSender<SessionNews>) -> Self {
        // A driver that is gone counts nobody.
        let _told = news.send(SessionNews::UserCame(origin));
        Self::counted(origin, news)
    }
}

impl Drop for SessionUser {
    fn drop(&mut self) {
        let _told = self.news.send(SessionNews::UserGone(self.origin));
    }
}
