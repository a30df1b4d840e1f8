//! Why something an application asked of an agent did not happen, or came to its end.

use super::known_relays::PinError;
use crate::identity::NodeId;
use crate::protocol::ErrorCode;
use crate::protocol::flow_terms::{Disconnect, TermsError, disconnect_reason};
use crate::protocol::handshake::{HandshakeError, printable};
use crate::tls::TlsError;

/// Why there is no session or connection with a peer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectError {
    /// The configuration names no relay.
    #[error("no relay is configured: add one to `network.relays`")]
    NoRelay,
    /// The peer is this agent.
    #[error("{0} is this agent itself")]
    Itself(NodeId),
    /// No relay could be reached. The text names each and why.
    #[error("no relay can be reached: {0}")]
    RelaysUnreachable(String),
    /// The relay has refused.
    #[error("relay {relay} refuses to connect to {}: {code} {message}{}", peer.short(), refusal_hint(*.code))]
    Refused {
        /// The relay's `HOST:PORT`.
        relay: String,
        /// The peer that was asked for.
        peer: NodeId,
        /// An [`ErrorCode`]'s number.
        code: u32,
        /// The relay's words.
        message: String,
    },
    /// The peer knows only the documented messages, and what the relay could read is not allowed.
    #[error(
        "{} knows only the documented messages: the relay could read and alter what is sent to it. To permit that: \
         [agent] allow_readable_relay = true", peer.short()
    )]
    ReadableRelay {
        /// The peer.
        peer: NodeId,
    },
    /// The relay's terms cannot be used.
    #[error("relay {relay} cannot be used: {fault}")]
    Terms {
        /// The relay's `HOST:PORT`.
        relay: String,
        /// What is wrong with them.
        fault: TermsError,
    },
    /// The relay did not answer in time.
    #[error("relay {relay} has not answered in time")]
    RelaySilent {
        /// The relay's `HOST:PORT`.
        relay: String,
    },
    /// The two sides did not both bind in time.
    #[error(
        "the path to {} through relay {relay} was not ready in time: the peer may have just gone, or UDP from this host \
         to the relay's port may be blocked", peer.short()
    )]
    NotPaired {
        /// The relay's `HOST:PORT`.
        relay: String,
        /// The peer.
        peer: NodeId,
    },
    /// The session ended while it was being set up.
    #[error("{0}")]
    Ended(SessionEnd),
    /// The agents' own QUIC connection was not established.
    #[error("the end-to-end connection to {} failed: {why}", peer.short())]
    EndToEnd {
        /// The peer.
        peer: NodeId,
        /// What QUIC says.
        why: String,
    },
    /// The peer's handshake was not sound, or it refused ours.
    #[error("the handshake with {} failed: {fault}", peer.short())]
    Handshake {
        /// The peer.
        peer: NodeId,
        /// Why.
        fault: HandshakeError,
    },
    /// The agent is being stopped.
    #[error("the agent has been stopped")]
    Stopped,
}

/// Why a session has ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionEnd {
    /// Nothing here used it any more.
    #[error("nothing here used the session any more, so it was closed")]
    Closed,
    /// The operator of this agent has ended it.
    #[error("the operator has ended the session; what still needs it connects again")]
    ByOperator,
    /// `[agent] accept` does not name the peer any more.
    #[error("the peer is not accepted any more")]
    NoLongerAccepted,
    /// The other side has closed it.
    #[error("the peer has ended the session{}", in_parentheses(.note))]
    PeerGone {
        /// The relay's words.
        note: Option<String>,
    },
    /// The relay is about to stop.
    #[error("the relay is stopping; connect again when it is back, or through another")]
    RelayStops,
    /// Another session, mostly over another relay, has taken over from it.
    #[error("the session has moved to another path")]
    Moved,
    /// Nothing was relayed for too long.
    #[error(
        "the relay has ended the session because nothing was sent for too long; connect again when needed"
    )]
    Idle,
    /// The relay has not accepted a proof of our data tuple for as long as one is good.
    #[error(
        "consent is lost: relay {relay} has not answered on the data path; the relay may be down or restarted, or UDP to \
         it blocked; connect again"
    )]
    ConsentLost {
        /// The relay's `HOST:PORT`.
        relay: String,
    },
    /// The relay says that one side has not proved its tuple in time.
    #[error("the relay has ended the session because one side fell silent{}; connect again", in_parentheses(.note))]
    SideSilent {
        /// The relay's words.
        note: Option<String>,
    },
    /// The two sides did not both bind in time.
    #[error("the session was never paired: the other side did not bind in time")]
    NotPaired,
    /// The relay has ended it for another reason.
    #[error("the relay has ended the session: {reason}{}", in_parentheses(.note))]
    ByRelay {
        /// The relay's word.
        reason: String,
        /// The relay's explanation.
        note: Option<String>,
    },
    /// The data socket could not be opened.
    #[error("no data socket: {0}")]
    DataSocket(String),
    /// The bind magic in the terms does not follow from the relay's key.
    #[error("the terms of the relay {} have the bind magic of another: it is faulty, or not to be trusted", relay.short())]
    ForeignMagic {
        /// The relay that has sent the terms.
        relay: NodeId,
    },
    /// The agent is being stopped.
    #[error("the agent has been stopped")]
    Stopped,
}

impl SessionEnd {
    /// The end that a relay's Disconnect with a session tells.
    pub(super) fn told(reason: &str, note: Option<String>) -> Self {
        match reason {
            disconnect_reason::IDLE => SessionEnd::Idle,
            disconnect_reason::PEER_GONE => SessionEnd::PeerGone { note },
            disconnect_reason::SHUTDOWN => SessionEnd::RelayStops,
            disconnect_reason::CONSENT_LOST => SessionEnd::SideSilent { note },
            other => SessionEnd::ByRelay { reason: other.to_owned(), note },
        }
    }
}

/// Why the connection to a relay is not there, or no more.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The name does not resolve.
    #[error("the name does not resolve: {0}")]
    Resolve(std::io::Error),
    /// No local socket.
    #[error("no local UDP socket: {0}")]
    Socket(std::io::Error),
    /// Our own TLS set-up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Another relay has named it, and may not.
    #[error("its address is of this host or its network, and the relay that has named it is elsewhere")]
    OutOfScope,
    /// QUIC did not connect.
    #[error(
        "no answer within {} s: the relay is down, or UDP to it is blocked, or the address is wrong",
        super::link::DIAL_TIMEOUT.as_secs()
    )]
    DialTimeout,
    /// Nothing has come for too long.
    #[error(
        "the relay has not been heard for {} s: it is gone, or the network between is",
        super::link::IDLE_TIMEOUT.as_secs()
    )]
    Lost,
    /// The relay answers, and takes no connection from here.
    #[error(
        "the relay takes no connection from this address: it may be banned there, or the relay is full; ask the relay's \
         operator, who sees it by `atlas bans`"
    )]
    TurnedAway,
    /// QUIC failed.
    #[error("{0}")]
    Quic(String),
    /// The relay's key is not the expected one.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The handshake failed.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The relay says goodbye.
    #[error("the relay has closed the connection: {reason}{}", in_parentheses(.note))]
    Disconnected {
        /// The relay's word.
        reason: String,
        /// The relay's explanation.
        note: Option<String>,
    },
    /// Another process with this identity has connected.
    #[error(
        "another process with this identity has announced itself at the relay; this one stands back. \
         Stop one of them, or give it an identity of its own"
    )]
    Replaced,
    /// The relay's daemon makes way for another.
    #[error("the relay restarts")]
    Restarting,
    /// A successor of the relay's daemon does not know the connection.
    #[error("the relay was started again")]
    Forgotten,
    /// Three pings in a row went unanswered.
    #[error("the relay has not answered three pings")]
    Silent,
}

impl LinkError {
    /// What QUIC says; some of it may be the relay's words.
    pub(super) fn quic(error: impl std::fmt::Display) -> Self {
        LinkError::Quic(printable(&error.to_string(), 256))
    }

    /// Why there is no connection, or no more.
    pub(super) fn of(error: &quinn::ConnectionError) -> Self {
        match error {
            quinn::ConnectionError::ConnectionClosed(close)
                if close.error_code == quinn::TransportErrorCode::CONNECTION_REFUSED =>
            {
                LinkError::TurnedAway
            }
            other => LinkError::quic(other),
        }
    }

    /// The end of a connection that a relay's Disconnect tells.
    pub(super) fn told(Disconnect { reason, note, .. }: &Disconnect) -> Self {
        match reason.as_str() {
            disconnect_reason::REPLACED => LinkError::Replaced,
            disconnect_reason::RESTART => LinkError::Restarting,
            other => LinkError::Disconnected {
                reason: printable(other, 64),
                note: note.as_deref().map(|note| printable(note, 256)),
            },
        }
    }

    /// Whether the relay is there again, or will be in a moment, and knows its sessions.
    pub(super) fn is_restart(&self) -> bool {
        matches!(self, LinkError::Restarting | LinkError::Forgotten)
    }
}

fn refusal_hint(code: u32) -> &'static str {
    match ErrorCode::from_number(code) {
        Some(ErrorCode::TargetUnknown) => {
            "; the peer is not connected to this relay, or does not accept this node: check its `network.relays` and \
             `[agent] accept`"
        }
        Some(ErrorCode::Busy | ErrorCode::TableFull | ErrorCode::Limited) => {
            "; try again later, or another relay"
        }
        Some(ErrorCode::Draining) => "; use another relay",
        Some(ErrorCode::DocumentedOnly) => "; to permit that: [agent] allow_readable_relay = true",
        _ => "",
    }
}

fn in_parentheses(note: &Option<String>) -> String {
    note.as_deref().filter(|note| !note.is_empty()).map(|note| format!(" ({note})")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_relay_says_when_it_closes_controls_no_terminal() {
        let reason = "\u{1b}[2Jbye\nerror: \u{202e}x".into();
        let close = quinn::ApplicationClose { error_code: 1_u8.into(), reason };
        let told = LinkError::of(&quinn::ConnectionError::ApplicationClosed(close)).to_string();
        assert!(told.contains("[2Jbyeerror: x"), "{told:?}");
        assert!(!told.chars().any(|c| c.is_control() || c == '\u{202e}'), "{told:?}");
    }

    #[test]
    fn who_is_turned_away_is_told_whom_to_ask() {
        let close = |error_code| {
            quinn::ConnectionError::ConnectionClosed(quinn::ConnectionClose {
                error_code,
                frame_type: None,
                reason: Default::default(),
            })
        };
        let refused = LinkError::of(&close(quinn::TransportErrorCode::CONNECTION_REFUSED)).to_string();
        assert!(refused.contains("banned") && refused.contains("operator"), "{refused}");
        let other = LinkError::of(&close(quinn::TransportErrorCode::INTERNAL_ERROR));
        assert!(matches!(other, LinkError::Quic(_)), "{other}");
    }
}
