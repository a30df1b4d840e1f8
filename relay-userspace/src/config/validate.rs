//! From what the file says to what it means.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use super::document::{Document, Table};
use super::key::{Integer, Key, Of};
use super::origin::Origins;
use super::{
    Access, Admin, Agent, Allow, AtlasRoot, Config, ConfigError, Datapath, Forward, HostPort, Metrics,
    Network, Quotas, RateLimit, Role, Security, Transport, Warning, keys,
};
use crate::identity::NodeId;
use crate::relay::datapath::Limit;
use crate::relay::keeper::PINS;

/// Checks the text of a file called `path`.
pub(super) fn config(text: &str, path: &Path, root: &AtlasRoot) -> Result<Config, ConfigError> {
    let document = Document::parse(text, path)?;
    if document.boolean(&keys::EXEC_ENABLED) {
        let problem = "this program never executes commands, whoever asks: set it to false, or leave it out";
        return Err(document.wrong(keys::EXEC_ENABLED.name, problem));
    }
    let transport = transport(&document)?;
    let access = access(&document)?;
    let lines = document.lines();
    let mut config = Config {
        network: network(&document)?,
        security: security(&document)?,
        rate_limit: RateLimit { per_peer_per_minute: document.integer(&keys::PER_PEER_PER_MINUTE)? },
        access,
        quotas: quotas(&document, transport.max_connections)?,
        transport,
        datapath: datapath(&document)?,
        admin: admin(&document, root)?,
        metrics: metrics(&document)?,
        agent: agent(&document)?,
        warnings: Vec::new(),
        origins: Origins::of_file(path, &lines),
        overridden: Vec::new(),
    };
    config.warnings = warnings(&document, &config, &lines);
    Ok(config)
}

fn network(document: &Document<'_>) -> Result<Network, ConfigError> {
    let advertise: Vec<Advertised> = document.list(&keys::ADVERTISE)?;
    Ok(Network {
        port: document.integer(&keys::PORT)?,
        bootstrap: document.list(&keys::BOOTSTRAP)?,
        relays: document.list(&keys::RELAYS)?,
        advertise: advertise.into_iter().map(|Advertised(address)| address).collect(),
    })
}

fn transport(document: &Document<'_>) -> Result<Transport, ConfigError> {
    let enable_relay = document.boolean(&keys::ENABLE_RELAY);
    let offer_relay = document.boolean(&keys::OFFER_RELAY);
    if offer_relay && !enable_relay {
        let problem = "a relay must also use relays: set transport.enable_relay = true";
        return Err(document.wrong(keys::OFFER_RELAY.name, problem));
    }
    Ok(Transport {
        max_connections: document.integer(&keys::MAX_CONNECTIONS)?,
        max_streams_per_conn: document.integer(&keys::MAX_STREAMS_PER_CONN)?,
        idle_timeout: seconds(document, &keys::IDLE_TIMEOUT)?,
        enable_relay,
        offer_relay,
        relay_bandwidth_limit: Limit::per_second(document.integer(&keys::RELAY_BANDWIDTH_LIMIT)?),
    })
}

fn security(document: &Document<'_>) -> Result<Security, ConfigError> {
    Ok(Security {
        ban_duration: seconds(document, &keys::BAN_DURATION_SECS)?,
        handshake_limit: document.integer(&keys::HANDSHAKE_LIMIT)?,
        max_clock_drift: seconds(document, &keys::MAX_CLOCK_DRIFT_SECS)?,
    })
}

fn access(document: &Document<'_>) -> Result<Access, ConfigError> {
    Ok(Access { allow: document.list(&keys::ACCESS_ALLOW)?, deny: document.list(&keys::ACCESS_DENY)? })
}

fn quotas(document: &Document<'_>, max_connections: usize) -> Result<Quotas, ConfigError> {
    let max_connections = i64::try_from(max_connections).unwrap_or(i64::MAX);
    let quotas = Quotas {
        pending_handshakes: document.integer(&keys::PENDING_HANDSHAKES)?,
        connections_per_prefix: document
            .derived(&keys::CONNECTIONS_PER_PREFIX, (max_connections / 2).max(32))?,
        announced_agents: document.derived(&keys::ANNOUNCED_AGENTS, max_connections)?,
        offers_per_source: document.integer(&keys::OFFERS_PER_SOURCE)?,
        offers_per_target: document.integer(&keys::OFFERS_PER_TARGET)?,
        sessions_per_node: document.integer(&keys::SESSIONS_PER_NODE)?,
        sessions_per_prefix: document.integer(&keys::SESSIONS_PER_PREFIX)?,
        message_bytes: document.integer(&keys::MESSAGE_BYTES)?,
        connection_bytes: document.integer(&keys::CONNECTION_BYTES)?,
        relay_total_limit: document.integer(&keys::RELAY_TOTAL_LIMIT)?,
    };
    if quotas.connection_bytes < quotas.message_bytes {
        let Quotas { connection_bytes, message_bytes, .. } = quotas;
        let problem = format!(
            "a connection has to have room for a message: expected at least quotas.message_bytes, {message_bytes}, \
             not {connection_bytes}"
        );
        let [written, other] = [keys::CONNECTION_BYTES.name, keys::MESSAGE_BYTES.name];
        let key = if document.lines().contains_key(written) { written } else { other };
        return Err(document.wrong(key, problem));
    }
    Ok(quotas)
}

fn datapath(document: &Document<'_>) -> Result<Datapath, ConfigError> {
    let interfaces: Vec<InterfaceName> = document.list(&keys::INTERFACES)?;
    Ok(Datapath {
        mode: document.parsed(&keys::MODE)?.unwrap_or_default(),
        interfaces: interfaces.into_iter().map(|InterfaceName(name)| name).collect(),
        max_sessions: document.integer(&keys::MAX_SESSIONS)?,
        readers: document.integer(&keys::READERS)?,
        bpffs: bpffs(document)?,
    })
}

fn bpffs(document: &Document<'_>) -> Result<Option<PathBuf>, ConfigError> {
    match document.text(&keys::BPFFS).map(Path::new) {
        None => Ok(Some(PathBuf::from(PINS))),
        Some(path) if path.as_os_str().is_empty() => Ok(None),
        Some(path) if path.is_absolute() => Ok(Some(path.to_owned())),
        Some(_) => Err(document.wrong(keys::BPFFS.name, format!("expected {}", keys::BPFFS.form.what))),
    }
}

fn admin(document: &Document<'_>, root: &AtlasRoot) -> Result<Admin, ConfigError> {
    let Some(socket) = document.text(&keys::SOCKET) else { return Ok(Admin { socket: root.admin_socket() }) };
    // sun_path of unix(7): 108 bytes with the closing zero.
    if socket.is_empty() || socket.len() > 107 {
        return Err(document.wrong(keys::SOCKET.name, format!("expected {}", keys::SOCKET.form.what)));
    }
    Ok(Admin { socket: PathBuf::from(socket) })
}

/// Where the admin socket is by a file of which anything may be unsound.
pub(super) fn readable_socket(text: &str, path: &Path, root: &AtlasRoot) -> PathBuf {
    let document = Document::readable(text, path);
    admin(&document, root).map_or_else(|_| root.admin_socket(), |admin| admin.socket)
}

fn metrics(document: &Document<'_>) -> Result<Metrics, ConfigError> {
    let hosts: Vec<HostName> = document.list(&keys::METRICS_HOSTS)?;
    Ok(Metrics {
        listen: document.parsed(&keys::METRICS_LISTEN)?,
        hosts: hosts.into_iter().map(|HostName(name)| name).collect(),
    })
}

fn agent(document: &Document<'_>) -> Result<Agent, ConfigError> {
    let allow = |table: Table<'_>| {
        Ok(Allow {
            peer: table.required(&keys::AGENT_ALLOW_PEER)?,
            to: table.required(&keys::AGENT_ALLOW_TO)?,
            protocol: table.parsed(&keys::AGENT_ALLOW_PROTOCOL)?.unwrap_or_default(),
        })
    };
    let forward = |table: Table<'_>| {
        Ok(Forward {
            listen: table.required(&keys::AGENT_FORWARD_LISTEN)?,
            peer: table.required(&keys::AGENT_FORWARD_PEER)?,
            to: table.required(&keys::AGENT_FORWARD_TO)?,
            protocol: table.parsed(&keys::AGENT_FORWARD_PROTOCOL)?.unwrap_or_default(),
        })
    };
    Ok(Agent {
        accept: document.list(&keys::AGENT_ACCEPT)?,
        allow: document.tables(&keys::AGENT_ALLOW).map(allow).collect::<Result<_, _>>()?,
        pacing: document.boolean(&keys::AGENT_PACING),
        ecn: document.boolean(&keys::AGENT_ECN),
        allow_readable_relay: document.boolean(&keys::AGENT_ALLOW_READABLE_RELAY),
        forward: document.tables(&keys::AGENT_FORWARD).map(forward).collect::<Result<_, _>>()?,
    })
}

fn seconds(document: &Document<'_>, key: &'static Key<Integer>) -> Result<Duration, ConfigError> {
    document.integer(key).map(Duration::from_secs)
}

/// What is said in vain, in the order of the file: it is accepted, but not in silence.
fn warnings(document: &Document<'_>, config: &Config, lines: &BTreeMap<&'static str, usize>) -> Vec<Warning> {
    let of_this_role = match config.role() {
        Role::Relay => "this node is a relay (transport.offer_relay)",
        Role::Agent => "this node is an agent (transport.offer_relay is false)",
    };
    let mut warnings = Vec::new();
    for key in keys::ALL {
        let Some(line) = lines.get(key.name()) else { continue };
        let why = match (key.of(), config.role()) {
            (Of::Nothing(why), _) => why,
            (Of::Agent, Role::Relay) | (Of::Relay, Role::Agent) => of_this_role,
            (Of::Both, _) | (Of::Agent, Role::Agent) | (Of::Relay, Role::Relay) => continue,
        };
        warnings.push(Warning { line: *line, key: key.name().to_owned(), text: format!("no effect: {why}") });
    }
    let accepted: BTreeSet<&NodeId> = config.agent.accept.iter().collect();
    for (table, Allow { peer, .. }) in document.tables(&keys::AGENT_ALLOW).zip(&config.agent.allow) {
        if !accepted.contains(peer) {
            warnings.push(Warning {
                line: table.line(&keys::AGENT_ALLOW_PEER).unwrap_or_default(),
                key: keys::AGENT_ALLOW_PEER.name.to_owned(),
                text: format!("no effect: {peer} is not in {} and cannot connect", keys::AGENT_ACCEPT.name),
            });
        }
    }
    warnings.sort_by_key(|warning| warning.line);
    warnings
}

/// An address that agents can send to.
struct Advertised(SocketAddr);

impl FromStr for Advertised {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usable = |address: &SocketAddr| {
            address.port() != 0 && !address.ip().is_unspecified() && !address.ip().is_multicast()
        };
        let address = text.parse().ok().filter(usable);
        address
            .map(Advertised)
            .ok_or_else(|| format!("expected IP:PORT that agents can send to, not {text:?}"))
    }
}

/// A name or address without a port.
struct HostName(String);

impl FromStr for HostName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bare = text.parse::<Ipv6Addr>().map_or_else(|_| text.to_owned(), |v6| format!("[{v6}]"));
        let at = format!("{bare}:1").parse::<HostPort>();
        at.map(|at| HostName(at.host().to_owned()))
            .map_err(|_| format!("expected a name or an IP address without a port, not {text:?}"))
    }
}

/// The name of a network interface.
struct InterfaceName(String);

impl FromStr for InterfaceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The kernel's own rule: dev_valid_name() in net/core/dev.c.
        if text.is_empty() || text.len() > 15 || text.contains(|c: char| c == '/' || c.is_whitespace()) {
            return Err(format!("expected the name of a network interface, not {text:?}"));
        }
        Ok(InterfaceName(text.to_owned()))
    }
}
