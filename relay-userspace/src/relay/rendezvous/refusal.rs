//! Everything that is refused or dropped on the control side, in one list.

use std::time::Duration;

use crate::clock::MonoTime;

macro_rules! refusals {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Why something was refused. Counters, logs and listings use [`Refusal::name`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Refusal {
            $($(#[$doc])* $variant,)*
        }

        impl Refusal {
            /// All of them.
            pub const ALL: &[Refusal] = &[$(Refusal::$variant),*];

            /// The name that counters and logs use.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Refusal::$variant => $name,)*
                }
            }
        }
    };
}

refusals! {
    /// `transport.max_connections` agents are connected.
    ConnectionsFull = "connections_full",
    /// One source address (IPv6: /64) has a quarter of the connections, and at least 32.
    PrefixConnectionsFull = "prefix_connections_full",
    /// One source address (IPv6: /64) has a quarter of the handshakes under way that are looked at.
    PrefixHandshakesFull = "prefix_handshakes_full",
    /// As many handshakes are under way as are looked at.
    HandshakesFull = "handshakes_full",
    /// An address not validated yet was sent a Retry, because many handshakes were pending.
    RetryDemanded = "retry_demanded",
    /// TLS failed, or the peer showed no usable Ed25519 certificate.
    TlsFailed = "tls_failed",
    /// The four handshake messages took more than 10 s.
    HandshakeTimeout = "handshake_timeout",
    /// The handshake failed: wrong key for the node id, bad signature, wrong version.
    HandshakeFailed = "handshake_failed",
    /// The agent's clock is off by more than `security.max_clock_drift_secs`.
    ClockDrift = "clock_drift",
    /// Not a frame of the protocol, or cut short.
    BadFrame = "bad_frame",
    /// A frame longer than is taken, or too much of unfinished ones.
    FrameTooLarge = "frame_too_large",
    /// A message type that does not exist.
    UnknownMessage = "unknown_message",
    /// A message that agents do not send to relays.
    UnexpectedMessage = "unexpected_message",
    /// An agent does not read what it is sent.
    SlowReader = "slow_reader",
    /// Three Pings in a row got no Pong.
    PingUnanswered = "ping_unanswered",
    /// An announce or connect in another node's name.
    ForeignIdentity = "foreign_identity",
    /// A node id that is none.
    MalformedNodeId = "malformed_node_id",
    /// A connect to oneself.
    ConnectToSelf = "connect_to_self",
    /// A connect from or to an agent that does not speak flows.
    DocumentedOnly = "documented_only",
    /// A connect to a node that has not announced itself.
    TargetAbsent = "target_absent",
    /// A connect to a node whose allow list does not have the source.
    TargetDenies = "target_denies",
    /// The source has as many offers open as it may.
    SourceOffers = "source_offers",
    /// The target has as many offers open as it may, and the connectors of all have bound.
    TargetOffers = "target_offers",
    /// The source has as many sessions as it may.
    SourceSessions = "source_sessions",
    /// The target has as many sessions as it may.
    TargetSessions = "target_sessions",
    /// The source has as many sessions with the target as it may.
    PairSessions = "pair_sessions",
    /// More than 4 connects a second on one connection, after the first 16.
    ConnectRate = "connect_rate",
    /// The flow table has no room.
    TableFull = "table_full",
    /// The packet path cannot forward between the two tuples.
    TupleRefused = "tuple_refused",
    /// A Disconnect for a session the agent is no side of.
    ForeignSession = "foreign_session",
    /// A bind datagram of another form or version.
    BindMalformed = "bind_malformed",
    /// A bind datagram for a session that does not exist.
    BindUnknownSession = "bind_unknown_session",
    /// A bind datagram with a wrong MAC.
    BindMac = "bind_mac",
    /// A relay's bind datagram, sent to a relay.
    BindDirection = "bind_direction",
    /// A bind datagram whose counter is not above the highest accepted.
    BindReplayed = "bind_replayed",
    /// From loopback, multicast, broadcast, the unspecified address or port 0.
    BindSourceAddress = "bind_source_address",
    /// From the relay's own address.
    BindSourceRelay = "bind_source_relay",
    /// From the tuple of a control connection.
    BindSourceControl = "bind_source_control",
    /// From the tuple of the session's other side.
    BindSourcePeer = "bind_source_peer",
    /// A Proof that answers no challenge of its side still good: another tuple or counter, too late, or already used.
    BindNoChallenge = "bind_no_challenge",
    /// A Proof whose cookie is not good.
    BindCookie = "bind_cookie",
    /// More than 8 challenges a second for one side.
    BindChallengeRate = "bind_challenge_rate",
    /// More than one move a second of one side.
    BindMoveRate = "bind_move_rate",
}

/// How often each refusal has happened.
#[derive(Clone, Debug)]
pub struct Refusals {
    tallies: Vec<Tally>,
}

/// How often something has happened, and how often that is said.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    total: u64,
    logged: u64,
    logged_at: Option<MonoTime>,
}

impl Tally {
    /// Counts one more. If it is to be logged, how many it is since the last line.
    pub fn count(&mut self, now: MonoTime) -> Option<u64> {
        self.total += 1;
        if self.logged_at.is_some_and(|at| now.since(at) < LOG_EVERY) {
            return None;
        }
        let times = self.total - self.logged;
        self.logged = self.total;
        self.logged_at = Some(now);
        Some(times)
    }
}

/// One thing is logged at most this often; the line says how many there were.
const LOG_EVERY: Duration = Duration::from_secs(1);

impl Default for Refusals {
    fn default() -> Self {
        Refusals { tallies: vec![Tally::default(); Refusal::ALL.len()] }
    }
}

impl Refusals {
    /// How often `refusal` has happened.
    pub fn of(&self, refusal: Refusal) -> u64 {
        self.tallies.get(refusal as usize).map_or(0, |tally| tally.total)
    }

    /// Name and count of each.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Refusal::ALL.iter().map(|refusal| (refusal.name(), self.of(*refusal)))
    }

    /// Counts one more. If it is to be logged, how many it is since the last line.
    pub(super) fn count(&mut self, refusal: Refusal, now: MonoTime) -> Option<u64> {
        let tally = self.tallies.get_mut(refusal as usize)?;
        tally.count(now)
    }
}
