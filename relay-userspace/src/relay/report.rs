//! What a relay says of itself: the JSON of its admin socket, which is also what `--json` prints.

use std::collections::BTreeMap;
use std::time::Duration;

use relay_common::Side;
use serde::{Deserialize, Serialize};

use super::bans::{BanStatus, BanSubject};
use super::datapath::Traffic;
use super::rendezvous::{DrainStatus, PeerStatus, SessionState, SessionStatus, SideStatus, SpliceStatus};

/// `net peers`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peers {
    /// Agents with a control connection.
    pub peers: Vec<Peer>,
}

/// An agent with a control connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its id.
    pub node_id: String,
    /// What it calls itself.
    pub name: String,
    /// Where its control connection comes from.
    pub address: String,
    /// Whether others can reach it through this relay.
    pub announced: bool,
    /// For how many seconds it has been connected.
    pub connected_s: u64,
}

/// `net sessions`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sessions {
    /// Offers and sessions.
    pub sessions: Vec<Session>,
}

/// An offer or session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Its id, 32 hexadecimal digits.
    pub session: String,
    /// Id of the agent that asked.
    pub connector: String,
    /// Id of the agent that was asked for.
    pub target: String,
    /// `offered`, `half` or `paired`.
    pub state: String,
    /// `datagrams`, or `stream (readable by the relay)` of agents that know only the documented messages.
    pub path: String,
    /// Its limit; 0: unlimited.
    pub rate_bytes_per_s: u64,
    /// Seconds since it was offered.
    pub age_s: u64,
    /// Connector and target.
    pub sides: [SessionSide; 2],
    /// Packets dropped for the limit.
    pub limited_packets: u64,
    /// UDP payload bytes of the packets dropped for the limit.
    pub limited_bytes: u64,
    /// Packets marked CE.
    pub marked_packets: u64,
}

/// The path of a session of agents that bind data sockets.
pub const DATAGRAMS: &str = "datagrams";

/// The path of a session of agents that know only the documented messages.
pub const STREAM: &str = "stream (readable by the relay)";

/// One side of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionSide {
    /// The agent's tuple, once proved; of a stream: its control connection's.
    pub agent: Option<String>,
    /// The relay address it uses.
    pub relay: Option<String>,
    /// Packets of this side that the XDP program forwarded.
    pub packets_kernel: u64,
    /// Packets of this side that the userspace forwarder forwarded.
    pub packets_userspace: u64,
    /// UDP payload bytes of this side's packets; of a stream: its bytes.
    pub bytes: u64,
    /// Seconds since its last proof.
    pub last_proof_s: Option<u64>,
}

/// What an operator has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// How many sessions and offers.
    pub sessions: usize,
}

/// `xdp status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// `xdp-native`, `xdp-generic` or `userspace`.
    pub datapath: String,
    /// Why this datapath.
    pub why: String,
    /// Where the XDP program is attached.
    pub interfaces: Vec<Interface>,
    /// How full the flow tables are.
    pub table: Table,
    /// Packets by what became of them in the XDP program.
    pub kernel: BTreeMap<String, u64>,
    /// Packets by what became of them in the userspace forwarder.
    pub userspace: BTreeMap<String, u64>,
    /// The capabilities that the daemon still has, such as `cap_bpf`; none if the kernel does not tell (no /proc).
    #[serde(default)]
    pub capabilities: Option<Vec<String>>,
    /// What control has refused, by reason.
    pub control: BTreeMap<String, u64>,
    /// UDP payload bytes per second of all sessions together: an average over five seconds, up to six seconds old.
    pub relayed_bytes_per_s: u64,
    /// Agents that are connected.
    #[serde(default)]
    pub agents: usize,
    /// Whether new sessions are refused because the relay is about to stop.
    pub draining: bool,
    /// The version of the tables' layout: a restart with a program of another one ends all sessions.
    #[serde(default)]
    pub layout: u32,
    /// Who keeps flows while no daemon runs, or why nobody does.
    #[serde(default)]
    pub kept_by: String,
    /// Whether flows are kept while no daemon runs: a restart ends no session then.
    #[serde(default)]
    pub survives_restart: bool,
    /// What became of the sessions that the relay before had left: `adopted`, or why they ended (docs/accounting.md).
    #[serde(default)]
    pub adopted: BTreeMap<String, u64>,
    /// How far that has come.
    pub drain: Option<Drain>,
}

/// `drain`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Sessions, offers and joined streams that are left.
    pub sessions: usize,
    /// Seconds until the relay stops, whoever still uses it; none: once nobody does.
    pub left_s: Option<u64>,
    /// `NODE@HOST:PORT` of the relay that agents may move to.
    pub hint: Option<String>,
}

/// A line of `drain --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DrainProgress {
    /// How far it is.
    #[serde(flatten)]
    pub drain: Drain,
    /// Whether the relay has stopped: true in the last line.
    pub stopped: bool,
}

/// The flow tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Sessions in the flow tables.
    pub sessions: u32,
    /// Sessions the flow tables have room for.
    pub max_sessions: u32,
    /// The memory the flow tables take, in the kernel or, without the XDP program, in the daemon.
    pub bytes: u64,
}

/// An interface with the XDP program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// `xdp-native` or `xdp-generic`.
    pub mode: String,
}

/// `bans`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bans {
    /// Who may not connect, nodes first.
    pub bans: Vec<Ban>,
}

/// Somebody who may not connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ban {
    /// A node id, an IPv4 address or an IPv6 /56.
    pub subject: String,
    /// `node` or `prefix`.
    pub kind: String,
    /// For how many seconds still.
    pub left_s: u64,
    /// The reason of the last refusal before it, or `by hand`.
    pub why: String,
}

/// `bans lift`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lifted {
    /// Who.
    pub subject: String,
    /// Whether there was a ban to lift.
    pub lifted: bool,
}

impl From<Vec<BanStatus>> for Bans {
    fn from(bans: Vec<BanStatus>) -> Bans {
        Bans { bans: bans.into_iter().map(Ban::from).collect() }
    }
}

impl From<DrainStatus> for Drain {
    fn from(DrainStatus { sessions, left, hint }: DrainStatus) -> Drain {
        // Rounded up: the relay is there for so long at least.
        let seconds = |left: Duration| left.as_secs() + u64::from(left.subsec_nanos() > 0);
        Drain { sessions, left_s: left.map(seconds), hint: hint.map(|hint| hint.to_string()) }
    }
}

impl From<BanStatus> for Ban {
    fn from(BanStatus { subject, left, cause }: BanStatus) -> Ban {
        let kind = match subject {
            BanSubject::Node(_) => "node",
            BanSubject::Prefix(_) => "prefix",
        };
        // Rounded up: who is banned is so for more than nothing.
        let left_s = left.as_secs() + u64::from(left.subsec_nanos() > 0);
        Ban { subject: subject.to_string(), kind: kind.to_owned(), left_s, why: cause.to_string() }
    }
}

impl From<Vec<PeerStatus>> for Peers {
    fn from(peers: Vec<PeerStatus>) -> Peers {
        let peer = |peer: PeerStatus| Peer {
            node_id: peer.node.to_string(),
            name: peer.name,
            address: peer.address.to_string(),
            announced: peer.announced,
            connected_s: peer.connected.as_secs(),
        };
        Peers { peers: peers.into_iter().map(peer).collect() }
    }
}

impl From<Vec<SessionStatus>> for Sessions {
    fn from(sessions: Vec<SessionStatus>) -> Sessions {
        Sessions { sessions: sessions.iter().map(Session::from).collect() }
    }
}

impl From<&SessionStatus> for Session {
    fn from(status: &SessionStatus) -> Session {
        let [connector, target] = &status.sides;
        let state = match status.state {
            SessionState::Offered => "offered",
            SessionState::Half => "half",
            SessionState::Paired => "paired",
        };
        Session {
            session: status.session.to_string(),
            connector: status.connector.to_string(),
            target: status.target.to_string(),
            state: state.to_owned(),
            path: DATAGRAMS.to_owned(),
            rate_bytes_per_s: status.limit.bytes_per_s,
            age_s: status.age.as_secs(),
            sides: [
                SessionSide::of(connector, &status.traffic, Side::Connector),
                SessionSide::of(target, &status.traffic, Side::Target),
            ],
            limited_packets: status.traffic.limited_packets,
            limited_bytes: status.traffic.limited_bytes,
            marked_packets: status.traffic.marked_packets,
        }
    }
}

impl From<(&SpliceStatus, Traffic)> for Session {
    fn from((status, traffic): (&SpliceStatus, Traffic)) -> Session {
        let [connector, target] =
            status.addresses.map(|agent| SideStatus { agent, relay: None, last_proof: None });
        Session {
            session: status.session.to_string(),
            connector: status.connector.to_string(),
            target: status.target.to_string(),
            state: "paired".to_owned(),
            path: STREAM.to_owned(),
            rate_bytes_per_s: status.limit.bytes_per_s,
            age_s: status.age.as_secs(),
            sides: [
                SessionSide::of(&connector, &traffic, Side::Connector),
                SessionSide::of(&target, &traffic, Side::Target),
            ],
            limited_packets: traffic.limited_packets,
            limited_bytes: traffic.limited_bytes,
            marked_packets: traffic.marked_packets,
        }
    }
}

impl SessionSide {
    fn of(status: &SideStatus, traffic: &Traffic, side: Side) -> SessionSide {
        let [connector, target] = traffic.sides;
        let sent = match side {
            Side::Connector => connector,
            Side::Target => target,
        };
        SessionSide {
            agent: status.agent.map(|agent| agent.to_string()),
            relay: status.relay.map(|relay| relay.to_string()),
            packets_kernel: sent.packets_kernel,
            packets_userspace: sent.packets_userspace,
            bytes: sent.bytes,
            last_proof_s: status.last_proof.as_ref().map(Duration::as_secs),
        }
    }
}
