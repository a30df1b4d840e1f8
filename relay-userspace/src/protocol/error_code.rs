//! The numbers errors have on the wire.

use std::fmt;

/// Ours: the code of a QUIC close that is no fault. Who closes has only asked who answers there, for somebody who is to be told.
pub const PROBE_OVER: u32 = 3000;

/// An error code: the upstream documentation's, and the 3000s, a range it leaves free, for pairing.
///
/// The same numbers are QUIC application close codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum ErrorCode {
    /// The peer speaks another version of the protocol.
    ProtocolVersion = 1001,
    /// Bad signature, clock too far off, or another fault in the handshake.
    HandshakeFailed = 1002,
    /// The four handshake messages took more than 10 seconds.
    HandshakeTimeout = 1003,
    /// A malformed node id, a missing or weak key, or a key that is not the one of the certificate.
    InvalidIdentity = 1004,
    /// A message that needs a finished handshake came before it.
    NotVerified = 2001,
    /// The payload is larger than the receiver takes.
    PayloadTooLarge = 2002,
    /// A message type or content that the receiver does not take.
    MessageRejected = 2003,
    /// Ours: no such agent here. Absent, banned and not allowed to this source look the same.
    TargetUnknown = 3001,
    /// Ours: the target has as many offers or sessions as it may, or is asked for too often.
    Busy = 3002,
    /// Ours: the target has refused the offer, or the relay cannot forward between these two.
    Refused = 3003,
    /// Ours: the relay's flow table has no room for another session.
    TableFull = 3004,
    /// Ours: the source, its address or the relay as a whole has as much as it may.
    Limited = 3005,
    /// Ours: the relay takes no new sessions because it is about to stop.
    Draining = 3006,
    /// Ours: the two sides did not both bind in time.
    OfferExpired = 3007,
    /// Ours: the target knows only the documented messages, so the relay could read what the agents say to each other.
    DocumentedOnly = 3008,
    /// Too many messages, or replacements of a node; or, with `session`, datagrams dropped for the session's limit.
    RateLimited = 4001,
    /// A fault of the sender of this code.
    Internal = 5001,
}

impl ErrorCode {
    /// Every code.
    pub const ALL: [ErrorCode; 17] = [
        ErrorCode::ProtocolVersion,
        ErrorCode::HandshakeFailed,
        ErrorCode::HandshakeTimeout,
        ErrorCode::InvalidIdentity,
        ErrorCode::NotVerified,
        ErrorCode::PayloadTooLarge,
        ErrorCode::MessageRejected,
        ErrorCode::TargetUnknown,
        ErrorCode::Busy,
        ErrorCode::Refused,
        ErrorCode::TableFull,
        ErrorCode::Limited,
        ErrorCode::Draining,
        ErrorCode::OfferExpired,
        ErrorCode::DocumentedOnly,
        ErrorCode::RateLimited,
        ErrorCode::Internal,
    ];

    /// The number on the wire.
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// The code with that number, if it is one of these.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.number() == number)
    }

    /// The name that the documentation uses (for the 3000s: ours).
    pub const fn name(self) -> &'static str {
        match self {
            ErrorCode::ProtocolVersion => "ERR_PROTOCOL_VERSION",
            ErrorCode::HandshakeFailed => "ERR_HANDSHAKE_FAILED",
            ErrorCode::HandshakeTimeout => "ERR_HANDSHAKE_TIMEOUT",
            ErrorCode::InvalidIdentity => "ERR_INVALID_IDENTITY",
            ErrorCode::NotVerified => "ERR_NOT_VERIFIED",
            ErrorCode::PayloadTooLarge => "ERR_PAYLOAD_TOO_LARGE",
            ErrorCode::MessageRejected => "ERR_MESSAGE_REJECTED",
            ErrorCode::TargetUnknown => "ERR_TARGET_UNKNOWN",
            ErrorCode::Busy => "ERR_BUSY",
            ErrorCode::Refused => "ERR_REFUSED",
            ErrorCode::TableFull => "ERR_TABLE_FULL",
            ErrorCode::Limited => "ERR_LIMITED",
            ErrorCode::Draining => "ERR_DRAINING",
            ErrorCode::OfferExpired => "ERR_OFFER_EXPIRED",
            ErrorCode::DocumentedOnly => "ERR_DOCUMENTED_ONLY",
            ErrorCode::RateLimited => "ERR_RATE_LIMITED",
            ErrorCode::Internal => "ERR_INTERNAL",
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.number(), self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_codes_map_both_ways() {
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_number(code.number()), Some(code));
        }
        assert_eq!(ErrorCode::from_number(1000), None);
        assert_eq!(ErrorCode::InvalidIdentity.to_string(), "1004 ERR_INVALID_IDENTITY");
    }
}
