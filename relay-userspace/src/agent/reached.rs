//! A connection to another agent, whichever way there is.

use std::fmt;

use super::peer::{PeerConnection, PingError, PingSample};
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
            Path::Relay => "via relay",
            Path::ReadableByRelay => "via relay, readable by it",
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
