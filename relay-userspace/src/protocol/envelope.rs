//! The frame around every control message.
//!
//! | offset | size | field | value |
//! |---|---|---|---|
//! | 0 | 2 | magic | `AC 01` |
//! | 2 | 1 | version | `01` |
//! | 3 | 1 | type | message type byte |
//! | 4 | 4 | length | payload length in bytes, big-endian |
//! | 8 | length | payload | MessagePack |

use super::error_code::ErrorCode;

/// The first two bytes of every frame.
pub const MAGIC: [u8; 2] = [0xac, 0x01];

/// The version of the protocol that this code speaks.
pub const PROTOCOL_VERSION: u8 = 1;

/// Bytes before the payload.
pub const HEADER_LEN: usize = 8;

/// The largest payload the wire allows, in bytes; equal to it is allowed.
pub const MAX_PAYLOAD_LEN: usize = 4 * 1024 * 1024;

/// The largest payload taken on a control connection, in bytes. No message that a relay or agent needs comes near it,
/// and it bounds what a peer can make us hold.
pub const MAX_CONTROL_PAYLOAD_LEN: usize = 64 * 1024;

/// A frame's header, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The message type, not yet known to be one of ours.
    pub type_byte: u8,
    /// Bytes that follow the header.
    pub payload_len: usize,
}

impl Header {
    /// Checks magic, version and length, in this order.
    ///
    /// # Errors
    /// [`WireError::Magic`], [`WireError::Version`], or [`WireError::PayloadTooLarge`] if the payload is larger than
    /// `max_payload_len` or [`MAX_PAYLOAD_LEN`].
    pub fn parse(bytes: &[u8; HEADER_LEN], max_payload_len: usize) -> Result<Self, WireError> {
        let [magic_0, magic_1, version, type_byte, length @ ..] = *bytes;
        if [magic_0, magic_1] != MAGIC {
            return Err(WireError::Magic([magic_0, magic_1]));
        }
        if version != PROTOCOL_VERSION {
            return Err(WireError::Version(version));
        }
        let payload_len = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        let max = max_payload_len.min(MAX_PAYLOAD_LEN);
        if payload_len > max {
            return Err(WireError::PayloadTooLarge { len: payload_len, max });
        }
        Ok(Header { type_byte, payload_len })
    }
}

/// Puts a header before `payload`.
///
/// # Errors
/// [`WireError::PayloadTooLarge`] above [`MAX_PAYLOAD_LEN`].
pub fn encode(type_byte: u8, payload: &[u8]) -> Result<Vec<u8>, WireError> {
    let too_large = WireError::PayloadTooLarge { len: payload.len(), max: MAX_PAYLOAD_LEN };
    if payload.len() > MAX_PAYLOAD_LEN {
        return Err(too_large);
    }
    let length = u32::try_from(payload.len()).map_err(|_| too_large)?;
    let mut frame = Vec::with_capacity(HEADER_LEN + payload.len());
    frame.extend_from_slice(&MAGIC);
    frame.extend_from_slice(&[PROTOCOL_VERSION, type_byte]);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(payload);
    Ok(frame)
}

/// Splits a whole frame into its header and payload: the buffer must hold exactly one frame.
///
/// # Errors
/// As for [`Header::parse`], and [`WireError::Truncated`] or [`WireError::Trailing`].
pub fn decode(frame: &[u8]) -> Result<(Header, &[u8]), WireError> {
    let (header, payload) = frame
        .split_first_chunk::<HEADER_LEN>()
        .ok_or(WireError::Truncated { have: frame.len(), need: HEADER_LEN })?;
    let header = Header::parse(header, MAX_PAYLOAD_LEN)?;
    match payload.len().checked_sub(header.payload_len) {
        Some(0) => Ok((header, payload)),
        Some(extra) => Err(WireError::Trailing(extra)),
        None => Err(WireError::Truncated { have: frame.len(), need: HEADER_LEN + header.payload_len }),
    }
}

/// What is wrong with a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Not a frame of this protocol.
    #[error("a frame begins with ac 01, this with {:02x} {:02x}", .0[0], .0[1])]
    Magic([u8; 2]),
    /// Another version of the protocol.
    #[error("the frame has protocol version {0}, expected {PROTOCOL_VERSION}")]
    Version(u8),
    /// A type byte the documentation does not list.
    #[error("unknown message type 0x{0:02x}")]
    UnknownType(u8),
    /// More payload than the receiver takes.
    #[error("the payload has {len} bytes, at most {max} are taken")]
    PayloadTooLarge {
        /// Bytes announced.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The frame ends early.
    #[error("the frame ends after {have} of {need} bytes")]
    Truncated {
        /// Bytes there are.
        have: usize,
        /// Bytes there should be.
        need: usize,
    },
    /// Bytes follow the frame where only one frame may be.
    #[error("{0} bytes follow the frame")]
    Trailing(usize),
    /// The payload is not the MessagePack map of its type.
    #[error("the payload is no {message}: {fault}")]
    Payload {
        /// The message's documented name.
        message: &'static str,
        /// What the decoder says.
        fault: String,
    },
}

impl WireError {
    /// The code to refuse the frame with.
    pub const fn code(&self) -> ErrorCode {
        match self {
            WireError::Version(_) => ErrorCode::ProtocolVersion,
            WireError::PayloadTooLarge { .. } => ErrorCode::PayloadTooLarge,
            WireError::Magic(_)
            | WireError::UnknownType(_)
            | WireError::Truncated { .. }
            | WireError::Trailing(_)
            | WireError::Payload { .. } => ErrorCode::MessageRejected,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_frame_has_the_documented_bytes() {
        let frame = encode(0xf0, &[0x81, 0xa2, b't', b's', 7]).unwrap();
        assert_eq!(frame, [0xac, 1, 1, 0xf0, 0, 0, 0, 5, 0x81, 0xa2, b't', b's', 7]);
        let (header, payload) = decode(&frame).unwrap();
        assert_eq!(header, Header { type_byte: 0xf0, payload_len: 5 });
        assert_eq!(payload, &frame[8..]);
    }

    #[test]
    fn each_fault_has_its_error_and_code() {
        let frame = encode(1, b"xyz").unwrap();
        let faults: [(Vec<u8>, WireError, ErrorCode); 6] = [
            (vec![0xac], WireError::Truncated { have: 1, need: 8 }, ErrorCode::MessageRejected),
            (frame[..10].to_vec(), WireError::Truncated { have: 10, need: 11 }, ErrorCode::MessageRejected),
            ([&frame[..], b"!"].concat(), WireError::Trailing(1), ErrorCode::MessageRejected),
            (replaced(&frame, 1, 2), WireError::Magic([0xac, 2]), ErrorCode::MessageRejected),
            (replaced(&frame, 2, 2), WireError::Version(2), ErrorCode::ProtocolVersion),
            (
                replaced(&frame, 4, 1),
                WireError::PayloadTooLarge { len: 0x0100_0003, max: MAX_PAYLOAD_LEN },
                ErrorCode::PayloadTooLarge,
            ),
        ];
        for (bytes, error, code) in faults {
            assert_eq!(decode(&bytes).unwrap_err(), error);
            assert_eq!(error.code(), code);
        }
    }

    #[test]
    fn the_largest_payload_is_allowed_and_one_byte_more_is_not() {
        let largest = vec![0; MAX_PAYLOAD_LEN];
        assert_eq!(decode(&encode(1, &largest).unwrap()).unwrap().1.len(), MAX_PAYLOAD_LEN);
        assert!(matches!(encode(1, &[largest, vec![0]].concat()), Err(WireError::PayloadTooLarge { .. })));
        let mut header = [0xac, 1, 1, 1, 0, 1, 0, 0];
        assert!(Header::parse(&header, MAX_CONTROL_PAYLOAD_LEN).is_ok());
        header[7] = 1;
        assert!(Header::parse(&header, MAX_CONTROL_PAYLOAD_LEN).is_err());
    }

    proptest! {
        #[test]
        fn any_payload_comes_back(type_byte: u8, payload: Vec<u8>) {
            let frame = encode(type_byte, &payload).unwrap();
            let (header, back) = decode(&frame).unwrap();
            prop_assert_eq!(header.type_byte, type_byte);
            prop_assert_eq!(back, &payload[..]);
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes: Vec<u8>) {
            let _verdict = decode(&bytes);
        }
    }

    fn replaced(frame: &[u8], at: usize, byte: u8) -> Vec<u8> {
        let mut frame = frame.to_vec();
        frame[at] = byte;
        frame
    }
}
