//! A session as the driver keeps it: one path of it, its socket open and its tasks running.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::data_socket::DataSocket;
use super::raw::{self, RawQueue};
use super::session::{Session, SessionNews};
use super::session_path::{RelayRoundTrip, SessionPath};
use super::settings::CongestionSettings;
use super::state::Use;
use crate::clock::MonoTime;
use crate::protocol::bind::{BindEvent, PathHealth};
use crate::protocol::flow_terms::FlowTerms;

/// One path of a session. Dropping it closes the path.
pub struct LiveSession {
    /// As its users have it. While it moves it has two paths.
    pub session: Session,
    /// This one of them.
    pub path: Arc<SessionPath>,
    /// What it carries.
    pub carries: Use,
    /// Where raw datagrams go.
    pub queue: Option<RawQueue>,
    /// From where the application takes them, until it does.
    pub received: Option<mpsc::Receiver<Bytes>>,
    /// This agent's address as the relay sees it, once it has bound.
    pub reflexive: Option<SocketAddr>,
    _tasks: DropGuard,
}

/// What a path is opened with.
pub struct Opening<'a> {
    /// The relay's terms.
    pub terms: &'a FlowTerms,
    /// Its data address.
    pub data: SocketAddr,
    /// What the session carries.
    pub carries: Use,
    /// How the agents' QUIC meets the session's limit.
    pub congestion: CongestionSettings,
    /// The relay's.
    pub round_trip: RelayRoundTrip,
}

impl LiveSession {
    /// Opens a data socket and begins to bind: for a session of its own, or for one that moves and has a path `before`.
    ///
    /// # Errors
    /// The system's.
    pub fn open(
        opening: Opening<'_>,
        before: Option<&LiveSession>,
        news: &mpsc::UnboundedSender<SessionNews>,
    ) -> io::Result<Self> {
        let Opening { terms, data, carries, congestion, round_trip } = opening;
        let socket = DataSocket::open(data, terms, congestion, MonoTime::now())?;
        let path = SessionPath::new(terms, socket.clone(), round_trip);
        let (session, queue, received) = match (before, carries) {
            // Its users have the session and the queue already.
            (Some(live), _) => (live.session.clone(), live.queue.clone(), None),
            (None, Use::EndToEnd) => (Session::new(terms, path.clone()), None, None),
            (None, Use::Raw) => {
                let (queue, received) = RawQueue::new();
                (Session::new(terms, path.clone()), Some(queue), Some(received))
            }
        };
        let stop = CancellationToken::new();
        let (id, news, stopped) = (terms.session, news.clone(), stop.clone());
        let bound = socket.clone();
        tokio::spawn(async move {
            let binding = bound.keep_bound(|event| {
                // Without a driver there is nobody to tell.
                let _told = news.send(SessionNews::Bind(id, event));
            });
            stopped.run_until_cancelled(binding).await
        });
        if let Some(queue) = queue.clone() {
            let stopped = stop.clone();
            tokio::spawn(async move { stopped.run_until_cancelled(raw::receive_all(socket, queue)).await });
        }
        let _tasks = stop.drop_guard();
        Ok(LiveSession { session, path, carries, queue, received, reflexive: None, _tasks })
    }

    /// Whether the session is sent on this path: not one that it moves to or has left.
    pub fn is_used(&self) -> bool {
        self.session.id() == self.path.id()
    }

    /// Notes and logs what the bind exchange has led to.
    pub fn take(&mut self, event: BindEvent) {
        let (id, peer) = (self.path.id(), self.session.peer());
        if let BindEvent::Half { reflexive }
        | BindEvent::Paired { reflexive }
        | BindEvent::Moved { reflexive } = event
        {
            self.reflexive = Some(reflexive);
        }
        match event {
            BindEvent::Half { reflexive } => {
                tracing::debug!(session = %id, %peer, %reflexive, "bound; the other side is not yet");
            }
            BindEvent::Paired { reflexive } => tracing::info!(session = %id, %peer, %reflexive, "paired"),
            BindEvent::Moved { reflexive } => {
                tracing::info!(session = %id, %peer, %reflexive, "the relay sees us at another address: the session has moved");
            }
            BindEvent::Path(PathHealth::Sound) => {
                tracing::info!(session = %id, %peer, "the path is sound again");
            }
            BindEvent::Path(health) => {
                tracing::warn!(session = %id, %peer, why = health.words(), "the path fails");
            }
            BindEvent::Lost => tracing::warn!(session = %id, %peer, "consent is lost"),
        }
    }
}
