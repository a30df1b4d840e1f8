//! The documented handshake: Hello, HelloAck, Verify, VerifyAck.
//!
//! Two pure state machines. Each is given the key that the peer's TLS certificate proved: a key in Hello or HelloAck that
//! is another one means that somebody in the middle passes the handshake on.

use std::time::Duration;

use super::byte_fields::{ByteArray, Bytes};
use super::error_code::ErrorCode;
use super::flow_terms::ErrorMessage;
use super::message::{CHALLENGE_LEN, Hello, HelloAck, Message, PROTOCOL_V, Verify, VerifyAck, VerifyStatus};
use crate::clock::MonoTime;
use crate::identity::{NodeId, NodeKey, PublicKey};

/// All four messages must have passed within this time.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// The documented `max_clock_drift_secs`.
pub const DEFAULT_MAX_CLOCK_DRIFT: Duration = Duration::from_secs(300);

/// Whom the handshake was with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its id.
    pub node_id: NodeId,
    /// Its key, proved by TLS.
    pub public_key: PublicKey,
    /// Its name for humans: whatever it says, without control characters, at most [`MAX_NAME_CHARS`] long.
    pub name: String,
}

/// What is known of the peer before the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// The key that its TLS certificate has proved.
    Key(PublicKey),
    /// Whom it was asked for. Without TLS between the two, only the initiator proves its key: whoever carries the messages
    /// can answer for a responder, and alter everything that follows.
    Node(NodeId),
    /// Nothing.
    Nothing,
}

impl From<PublicKey> for Known {
    fn from(key: PublicKey) -> Known {
        Known::Key(key)
    }
}

/// A peer's name is cut to so many characters.
pub const MAX_NAME_CHARS: usize = 64;

/// What a message has led to.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// Send this and wait for the next message.
    Send(Message),
    /// Done; the responder's last message is to be sent.
    Done {
        /// VerifyAck from the responder, nothing from the initiator.
        send: Option<Message>,
        /// The peer.
        peer: Box<Peer>,
    },
}

/// The dialing side.
#[derive(Debug)]
pub struct Initiator {
    key: NodeKey,
    known: Known,
    deadline: MonoTime,
    state: InitiatorState,
}

#[derive(Debug)]
enum InitiatorState {
    AwaitHelloAck,
    AwaitVerifyAck(Box<Peer>),
    Over,
}

impl Initiator {
    /// Begins a handshake with a peer of which so much is `known`, and gives the Hello to send. `unix_s` is the wall clock
    /// in seconds since the Unix epoch.
    pub fn new(
        key: &NodeKey,
        name: &str,
        known: impl Into<Known>,
        now: MonoTime,
        unix_s: i64,
    ) -> (Self, Message) {
        let hello = Hello {
            node_id: key.node_id().to_string(),
            name: name.to_owned(),
            skills: Vec::new(),
            operator: None,
            wallet: None,
            public_key: Bytes(key.public().as_bytes().to_vec()),
            protocol_v: PROTOCOL_V,
            timestamp: unix_s,
        };
        let state = InitiatorState::AwaitHelloAck;
        (Initiator { key: key.clone(), known: known.into(), deadline: now + TIMEOUT, state }, hello.into())
    }

    /// When the handshake fails for lack of time: drop it and send [`HandshakeError::Timeout`]'s refusal.
    pub fn deadline(&self) -> MonoTime {
        self.deadline
    }

    /// Takes the peer's next message.
    ///
    /// # Errors
    /// The handshake has failed and is over; the error says what to send.
    pub fn handle(&mut self, message: Message, now: MonoTime) -> Result<Progress, HandshakeError> {
        let state = std::mem::replace(&mut self.state, InitiatorState::Over);
        if now > self.deadline {
            return Err(HandshakeError::Timeout);
        }
        match (state, message) {
            (InitiatorState::AwaitHelloAck, Message::HelloAck(ack)) => {
                let peer = identified(&ack.node_id, &ack.name, &ack.public_key, ack.protocol_v, self.known)?;
                let signature = Bytes(self.key.sign(&ack.challenge.0).to_vec());
                self.state = InitiatorState::AwaitVerifyAck(peer);
                Ok(Progress::Send(Verify { signature, challenge: ack.challenge }.into()))
            }
            (InitiatorState::AwaitVerifyAck(peer), Message::VerifyAck(ack)) => match ack.status {
                VerifyStatus::Ok => Ok(Progress::Done { send: None, peer }),
                VerifyStatus::Rejected => Err(HandshakeError::Rejected {
                    code: ErrorCode::HandshakeFailed.number(),
                    reason: ack.reason.unwrap_or_default(),
                }),
            },
            (_, message) => Err(out_of_order(message)),
        }
    }
}

/// The answering side.
#[derive(Debug)]
pub struct Responder {
    answer: HelloAck,
    known: Known,
    max_clock_drift: Duration,
    deadline: MonoTime,
    state: ResponderState,
}

#[derive(Debug)]
enum ResponderState {
    AwaitHello,
    AwaitVerify(Box<Peer>),
    Over,
}

impl Responder {
    /// Waits for the Hello of a peer of which so much is `known`. `challenge` is random.
    pub fn new(
        key: &NodeKey,
        name: &str,
        known: impl Into<Known>,
        challenge: [u8; CHALLENGE_LEN],
        max_clock_drift: Duration,
        now: MonoTime,
    ) -> Self {
        let answer = HelloAck {
            node_id: key.node_id().to_string(),
            name: name.to_owned(),
            skills: Vec::new(),
            operator: None,
            wallet: None,
            public_key: Bytes(key.public().as_bytes().to_vec()),
            protocol_v: PROTOCOL_V,
            challenge: ByteArray(challenge),
        };
        Responder {
            answer,
            known: known.into(),
            max_clock_drift,
            deadline: now + TIMEOUT,
            state: ResponderState::AwaitHello,
        }
    }

    /// When the handshake fails for lack of time: drop it and send [`HandshakeError::Timeout`]'s refusal.
    pub fn deadline(&self) -> MonoTime {
        self.deadline
    }

    /// Takes the peer's next message. `unix_s` is the wall clock in seconds since the Unix epoch.
    ///
    /// # Errors
    /// The handshake has failed and is over; the error says what to send.
    pub fn handle(
        &mut self,
        message: Message,
        now: MonoTime,
        unix_s: i64,
    ) -> Result<Progress, HandshakeError> {
        let state = std::mem::replace(&mut self.state, ResponderState::Over);
        if now > self.deadline {
            return Err(HandshakeError::Timeout);
        }
        match (state, message) {
            (ResponderState::AwaitHello, Message::Hello(hello)) => {
                let peer =
                    identified(&hello.node_id, &hello.name, &hello.public_key, hello.protocol_v, self.known)?;
                let drift_s = hello.timestamp.abs_diff(unix_s);
                if drift_s > self.max_clock_drift.as_secs() {
                    return Err(HandshakeError::ClockDrift {
                        drift_s,
                        max_s: self.max_clock_drift.as_secs(),
                    });
                }
                self.state = ResponderState::AwaitVerify(peer);
                Ok(Progress::Send(self.answer.clone().into()))
            }
            (ResponderState::AwaitVerify(peer), Message::Verify(verify)) => {
                let challenge = &self.answer.challenge;
                if verify.challenge != *challenge {
                    return Err(HandshakeError::Challenge);
                }
                if !peer.public_key.verify(&challenge.0, &verify.signature.0) {
                    return Err(HandshakeError::Signature);
                }
                let ack = VerifyAck { status: VerifyStatus::Ok, reason: None };
                Ok(Progress::Done { send: Some(ack.into()), peer })
            }
            (_, message) => Err(out_of_order(message)),
        }
    }
}

/// Why a handshake has failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The peer speaks another version.
    #[error("the peer speaks protocol version {0}, expected {PROTOCOL_V}")]
    Version(u32),
    /// A malformed or weak key, or a node id that is not the key's.
    #[error("the peer's identity is not sound: {0}")]
    Identity(String),
    /// The key in the message is not the one of the certificate.
    #[error("the key in the handshake is not the one of the TLS certificate: somebody may be in the middle")]
    KeyMismatch,
    /// The clocks differ too much.
    #[error("the peer's clock is off by {drift_s} s, at most {max_s} s are allowed: set the clocks")]
    ClockDrift {
        /// How far, in seconds.
        drift_s: u64,
        /// How far is allowed, in seconds.
        max_s: u64,
    },
    /// Verify repeats another challenge.
    #[error("the peer repeats a challenge that was not sent")]
    Challenge,
    /// The signature is not the key's over the challenge.
    #[error("the signature over the challenge does not verify")]
    Signature,
    /// Not all four messages in time.
    #[error("the handshake took more than {} s", TIMEOUT.as_secs())]
    Timeout,
    /// A handshake message that is not the next one.
    #[error("{0} out of order in the handshake")]
    OutOfOrder(&'static str),
    /// Another message than the handshake's.
    #[error("{0} before the handshake was done")]
    NotVerified(&'static str),
    /// The peer says no.
    #[error("the peer refuses the handshake: {code} {reason}")]
    Rejected {
        /// The peer's code.
        code: u32,
        /// The peer's words.
        reason: String,
    },
}

impl HandshakeError {
    /// Whether it was found here: not the peer's refusal, nor a connection that broke off.
    pub const fn is_ours(&self) -> bool {
        !matches!(self, HandshakeError::Rejected { .. })
    }

    /// The documented code for this failure.
    pub const fn code(&self) -> ErrorCode {
        match self {
            HandshakeError::Version(_) => ErrorCode::ProtocolVersion,
            HandshakeError::Identity(_) | HandshakeError::KeyMismatch => ErrorCode::InvalidIdentity,
            HandshakeError::Timeout => ErrorCode::HandshakeTimeout,
            HandshakeError::NotVerified(_) => ErrorCode::NotVerified,
            HandshakeError::ClockDrift { .. }
            | HandshakeError::Challenge
            | HandshakeError::Signature
            | HandshakeError::OutOfOrder(_)
            | HandshakeError::Rejected { .. } => ErrorCode::HandshakeFailed,
        }
    }

    /// What to send before the connection is closed with [`code`](Self::code): VerifyAck(rejected) if a Verify was
    /// wrong, then the Error. Nothing if it was the peer that refused.
    pub fn refusal(&self) -> Vec<Message> {
        let error = ErrorMessage::new(self.code(), self.to_string());
        match self {
            HandshakeError::Rejected { .. } => Vec::new(),
            HandshakeError::Challenge | HandshakeError::Signature => {
                let rejected = VerifyAck { status: VerifyStatus::Rejected, reason: Some(self.to_string()) };
                vec![rejected.into(), error.into()]
            }
            _ => vec![error.into()],
        }
    }
}

/// Text from a peer, made fit for logs and terminals: nothing that controls a terminal, breaks a line or turns the direction
/// of writing; at most `max_chars` characters.
pub fn printable(text: &str, max_chars: usize) -> String {
    text.chars().filter(|c| !c.is_control() && !breaks_lines_or_turns(*c)).take(max_chars).collect()
}

/// Line and paragraph separator, and the characters of Unicode's property Bidi_Control (UAX #9).
fn breaks_lines_or_turns(c: char) -> bool {
    matches!(c, '\u{2028}' | '\u{2029}' | '\u{61c}' | '\u{200e}' | '\u{200f}')
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn identified(
    node_id: &str,
    name: &str,
    public_key: &Bytes,
    protocol_v: u32,
    known: Known,
) -> Result<Box<Peer>, HandshakeError> {
    if protocol_v != PROTOCOL_V {
        return Err(HandshakeError::Version(protocol_v));
    }
    let key = PublicKey::parse(&public_key.0).map_err(|fault| HandshakeError::Identity(fault.to_string()))?;
    if matches!(known, Known::Key(proved) if proved != key) {
        return Err(HandshakeError::KeyMismatch);
    }
    let claimed: NodeId = node_id.parse().map_err(|fault| HandshakeError::Identity(format!("{fault}")))?;
    if claimed != key.node_id() {
        return Err(HandshakeError::Identity(format!("{claimed} is not the id of its key")));
    }
    if matches!(known, Known::Node(asked_for) if asked_for != claimed) {
        return Err(HandshakeError::Identity(format!("{claimed} answers where another was asked for")));
    }
    let name = printable(name, MAX_NAME_CHARS);
    Ok(Box::new(Peer { node_id: claimed, public_key: key, name }))
}

fn out_of_order(message: Message) -> HandshakeError {
    match message {
        Message::Error(error) => {
            HandshakeError::Rejected { code: error.code, reason: printable(&error.message, 256) }
        }
        Message::Disconnect(disconnect) => {
            HandshakeError::Rejected { code: 0, reason: printable(&disconnect.reason, 256) }
        }
        Message::Hello(_) | Message::HelloAck(_) | Message::Verify(_) | Message::VerifyAck(_) => {
            HandshakeError::OutOfOrder(message.name())
        }
        _ => HandshakeError::NotVerified(message.name()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::Ping;
    use super::*;

    const NOW: MonoTime = MonoTime(5_000_000_000);
    const UNIX_S: i64 = 1_712_150_400;

    #[test]
    fn a_peers_text_cannot_break_lines_or_turn_their_direction() {
        let text = "a\x1b[31m\r\n\u{2028}\u{2029}\u{202e}\u{2066}\u{2069}\u{200f}\u{61c}é漢";
        assert_eq!(super::printable(text, 64), "a[31mé漢");
        assert_eq!(super::printable("ééé", 2), "éé");
    }

    #[test]
    fn four_messages_make_both_sides_know_each_other() {
        let (mut initiator, hello) = Initiator::new(&alice(), "alice\n\x1b[31m", bob().public(), NOW, UNIX_S);
        let mut responder = responder(Duration::from_secs(300));
        let Ok(Progress::Send(hello_ack)) = responder.handle(hello, NOW, UNIX_S) else {
            panic!("no HelloAck")
        };
        let Ok(Progress::Send(verify)) = initiator.handle(hello_ack, NOW) else { panic!("no Verify") };
        let Ok(Progress::Done { send: Some(verify_ack), peer }) = responder.handle(verify, NOW, UNIX_S)
        else {
            panic!("no VerifyAck")
        };
        assert_eq!((peer.node_id, peer.name.as_str()), (alice().node_id(), "alice[31m"));
        let Ok(Progress::Done { send: None, peer }) = initiator.handle(verify_ack, NOW) else {
            panic!("not done")
        };
        assert_eq!((peer.public_key, peer.name.as_str()), (bob().public(), "bob"));
    }

    #[test]
    fn each_wrong_hello_has_its_code() {
        let good = good_hello();
        let other = NodeKey::from_seed(&[9; 32]);
        let mut weak = [0; 32];
        weak[0] = 1;
        let wrong = [
            (Hello { protocol_v: 2, ..good.clone() }, 1001),
            (Hello { timestamp: UNIX_S + 301, ..good.clone() }, 1002),
            (Hello { timestamp: UNIX_S - 301, ..good.clone() }, 1002),
            (Hello { timestamp: i64::MIN, ..good.clone() }, 1002),
            (Hello { node_id: "atlas_1".into(), ..good.clone() }, 1004),
            (Hello { node_id: other.node_id().to_string(), ..good.clone() }, 1004),
            (Hello { public_key: Bytes(vec![]), ..good.clone() }, 1004),
            (Hello { public_key: Bytes(weak.to_vec()), ..good.clone() }, 1004),
            (
                Hello {
                    node_id: other.node_id().to_string(),
                    public_key: Bytes(other.public().as_bytes().to_vec()),
                    ..good.clone()
                },
                1004,
            ),
        ];
        for (hello, code) in wrong {
            let error =
                responder(Duration::from_secs(300)).handle(hello.clone().into(), NOW, UNIX_S).unwrap_err();
            assert_eq!(error.code().number(), code, "{hello:?}: {error}");
            assert!(matches!(&error.refusal()[..], [Message::Error(sent)] if sent.code == code));
        }
    }

    #[test]
    fn the_largest_clock_drift_is_allowed_in_both_directions() {
        for timestamp in [UNIX_S - 300, UNIX_S + 300] {
            let hello = Hello { timestamp, ..good_hello() };
            assert!(responder(Duration::from_secs(300)).handle(hello.into(), NOW, UNIX_S).is_ok());
        }
    }

    #[test]
    fn a_wrong_signature_or_challenge_is_rejected_twice_over() {
        let cases = [
            Verify { signature: Bytes(bob().sign(&[3; 32]).to_vec()), challenge: ByteArray([3; 32]) },
            Verify { signature: Bytes(vec![]), challenge: ByteArray([3; 32]) },
            Verify { signature: Bytes(alice().sign(&[4; 32]).to_vec()), challenge: ByteArray([4; 32]) },
        ];
        for verify in cases {
            let mut responder = responder(Duration::from_secs(300));
            responder.handle(good_hello().into(), NOW, UNIX_S).unwrap();
            let error = responder.handle(verify.into(), NOW, UNIX_S).unwrap_err();
            assert_eq!(error.code(), ErrorCode::HandshakeFailed);
            let [Message::VerifyAck(ack), Message::Error(_)] = &error.refusal()[..] else {
                panic!("{error}")
            };
            assert_eq!(ack.status, VerifyStatus::Rejected);
        }
    }

    #[test]
    fn other_messages_and_messages_out_of_order_end_it() {
        let error = responder(Duration::ZERO).handle(Ping::new(0).into(), NOW, UNIX_S).unwrap_err();
        assert_eq!(error.code(), ErrorCode::NotVerified);
        let verify = Verify { signature: Bytes(vec![]), challenge: ByteArray([0; 32]) };
        let mut responder = responder(Duration::ZERO);
        assert_eq!(responder.handle(verify.into(), NOW, UNIX_S), Err(HandshakeError::OutOfOrder("Verify")));
        assert!(
            responder.handle(good_hello().into(), NOW, UNIX_S).is_err(),
            "it is over after the first failure"
        );
    }

    #[test]
    fn ten_seconds_are_enough_and_more_are_too_many() {
        let mut in_time = responder(Duration::from_secs(300));
        assert_eq!(in_time.deadline(), NOW + TIMEOUT);
        assert!(in_time.handle(good_hello().into(), NOW + TIMEOUT, UNIX_S).is_ok());
        let late = NOW + TIMEOUT + Duration::from_nanos(1);
        let error =
            responder(Duration::from_secs(300)).handle(good_hello().into(), late, UNIX_S).unwrap_err();
        assert_eq!(error.code().number(), 1003);
    }

    #[test]
    fn the_initiator_refuses_a_responder_with_another_key_than_its_certificate() {
        let (mut initiator, hello) =
            Initiator::new(&alice(), "alice", NodeKey::from_seed(&[8; 32]).public(), NOW, UNIX_S);
        let Ok(Progress::Send(ack)) = responder(Duration::ZERO).handle(hello, NOW, UNIX_S) else {
            panic!("no HelloAck")
        };
        assert_eq!(initiator.handle(ack, NOW), Err(HandshakeError::KeyMismatch));
    }

    #[test]
    fn the_initiator_reports_the_responders_refusal() {
        let (mut initiator, _hello) = Initiator::new(&alice(), "alice", bob().public(), NOW, UNIX_S);
        let refusal = ErrorMessage::new(ErrorCode::HandshakeFailed, "set the clocks");
        let error = initiator.handle(refusal.into(), NOW).unwrap_err();
        assert_eq!(error, HandshakeError::Rejected { code: 1002, reason: "set the clocks".into() });
        assert_eq!(error.refusal(), []);
    }

    fn alice() -> NodeKey {
        NodeKey::from_seed(&[1; 32])
    }

    fn bob() -> NodeKey {
        NodeKey::from_seed(&[2; 32])
    }

    fn responder(max_clock_drift: Duration) -> Responder {
        Responder::new(&bob(), "bob", alice().public(), [3; 32], max_clock_drift, NOW)
    }

    fn good_hello() -> Hello {
        let (_initiator, hello) = Initiator::new(&alice(), "alice", bob().public(), NOW, UNIX_S);
        let Message::Hello(hello) = hello else { panic!("not a Hello") };
        hello
    }
}
