//! Running the documented handshake over a QUIC stream.

use std::fmt::Display;
use std::time::SystemTime;

use crate::clock::MonoTime;
use crate::protocol::Message;
use crate::protocol::frames::{FrameReader, write_frame};
use crate::protocol::handshake::{self, HandshakeError, Initiator, Peer, Progress, Responder};

/// The dialling side, with the Hello that [`Initiator::new`] gave.
///
/// # Errors
/// The handshake's. The peer has been told.
pub async fn initiate(
    (mut initiator, hello): (Initiator, Message),
    to_peer: &mut quinn::SendStream,
    from_peer: &mut FrameReader<quinn::RecvStream>,
) -> Result<Peer, HandshakeError> {
    let exchange = async {
        let mut next = hello;
        loop {
            write_frame(to_peer, &next).await.map_err(broken)?;
            let message =
                from_peer.next().await.map_err(broken)?.ok_or_else(|| broken("the stream ended"))?;
            match initiator.handle(message, MonoTime::now())? {
                Progress::Send(message) => next = message,
                Progress::Done { peer, .. } => return Ok(*peer),
            }
        }
    };
    let done =
        tokio::time::timeout(handshake::TIMEOUT, exchange).await.unwrap_or(Err(HandshakeError::Timeout));
    refuse_on_error(done, to_peer).await
}

/// The answering side.
///
/// # Errors
/// The handshake's. The peer has been told.
pub async fn respond(
    responder: Responder,
    to_peer: &mut quinn::SendStream,
    from_peer: &mut FrameReader<quinn::RecvStream>,
) -> Result<Peer, HandshakeError> {
    answer(None, responder, to_peer, from_peer).await
}

/// The answering side, of which the first message has come already.
///
/// # Errors
/// The handshake's. The peer has been told.
pub async fn respond_to(
    first: Message,
    responder: Responder,
    to_peer: &mut quinn::SendStream,
    from_peer: &mut FrameReader<quinn::RecvStream>,
) -> Result<Peer, HandshakeError> {
    answer(Some(first), responder, to_peer, from_peer).await
}

async fn answer(
    mut first: Option<Message>,
    mut responder: Responder,
    to_peer: &mut quinn::SendStream,
    from_peer: &mut FrameReader<quinn::RecvStream>,
) -> Result<Peer, HandshakeError> {
    let exchange = async {
        loop {
            let message = match first.take() {
                Some(first) => first,
                None => from_peer.next().await.map_err(broken)?.ok_or_else(|| broken("the stream ended"))?,
            };
            match responder.handle(message, MonoTime::now(), unix_s())? {
                Progress::Send(message) => write_frame(to_peer, &message).await.map_err(broken)?,
                Progress::Done { send, peer } => {
                    if let Some(message) = send {
                        write_frame(to_peer, &message).await.map_err(broken)?;
                    }
                    return Ok(*peer);
                }
            }
        }
    };
    let done =
        tokio::time::timeout(handshake::TIMEOUT, exchange).await.unwrap_or(Err(HandshakeError::Timeout));
    refuse_on_error(done, to_peer).await
}

/// The wall clock, in seconds since the Unix epoch.
pub fn unix_s() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

async fn refuse_on_error(
    done: Result<Peer, HandshakeError>,
    to_peer: &mut quinn::SendStream,
) -> Result<Peer, HandshakeError> {
    if let Err(error) = &done {
        for message in error.refusal() {
            // The peer may be gone already.
            let _sent = write_frame(to_peer, &message).await;
        }
    }
    done
}

/// A stream that failed within a handshake has failed it.
fn broken(error: impl Display) -> HandshakeError {
    HandshakeError::Rejected { code: 0, reason: error.to_string() }
}
