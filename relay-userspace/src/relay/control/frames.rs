//! Frames of control streams: read on the connection's account, refused by name.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::time::timeout;

use super::unfinished::{Metered, Share, Unfinished};
use super::{ControlEvent, StreamNumber};
use crate::protocol::frames::{FrameError, FrameReader, write_frame};
use crate::protocol::message::NotTaken;
use crate::protocol::{ErrorCode, Message, WireError};
use crate::relay::rendezvous::{ConnId, Refusal, Rendezvous};

/// How long a connection that is given up may take to hear why.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(1);

/// Reads the frames of one stream on its connection's account.
pub(super) struct Reader {
    frames: FrameReader<Metered<RecvStream>>,
    share: Share,
}

impl Reader {
    /// Reads `stream` on the account `unfinished`.
    pub fn new(stream: RecvStream, unfinished: &Unfinished) -> Reader {
        let (stream, share) = unfinished.meter(stream);
        Reader { frames: FrameReader::new(stream, unfinished.max_message()), share }
    }

    /// The next message of the handshake; None at the stream's end. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<Message>, FrameError> {
        let message = self.frames.next().await;
        self.share.settle();
        message
    }

    /// The stream, and what was read of it that was no whole frame.
    pub fn into_parts(self) -> (RecvStream, Bytes) {
        self.share.settle();
        let (stream, unread) = self.frames.into_parts();
        (stream.into_inner(), unread)
    }

    /// The next message after the handshake; None at the stream's end. Only what the rendezvous takes is read whole. It
    /// stays on the account until it is [settled](Self::settle).
    pub async fn next_event(
        &mut self,
        conn: ConnId,
        stream: StreamNumber,
    ) -> Result<Option<ControlEvent>, FrameError> {
        let Some((type_byte, payload)) = self.frames.next_payload().await? else { return Ok(None) };
        Ok(Some(if Rendezvous::takes(type_byte) {
            ControlEvent::Message { conn, stream, message: Message::decode(type_byte, &payload)?, held: None }
        } else {
            ControlEvent::NotTaken { conn, stream, message: NotTaken::read(type_byte, &payload)? }
        }))
    }

    /// The last message has been dealt with.
    pub fn settle(&self) {
        self.share.settle();
    }
}

/// Says something and closes the connection once it has arrived, or after [`LAST_WORDS`].
pub(super) async fn say_and_close(
    connection: &Connection,
    send: &mut SendStream,
    messages: &[Message],
    code: ErrorCode,
    reason: &str,
) {
    let said = async {
        for message in messages {
            if write_frame(send, message).await.is_err() {
                return;
            }
        }
        let _already_finished = send.finish();
        let _stopped_or_arrived = send.stopped().await;
    };
    let _too_slow = timeout(LAST_WORDS, said).await;
    connection.close(VarInt::from_u32(code.number()), reason.as_bytes());
}

/// The code to refuse a frame with; none if the stream itself has failed.
pub(super) fn refusal_code(error: &FrameError) -> Option<ErrorCode> {
    match error {
        FrameError::Stream(error) if error.kind() == io::ErrorKind::QuotaExceeded => {
            Some(ErrorCode::PayloadTooLarge)
        }
        error => error.code(),
    }
}

/// The reason a frame is refused for.
pub(super) fn frame_refusal(error: &FrameError) -> Refusal {
    match error {
        FrameError::Stream(error) if error.kind() == io::ErrorKind::QuotaExceeded => Refusal::FrameTooLarge,
        FrameError::Wire(WireError::UnknownType(_)) => Refusal::UnknownMessage,
        FrameError::Wire(WireError::PayloadTooLarge { .. }) => Refusal::FrameTooLarge,
        _ => Refusal::BadFrame,
    }
}
