//! Everything that an agent refuses, in one list, and the account of it.

use std::fmt::Display;
use std::sync::{Arc, Mutex};

use super::lock;
use crate::clock::MonoTime;
use crate::refusals::{RefusalReason as _, Refusals, reasons};

reasons! {
    /// Why an agent refused something.
    pub enum Refusal {
        PeerNotAccepted = "peer_not_accepted": "A session with a peer that `[agent] accept` does not name.",
        PeerSessions = "peer_sessions": "A session with a peer that has as many here as one peer may.",
        SessionsFull = "sessions_full": "A session beyond those that this agent takes from all peers together.",
        RawSessionUntaken = "raw_session_untaken": "A session whose datagrams the application does not take over.",
        ConnectionsFull = "connections_full": "A connection of a peer that has as many here as one peer may.",
        TlsFailed = "tls_failed": "A connection of a peer whose TLS fails, or that shows no usable Ed25519 certificate.",
        ForeignIdentity = "foreign_identity": "A connection of another node than the relay has named.",
        HandshakeTimeout = "handshake_timeout": "A connection of a peer that does not begin the handshake in time.",
        HandshakeFailed = "handshake_failed": "A connection of a peer whose handshake does not hold.",
        StreamSilent = "stream_silent": "A stream that does not begin with a whole message in time.",
        BadFrame = "bad_frame": "A stream that does not carry the protocol's frames, or too large ones.",
        UnexpectedMessage = "unexpected_message": "A message that is not taken where it was sent.",
        UnknownTopic = "unknown_topic": "A request with a topic that is not served.",
        MalformedRequest = "malformed_request": "A request to forward that does not say where to.",
        ForwardNotPermitted = "forward_not_permitted": "A forward that no `[[agent.allow]]` permits.",
        ForwardUnreachable = "forward_unreachable": "A permitted forward whose destination cannot be reached.",
        FlowNotOpen = "flow_not_open": "A datagram of a UDP forward whose flow is not open.",
        DatagramTooLarge = "datagram_too_large": "A datagram of a UDP forward that does not fit the path.",
        DatagramQueueFull = "datagram_queue_full": "A datagram of a UDP forward that comes faster than it is carried.",
        ClientsFull = "clients_full": "A client of a UDP forward beyond those that one forward carries.",
        ForeignMessage = "foreign_message": "A message in another node's name, to another node, or without a usable id.",
        InboxFull = "inbox_full": "A message that the application is too slow to take.",
        RelayKey = "relay_key": "A relay that shows another key than the configured or remembered one.",
        RelayHint = "relay_hint": "A relay that another one names to move to, and that cannot be what is meant.",
        RelayHandshake = "relay_handshake": "A relay whose handshake does not hold.",
        RelayTerms = "relay_terms": "A session whose terms from the relay cannot be used.",
        ReadableRelay = "readable_relay": "A session that the relay could read, without `[agent] allow_readable_relay`.",
        ProbeLimit = "probe_limit": "A relay that has this agent connect to it anew too often, while another one does, or at port 0.",
        ForeignMagic = "foreign_magic": "A session whose bind magic does not follow from the relay's key.",
    }
}

/// Counts and logs what is refused. Clones share the counts.
#[derive(Clone, Debug, Default)]
pub(super) struct RefusalLog {
    counts: Arc<Mutex<Refusals<Refusal>>>,
}

impl RefusalLog {
    /// `whom` was refused something. `why` has the details, and the line of the configuration that would permit it if
    /// there is one.
    pub fn refuse(&self, refusal: Refusal, whom: &dyn Display, why: &dyn Display) {
        if let Some(times) = self.count(refusal) {
            tracing::warn!(reason = refusal.name(), peer = %whom, times, %why, "refused");
        }
    }

    /// Counts what is logged elsewhere. If it were to be logged, how many it is since it was last.
    pub fn count(&self, refusal: Refusal) -> Option<u64> {
        lock(&self.counts).count(refusal, MonoTime::now())
    }

    /// Name and count of each.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        lock(&self.counts).iter().collect()
    }
}
