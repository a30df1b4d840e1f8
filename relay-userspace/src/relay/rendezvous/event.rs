//! What is worth a line in the log.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use relay_common::Side;

use super::refusal::Refusal;
use crate::identity::NodeId;
use crate::protocol::SessionId;
use crate::relay::datapath::{FlowTuple, Limit, Traffic, TupleFault};

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// An agent's handshake is done.
    Connected {
        /// Who.
        node: NodeId,
        /// What it calls itself.
        name: String,
        /// Where from.
        remote: SocketAddr,
    },
    /// An agent's control connection comes from another address now.
    Migrated {
        /// Who.
        node: NodeId,
        /// Where from.
        remote: SocketAddr,
    },
    /// An agent's control connection is gone.
    Closed {
        /// Who.
        node: NodeId,
        /// Why.
        reason: String,
    },
    /// An agent can be reached, or by others than before.
    Announced {
        /// Who.
        node: NodeId,
        /// Whether it speaks flows.
        flow: bool,
        /// How many may connect to it; none: anyone.
        allowed: Option<usize>,
        /// How many announcements have changed something since this was last said of its connection. This is the last of
        /// them.
        times: u64,
    },
    /// The same identity has announced itself on a newer connection.
    Replaced {
        /// Who.
        node: NodeId,
        /// Where the older connection comes from.
        remote: SocketAddr,
    },
    /// An agent reports an error.
    AgentReports {
        /// Who.
        node: NodeId,
        /// Its error code.
        code: u32,
        /// Its words.
        message: String,
        /// How many reports it has sent since this was last said of its connection. This is the last of them.
        times: u64,
    },
    /// Two agents are offered to each other.
    Offered {
        /// The session.
        session: SessionId,
        /// Who asked.
        connector: NodeId,
        /// Who was asked for.
        target: NodeId,
    },
    /// A side has proved its first tuple.
    Bound {
        /// The session.
        session: SessionId,
        /// Which side.
        side: Side,
        /// Its tuple.
        tuple: FlowTuple,
    },
    /// A side has proved another tuple.
    Moved {
        /// The session.
        session: SessionId,
        /// Which side.
        side: Side,
        /// Its tuple now.
        tuple: FlowTuple,
    },
    /// Another session has proved this side's tuple; the side has to bind again.
    TupleLost {
        /// The session that lost it.
        session: SessionId,
        /// Which side.
        side: Side,
        /// The session that has it.
        to: SessionId,
    },
    /// Both flows are in place.
    Paired {
        /// The session.
        session: SessionId,
        /// Who asked.
        connector: NodeId,
        /// Who was asked for.
        target: NodeId,
        /// The tuples, indexed by [`Side`].
        tuples: [FlowTuple; 2],
        /// The session's limit.
        limit: Limit,
        /// For how long it was an offer; none: it was paired before, and one of its sides has bound again.
        offered_for: Option<Duration>,
    },
    /// The streams of two agents are joined. The relay can read what they say.
    Spliced {
        /// The session.
        session: SessionId,
        /// Who asked.
        connector: NodeId,
        /// Who was asked for.
        target: NodeId,
        /// The session's limit.
        limit: Limit,
    },
    /// Packets were dropped for the session's limit.
    Limited {
        /// The session.
        session: SessionId,
        /// How many since the last event.
        packets: u64,
        /// Their UDP payload bytes.
        bytes: u64,
        /// Whether it is the first event of this session.
        first: bool,
    },
    /// A session or offer is over.
    Ended {
        /// The session.
        session: SessionId,
        /// Who asked.
        connector: NodeId,
        /// Who was asked for.
        target: NodeId,
        /// Why.
        reason: EndReason,
        /// How old it was.
        age: Duration,
        /// What it carried.
        traffic: Traffic,
    },
    /// Something was refused.
    Refused {
        /// Why.
        refusal: Refusal,
        /// How many times since this was last said.
        times: u64,
        /// Who, as far as proved. Of several: the last.
        node: Option<NodeId>,
        /// Where from.
        from: Option<SocketAddr>,
    },
}

/// Why a session or offer is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The two sides did not both bind within [`super::OFFER_LIFETIME`].
    OfferExpired,
    /// A newer offer has taken its place.
    Displaced,
    /// The target has ended the offer.
    Refused,
    /// There was no room for its flows.
    TableFull,
    /// The packet path cannot forward between its tuples.
    TupleRefused(TupleFault),
    /// This side has not proved its tuple for [`super::CONSENT`].
    ConsentLost(Side),
    /// No packet was relayed for `transport.idle_timeout`.
    Idle,
    /// This side has ended it.
    Left(Side),
    /// Its two streams were not both given away in time.
    NotJoined,
    /// The relay's operator has ended it.
    Operator,
    /// `[access]` does not permit one of its nodes any more.
    AccessDenied,
    /// One of its nodes was banned when the relay was started again.
    Banned,
    /// No daemon ran for so long that its flows had stopped.
    LeaseOver,
    /// What stood in the tables of it was not a session's.
    Unreadable,
    /// The relay stops.
    Shutdown,
}

impl EndReason {
    /// Each, in the order of their words in docs/accounting.md.
    pub const ALL: [EndReason; 17] = [
        EndReason::OfferExpired,
        EndReason::Displaced,
        EndReason::Refused,
        EndReason::TableFull,
        EndReason::TupleRefused(TupleFault::Address),
        EndReason::ConsentLost(Side::Connector),
        EndReason::ConsentLost(Side::Target),
        EndReason::Idle,
        EndReason::Left(Side::Connector),
        EndReason::Left(Side::Target),
        EndReason::NotJoined,
        EndReason::Operator,
        EndReason::AccessDenied,
        EndReason::Banned,
        EndReason::LeaseOver,
        EndReason::Unreadable,
        EndReason::Shutdown,
    ];

    /// The word for programs. It stays what it is; how a reason is told to people may change.
    pub fn word(self) -> &'static str {
        match self {
            EndReason::OfferExpired => "offer_expired",
            EndReason::Displaced => "offer_displaced",
            EndReason::Refused => "offer_refused",
            EndReason::TableFull => "table_full",
            EndReason::TupleRefused(_) => "tuple_refused",
            EndReason::ConsentLost(Side::Connector) => "connector_silent",
            EndReason::ConsentLost(Side::Target) => "target_silent",
            EndReason::Idle => "idle",
            EndReason::Left(Side::Connector) => "connector_left",
            EndReason::Left(Side::Target) => "target_left",
            EndReason::NotJoined => "not_joined",
            EndReason::Operator => "operator",
            EndReason::AccessDenied => "access_denied",
            EndReason::Banned => "banned",
            EndReason::LeaseOver => "lease_over",
            EndReason::Unreadable => "unreadable",
            EndReason::Shutdown => "shutdown",
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EndReason::OfferExpired => f.write_str("not bound by both sides in time"),
            EndReason::Displaced => f.write_str("a newer offer has taken its place"),
            EndReason::Refused => f.write_str("refused by the target"),
            EndReason::TableFull => f.write_str("no room in the flow table"),
            EndReason::TupleRefused(fault) => write!(f, "a tuple cannot be forwarded: {fault}"),
            EndReason::ConsentLost(side) => write!(f, "the {} has fallen silent", role(*side)),
            EndReason::Idle => f.write_str("idle"),
            EndReason::Left(side) => write!(f, "ended by the {}", role(*side)),
            EndReason::NotJoined => f.write_str("the two streams were not free to be joined in time"),
            EndReason::Operator => f.write_str("ended by the relay's operator"),
            EndReason::AccessDenied => f.write_str("the relay's operator does not permit one of the nodes"),
            EndReason::Banned => f.write_str("one of the nodes is banned"),
            EndReason::LeaseOver => f.write_str("no relay ran for so long that its flows had stopped"),
            EndReason::Unreadable => f.write_str("what the relay before has left of it makes no sense"),
            EndReason::Shutdown => f.write_str("the relay stops"),
        }
    }
}

/// The word for a side.
pub(super) fn role(side: Side) -> &'static str {
    match side {
        Side::Connector => "connector",
        Side::Target => "target",
    }
}
