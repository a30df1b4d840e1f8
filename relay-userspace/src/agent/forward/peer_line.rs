//! A forward's connection to its peer: made when it is needed, and made again when it is gone.

use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;

use super::ForwardEvent;
use crate::agent::error::ConnectError;
use crate::agent::peer::PeerConnection;
use crate::agent::refusal::RefusalLog;
use crate::agent::session::Session;
use crate::agent::snapshot::SessionTraffic;
use crate::agent::{Dialler, lock};
use crate::identity::NodeId;

pub struct PeerLine {
    dialler: Dialler,
    peer: NodeId,
    tell: mpsc::Sender<ForwardEvent>,
    carried: Arc<Carried>,
    present: tokio::sync::Mutex<Option<PeerConnection>>,
}

/// Events that wait to be asked for.
const EVENTS: usize = 64;

impl PeerLine {
    pub fn new(dialler: Dialler, peer: NodeId) -> (Self, mpsc::Receiver<ForwardEvent>) {
        let (tell, events) = mpsc::channel(EVENTS);
        let line = PeerLine { dialler, peer, tell, carried: Arc::default(), present: None.into() };
        (line, events)
    }

    pub fn peer(&self) -> NodeId {
        self.peer
    }

    pub fn carried(&self) -> Arc<Carried> {
        self.carried.clone()
    }

    pub fn refusals(&self) -> &RefusalLog {
        &self.dialler.refusals
    }

    /// The present connection, or a new one. Those who come meanwhile wait for the same.
    pub async fn connected(&self) -> Result<PeerConnection, ConnectError> {
        let mut present = self.present.lock().await;
        match &*present {
            Some(connection) if connection.quic().close_reason().is_none() => Ok(connection.clone()),
            _ => {
                let connection = self.dialler.connect(self.peer).await?;
                self.carried.go_on_with(connection.session());
                self.tell(ForwardEvent::Session(connection.session().clone()));
                *present = Some(connection.clone());
                Ok(connection)
            }
        }
    }

    /// Waits until the present connection is gone, and says so once.
    pub async fn watch(&self) {
        let connection = self.present.lock().await.clone();
        let Some(connection) = connection else { return std::future::pending().await };
        let why = connection.closed().await;
        let mut present = self.present.lock().await;
        if present.as_ref().is_some_and(|now| now.quic().stable_id() == connection.quic().stable_id()) {
            *present = None;
            self.tell(ForwardEvent::Lost { why });
        }
    }

    pub fn tell(&self, event: ForwardEvent) {
        // Whoever does not listen to the events misses some.
        let _told = self.tell.try_send(event);
    }
}

/// What went through a forward's sessions. Those that are over are a sum: a forward may have thousands.
#[derive(Debug, Default)]
pub struct Carried {
    sessions: Mutex<(SessionTraffic, Option<Session>)>,
}

impl Carried {
    fn go_on_with(&self, session: &Session) {
        let (past, present) = &mut *lock(&self.sessions);
        if let Some(last) = present.replace(session.clone())
            && last.id() != session.id()
        {
            *past = past.plus(last.traffic());
        }
    }

    pub fn traffic(&self) -> SessionTraffic {
        let (past, present) = &*lock(&self.sessions);
        present.as_ref().map_or(*past, |session| past.plus(session.traffic()))
    }
}
