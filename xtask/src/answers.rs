//! What the relay's commands print with `--json`, as far as the tasks and tests read it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use relay_common::{Action, Reason};
use serde::Deserialize;

/// `id show`.
#[derive(Debug, Deserialize)]
pub struct Identity {
    /// `atlas_` and 64 hexadecimal digits.
    pub node_id: String,
}

/// `net peers` of a relay.
#[derive(Debug, Deserialize)]
pub struct Peers {
    /// Nodes with a control connection.
    pub peers: Vec<Peer>,
}

/// A node with a control connection.
#[derive(Debug, Deserialize)]
pub struct Peer {
    /// Its node id.
    pub node_id: String,
    /// Whether it can be connected to.
    pub announced: bool,
}

/// `net sessions` of a relay.
#[derive(Debug, Deserialize)]
pub struct RelaySessions {
    /// Offered and paired sessions.
    pub sessions: Vec<RelaySession>,
}

/// A session as its relay sees it.
#[derive(Debug, Deserialize)]
pub struct RelaySession {
    /// Its id.
    pub session: String,
    /// `offered`, `half` or `paired`.
    pub state: String,
    /// Connector and target.
    pub sides: [RelaySide; 2],
    /// Packets dropped for the limit.
    pub limited_packets: u64,
    /// Their UDP payload.
    pub limited_bytes: u64,
    /// Packets marked CE for the limit.
    pub marked_packets: u64,
}

/// What one agent has sent through the relay.
#[derive(Debug, Deserialize)]
pub struct RelaySide {
    /// Where the agent is, seen from the relay; none before it has bound.
    pub agent: Option<SocketAddr>,
    /// The relay's address that it uses; none before it has bound.
    pub relay: Option<SocketAddr>,
    /// Packets the XDP program forwarded.
    pub packets_kernel: u64,
    /// Packets the daemon forwarded.
    pub packets_userspace: u64,
    /// UDP payload of both.
    pub bytes: u64,
}

/// `net sessions` of an agent.
#[derive(Debug, Deserialize)]
pub struct AgentSessions {
    /// Sessions that run.
    pub sessions: Vec<AgentSession>,
    /// What it has refused, by reason.
    pub refused: BTreeMap<String, u64>,
}

/// A session as one of its agents sees it.
#[derive(Debug, Deserialize)]
pub struct AgentSession {
    /// Its id.
    pub session: String,
    /// How often it has moved to another relay.
    pub moves: u64,
    /// The relay's data address.
    pub relay: String,
    /// Datagrams given to the data socket.
    pub datagrams_sent: u64,
    /// Datagrams that came from the relay.
    pub datagrams_received: u64,
}

/// `xdp status` of a running relay.
#[derive(Debug, Deserialize)]
pub struct Status {
    /// `xdp-native`, `xdp-generic` or `userspace`.
    pub datapath: String,
    /// Why this one.
    pub why: String,
    /// How large the flow tables are.
    pub table: Table,
    /// Packets by the reason of their outcome in the XDP program.
    pub kernel: BTreeMap<String, u64>,
    /// The same in the daemon.
    pub userspace: BTreeMap<String, u64>,
    /// The capabilities it still has, if the kernel tells.
    pub capabilities: Option<Vec<String>>,
    /// What control has refused, by reason.
    #[serde(default)]
    pub control: BTreeMap<String, u64>,
    /// What has become of the sessions that the daemon before has left.
    #[serde(default)]
    pub adopted: BTreeMap<String, u64>,
}

/// A relay's flow tables.
#[derive(Debug, Deserialize)]
pub struct Table {
    /// Sessions they have room for.
    pub max_sessions: u32,
}

impl Status {
    /// Packets that were dropped, for whatever reason.
    pub fn dropped(&self) -> u64 {
        let counters = self.kernel.iter().chain(&self.userspace);
        counters.filter(|(name, _)| Status::is_drop(name)).map(|(_, count)| count).sum()
    }

    /// Whether a packet with the reason of this name is discarded.
    pub fn is_drop(name: &str) -> bool {
        let reason = Reason::ALL.iter().find(|reason| reason.name() == name);
        reason.is_some_and(|reason| matches!(reason.action(), Action::Drop | Action::Abort))
    }
}

/// `net ping`.
#[derive(Debug, Deserialize)]
pub struct Pings {
    /// Pings sent.
    pub sent: u64,
    /// Pings answered.
    pub received: u64,
    /// Their round trips, if any was answered.
    pub rtt_us: Option<RoundTrips>,
}

/// Round trips in microseconds.
#[derive(Debug, Default, Deserialize)]
pub struct RoundTrips {
    /// The median.
    pub p50: u64,
    /// The 99th percentile.
    pub p99: u64,
}

/// One line of `net forward`.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum ForwardEvent {
    /// Its TCP port is open.
    Listening,
    /// It ended, after this much through the data socket.
    Ended {
        /// Datagrams sent.
        datagrams_sent: u64,
        /// Datagrams received.
        datagrams_received: u64,
    },
    /// Others.
    #[serde(other)]
    Other,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reasons_that_discard_count_as_dropped() {
        let json = r#"{"datapath": "userspace", "why": "asked for", "interfaces": [],
                       "table": {"sessions": 0, "max_sessions": 4, "bytes": 0},
                       "kernel": {"forwarded": 7, "no_flow": 5, "limited": 2},
                       "userspace": {"forwarded": 9, "send_failed": 1, "bind": 3}}"#;
        assert_eq!(serde_json::from_str::<Status>(json).unwrap().dropped(), 3);
    }

    #[test]
    fn events_of_a_forward_are_told_apart() {
        let read = |line: &str| serde_json::from_str::<ForwardEvent>(line).unwrap();
        assert!(matches!(
            read(r#"{"event": "listening", "address": "127.0.0.1:1"}"#),
            ForwardEvent::Listening
        ));
        assert!(matches!(read(r#"{"event": "session", "peer": "x"}"#), ForwardEvent::Other));
        let ended = r#"{"event": "ended", "datagrams_sent": 4, "datagrams_received": 5, "bytes_sent": 6}"#;
        assert!(matches!(read(ended), ForwardEvent::Ended { datagrams_sent: 4, datagrams_received: 5 }));
    }
}
