//! The configuration file: what it means ([`Config`]), and where everything lies ([`AtlasRoot`]).
//!
//! [`keys`] is the table of all keys. A file is checked against it (`document`); what it means is [`Config`], in which
//! units are types and nothing is left to check. Errors name file, line, key and what was expected.

mod address;
mod document;
mod error;
pub mod key;
pub mod keys;
mod origin;
mod profile;
mod readings;
mod reload;
mod root;
mod validate;
mod values;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

pub use address::{AddressError, HostPort, RelayAddress, RelayHint};
pub use error::{ConfigError, Warning};
pub use origin::{Origin, Origins};
pub use profile::{Profile, ProfileError};
pub use readings::{Reading, Readings};
pub use reload::{Change, ConfigSource, Overridden, Reloaded};
pub use root::{AtlasRoot, RootError};
pub use values::{Setting, Value};

use crate::identity::NodeId;
use crate::relay::datapath::Limit;

/// A validated configuration of a relay or of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `[network]`.
    pub network: Network,
    /// `[transport]`.
    pub transport: Transport,
    /// `[security]`.
    pub security: Security,
    /// `[rate_limit]`.
    pub rate_limit: RateLimit,
    /// `[access]`.
    pub access: Access,
    /// `[quotas]`.
    pub quotas: Quotas,
    /// `[datapath]`.
    pub datapath: Datapath,
    /// `[admin]`.
    pub admin: Admin,
    /// `[metrics]`.
    pub metrics: Metrics,
    /// `[agent]`.
    pub agent: Agent,
    /// What the file says in vain. Shown at start and by `config check`.
    pub warnings: Vec<Warning>,
    /// Where its values come from.
    pub origins: Origins,
    /// What the file says, and the command line says otherwise.
    pub overridden: Vec<Overridden>,
}

/// What a node with this configuration does when it listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Joins agents and forwards their datagrams.
    Relay,
    /// Announces itself to its relays.
    Agent,
}

/// `[network]`: where the node listens and what it connects to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// `port`: UDP port the relay listens on. Default 4433.
    pub port: u16,
    /// `bootstrap`: bootstrap nodes that this node registers with. Default none.
    pub bootstrap: Vec<HostPort>,
    /// `relays`: relays an agent announces itself to. Default none.
    pub relays: Vec<RelayAddress>,
    /// `advertise`: addresses the relay tells agents to send data to, where the address they reached it at will not
    /// do. Default none.
    pub advertise: Vec<SocketAddr>,
}

/// `[transport]`: connections and relaying.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transport {
    /// `max_connections`: control connections the relay holds at once. Default 200.
    pub max_connections: usize,
    /// `max_streams_per_conn`: streams an agent may have open at once. Default 100.
    pub max_streams_per_conn: u32,
    /// `idle_timeout`, in seconds: a session without a relayed packet, or a control connection without a sign of life,
    /// ends after it. Default 300.
    pub idle_timeout: Duration,
    /// `enable_relay`: relays are used. Default false.
    pub enable_relay: bool,
    /// `offer_relay`: this node is a relay. Default false; needs `enable_relay`.
    pub offer_relay: bool,
    /// `relay_bandwidth_limit`, in UDP payload bytes per second and session, both directions together. Default
    /// 1048576; 0 is unlimited.
    pub relay_bandwidth_limit: Limit,
}

/// `[security]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Security {
    /// `ban_duration_secs`: how long who fails handshakes again and again stays out, a prefix no longer than 60 s. Default
    /// 3600 s; 0: nobody is banned.
    pub ban_duration: Duration,
    /// `handshake_limit`: handshakes under way at once from one prefix (an IPv4 address, an IPv6 /56). Default 50.
    pub handshake_limit: u32,
    /// `max_clock_drift_secs`: how far, in either direction, the clock in a Hello may be off. Default 300.
    pub max_clock_drift: Duration,
}

/// `[rate_limit]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// `per_peer_per_minute`: control messages that the relay takes of one agent a minute. Default 120; 0: unlimited.
    pub per_peer_per_minute: u32,
}

/// `[access]`: who may use the relay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// `allow`: only these. Default empty: anyone.
    pub allow: Vec<NodeId>,
    /// `deny`: not these, even if they are allowed. Default nobody.
    pub deny: Vec<NodeId>,
}

/// `[quotas]`: what of the relay one agent, one prefix (an IPv4 address, an IPv6 /56) or all together may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quotas {
    /// `pending_handshakes`: handshakes under way at once, of all. Default 1024.
    pub pending_handshakes: u32,
    /// `connections_per_prefix`: control connections of one prefix. Default half of `transport.max_connections`, at least
    /// 32.
    pub connections_per_prefix: u32,
    /// `announced_agents`: agents that are announced at once. Default `transport.max_connections`.
    pub announced_agents: u32,
    /// `offers_per_source`: offers that one node may have open as connector. Default 8.
    pub offers_per_source: u32,
    /// `offers_per_target`: offers that one node may have open as target. Default 32.
    pub offers_per_target: u32,
    /// `sessions_per_node`: sessions and offers of one node, on whichever side. Default 64.
    pub sessions_per_node: u32,
    /// `sessions_per_prefix`: sessions and offers that the nodes of one prefix have asked for. Default 256.
    pub sessions_per_prefix: u32,
    /// `message_bytes`: the longest control message taken, in bytes. Default 65536.
    pub message_bytes: u32,
    /// `connection_bytes`: what may be buffered for one control connection each way, in bytes. Default 262144.
    pub connection_bytes: u32,
    /// `relay_total_limit`, in UDP payload bytes per second of all sessions together: above it no new session begins.
    /// Default 0: unlimited.
    pub relay_total_limit: u64,
}

/// `[datapath]`: what forwards relayed packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datapath {
    /// `mode`. Default `auto`.
    pub mode: DatapathMode,
    /// `interfaces` the XDP program is attached to. Default: those of the default routes.
    pub interfaces: Vec<String>,
    /// `max_sessions`: sessions the tables have room for. Default 65536.
    pub max_sessions: u32,
    /// `readers`: threads of each family that carry relayed packets where the kernel does not. Default 0: one per CPU,
    /// up to 8.
    pub readers: u32,
    /// `bpffs`: where flows are kept while no daemon runs and no supervisor keeps them. `None`, written as an empty text:
    /// nowhere. Default `/sys/fs/bpf/atlas-relay`.
    pub bpffs: Option<PathBuf>,
}

/// Which datapath is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DatapathMode {
    /// The first of native, generic and userspace that can be had.
    #[default]
    Auto,
    /// XDP in the driver, or an error.
    XdpNative,
    /// XDP behind the driver, or an error.
    XdpGeneric,
    /// Sockets only: needs no privilege.
    Userspace,
}

/// `[admin]`: the socket that `net peers`, `net sessions`, `xdp status` and `config reload` ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// `socket`. Default `state/admin.sock` under the Atlas root.
    pub socket: PathBuf,
}

/// `[metrics]`: where those are answered who watch a relay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// `listen`: the TCP address. Default none: nobody is answered.
    pub listen: Option<HostPort>,
    /// `hosts`: names that requests may be for, besides the address that they come to. Default none.
    pub hosts: Vec<String>,
}

/// `[agent]`: what others may do through this agent (nothing unless it is written here), and how it sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// `accept`: who may connect to this agent. Default nobody.
    pub accept: Vec<NodeId>,
    /// `[[agent.allow]]`: what they may reach through it. Default nothing.
    pub allow: Vec<Allow>,
    /// `pacing`: it sends no faster than the relay lets through. Default true.
    pub pacing: bool,
    /// `ecn`: its datagrams say that the relay can mark them rather than drop them. Default true; false for networks
    /// that do not carry such datagrams.
    pub ecn: bool,
    /// `allow_readable_relay`: sessions whose relay can read and alter what they carry are taken too, with peers that know
    /// no others. Default false.
    pub allow_readable_relay: bool,
    /// `[[agent.forward]]`: local ports that this agent forwards to peers as long as it runs. Default none.
    pub forward: Vec<Forward>,
}

impl Default for Agent {
    fn default() -> Self {
        Agent {
            accept: Vec::new(),
            allow: Vec::new(),
            pacing: true,
            ecn: true,
            allow_readable_relay: false,
            forward: Vec::new(),
        }
    }
}

/// One `[[agent.allow]]` table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allow {
    /// Who.
    pub peer: NodeId,
    /// What: an address as this agent sees it.
    pub to: HostPort,
    /// `protocol`: what may go there. Default `tcp`: a rule permits no more than it says.
    pub protocol: ForwardProtocol,
}

/// One `[[agent.forward]]` table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// `listen`: the local address.
    pub listen: HostPort,
    /// `peer`: the agent at which it comes out.
    pub peer: NodeId,
    /// `to`: what that agent connects it to, as in its `[[agent.allow]]`.
    pub to: HostPort,
    /// `protocol`. Default `tcp`.
    pub protocol: ForwardProtocol,
}

/// What is forwarded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ForwardProtocol {
    /// Connections.
    #[default]
    Tcp,
    /// Datagrams.
    Udp,
}

impl Config {
    /// Reads and checks the file at `path`. Defaults that are paths lie under `root`.
    ///
    /// # Errors
    /// The file cannot be read, is not TOML, has an unknown key, or a value that cannot be.
    pub fn load(path: &Path, root: &AtlasRoot) -> Result<Config, ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Config::parse(&text, path, root),
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {
                Err(ConfigError::Missing { path: path.to_owned() })
            }
            Err(source) => Err(ConfigError::Read { path: path.to_owned(), source }),
        }
    }

    /// Checks the text of a configuration file; `path` is only what errors call it.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, path: &Path, root: &AtlasRoot) -> Result<Config, ConfigError> {
        validate::config(text, path, root)
    }

    /// Where this node's daemon has its admin socket, and what is wrong with the file that may say so: one that runs is found
    /// whatever the file at `path` has become meanwhile. As far as that cannot be read, it is in the usual place.
    pub fn admin_socket(path: &Path, root: &AtlasRoot) -> (PathBuf, Option<ConfigError>) {
        match Config::load(path, root) {
            Ok(config) => (config.admin.socket, None),
            Err(ConfigError::Missing { .. }) => (root.admin_socket(), None),
            Err(error) => {
                let text = std::fs::read(path).unwrap_or_default();
                let socket = validate::readable_socket(&String::from_utf8_lossy(&text), path, root);
                (socket, Some(error))
            }
        }
    }

    /// Relay or agent.
    pub fn role(&self) -> Role {
        if self.transport.offer_relay { Role::Relay } else { Role::Agent }
    }
}

impl DatapathMode {
    /// All, as written in the file and on the command line.
    pub const ALL: [DatapathMode; 4] =
        [DatapathMode::Auto, DatapathMode::XdpNative, DatapathMode::XdpGeneric, DatapathMode::Userspace];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            DatapathMode::Auto => "auto",
            DatapathMode::XdpNative => "xdp-native",
            DatapathMode::XdpGeneric => "xdp-generic",
            DatapathMode::Userspace => "userspace",
        }
    }
}

impl fmt::Display for DatapathMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DatapathMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        DatapathMode::ALL
            .into_iter()
            .find(|mode| mode.name() == text)
            .ok_or_else(|| "expected auto, xdp-native, xdp-generic or userspace".to_owned())
    }
}

impl ForwardProtocol {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            ForwardProtocol::Tcp => "tcp",
            ForwardProtocol::Udp => "udp",
        }
    }
}

impl fmt::Display for ForwardProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ForwardProtocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [ForwardProtocol::Tcp, ForwardProtocol::Udp]
            .into_iter()
            .find(|protocol| protocol.name() == text)
            .ok_or_else(|| format!("expected tcp or udp, not {text:?}"))
    }
}
