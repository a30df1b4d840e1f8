//! The values in effect, key by key.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::key::{AnyKey, Of};
use super::{
    Access, Admin, Agent, Config, Datapath, Metrics, Network, Quotas, RateLimit, Role, Security, Transport,
    keys,
};

/// The value of a key, as JSON has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// True or false.
    Boolean(bool),
    /// A number.
    Integer(u64),
    /// A text.
    Text(String),
    /// A list. Of tables, each in one line.
    List(Vec<String>),
}

/// A key, its value in effect, and where that comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// With its table.
    pub key: String,
    /// In the key's unit.
    pub value: Value,
    /// `default`, `FILE:LINE` or `command line`.
    pub origin: String,
}

impl Config {
    /// What is in effect for what this node is, in the order of the reference page.
    pub fn settings(&self) -> Vec<Setting> {
        let concerns = |name: &str| keys::named(name).is_some_and(|key| self.concerns(key));
        let values = self.values().into_iter().filter(|(key, _)| concerns(key));
        let setting = |(key, value): (&'static str, Value)| Setting {
            key: key.to_owned(),
            value,
            origin: self.origins.of(key).to_string(),
        };
        values.map(setting).collect()
    }

    /// Whether a key has an effect on what this node is.
    pub(super) fn concerns(&self, key: AnyKey) -> bool {
        match key.of() {
            Of::Both => true,
            Of::Relay => self.role() == Role::Relay,
            Of::Agent => self.role() == Role::Agent,
            Of::Nothing(_) => false,
        }
    }

    /// Every key that has an effect on anything, in the order of the reference page. What stands in the tables of a key
    /// is that key's value.
    pub(super) fn values(&self) -> Vec<(&'static str, Value)> {
        // Taken apart whole, so that a new key is not forgotten.
        let Config {
            network,
            transport,
            security,
            rate_limit,
            access,
            quotas,
            datapath,
            admin,
            metrics,
            agent,
            warnings: _,
            origins: _,
            overridden: _,
        } = self;
        let Network { port, bootstrap, relays, advertise } = network;
        let Transport {
            max_connections,
            max_streams_per_conn,
            idle_timeout,
            enable_relay,
            offer_relay,
            relay_bandwidth_limit,
        } = transport;
        let Security { ban_duration, handshake_limit, max_clock_drift } = security;
        let RateLimit { per_peer_per_minute } = rate_limit;
        let Access { allow: admitted, deny } = access;
        let Quotas {
            pending_handshakes,
            connections_per_prefix,
            announced_agents,
            offers_per_source,
            offers_per_target,
            sessions_per_node,
            sessions_per_prefix,
            message_bytes,
            connection_bytes,
            relay_total_limit,
        } = quotas;
        let Datapath { mode, interfaces, max_sessions, readers, bpffs } = datapath;
        let Admin { socket } = admin;
        let Metrics { listen, hosts } = metrics;
        let listen =
            listen.as_ref().map_or_else(|| keys::METRICS_LISTEN.form.default.to_owned(), ToString::to_string);
        let Agent { accept, allow, pacing, ecn, allow_readable_relay, forward } = agent;
        let permits: Vec<String> =
            allow.iter().map(|rule| format!("{} to {} {}", rule.peer, rule.protocol, rule.to)).collect();
        let forwards: Vec<String> = forward
            .iter()
            .map(|rule| format!("{} {} to {} {}", rule.protocol, rule.listen, rule.peer, rule.to))
            .collect();
        vec![
            (keys::PORT.name, integer(*port)),
            (keys::BOOTSTRAP.name, list(bootstrap)),
            (keys::RELAYS.name, list(relays)),
            (keys::ADVERTISE.name, list(advertise)),
            (keys::MAX_CONNECTIONS.name, integer(*max_connections as u64)),
            (keys::MAX_STREAMS_PER_CONN.name, integer(*max_streams_per_conn)),
            (keys::IDLE_TIMEOUT.name, integer(idle_timeout.as_secs())),
            (keys::ENABLE_RELAY.name, Value::Boolean(*enable_relay)),
            (keys::OFFER_RELAY.name, Value::Boolean(*offer_relay)),
            (keys::RELAY_BANDWIDTH_LIMIT.name, integer(relay_bandwidth_limit.bytes_per_s)),
            (keys::BAN_DURATION_SECS.name, integer(ban_duration.as_secs())),
            (keys::HANDSHAKE_LIMIT.name, integer(*handshake_limit)),
            (keys::MAX_CLOCK_DRIFT_SECS.name, integer(max_clock_drift.as_secs())),
            (keys::PER_PEER_PER_MINUTE.name, integer(*per_peer_per_minute)),
            (keys::ACCESS_ALLOW.name, list(admitted)),
            (keys::ACCESS_DENY.name, list(deny)),
            (keys::PENDING_HANDSHAKES.name, integer(*pending_handshakes)),
            (keys::CONNECTIONS_PER_PREFIX.name, integer(*connections_per_prefix)),
            (keys::ANNOUNCED_AGENTS.name, integer(*announced_agents)),
            (keys::OFFERS_PER_SOURCE.name, integer(*offers_per_source)),
            (keys::OFFERS_PER_TARGET.name, integer(*offers_per_target)),
            (keys::SESSIONS_PER_NODE.name, integer(*sessions_per_node)),
            (keys::SESSIONS_PER_PREFIX.name, integer(*sessions_per_prefix)),
            (keys::MESSAGE_BYTES.name, integer(*message_bytes)),
            (keys::CONNECTION_BYTES.name, integer(*connection_bytes)),
            (keys::RELAY_TOTAL_LIMIT.name, integer(*relay_total_limit)),
            (keys::MODE.name, Value::Text(mode.to_string())),
            (keys::INTERFACES.name, list(interfaces)),
            (keys::MAX_SESSIONS.name, integer(*max_sessions)),
            (keys::READERS.name, integer(*readers)),
            (
                keys::BPFFS.name,
                Value::Text(bpffs.as_ref().map(|path| path.display().to_string()).unwrap_or_default()),
            ),
            (keys::SOCKET.name, Value::Text(socket.display().to_string())),
            (keys::METRICS_LISTEN.name, Value::Text(listen)),
            (keys::METRICS_HOSTS.name, list(hosts)),
            (keys::AGENT_ACCEPT.name, list(accept)),
            (keys::AGENT_ALLOW.name, Value::List(permits)),
            (keys::AGENT_FORWARD.name, Value::List(forwards)),
            (keys::AGENT_ALLOW_READABLE_RELAY.name, Value::Boolean(*allow_readable_relay)),
            (keys::AGENT_PACING.name, Value::Boolean(*pacing)),
            (keys::AGENT_ECN.name, Value::Boolean(*ecn)),
            // Anything else is refused.
            (keys::EXEC_ENABLED.name, Value::Boolean(false)),
        ]
    }
}

/// As `config reload` writes it: of a list nothing but its items.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Boolean(value) => value.fmt(f),
            Value::Integer(number) => number.fmt(f),
            Value::Text(text) => text.fmt(f),
            Value::List(items) => f.write_str(&items.join(", ")),
        }
    }
}

fn integer(number: impl Into<u64>) -> Value {
    Value::Integer(number.into())
}

fn list(items: &[impl fmt::Display]) -> Value {
    Value::List(items.iter().map(ToString::to_string).collect())
}
