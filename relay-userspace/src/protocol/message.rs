//! The messages, one struct per type byte, and their MessagePack form.
//!
//! A payload is a map keyed by field name, in the order of the fields here. Options are written as nil and may be
//! absent. Unknown keys are ignored; the order of keys does not matter.

#[cfg(test)]
mod tests;

use std::fmt;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use super::body::Body;
use super::byte_fields::{ByteArray, Bytes};
use super::envelope::{self, WireError};
use super::flow_terms::{Disconnect, ErrorMessage, RelayAnnounce, RelayConnect, RelayError, RelayReady};
pub use super::flow_terms::{Ping, Pong};

/// The version number in Hello and HelloAck.
pub const PROTOCOL_V: u32 = 1;

/// Length of the challenge in HelloAck and Verify, in bytes.
pub const CHALLENGE_LEN: usize = 32;

/// Containers may nest this deep in a payload. No message needs more than a few levels; a deeper one would use our
/// stack up.
const MAX_DEPTH: usize = 32;

macro_rules! messages {
    ($($(#[$doc:meta])* $variant:ident($body:ty) = $type_byte:literal $(, as $rename:literal)?;)*) => {
        /// Any message of the protocol.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Message {
            $($(#[$doc])* $variant($body),)*
        }

        impl Message {
            /// The byte that tells the type in the envelope.
            pub const fn type_byte(&self) -> u8 {
                match self {
                    $(Message::$variant(_) => $type_byte,)*
                }
            }

            /// The documented name.
            pub const fn name(&self) -> &'static str {
                match self {
                    $(Message::$variant(_) => stringify!($variant),)*
                }
            }

            /// The documented name of a type byte.
            const fn name_of(type_byte: u8) -> Option<&'static str> {
                match type_byte {
                    $($type_byte => Some(stringify!($variant)),)*
                    _ => None,
                }
            }

            /// The whole frame.
            ///
            /// # Errors
            /// [`WireError::PayloadTooLarge`].
            pub fn encode(&self) -> Result<Vec<u8>, WireError> {
                let payload = match self {
                    $(Message::$variant(body) => rmp_serde::to_vec_named(body),)*
                };
                let payload = payload.map_err(|fault| WireError::Payload {
                    message: self.name(),
                    fault: fault.to_string(),
                })?;
                envelope::encode(self.type_byte(), &payload)
            }

            /// The message of a type byte and payload.
            ///
            /// # Errors
            /// [`WireError::UnknownType`], or [`WireError::Payload`] if a field is missing or of another type.
            pub fn decode(type_byte: u8, payload: &[u8]) -> Result<Self, WireError> {
                match type_byte {
                    $($type_byte => {
                        let mut deserializer = rmp_serde::Deserializer::from_read_ref(payload);
                        deserializer.set_max_depth(MAX_DEPTH);
                        match <$body>::deserialize(&mut deserializer) {
                            Ok(body) => Ok(Message::$variant(body)),
                            Err(fault) => Err(WireError::Payload {
                                message: stringify!($variant),
                                fault: fault.to_string(),
                            }),
                        }
                    })*
                    unknown => Err(WireError::UnknownType(unknown)),
                }
            }
        }

        $(impl From<$body> for Message {
            fn from(body: $body) -> Self {
                Message::$variant(body)
            }
        })*
    };
}

messages! {
    /// The initiator's opening.
    Hello(Hello) = 0x01;
    /// The responder's answer, with a challenge.
    HelloAck(HelloAck) = 0x02;
    /// The initiator's proof.
    Verify(Verify) = 0x03;
    /// The responder's verdict.
    VerifyAck(VerifyAck) = 0x04;
    /// An application's message.
    Message(AtlasMessage) = 0x10;
    /// The answer to a message or registration.
    MessageAck(MessageAck) = 0x11;
    /// An agent registers at a bootstrap node. A relay refuses it.
    BootstrapRegister(BootstrapRegistration) = 0x20;
    /// An agent asks a bootstrap node for peers. A relay refuses it.
    BootstrapDiscover(BootstrapDiscoverRequest) = 0x21;
    /// A bootstrap node's answer.
    BootstrapPeers(BootstrapPeers) = 0x22;
    /// An agent can be reached through this relay.
    RelayAnnounce(RelayAnnounce) = 0x30;
    /// An agent wants to reach another through this relay.
    RelayConnect(RelayConnect) = 0x31;
    /// The relay has registered or paired the agent.
    RelayReady(RelayReady) = 0x32;
    /// The relay will not.
    RelayError(RelayError) = 0x33;
    /// A refusal or notice.
    Error(ErrorMessage) = 0xe0;
    /// Asks for a Pong.
    Ping(Ping) = 0xf0;
    /// Answers a Ping.
    Pong(Pong) = 0xf1;
    /// The end of a connection, or of one session.
    Disconnect(Disconnect) = 0xff;
}

impl Message {
    /// Reads one whole frame.
    ///
    /// # Errors
    /// Whatever is wrong with the envelope or the payload.
    pub fn decode_frame(frame: &[u8]) -> Result<Self, WireError> {
        let (header, payload) = envelope::decode(frame)?;
        Message::decode(header.type_byte, payload)
    }
}

/// Characters of a message's id that are kept to refer to it. Ours have 40.
const MAX_REFERENCE_CHARS: usize = 64;

/// A message that its receiver does not take: what an answer needs, and no more of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotTaken {
    /// The documented name.
    pub name: &'static str,
    /// If it is a Message with an id: the id, at most 64 characters of it.
    pub id: Option<String>,
}

impl NotTaken {
    /// Reads what an answer needs, and past the rest. A payload that is not sound has no id.
    ///
    /// # Errors
    /// [`WireError::UnknownType`].
    pub fn read(type_byte: u8, payload: &[u8]) -> Result<Self, WireError> {
        /// The id alone; the other keys are read past.
        #[derive(Deserialize)]
        struct IdOnly {
            id: String,
        }
        let name = Message::name_of(type_byte).ok_or(WireError::UnknownType(type_byte))?;
        let id = (type_byte == 0x10).then(|| {
            let mut deserializer = rmp_serde::Deserializer::from_read_ref(payload);
            deserializer.set_max_depth(MAX_DEPTH);
            IdOnly::deserialize(&mut deserializer).ok().map(|message| reference(&message.id))
        });
        Ok(NotTaken { name, id: id.flatten() })
    }
}

impl From<&Message> for NotTaken {
    fn from(message: &Message) -> Self {
        let id = match message {
            Message::Message(message) => Some(reference(&message.id)),
            _ => None,
        };
        NotTaken { name: message.name(), id }
    }
}

fn reference(id: &str) -> String {
    id.chars().take(MAX_REFERENCE_CHARS).collect()
}

/// 0x01.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// The initiator's id.
    pub node_id: String,
    /// A name for humans, not proved by anything.
    pub name: String,
    /// What the initiator says it can do.
    #[serde(default)]
    pub skills: Vec<String>,
    /// Who runs it.
    #[serde(default)]
    pub operator: Option<OperatorInfo>,
    /// A wallet address.
    #[serde(default)]
    pub wallet: Option<String>,
    /// The 32 bytes of the initiator's Ed25519 public key.
    pub public_key: Bytes,
    /// [`PROTOCOL_V`].
    pub protocol_v: u32,
    /// The initiator's clock, in seconds since the Unix epoch.
    pub timestamp: i64,
}

/// 0x02.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HelloAck {
    /// The responder's id.
    pub node_id: String,
    /// A name for humans, not proved by anything.
    pub name: String,
    /// What the responder says it can do.
    #[serde(default)]
    pub skills: Vec<String>,
    /// Who runs it.
    #[serde(default)]
    pub operator: Option<OperatorInfo>,
    /// A wallet address.
    #[serde(default)]
    pub wallet: Option<String>,
    /// The 32 bytes of the responder's Ed25519 public key.
    pub public_key: Bytes,
    /// [`PROTOCOL_V`].
    pub protocol_v: u32,
    /// Random bytes the initiator is to sign.
    pub challenge: ByteArray<CHALLENGE_LEN>,
}

/// 0x03, documented as VerifyMessage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verify {
    /// The initiator's Ed25519 signature of the 32 challenge bytes (64 bytes).
    pub signature: Bytes,
    /// HelloAck's challenge, repeated.
    pub challenge: ByteArray<CHALLENGE_LEN>,
}

/// 0x04.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VerifyAck {
    /// The verdict.
    pub status: VerifyStatus,
    /// Why, if it is a rejection.
    #[serde(default)]
    pub reason: Option<String>,
}

/// 0x10.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AtlasMessage {
    /// `msg_` and a UUID of version 7.
    pub id: String,
    /// The sender's node id.
    pub from: String,
    /// The receiver's node id.
    pub to: String,
    /// The sender's clock, in seconds since the Unix epoch.
    pub timestamp: i64,
    /// The id of the message this one answers.
    #[serde(default)]
    pub reply_to: Option<String>,
    /// What it is about; tells receivers what the body is.
    #[serde(default)]
    pub topic: Option<String>,
    /// The content.
    pub body: Body,
}

/// 0x11.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MessageAck {
    /// The id of the message that is answered.
    pub msg_id: String,
    /// What became of it.
    pub status: AckStatus,
}

/// 0x20.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BootstrapRegistration {
    /// The agent's id.
    pub node_id: String,
    /// The socket address at which it says it can be reached.
    pub address: String,
    /// Its clock, in seconds since the Unix epoch.
    pub timestamp: i64,
}

/// 0x21. Its fields are not documented; they are read past.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BootstrapDiscoverRequest {}

/// 0x22. Its fields are not documented; they are read past.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BootstrapPeers {}

/// Who runs a node. The fields are not documented: whatever is sent is read past, and we send none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OperatorInfo;

impl Serialize for OperatorInfo {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_none()
    }
}

impl<'de> Deserialize<'de> for OperatorInfo {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| OperatorInfo)
    }
}

macro_rules! wire_word {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        ///
        /// Written in lower case, read in any.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $name {
            /// The word on the wire.
            pub const fn word(self) -> &'static str {
                match self {
                    $($name::$variant => $word,)*
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.word())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.word())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let word = String::deserialize(deserializer)?;
                $(if word.eq_ignore_ascii_case($word) {
                    return Ok($name::$variant);
                })*
                Err(serde::de::Error::unknown_variant(&word, &[$($word),*]))
            }
        }
    };
}
pub(super) use wire_word;

wire_word! {
    /// VerifyAck's verdict.
    VerifyStatus {
        /// The handshake is complete.
        Ok = "ok",
        /// It has failed.
        Rejected = "rejected",
    }
}

wire_word! {
    /// What became of a message. The documentation's pages name different sets; this is their union.
    AckStatus {
        /// It was received.
        Received = "received",
        /// It was received and taken.
        Accepted = "accepted",
        /// The sender is registered.
        Registered = "registered",
        /// It waits for its receiver.
        Waiting = "waiting",
        /// It was passed on by a relay.
        Relayed = "relayed",
    }
}
