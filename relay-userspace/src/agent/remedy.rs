//! What an application can do about an error: its text is for people, this is for programs.

use super::error::{ConnectError, SessionEnd};
use super::forward::ForwardError;
use super::peer::PingError;
use super::raw::RawSendError;
use super::request::MessageError;
use crate::protocol::ErrorCode;
use crate::protocol::handshake::HandshakeError;

/// What helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Remedy {
    /// It is temporary: the same again may succeed, after a pause that grows with each attempt. If it goes on for long, the
    /// operator should know: a peer that is absent and one that does not accept this agent look the same, and so do a relay
    /// that is down and a network that lets no UDP through.
    TryAgain,
    /// It stays until a person changes something: a configuration, a key, a clock, a version. Trying again does not help.
    Operator,
    /// The application has asked for what cannot be, or has ended it itself.
    Application,
}

impl ConnectError {
    /// What helps.
    pub fn remedy(&self) -> Remedy {
        match self {
            ConnectError::NoRelay | ConnectError::Terms { .. } | ConnectError::ReadableRelay { .. } => {
                Remedy::Operator
            }
            ConnectError::Itself(_) | ConnectError::Stopped => Remedy::Application,
            ConnectError::RelaysUnreachable(_)
            | ConnectError::RelaySilent { .. }
            | ConnectError::NotPaired { .. }
            | ConnectError::EndToEnd { .. } => Remedy::TryAgain,
            ConnectError::Refused { code, .. } => of_code(*code),
            ConnectError::Ended(end) => end.remedy(),
            ConnectError::Handshake { fault, .. } => of_handshake(fault),
        }
    }
}

impl SessionEnd {
    /// What helps to have a session with the peer again.
    pub fn remedy(&self) -> Remedy {
        match self {
            SessionEnd::Closed | SessionEnd::Moved | SessionEnd::Stopped => Remedy::Application,
            SessionEnd::NoLongerAccepted | SessionEnd::ForeignMagic { .. } => Remedy::Operator,
            SessionEnd::ByOperator
            | SessionEnd::PeerGone { .. }
            | SessionEnd::RelayStops
            | SessionEnd::Idle
            | SessionEnd::ConsentLost { .. }
            | SessionEnd::SideSilent { .. }
            | SessionEnd::NotPaired
            | SessionEnd::ByRelay { .. }
            | SessionEnd::DataSocket(_) => Remedy::TryAgain,
        }
    }
}

impl RawSendError {
    /// What helps: a smaller datagram, or another session.
    pub fn remedy(&self) -> Remedy {
        match self {
            RawSendError::TooLarge { .. } => Remedy::Application,
            RawSendError::Ended(end) => end.remedy(),
        }
    }
}

impl PingError {
    /// What helps: another ping, or another connection.
    pub fn remedy(&self) -> Remedy {
        match self {
            PingError::Timeout | PingError::Gone(_) => Remedy::TryAgain,
        }
    }
}

impl MessageError {
    /// What helps: the same message again, a smaller one, or a person at either end.
    pub fn remedy(&self) -> Remedy {
        match self {
            MessageError::TooLarge { .. } | MessageError::OwnTopic(_) => Remedy::Application,
            MessageError::Refused { code, .. } => of_code(*code),
            MessageError::Strange(_) => Remedy::Operator,
            MessageError::Unanswered | MessageError::Gone(_) => Remedy::TryAgain,
        }
    }
}

impl ForwardError {
    /// What helps.
    pub fn remedy(&self) -> Remedy {
        match self {
            ForwardError::InUse(_) | ForwardError::Listen { .. } => Remedy::Operator,
            ForwardError::Connect(error) => error.remedy(),
        }
    }
}

/// What helps against a refusal with this code.
fn of_code(number: u32) -> Remedy {
    match ErrorCode::from_number(number) {
        Some(
            ErrorCode::TargetUnknown
            | ErrorCode::Busy
            | ErrorCode::TableFull
            | ErrorCode::Limited
            | ErrorCode::Draining
            | ErrorCode::OfferExpired
            | ErrorCode::RateLimited
            | ErrorCode::HandshakeTimeout
            | ErrorCode::Internal,
        ) => Remedy::TryAgain,
        Some(
            ErrorCode::ProtocolVersion
            | ErrorCode::HandshakeFailed
            | ErrorCode::InvalidIdentity
            | ErrorCode::NotVerified
            | ErrorCode::PayloadTooLarge
            | ErrorCode::MessageRejected
            | ErrorCode::Refused
            | ErrorCode::DocumentedOnly,
        )
        | None => Remedy::Operator,
    }
}

fn of_handshake(fault: &HandshakeError) -> Remedy {
    match fault {
        // The stream or connection broke off: nobody has refused anything.
        HandshakeError::Timeout | HandshakeError::Rejected { code: 0, .. } => Remedy::TryAgain,
        HandshakeError::Rejected { code, .. } => of_code(*code),
        HandshakeError::Version(_)
        | HandshakeError::Identity(_)
        | HandshakeError::KeyMismatch
        | HandshakeError::ClockDrift { .. }
        | HandshakeError::Challenge
        | HandshakeError::Signature
        | HandshakeError::OutOfOrder(_)
        | HandshakeError::NotVerified(_) => Remedy::Operator,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::NodeId;

    #[test]
    fn a_refusal_is_temporary_unless_somebody_has_to_change_something() {
        let refused = |code: u32| ConnectError::Refused {
            relay: "relay:4433".into(),
            peer: NodeId::from_bytes([1; 32]),
            code,
            message: String::new(),
        };
        let remedies = [
            (ErrorCode::TargetUnknown.number(), Remedy::TryAgain),
            (ErrorCode::TableFull.number(), Remedy::TryAgain),
            (ErrorCode::Refused.number(), Remedy::Operator),
            (ErrorCode::InvalidIdentity.number(), Remedy::Operator),
            (9999, Remedy::Operator),
        ];
        for (code, remedy) in remedies {
            assert_eq!(refused(code).remedy(), remedy, "{code}");
        }
    }

    #[test]
    fn a_handshake_that_broke_off_may_be_tried_again_and_one_that_does_not_hold_may_not() {
        let failed = |fault| ConnectError::Handshake { peer: NodeId::from_bytes([1; 32]), fault }.remedy();
        let broke_off = HandshakeError::Rejected { code: 0, reason: String::new() };
        assert_eq!(failed(broke_off), Remedy::TryAgain);
        let clock = ErrorCode::HandshakeFailed.number();
        let rejected = HandshakeError::Rejected { code: clock, reason: String::new() };
        assert_eq!(failed(rejected), Remedy::Operator);
        assert_eq!(failed(HandshakeError::KeyMismatch), Remedy::Operator);
    }

    #[test]
    fn an_error_that_wraps_another_has_its_remedy() {
        let gone = SessionEnd::PeerGone { note: None };
        assert_eq!(RawSendError::Ended(gone.clone()).remedy(), gone.remedy());
        assert_eq!(ConnectError::Ended(SessionEnd::Stopped).remedy(), Remedy::Application);
        assert_eq!(ForwardError::Connect(ConnectError::NoRelay).remedy(), Remedy::Operator);
    }
}
