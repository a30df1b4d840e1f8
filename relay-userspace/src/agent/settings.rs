//! What an agent is told when it starts.

use std::path::PathBuf;

use crate::config::{Allow, RelayAddress};
use crate::identity::{NodeId, NodeKey};

/// Everything an [`Agent`](super::Agent) needs to know. By default it serves nothing and nobody.
#[derive(Clone, Debug)]
pub struct AgentSettings {
    /// Who the agent is.
    pub key: NodeKey,
    /// Its name for humans.
    pub name: String,
    /// The relays to keep a connection to, the preferred one first.
    pub relays: Vec<RelayAddress>,
    /// The file that remembers the keys of relays given as `HOST:PORT`. It need not exist.
    pub known_relays: PathBuf,
    /// Whether other agents may find this one through its relays. A command that only dials leaves it off, and does not
    /// take over the place of a daemon with the same identity.
    pub announce: bool,
    /// Who may connect (`[agent] accept`).
    pub accept: Vec<NodeId>,
    /// What accepted peers may reach through this agent (`[[agent.allow]]`).
    pub allow: Vec<Allow>,
    /// What is done with sessions that others ask for.
    pub incoming: Incoming,
    /// How many sessions one peer may have here at a time (default 4). Each of its processes has its own.
    pub sessions_per_peer: usize,
    /// How its own QUIC meets the session's limit (`[agent] pacing` and `ecn`).
    pub congestion: CongestionSettings,
    /// Whether relays may carry what they can read, to and from peers that know only the documented messages
    /// (`[agent] allow_readable_relay`).
    pub allow_readable_relay: bool,
}

/// How the agents' QUIC meets the limit of a session. Both are on by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CongestionSettings {
    /// It sends no faster than the relay lets through.
    pub pacing: bool,
    /// Its datagrams say that they can be marked, so that the relay need not drop them to slow it down.
    pub ecn: bool,
}

impl Default for CongestionSettings {
    fn default() -> Self {
        CongestionSettings { pacing: true, ecn: true }
    }
}

impl AgentSettings {
    /// An agent that only dials.
    pub fn dialer(
        key: NodeKey,
        name: impl Into<String>,
        relays: Vec<RelayAddress>,
        known_relays: PathBuf,
    ) -> Self {
        AgentSettings {
            key,
            name: name.into(),
            relays,
            known_relays,
            announce: false,
            accept: Vec::new(),
            allow: Vec::new(),
            incoming: Incoming::EndToEnd,
            sessions_per_peer: 4,
            congestion: CongestionSettings::default(),
            allow_readable_relay: false,
        }
    }
}

/// What is done with a session that another agent has asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Incoming {
    /// The agents' own QUIC runs over it: pings are answered, forwards served.
    #[default]
    EndToEnd,
    /// The application takes its datagrams: [`Agent::accept_raw`](super::Agent::accept_raw).
    Raw,
}
