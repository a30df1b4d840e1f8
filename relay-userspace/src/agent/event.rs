//! What happens to an agent's sessions, told to the application.

use std::net::SocketAddr;

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::error::SessionEnd;
use super::session::Session;

/// Something that has happened to a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    /// Both sides are bound: datagrams pass from now on.
    Paired,
    /// The session goes another way than before. What runs over it goes on; its round trip and `max_datagram` may be
    /// others.
    Moved {
        /// The relay's data address that it goes through now.
        relay: SocketAddr,
        /// This agent's address as that relay sees it.
        reflexive: SocketAddr,
    },
    /// The relay has dropped datagrams of either side for the session's limit: send less.
    Limited {
        /// How many since the last notice.
        packets: u64,
        /// Their UDP payload bytes.
        bytes: u64,
    },
    /// The session is over. Nothing follows.
    Ended {
        /// Why; [`SessionEnd::remedy`] tells what can be done.
        why: SessionEnd,
    },
}

/// The events of all sessions of an agent, from the moment of [`Agent::session_events`](super::Agent::session_events) on.
#[derive(Debug)]
pub struct SessionEvents {
    from_driver: broadcast::Receiver<(Session, SessionEvent)>,
    missed: u64,
}

impl SessionEvents {
    /// The next event, and whose it is; None once the agent is stopped. Cancel safe.
    ///
    /// Up to [`SessionEvents::QUEUE`] events wait here. Whoever is slower than that misses the oldest;
    /// [`missed`](Self::missed) counts them. What a [`Session`] itself tells ([`Session::end`], [`Session::limited`]) is
    /// never missed.
    pub async fn next(&mut self) -> Option<(Session, SessionEvent)> {
        loop {
            match self.from_driver.recv().await {
                Ok(event) => return Some(event),
                Err(RecvError::Lagged(events)) => self.missed += events,
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// How many events were not taken in time.
    pub fn missed(&self) -> u64 {
        self.missed
    }

    /// How many events wait for a slow reader.
    pub const QUEUE: usize = 256;
}

/// Where the driver puts what it sees happen.
#[derive(Clone, Debug)]
pub(super) struct SessionEventSender(broadcast::Sender<(Session, SessionEvent)>);

impl SessionEventSender {
    pub fn new() -> Self {
        SessionEventSender(broadcast::Sender::new(SessionEvents::QUEUE))
    }

    pub fn tell(&self, session: &Session, event: SessionEvent) {
        // Nobody may be listening.
        let _listeners = self.0.send((session.clone(), event));
    }

    pub fn subscribe(&self) -> SessionEvents {
        SessionEvents { from_driver: self.0.subscribe(), missed: 0 }
    }
}
