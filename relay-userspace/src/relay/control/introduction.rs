//! The beginning of a connection: TLS and the documented handshake.

use quinn::{Connection, Incoming, SendStream, VarInt};
use tokio::time::{Instant, timeout_at};

use super::frames::{Reader, frame_refusal, refusal_code, say_and_close};
use super::unfinished::Unfinished;
use super::{ControlSettings, Listener, unix_seconds};
use crate::clock::MonoTime;
use crate::identity::NodeId;
use crate::protocol::ErrorCode;
use crate::protocol::flow_terms::ErrorMessage;
use crate::protocol::frames::write_frame;
use crate::protocol::handshake::{self, HandshakeError, Peer, Progress, Responder};
use crate::protocol::message::CHALLENGE_LEN;
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
}

impl Rejection {
    fn tls(error: &dyn std::error::Error) -> Rejection {
        Rejection { refusal: Refusal::TlsFailed, node: None, detail: error.to_string() }
    }
}

impl Listener {
    /// TLS and the four handshake messages, in [`handshake::TIMEOUT`] altogether.
    pub(super) async fn introduce(&self, incoming: Incoming) -> Result<Introduced, Rejection> {
        let deadline = Instant::now() + handshake::TIMEOUT;
        let late = |node| Rejection { refusal: Refusal::HandshakeTimeout, node, detail: String::new() };
        let connection = timeout_at(deadline, incoming)
            .await
            .map_err(|_| late(None))?
            .map_err(|error| Rejection::tls(&error))?;
        let key = tls::peer_key(&connection).map_err(|error| Rejection::tls(&error))?;
        let node = Some(key.node_id());
        let failed = |detail: String| Rejection { refusal: Refusal::HandshakeFailed, node, detail };
        let (mut send, receive) = match timeout_at(deadline, connection.accept_bi()).await {
            Ok(opened) => opened.map_err(|error| failed(error.to_string()))?,
            Err(_) => {
                let code = ErrorCode::HandshakeTimeout.number();
                connection.close(VarInt::from_u32(code), b"no stream was opened in time");
                return Err(late(node));
            }
        };
        let mut challenge = [0; CHALLENGE_LEN];
        getrandom::fill(&mut challenge).map_err(|error| failed(error.to_string()))?;
        let ControlSettings { key: own, name, max_clock_drift, .. } = &self.settings;
        let mut responder = Responder::new(own, name, key, challenge, *max_clock_drift, MonoTime::now());
        let unfinished = Unfinished::default();
        let mut reader = Reader::new(receive, &unfinished);
        loop {
            let progress = match timeout_at(deadline, reader.next()).await {
                Ok(Ok(Some(message))) => responder.handle(message, MonoTime::now(), unix_seconds()),
                Ok(Ok(None)) => return Err(failed("the agent has closed the stream".to_owned())),
                Ok(Err(error)) => {
                    if let Some(code) = refusal_code(&error) {
                        let answer = [ErrorMessage::new(code, error.to_string()).into()];
                        say_and_close(&connection, &mut send, &answer, code, "bad frame").await;
                    }
                    return Err(Rejection {
                        refusal: frame_refusal(&error),
                        node,
                        detail: error.to_string(),
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
                    return Err(Rejection { refusal, node, detail: error.to_string() });
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

fn handshake_refusal(error: &HandshakeError) -> Refusal {
    match error {
        HandshakeError::ClockDrift { .. } => Refusal::ClockDrift,
        HandshakeError::Timeout => Refusal::HandshakeTimeout,
        _ => Refusal::HandshakeFailed,
    }
}
