//! What the file may say: upstream's keys and ours, all optional, each with its place in the text.
//!
//! Numbers are read as `i64` and judged in [`super::validate`], which knows what the key expects.

use serde::Deserialize;
use toml::Spanned;

/// A value that may be absent; if present, its place is known.
pub(super) type Entry<T> = Option<Spanned<T>>;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub network: Network,
    pub transport: Transport,
    pub security: Security,
    pub rate_limit: RateLimit,
    pub access: Access,
    pub quotas: Quotas,
    pub exec: Exec,
    pub exec_security: ExecSecurity,
    pub stun: Stun,
    pub datapath: Datapath,
    pub admin: Admin,
    pub agent: Agent,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Network {
    pub port: Entry<Integer>,
    pub bootstrap: Entry<Vec<Spanned<String>>>,
    pub relays: Entry<Vec<Spanned<String>>>,
    pub advertise: Entry<Vec<Spanned<String>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Transport {
    pub max_connections: Entry<Integer>,
    pub max_streams_per_conn: Entry<Integer>,
    pub idle_timeout: Entry<Integer>,
    pub enable_relay: Entry<bool>,
    pub offer_relay: Entry<bool>,
    pub relay_bandwidth_limit: Entry<Integer>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Security {
    pub ban_duration_secs: Entry<Integer>,
    pub handshake_limit: Entry<Integer>,
    pub max_clock_drift_secs: Entry<Integer>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RateLimit {
    pub per_peer_per_minute: Entry<Integer>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Access {
    pub allow: Entry<Vec<Spanned<String>>>,
    pub deny: Entry<Vec<Spanned<String>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Quotas {
    pub pending_handshakes: Entry<Integer>,
    pub connections_per_prefix: Entry<Integer>,
    pub announced_agents: Entry<Integer>,
    pub offers_per_source: Entry<Integer>,
    pub offers_per_target: Entry<Integer>,
    pub sessions_per_node: Entry<Integer>,
    pub sessions_per_prefix: Entry<Integer>,
    pub message_bytes: Entry<Integer>,
    pub connection_bytes: Entry<Integer>,
    pub relay_total_limit: Entry<Integer>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Exec {
    pub enabled: Entry<bool>,
    pub default_timeout_secs: Entry<Integer>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ExecSecurity {
    pub mode: Entry<String>,
    pub strict_inline_eval: Entry<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Stun {
    pub servers: Entry<Vec<Spanned<String>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Datapath {
    pub mode: Entry<String>,
    pub interfaces: Entry<Vec<Spanned<String>>>,
    pub max_sessions: Entry<Integer>,
    pub readers: Entry<Integer>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Admin {
    pub socket: Entry<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Agent {
    pub accept: Entry<Vec<Spanned<String>>>,
    pub allow: Vec<Spanned<Allow>>,
    pub pacing: Entry<bool>,
    pub ecn: Entry<bool>,
    pub allow_readable_relay: Entry<bool>,
    pub forward: Vec<Spanned<Forward>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Allow {
    pub peer: Entry<String>,
    pub to: Entry<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Forward {
    pub listen: Entry<String>,
    pub peer: Entry<String>,
    pub to: Entry<String>,
    pub protocol: Entry<String>,
}

/// A TOML integer. A type of its own, so that the reader's error says "expected an integer".
#[derive(Clone, Copy, Debug)]
pub(super) struct Integer(pub i64);

impl<'de> Deserialize<'de> for Integer {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Integer;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an integer")
            }

            fn visit_i64<E>(self, value: i64) -> Result<Integer, E> {
                Ok(Integer(value))
            }
        }
        deserializer.deserialize_i64(Visitor)
    }
}
