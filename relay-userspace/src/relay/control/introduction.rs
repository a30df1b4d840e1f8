//! The beginning of a connection: TLS and the documented handshake.

use std::net::SocketAddr;

use quinn::{Connection, ConnectionError, Incoming, SendStream, TransportErrorCode, VarInt};
use tokio::time::{Instant, timeout_at};

use super::frames::{Reader, frame_refusal, refusal_code, say_and_close};
use super::unfinished::Unfinished;
use super::{ControlSettings, Listener, NO_SEAT, connections_full, unix_seconds};
use crate::clock::MonoTime;
use crate::identity::NodeId;
use crate::protocol::ErrorCode;
use crate::protocol::error_code::PROBE_OVER;
use crate::protocol::flow_terms::ErrorMessage;
use crate::protocol::frames::write_frame;
use crate::protocol::handshake::{self, HandshakeError, Peer, Progress, Responder};
use crate::protocol::message::CHALLENGE_LEN;
use crate::relay::bans::BanSubject;
use crate::relay::prefix::Prefix;
use crate::relay::rendezvous::Refusal;
use crate::tls;

/// A connection whose handshake is done.
pub(super) struct Introduced {
    pub connection: Connection,
    pub peer: Peer,
    pub send: SendStream,
    pub reader: Reader,
    pub unfinished: Unfinished,
}

/// A handshake that failed.
pub(super) struct Rejection {
    pub refusal: Refusal,
    pub node: Option<NodeId>,
    /// What went wrong, for people.
    pub detail: String,
    /// Whether that was the other end's doing, and it is sure which end that is: it counts towards a ban.
    pub blamed: bool,
}

impl Rejection {
    /// TLS has failed. `validated`: the address was proved before, for this attempt.
    fn tls(error: &ConnectionError, validated: bool) -> Rejection {
        let blamed = match error {
            // Found here. A peer that gives up, or that nothing more is heard of, may have its reasons.
            ConnectionError::TransportError(fault) => validated || proves_address(fault.code),
            _ => false,
        };
        Rejection { refusal: Refusal::TlsFailed, node: None, detail: error.to_string(), blamed }
    }
}

/// Whether TLS has failed at what a peer can only send once it has received our answer: its certificate, or the proof of
/// the key in it. So nobody has forged its address.
fn proves_address(code: TransportErrorCode) -> bool {
    // bad_certificate, unsupported_certificate, certificate_unknown, unknown_ca, decrypt_error (a signature),
    // certificate_required: RFC 8446 section 6.
    [42, 43, 46, 48, 51, 116].map(TransportErrorCode::crypto).contains(&code)
}

/// Somebody who has proved who it is, and is not to be let in.
pub(super) struct TurnedAway {
    pub refusal: Refusal,
    pub code: ErrorCode,
    pub text: String,
}

impl Listener {
    /// TLS and the four handshake messages, in [`handshake::TIMEOUT`] altogether.
    pub(super) async fn introduce(&self, incoming: Incoming) -> Result<Introduced, Rejection> {
        let deadline = Instant::now() + handshake::TIMEOUT;
        let from = incoming.remote_address();
        // By a Retry, that is: a token of an earlier connection tells who had the address then, not who has it now.
        let validated = incoming.remote_address_validated() && !incoming.may_retry();
        let late = |node: Option<NodeId>| Rejection {
            refusal: Refusal::HandshakeTimeout,
            node,
            detail: String::new(),
            blamed: validated || node.is_some(),
        };
        let connection = timeout_at(deadline, incoming)
            .await
            .map_err(|_| late(None))?
            .map_err(|error| Rejection::tls(&error, validated))?;
        let key = tls::peer_key(&connection).map_err(|error| Rejection {
            refusal: Refusal::TlsFailed,
            node: None,
            detail: error.to_string(),
            blamed: true,
        })?;
        let (node_id, node) = (key.node_id(), Some(key.node_id()));
        let failed =
            |detail: String| Rejection { refusal: Refusal::HandshakeFailed, node, detail, blamed: false };
        let (mut send, receive) = match timeout_at(deadline, connection.accept_bi()).await {
            Ok(Err(error)) if is_probe(&error) => {
                return Err(Rejection { refusal: Refusal::OnlyProbed, ..failed(error.to_string()) });
            }
            Ok(opened) => opened.map_err(|error| failed(error.to_string()))?,
            Err(_) => {
                let code = ErrorCode::HandshakeTimeout.number();
                connection.close(VarInt::from_u32(code), b"no stream was opened in time");
                return Err(late(node));
            }
        };
        if let Some(TurnedAway { refusal, code, text }) = self.turned_away(node_id, from) {
            let error = ErrorMessage::new(code, text.as_str());
            say_and_close(&connection, &mut send, &[error.into()], code, &text).await;
            return Err(Rejection { refusal, node, detail: text, blamed: false });
        }
        let mut challenge = [0; CHALLENGE_LEN];
        getrandom::fill(&mut challenge).map_err(|error| failed(error.to_string()))?;
        let (ControlSettings { key: own, name, .. }, policy) = (&self.settings, self.rules.policy());
        let mut responder =
            Responder::new(own, name, key, challenge, policy.max_clock_drift, MonoTime::now());
        let unfinished = Unfinished::new(policy.connection_bytes, policy.message_bytes);
        let mut reader = Reader::new(receive, &unfinished);
        loop {
            let progress = match timeout_at(deadline, reader.next()).await {
                Ok(Ok(Some(message))) => responder.handle(message, MonoTime::now(), unix_seconds()),
                Ok(Ok(None)) => return Err(failed("the agent has closed the stream".to_owned())),
                Ok(Err(error)) => {
                    let code = refusal_code(&error);
                    if let Some(code) = code {
                        let answer = [ErrorMessage::new(code, error.to_string()).into()];
                        say_and_close(&connection, &mut send, &answer, code, "bad frame").await;
                    }
                    return Err(Rejection {
                        refusal: frame_refusal(&error),
                        node,
                        detail: error.to_string(),
                        blamed: code.is_some(),
                    });
                }
                Err(_) => Err(HandshakeError::Timeout),
            };
            let (answer, done) = match progress {
                Ok(Progress::Send(answer)) => (Some(answer), None),
                Ok(Progress::Done { send, peer }) => (send, Some(peer)),
                Err(error) => {
                    let (refusal, code) = (handshake_refusal(&error), error.code());
                    say_and_close(&connection, &mut send, &error.refusal(), code, "handshake failed").await;
                    return Err(Rejection {
                        refusal,
                        node,
                        detail: error.to_string(),
                        blamed: is_blamed(&error),
                    });
                }
            };
            if let Some(answer) = answer {
                let written = timeout_at(deadline, write_frame(&mut send, &answer)).await;
                written.map_err(|_| late(node))?.map_err(|error| failed(error.to_string()))?;
            }
            if let Some(peer) = done {
                return Ok(Introduced { connection, peer: *peer, send, reader, unfinished });
            }
        }
    }
}

impl Listener {
    /// Why a node that has proved its key is not let in, if it is not.
    fn turned_away(&self, node: NodeId, from: SocketAddr) -> Option<TurnedAway> {
        let (policy, prefix) = (self.rules.policy(), Prefix::of(from.ip()));
        if !policy.access.permits(&node) {
            let text = "this relay does not serve this node".to_owned();
            return Some(TurnedAway {
                refusal: Refusal::AccessDenied,
                code: ErrorCode::InvalidIdentity,
                text,
            });
        }
        if let Some(banned) = self.banned(node, from) {
            return Some(banned);
        }
        let full = self.seats.full_for(node, prefix, policy.connections)?;
        let text = NO_SEAT.to_owned();
        Some(TurnedAway { refusal: connections_full(full), code: ErrorCode::Limited, text })
    }

    /// Why a node that has proved its key is not let in, if it or the prefix it comes from is banned.
    pub(super) fn banned(&self, node: NodeId, from: SocketAddr) -> Option<TurnedAway> {
        let (bans, now) = (self.rules.bans(), MonoTime::now());
        let of_node = bans.left(BanSubject::Node(node), now).map(|left| (Refusal::BannedNode, left));
        let of_prefix = || {
            let left = bans.left(BanSubject::Prefix(Prefix::of(from.ip())), now)?;
            Some((Refusal::BannedPrefix, left))
        };
        let (refusal, left) = of_node.or_else(of_prefix)?;
        let text =
            format!("banned for {} s more; the operator of this relay lifts it", left.as_secs().max(1));
        Some(TurnedAway { refusal, code: ErrorCode::RateLimited, text })
    }
}

/// Whether who has closed says that it only wanted to know who is here, as an agent does that this relay asks to.
fn is_probe(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::ApplicationClosed(close) if close.error_code == VarInt::from_u32(PROBE_OVER))
}

/// Whether a sound agent would not have done that. A clock that is not set yet or another version of the protocol are what
/// sound agents have, and some day no more.
fn is_blamed(error: &HandshakeError) -> bool {
    match error {
        HandshakeError::ClockDrift { .. } | HandshakeError::Version(_) | HandshakeError::Rejected { .. } => {
            false
        }
        HandshakeError::Identity(_)
        | HandshakeError::KeyMismatch
        | HandshakeError::Challenge
        | HandshakeError::Signature
        | HandshakeError::Timeout
        | HandshakeError::OutOfOrder(_)
        | HandshakeError::NotVerified(_) => true,
    }
}

fn handshake_refusal(error: &HandshakeError) -> Refusal {
    match error {
        HandshakeError::ClockDrift { .. } => Refusal::ClockDrift,
        HandshakeError::Timeout => Refusal::HandshakeTimeout,
        _ => Refusal::HandshakeFailed,
    }
}

#[cfg(test)]
mod tests {
    use quinn_proto::TransportError;

    use super::*;

    fn found_here(code: TransportErrorCode) -> ConnectionError {
        TransportError { code, frame: None, reason: String::new() }.into()
    }

    fn is_blamed_on_prefix(error: ConnectionError, validated: bool) -> bool {
        Rejection::tls(&error, validated).blamed
    }

    #[test]
    fn tls_failures_count_only_where_the_address_is_proved_and_the_fault_was_found_here() {
        let no_certificate = || found_here(TransportErrorCode::crypto(116));
        let bad_signature = || found_here(TransportErrorCode::crypto(51));
        let other_protocol = || found_here(TransportErrorCode::crypto(120));
        let violation = || found_here(TransportErrorCode::PROTOCOL_VIOLATION);
        for validated in [false, true] {
            // Whoever shows a certificate has received our answer.
            assert!(is_blamed_on_prefix(no_certificate(), validated));
            assert!(is_blamed_on_prefix(bad_signature(), validated));
            // Anybody can send a first packet from a forged address.
            assert_eq!(is_blamed_on_prefix(other_protocol(), validated), validated);
            assert_eq!(is_blamed_on_prefix(violation(), validated), validated);
            // It may not like our key, or have gone out of reach.
            assert!(!is_blamed_on_prefix(ConnectionError::TimedOut, validated));
            assert!(!is_blamed_on_prefix(ConnectionError::Reset, validated));
        }
    }
}
