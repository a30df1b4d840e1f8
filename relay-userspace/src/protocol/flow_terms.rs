//! What the upstream documentation leaves open about relay messages, and what is ours.
//!
//! The documentation names RelayAnnounce, RelayConnect, RelayReady, RelayError and Disconnect without their field
//! tables; the fields here are our definition. Keys that are ours alone are marked so. They are sent only to agents that
//! have sent `flow: 1` themselves, or asked by such a key of a Ping, and left out (not nil) elsewhere, so that a documented-only
//! peer sees nothing new.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use relay_common::Side;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::bind::{BindKey, BindMagic, SessionId};
use super::byte_fields::ByteArray;
use super::error_code::ErrorCode;
use super::message::wire_word;
use crate::identity::NodeId;

/// The value of `flow` that an agent sends to say it speaks what this module and [`super::bind`] define.
pub const FLOW: u32 = 1;

/// Consent: a side's proof of its tuple is good for this long unless RelayReady says otherwise.
pub const DEFAULT_CONSENT: Duration = Duration::from_secs(75);

/// A relay's kernel part goes on for so long after a side's last proof while no daemon is there to ask for another: what a dead
/// daemon leaves behind stops by itself.
pub const LEASE: Duration = Duration::from_secs(300);

/// A bind for consent's sake is due after this long unless RelayReady says otherwise.
pub const DEFAULT_KEEPALIVE: Duration = Duration::from_secs(30);

/// 0x30, agent to relay: "I can be reached through you."
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RelayAnnounce {
    /// The announcer's id: the one of its certificate.
    pub node_id: String,
    /// The announcer's clock, in seconds since the Unix epoch.
    pub timestamp: i64,
    /// Ours: [`FLOW`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow: Option<u32>,
    /// Ours: node ids that may connect. None: anyone. Empty: nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<String>>,
}

/// 0x31, agent to relay: "Pair me with that agent."
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RelayConnect {
    /// The sender's id: the one of its certificate.
    pub source_id: String,
    /// The agent to reach.
    pub target_id: String,
    /// The sender's clock, in seconds since the Unix epoch.
    #[serde(default)]
    pub timestamp: Option<i64>,
    /// Ours: [`FLOW`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow: Option<u32>,
}

/// 0x32, relay to agent. [`FlowTerms`] is the checked form of our keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RelayReady {
    /// `waiting` answers an announce, `ready` is a pairing.
    pub status: ReadyStatus,
    /// The other agent, when paired.
    #[serde(default)]
    pub peer_id: Option<String>,
    /// Ours: the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// Ours: which side the receiver is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Ours: the key of this side's bind datagrams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bind_key: Option<ByteArray<32>>,
    /// Ours: what this relay's bind datagrams begin with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bind_magic: Option<ByteArray<8>>,
    /// Ours: the session's limit in UDP payload bytes per second, both directions together. 0: unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
    /// Ours: bytes that may pass at once after a pause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
    /// Ours: the largest UDP payload that fits, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_datagram: Option<u32>,
    /// Ours: seconds a proof of the tuple is good for. [`DEFAULT_CONSENT`] if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consent_s: Option<u32>,
    /// Ours: seconds after which a bind is due for consent's sake. [`DEFAULT_KEEPALIVE`] if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keepalive_s: Option<u32>,
    /// Ours: `address:port` to send datagrams to, if it is not the one the relay was reached at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_addresses: Option<Vec<String>>,
    /// Ours: true if the agent should bind at once, because its control connection has been seen to move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bind_now: Option<bool>,
}

impl RelayReady {
    /// The documented part alone.
    pub fn documented(status: ReadyStatus, peer: Option<NodeId>) -> Self {
        RelayReady {
            status,
            peer_id: peer.map(|id| id.to_string()),
            session: None,
            role: None,
            bind_key: None,
            bind_magic: None,
            rate: None,
            burst: None,
            max_datagram: None,
            consent_s: None,
            keepalive_s: None,
            data_addresses: None,
            bind_now: None,
        }
    }

    /// A pairing with all of our keys.
    pub fn with_terms(terms: &FlowTerms) -> Self {
        let seconds = |span: Duration| u32::try_from(span.as_secs()).unwrap_or(u32::MAX);
        RelayReady {
            session: Some(terms.session),
            role: Some(Role(terms.side)),
            bind_key: Some(ByteArray(*terms.bind_key.as_bytes())),
            bind_magic: Some(ByteArray(terms.bind_magic.0)),
            rate: Some(terms.rate_bytes_per_s),
            burst: Some(terms.burst_bytes),
            max_datagram: Some(terms.max_datagram_bytes),
            consent_s: Some(seconds(terms.consent)),
            keepalive_s: Some(seconds(terms.keepalive)),
            data_addresses: (!terms.data_addresses.is_empty())
                .then(|| terms.data_addresses.iter().map(SocketAddr::to_string).collect()),
            bind_now: terms.bind_now.then_some(true),
            ..RelayReady::documented(ReadyStatus::Ready, Some(terms.peer))
        }
    }

    /// The terms of a pairing.
    ///
    /// # Errors
    /// A key is missing or its value makes no sense; the error names it.
    pub fn terms(&self) -> Result<FlowTerms, TermsError> {
        let missing = |key: &'static str| TermsError::Missing { key };
        let peer = self.peer_id.as_deref().ok_or(missing("peer_id"))?;
        let max_datagram_bytes = self.max_datagram.ok_or(missing("max_datagram"))?;
        if !MAX_DATAGRAM_RANGE.contains(&max_datagram_bytes) {
            return Err(TermsError::MaxDatagram(max_datagram_bytes));
        }
        let positive = |key, seconds: Option<u32>, default: Duration| match seconds {
            None => Ok(default),
            Some(0) => Err(TermsError::Zero { key }),
            Some(seconds) => Ok(Duration::from_secs(seconds.into())),
        };
        let addresses = self.data_addresses.as_deref().unwrap_or_default();
        let data_addresses = addresses
            .iter()
            .take(MAX_DATA_ADDRESSES)
            .map(|address| address.parse().map_err(|_| TermsError::DataAddress(address.clone())))
            .collect::<Result<_, _>>()?;
        Ok(FlowTerms {
            session: self.session.ok_or(missing("session"))?,
            peer: peer.parse().map_err(|_| TermsError::Peer)?,
            side: self.role.ok_or(missing("role"))?.0,
            bind_key: BindKey::from_bytes(self.bind_key.ok_or(missing("bind_key"))?.0),
            bind_magic: BindMagic(self.bind_magic.ok_or(missing("bind_magic"))?.0),
            rate_bytes_per_s: self.rate.ok_or(missing("rate"))?,
            burst_bytes: self.burst.unwrap_or(0),
            max_datagram_bytes,
            consent: positive("consent_s", self.consent_s, DEFAULT_CONSENT)?,
            keepalive: positive("keepalive_s", self.keepalive_s, DEFAULT_KEEPALIVE)?,
            data_addresses,
            bind_now: self.bind_now.unwrap_or(false),
        })
    }
}

/// The terms of a session, as one side is told them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowTerms {
    /// The session.
    pub session: SessionId,
    /// The other agent.
    pub peer: NodeId,
    /// Which side the receiver of these terms is.
    pub side: Side,
    /// The key of this side's bind datagrams.
    pub bind_key: BindKey,
    /// What this relay's bind datagrams begin with.
    pub bind_magic: BindMagic,
    /// Limit in UDP payload bytes per second, both directions together. 0: unlimited.
    pub rate_bytes_per_s: u64,
    /// Bytes that may pass at once after a pause.
    pub burst_bytes: u64,
    /// The largest UDP payload that fits, in bytes.
    pub max_datagram_bytes: u32,
    /// How long a proof of the tuple is good for.
    pub consent: Duration,
    /// When a bind is due for consent's sake.
    pub keepalive: Duration,
    /// Where to send datagrams; empty: where the relay was reached.
    pub data_addresses: Vec<SocketAddr>,
    /// Bind at once: the relay has seen the control connection move.
    pub bind_now: bool,
}

/// What `max_datagram` may be: QUIC needs 1200 bytes, UDP has no more than 65,527.
pub const MAX_DATAGRAM_RANGE: std::ops::RangeInclusive<u32> = 1200..=65_527;

/// More addresses than this are of no use.
const MAX_DATA_ADDRESSES: usize = 8;

/// Why a RelayReady cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TermsError {
    /// A key of ours is absent.
    #[error("RelayReady has no `{key}`: the relay does not offer flows, or speaks another version")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// `peer_id` is no node id.
    #[error("RelayReady's `peer_id` is no node id")]
    Peer,
    /// `max_datagram` cannot be.
    #[error("RelayReady's `max_datagram` is {0}, expected 1200 to 65527")]
    MaxDatagram(u32),
    /// A span of no seconds.
    #[error("RelayReady's `{key}` is 0")]
    Zero {
        /// The key.
        key: &'static str,
    },
    /// An entry of `data_addresses` is no `address:port`.
    #[error("RelayReady's `data_addresses` holds {0:?}, expected ADDRESS:PORT")]
    DataAddress(String),
}

/// 0x33, relay to agent: "I cannot pair you."
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RelayError {
    /// An [`ErrorCode`]'s number.
    pub code: u32,
    /// What happened, for humans.
    pub message: String,
    /// The target that was asked for.
    #[serde(default)]
    pub target_id: Option<String>,
    /// Ours: the session that could not be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
}

/// 0xe0, either direction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorMessage {
    /// An [`ErrorCode`]'s number.
    pub code: u32,
    /// What happened, for humans.
    pub message: String,
    /// The message that is refused.
    #[serde(default)]
    pub ref_msg_id: Option<String>,
    /// Ours, with 4001: the session whose datagrams were dropped for its limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// Ours, with 4001: how many since the last notice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
    /// Ours, with 4001: their UDP payload bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

impl ErrorMessage {
    /// The documented part alone.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        ErrorMessage {
            code: code.number(),
            message: message.into(),
            ref_msg_id: None,
            session: None,
            packets: None,
            bytes: None,
        }
    }
}

/// 0xff, either direction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Disconnect {
    /// One of [`disconnect_reason`]'s words.
    pub reason: String,
    /// More about it, for humans.
    #[serde(default)]
    pub note: Option<String>,
    /// Ours: only this session ends, the connection stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// Ours, with [`disconnect_reason::DRAIN`]: `NODE@HOST:PORT` of the relay to move to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<String>,
    /// Ours, with [`disconnect_reason::DRAIN`]: the seconds after which the relay stops, whoever still uses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_s: Option<u64>,
}

impl Disconnect {
    /// Without what belongs to a drain.
    pub fn new(reason: &str, note: Option<String>, session: Option<SessionId>) -> Self {
        Disconnect { reason: reason.to_owned(), note, session, relay: None, after_s: None }
    }
}

/// Values of [`Disconnect::reason`]: the documented ones, and ours for sessions.
pub mod disconnect_reason {
    /// Documented: three pongs in a row were missed; for a session, nothing was relayed for too long.
    pub const IDLE: &str = "DISCONNECT_IDLE";
    /// Documented: the sender is shutting down, or its operator asked for it.
    pub const SHUTDOWN: &str = "DISCONNECT_SHUTDOWN";
    /// Ours: a side has not proved its tuple in time.
    pub const CONSENT_LOST: &str = "DISCONNECT_CONSENT_LOST";
    /// Ours: the other side has ended the session.
    pub const PEER_GONE: &str = "DISCONNECT_PEER_GONE";
    /// Ours: the relay's operator has ended the session, or does not permit the node any more.
    pub const OPERATOR: &str = "DISCONNECT_OPERATOR";
    /// Ours: the same identity has connected again; this connection is the older one.
    pub const REPLACED: &str = "DISCONNECT_REPLACED";
    /// Ours: the relay's daemon makes way for another, which knows the sessions: connect again.
    pub const RESTART: &str = "DISCONNECT_RESTART";
    /// Ours: the relay is about to stop. Nothing ends yet: move away. Sent only to agents that say `flow`.
    pub const DRAIN: &str = "DISCONNECT_DRAIN";
}

/// 0xf0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ping {
    /// The sender's clock, in seconds since the Unix epoch.
    pub ts: i64,
    /// Ours: connect to me anew, and tell in Pong who answers. An agent names the UDP port of its address that is meant. A relay,
    /// which sends it to agents that said `flow`, names its own, and is connected to where the agent has reached it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<u16>,
}

/// 0xf1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pong {
    /// The answerer's clock, in seconds since the Unix epoch.
    pub ts: i64,
    /// The Ping's `ts`.
    pub echo: i64,
    /// Ours: what came of the Ping's `probe`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probed: Option<ProbeOutcome>,
    /// Ours: where that was connected to, `ADDRESS:PORT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probed_at: Option<String>,
    /// Ours: the node id of who has answered there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probed_node: Option<String>,
}

impl Ping {
    /// The documented one.
    pub const fn new(ts: i64) -> Ping {
        Ping { ts, probe: None }
    }
}

impl Pong {
    /// The documented one.
    pub const fn new(ts: i64, echo: i64) -> Pong {
        Pong { ts, echo, probed: None, probed_at: None, probed_node: None }
    }
}

wire_word! {
    /// What came of a probe.
    ProbeOutcome {
        /// Somebody has proved a key there.
        Answered = "answered",
        /// Nobody has within 3 s.
        Silent = "silent",
        /// Not tried: it was asked too often, or as many as may be are being tried.
        Refused = "refused",
    }
}

wire_word! {
    /// RelayReady's status.
    ReadyStatus {
        /// The announce is registered; no pairing yet.
        Waiting = "waiting",
        /// Paired.
        Ready = "ready",
    }
}

/// A side as a word on the wire: `connector` dials, `target` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Role(pub Side);

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Side::Connector => "connector",
            Side::Target => "target",
        })
    }
}

impl Serialize for Role {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Role {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = String::deserialize(deserializer)?;
        Side::BOTH
            .into_iter()
            .map(Role)
            .find(|role| word.eq_ignore_ascii_case(&role.to_string()))
            .ok_or_else(|| serde::de::Error::unknown_variant(&word, &["connector", "target"]))
    }
}

#[cfg(test)]
impl FlowTerms {
    /// Terms of a session without limit or data address, for tests.
    pub(crate) fn example(side: Side) -> FlowTerms {
        FlowTerms {
            session: SessionId([9; 16]),
            peer: NodeId::from_bytes([3; 32]),
            side,
            bind_key: BindKey::from_bytes([5; 32]),
            bind_magic: BindMagic([6; 8]),
            rate_bytes_per_s: 0,
            burst_bytes: 0,
            max_datagram_bytes: 1472,
            consent: DEFAULT_CONSENT,
            keepalive: DEFAULT_KEEPALIVE,
            data_addresses: Vec::new(),
            bind_now: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Message;
    use super::*;

    #[test]
    fn an_announce_has_these_bytes() {
        let announce =
            RelayAnnounce { node_id: "atlas_x".into(), timestamp: 1_712_150_400, flow: None, allow: None };
        let documented =
            b"\xac\x01\x01\x30\0\0\0\x20\x82\xa7node_id\xa7atlas_x\xa9timestamp\xce\x66\x0d\x57\x80";
        assert_eq!(Message::from(announce.clone()).encode().unwrap(), documented);
        let ours = RelayAnnounce { flow: Some(FLOW), allow: Some(vec![]), ..announce };
        let frame = Message::from(ours).encode().unwrap();
        assert_eq!(frame[8], 0x84);
        assert_eq!(&frame[40..], b"\xa4flow\x01\xa5allow\x90");
    }

    #[test]
    fn a_waiting_ready_shows_a_documented_only_agent_nothing_new() {
        let ready = Message::from(RelayReady::documented(ReadyStatus::Waiting, None));
        assert_eq!(
            ready.encode().unwrap(),
            b"\xac\x01\x01\x32\0\0\0\x19\x82\xa6status\xa7waiting\xa7peer_id\xc0"
        );
    }

    #[test]
    fn terms_survive_the_wire() {
        let terms = terms();
        let frame = Message::from(RelayReady::with_terms(&terms)).encode().unwrap();
        let Message::RelayReady(ready) = Message::decode_frame(&frame).unwrap() else {
            panic!("not a RelayReady")
        };
        assert_eq!(ready.terms().unwrap(), terms);
    }

    #[test]
    fn terms_that_make_no_sense_name_the_key() {
        let good = RelayReady::with_terms(&terms());
        let faults = [
            (RelayReady { session: None, ..good.clone() }, "session"),
            (RelayReady { bind_key: None, ..good.clone() }, "bind_key"),
            (RelayReady { peer_id: Some("atlas_".into()), ..good.clone() }, "peer_id"),
            (RelayReady { max_datagram: Some(1199), ..good.clone() }, "max_datagram"),
            (RelayReady { consent_s: Some(0), ..good.clone() }, "consent_s"),
            (
                RelayReady { data_addresses: Some(vec!["relay:4433".into()]), ..good.clone() },
                "data_addresses",
            ),
        ];
        for (ready, key) in faults {
            assert!(ready.terms().unwrap_err().to_string().contains(key), "{key}");
        }
        let defaults = RelayReady { consent_s: None, keepalive_s: None, burst: None, ..good };
        assert_eq!(defaults.terms().unwrap().consent, DEFAULT_CONSENT);
    }

    fn terms() -> FlowTerms {
        FlowTerms {
            rate_bytes_per_s: 1_048_576,
            burst_bytes: 262_144,
            data_addresses: vec!["192.0.2.7:4433".parse().unwrap()],
            bind_now: true,
            ..FlowTerms::example(Side::Target)
        }
    }
}
