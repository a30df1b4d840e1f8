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
    ConnectionsFull = "connections-full",
    /// An address not validated yet was sent a Retry, because many handshakes were pending.
    RetryDemanded = "retry-demanded",
    /// TLS failed, or the peer showed no usable Ed25519 certificate.
    TlsFailed = "tls-failed",
    /// The four handshake messages took more than 10 s.
    HandshakeTimeout = "handshake-timeout",
    /// The handshake failed: wrong key for the node id, bad signature, wrong version.
    HandshakeFailed = "handshake-failed",
    /// The agent's clock is off by more than `security.max_clock_drift_secs`.
    ClockDrift = "clock-drift",
    /// Not a frame of the protocol, or cut short.
    BadFrame = "bad-frame",
    /// A frame longer than is taken.
    FrameTooLarge = "frame-too-large",
    /// A message type that does not exist.
    UnknownMessage = "unknown-message",
    /// A message that agents do not send to relays.
    UnexpectedMessage = "unexpected-message",
    /// An agent does not read what it is sent.
    SlowReader = "slow-reader",
    /// Three Pings in a row got no Pong.
    PingUnanswered = "ping-unanswered",
    /// An announce or connect in another node's name.
    ForeignIdentity = "foreign-identity",
    /// A node id that is none.
    MalformedNodeId = "malformed-node-id",
    /// A connect to oneself.
    ConnectToSelf = "connect-to-self",
    /// A connect from or to an agent that does not speak flows.
    DocumentedOnly = "documented-only",
    /// A connect to a node that has not announced itself.
    TargetAbsent = "target-absent",
    /// A connect to a node whose allow list does not have the source.
    TargetDenies = "target-denies",
    /// The source has as many offers open as it may.
    SourceOffers = "source-offers",
    /// The target has as many offers open as it may.
    TargetOffers = "target-offers",
    /// The flow table has no room.
    TableFull = "table-full",
    /// The packet path cannot forward between the two tuples.
    TupleRefused = "tuple-refused",
    /// A Disconnect for a session the agent is no side of.
    ForeignSession = "foreign-session",
    /// A bind datagram of another form or version.
    BindMalformed = "bind-malformed",
    /// A bind datagram for a session that does not exist.
    BindUnknownSession = "bind-unknown-session",
    /// A bind datagram with a wrong MAC.
    BindMac = "bind-mac",
    /// A relay's bind datagram, sent to a relay.
    BindDirection = "bind-direction",
    /// A bind datagram whose counter is not above the highest accepted.
    BindReplayed = "bind-replayed",
    /// From loopback, multicast, broadcast, the unspecified address or port 0.
    BindSourceAddress = "bind-source-address",
    /// From the relay's own address.
    BindSourceRelay = "bind-source-relay",
    /// From the tuple of a control connection.
    BindSourceControl = "bind-source-control",
    /// From the tuple of the session's other side.
    BindSourcePeer = "bind-source-peer",
    /// A Proof whose cookie is not good.
    BindCookie = "bind-cookie",
    /// More than 8 challenges a second for one side.
    BindChallengeRate = "bind-challenge-rate",
    /// More than one move a second of one side.
    BindMoveRate = "bind-move-rate",
}

/// How often each refusal has happened.
#[derive(Clone, Debug)]
pub struct Refusals {
    tallies: Vec<Tally>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    total: u64,
    logged: u64,
    logged_at: Option<MonoTime>,
}

/// One refusal is logged at most this often; the line says how many there were.
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
        tally.total += 1;
        if tally.logged_at.is_some_and(|at| now.since(at) < LOG_EVERY) {
            return None;
        }
        let times = tally.total - tally.logged;
        tally.logged = tally.total;
        tally.logged_at = Some(now);
        Some(times)
    }
}
