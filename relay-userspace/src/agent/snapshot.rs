//! What an agent shows of itself, in the form the admin socket and `--json` print.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `net peers` of an agent: its relays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PeersSnapshot {
    /// The relays it is connected to.
    pub peers: Vec<RelayPeer>,
}

/// A relay the agent is connected to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RelayPeer {
    /// The relay's id.
    pub node_id: String,
    /// The relay's name for humans.
    pub name: String,
    /// The relay's `ADDRESS:PORT`.
    pub address: String,
    /// Whether it has registered this agent.
    pub announced: bool,
    /// For how many seconds it has been connected.
    pub connected_s: u64,
    /// The smoothed round trip of its control connection, in microseconds, once it was measured.
    pub round_trip_us: Option<u64>,
}

/// The agent at the other end of a connection: `net connect`, and part of what `net send` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerSnapshot {
    /// Its id, proved.
    pub node_id: String,
    /// What it calls itself: proves nothing.
    pub name: String,
    /// Upstream's word for who runs it: `unknown`, since operators are not looked up here.
    pub trust: String,
    /// How it is reached: `relay`, or `relay, readable by it`.
    pub path: String,
}

/// `net send`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliverySnapshot {
    /// The message's id.
    pub msg_id: String,
    /// The peer's word for what it has done with it.
    pub ack: String,
    /// The peer.
    #[serde(flatten)]
    pub peer: PeerSnapshot,
}

/// `net sessions` of an agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SessionsSnapshot {
    /// The sessions it is a side of.
    pub sessions: Vec<SessionSnapshot>,
    /// How often it has refused something, by reason (ARCHITECTURE.md explains them).
    pub refused: BTreeMap<&'static str, u64>,
}

/// One session as its agent sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SessionSnapshot {
    /// The session's id, 32 hexadecimal digits.
    pub session: String,
    /// The other agent's id.
    pub peer: String,
    /// `connector` or `target`.
    pub role: String,
    /// The data address of the relay in use.
    pub relay: String,
    /// The smoothed round trip of the control connection to that relay, in microseconds, once it was measured.
    pub relay_round_trip_us: Option<u64>,
    /// How often it has moved to another relay.
    pub moves: u64,
    /// Datagrams of either side that the relay says it has dropped for the session's limit.
    pub limited_packets: u64,
    /// UDP payload bytes of the datagrams dropped for the limit.
    pub limited_bytes: u64,
    /// What went through its data socket.
    #[serde(flatten)]
    pub traffic: SessionTraffic,
}

/// What went through a session's data socket, bind datagrams not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SessionTraffic {
    /// Datagrams given to the system.
    pub datagrams_sent: u64,
    /// Datagrams from the relay.
    pub datagrams_received: u64,
    /// UDP payload bytes of the datagrams given to the system.
    pub bytes_sent: u64,
    /// UDP payload bytes of the datagrams from the relay.
    pub bytes_received: u64,
    /// Datagrams the system did not take (probes larger than the interface's MTU among them).
    pub unsent: u64,
    /// Datagrams that did not come from the relay, or bind datagrams that were not sound; dropped.
    pub strange: u64,
    /// Datagrams the system dropped because they came faster than they were received. Raise `net.core.rmem_max` if it
    /// happens often.
    pub queue_full: u64,
    /// Datagrams dropped because the application was too slow to take them.
    pub untaken: u64,
}

impl SessionTraffic {
    /// This and `other` together.
    pub fn plus(self, other: SessionTraffic) -> SessionTraffic {
        SessionTraffic {
            datagrams_sent: self.datagrams_sent + other.datagrams_sent,
            datagrams_received: self.datagrams_received + other.datagrams_received,
            bytes_sent: self.bytes_sent + other.bytes_sent,
            bytes_received: self.bytes_received + other.bytes_received,
            unsent: self.unsent + other.unsent,
            strange: self.strange + other.strange,
            queue_full: self.queue_full + other.queue_full,
            untaken: self.untaken + other.untaken,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_print_flat() {
        let session = SessionSnapshot {
            session: "05".repeat(16),
            peer: "atlas_1".into(),
            role: "target".into(),
            relay: "192.0.2.1:4433".into(),
            relay_round_trip_us: Some(20_000),
            moves: 0,
            limited_packets: 2,
            limited_bytes: 2400,
            traffic: SessionTraffic { bytes_sent: 7, ..SessionTraffic::default() },
        };
        let json = serde_json::to_value(SessionsSnapshot {
            sessions: vec![session],
            refused: BTreeMap::from([("bad_frame", 3)]),
        })
        .unwrap();
        let first = &json["sessions"][0];
        assert_eq!((&first["role"], &first["bytes_sent"]), (&"target".into(), &7.into()));
        assert_eq!(json["refused"]["bad_frame"], 3);
    }
}
