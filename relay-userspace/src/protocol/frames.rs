//! Whole frames on a byte stream.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::envelope::{HEADER_LEN, Header, WireError};
use super::error_code::ErrorCode;
use super::message::Message;

/// Reads frames from a stream, one after another, and no byte beyond the frame it returns.
#[derive(Debug)]
pub struct FrameReader<R> {
    stream: R,
    max_payload_len: usize,
    /// The part of the present frame that has arrived.
    frame: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Takes no payload larger than `max_payload_len` bytes
    /// ([`MAX_CONTROL_PAYLOAD_LEN`](super::envelope::MAX_CONTROL_PAYLOAD_LEN) on a control connection).
    pub fn new(stream: R, max_payload_len: usize) -> Self {
        FrameReader { stream, max_payload_len, frame: BytesMut::new() }
    }

    /// The next message; None if the stream ends between frames.
    ///
    /// Cancel safe: a frame that has arrived in part is kept.
    ///
    /// # Errors
    /// The stream fails or ends within a frame, or the frame is not sound. The stream cannot be used further: where the
    /// next frame begins is not known.
    pub async fn next(&mut self) -> Result<Option<Message>, FrameError> {
        match self.next_payload().await? {
            Some((type_byte, payload)) => Ok(Some(Message::decode(type_byte, &payload)?)),
            None => Ok(None),
        }
    }

    /// The next message's type byte and payload, for a receiver that does not take every type.
    ///
    /// # Errors
    /// As [`next`](Self::next), but the payload is not looked at.
    pub async fn next_payload(&mut self) -> Result<Option<(u8, BytesMut)>, FrameError> {
        if !self.fill(HEADER_LEN).await? {
            return Ok(None);
        }
        let header = self.header()?;
        // The length is checked; memory is still taken only as the bytes arrive.
        self.fill(HEADER_LEN + header.payload_len).await?;
        let mut payload = self.frame.split();
        payload.advance(HEADER_LEN);
        Ok(Some((header.type_byte, payload)))
    }

    /// The stream, after the last frame.
    pub fn into_inner(self) -> R {
        self.stream
    }

    /// The stream, and what was read of it after the last frame: the beginning of one that is not whole.
    pub fn into_parts(self) -> (R, Bytes) {
        (self.stream, self.frame.freeze())
    }

    fn header(&self) -> Result<Header, WireError> {
        let header = self
            .frame
            .first_chunk::<HEADER_LEN>()
            .ok_or(WireError::Truncated { have: self.frame.len(), need: HEADER_LEN })?;
        Header::parse(header, self.max_payload_len)
    }

    /// Reads until the frame has `len` bytes. False if the stream ends before its first byte.
    async fn fill(&mut self, len: usize) -> Result<bool, FrameError> {
        while let missing @ 1.. = len.saturating_sub(self.frame.len()) {
            let read = self.stream.read_buf(&mut (&mut self.frame).limit(missing)).await?;
            if read == 0 {
                return match self.frame.len() {
                    0 => Ok(false),
                    have => Err(WireError::Truncated { have, need: len }.into()),
                };
            }
        }
        Ok(true)
    }
}

/// Writes one whole frame. Not cancel safe.
///
/// # Errors
/// The message is too large, or the stream fails.
pub async fn write_frame<W: AsyncWrite + Unpin>(stream: &mut W, message: &Message) -> Result<(), FrameError> {
    let frame = message.encode()?;
    stream.write_all(&frame).await?;
    Ok(stream.flush().await?)
}

/// Why a frame was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream failed.
    #[error("the stream failed: {0}")]
    Stream(#[from] io::Error),
    /// The frame is not sound.
    #[error(transparent)]
    Wire(#[from] WireError),
}

impl FrameError {
    /// The code to tell the peer, unless the stream itself has failed.
    pub const fn code(&self) -> Option<ErrorCode> {
        match self {
            FrameError::Stream(_) => None,
            FrameError::Wire(fault) => Some(fault.code()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::super::message::Ping;
    use super::*;

    #[tokio::test]
    async fn frames_come_back_one_by_one_and_what_follows_stays_in_the_stream() {
        let (mut near, far) = duplex(7);
        let writing = tokio::spawn(async move {
            for ts in [1, 2] {
                write_frame(&mut near, &Ping::new(ts).into()).await.unwrap();
            }
            near.write_all(b"raw").await.unwrap();
        });
        let mut reader = FrameReader::new(far, 64);
        assert_eq!(reader.next().await.unwrap(), Some(Ping::new(1).into()));
        assert_eq!(reader.next().await.unwrap(), Some(Ping::new(2).into()));
        let mut rest = String::new();
        reader.into_inner().read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "raw");
        writing.await.unwrap();
    }

    #[tokio::test]
    async fn a_dropped_read_loses_nothing() {
        let frame = Message::from(Ping::new(7)).encode().unwrap();
        let (mut near, far) = duplex(64);
        let mut reader = FrameReader::new(far, 64);
        for byte in &frame[..frame.len() - 1] {
            near.write_all(&[*byte]).await.unwrap();
            let cut_short = tokio::select! { biased; read = reader.next() => Some(read), () = std::future::ready(()) => None };
            assert!(cut_short.is_none());
        }
        near.write_all(&frame[frame.len() - 1..]).await.unwrap();
        assert_eq!(reader.next().await.unwrap(), Some(Ping::new(7).into()));
    }

    #[tokio::test]
    async fn a_stream_that_ends_between_frames_is_no_error_within_one_it_is() {
        let frame = Message::from(Ping::new(7)).encode().unwrap();
        assert!(FrameReader::new(&b""[..], 64).next().await.unwrap().is_none());
        for len in 1..frame.len() {
            let error = FrameReader::new(&frame[..len], 64).next().await.unwrap_err();
            assert_eq!(error.code(), Some(ErrorCode::MessageRejected), "cut to {len}");
        }
    }

    #[tokio::test]
    async fn a_length_above_the_cap_is_refused_before_a_byte_of_it_is_read() {
        let header = [0xac, 1, 1, 0xf0, 0, 0, 0, 65];
        let error = FrameReader::new(&header[..], 64).next().await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::PayloadTooLarge));
        let wire_limit = [0xac, 1, 1, 0xf0, 0, 0x40, 0, 1];
        let error = FrameReader::new(&wire_limit[..], usize::MAX).next().await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::PayloadTooLarge));
    }
}
