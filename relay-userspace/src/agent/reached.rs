//! A connection to another agent, whichever way there is.

use std::fmt;

use super::peer::{PeerConnection, PingError, PingSample};
use super::request::{Delivery, MessageError, OutgoingMessage};
use super::snapshot::PeerSnapshot;
use super::splice::ReadableConnection;
use crate::protocol::handshake::Peer;

/// A connection to another agent: what [`Agent::reach`](super::Agent::reach) gives.
#[derive(Debug)]
pub enum Reached {
    /// End to end: a relay sees only encrypted datagrams.
    EndToEnd(PeerConnection),
    /// Through a relay that can read it, to a peer that knows only the documented messages.
    Readable(Box<ReadableConnection>),
}

/// How another agent is reached. It shows as the words that commands print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// By datagrams that no relay can read.
    Relay,
    /// By streams that the relay can read and alter.
    ReadableByRelay,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Path::Relay => "relay",
            Path::ReadableByRelay => "relay, readable by it",
        })
    }
}

impl Reached {
    /// Whom it is with.
    pub fn peer(&self) -> &Peer {
        match self {
            Reached::EndToEnd(connection) => connection.peer(),
            Reached::Readable(connection) => connection.peer(),
        }
    }

    /// Which way.
    pub fn path(&self) -> Path {
        match self {
            Reached::EndToEnd(_) => Path::Relay,
            Reached::Readable(_) => Path::ReadableByRelay,
        }
    }

    /// The peer in the form that is printed.
    pub fn snapshot(&self) -> PeerSnapshot {
        PeerSnapshot {
            node_id: self.peer().node_id.to_string(),
            name: self.peer().name.clone(),
            trust: "unknown".to_owned(),
            path: self.path().to_string(),
        }
    }

    /// Sends a message to the peer's application and waits for its agent's answer.
    ///
    /// # Errors
    /// It is too large, the peer refuses it or does not answer within 10 seconds, or the connection is gone.
    pub async fn send(&self, message: OutgoingMessage) -> Result<Delivery, MessageError> {
        match self {
            Reached::EndToEnd(connection) => connection.send(message).await,
            Reached::Readable(connection) => connection.send(message).await,
        }
    }

    /// Sends a Ping and waits for its Pong.
    ///
    /// # Errors
    /// No answer in time, or the connection is gone.
    pub async fn ping(&self) -> Result<PingSample, PingError> {
        match self {
            Reached::EndToEnd(connection) => connection.ping().await,
            Reached::Readable(connection) => connection.ping().await,
        }
    }

    /// Says goodbye and closes.
    pub async fn close(self) {
        match self {
            Reached::EndToEnd(connection) => connection.close().await,
            Reached::Readable(connection) => connection.close().await,
        }
    }
}
