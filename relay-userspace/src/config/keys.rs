//! Every key of the configuration file, once: checking a file, showing what is in effect, applying a changed file and the
//! reference page (docs/configuration.md) go by this table.

use super::key::Of::{Agent, Both, Nothing, Relay};
use super::key::When::{Live, Restart};
use super::key::{AnyKey, Boolean, Derived, Integer, Key, List, Tables, Text};
use crate::relay::keeper::PINS;

macro_rules! keys {
    ($($constant:ident = $name:literal, $of:expr, $when:ident, $form:ident { $($field:ident: $value:expr),* $(,)? };)*) => {
        $(
            #[doc = concat!("`", $name, "`.")]
            pub const $constant: Key<$form> =
                Key { name: $name, of: $of, when: $when, form: $form { $($field: $value),* } };
        )*

        /// All of them, in the order of the reference page.
        pub const ALL: &[AnyKey] = &[$(AnyKey::$form(&$constant)),*];
    };
}

const CONNECTIONS: &str = "a number of connections";
const HANDSHAKES: &str = "a number of handshakes";
const OFFERS: &str = "a number of offers";
const SESSIONS: &str = "a number of sessions";
const BYTES: &str = "bytes";
const SECONDS: &str = "seconds";
const BYTES_PER_SECOND: &str = "bytes per second (1048576 is 1 MiB/s; 0: unlimited)";
const HOST_PORT: &str = "HOST:PORT";
const NODE_IDS: &str = "node ids";
const SOME_NODES: &str = "[\"atlas_...\"]";
const NEVER_EXECUTES: &str = "this program never executes commands";

keys! {
    PORT = "network.port", Relay, Restart,
        Integer { what: "a UDP port", min: 1, max: 65_535, default: 4433 };
    BOOTSTRAP = "network.bootstrap", Both, Restart,
        List { of: HOST_PORT, example: "[\"192.0.2.1:4433\"]", empty: "this node registers nowhere" };
    RELAYS = "network.relays", Agent, Restart,
        List {
            of: "HOST:PORT or NODE_ID@HOST:PORT", example: "[\"192.0.2.1:4433\"]",
            empty: "an agent does not start without one"
        };
    ADVERTISE = "network.advertise", Relay, Restart,
        List {
            of: "IP:PORT that agents can send to", example: "[\"198.51.100.7:4433\"]",
            empty: "agents send data to the address they reached the relay at"
        };

    MAX_CONNECTIONS = "transport.max_connections", Relay, Live,
        Integer { what: CONNECTIONS, min: 1, max: 1_000_000, default: 200 };
    MAX_STREAMS_PER_CONN = "transport.max_streams_per_conn", Relay, Restart,
        Integer { what: "a number of streams", min: 1, max: 10_000, default: 100 };
    IDLE_TIMEOUT = "transport.idle_timeout", Relay, Restart,
        Integer { what: SECONDS, min: 10, max: 86_400, default: 300 };
    ENABLE_RELAY = "transport.enable_relay", Both, Restart, Boolean { default: false };
    OFFER_RELAY = "transport.offer_relay", Both, Restart, Boolean { default: false };
    RELAY_BANDWIDTH_LIMIT = "transport.relay_bandwidth_limit", Relay, Live,
        Integer { what: BYTES_PER_SECOND, min: 0, max: 1_000_000_000_000, default: 1_048_576 };

    BAN_DURATION_SECS = "security.ban_duration_secs", Relay, Live,
        Integer { what: "seconds (0: nobody is banned)", min: 0, max: 31_536_000, default: 3600 };
    HANDSHAKE_LIMIT = "security.handshake_limit", Relay, Live,
        Integer { what: HANDSHAKES, min: 1, max: 65_536, default: 50 };
    MAX_CLOCK_DRIFT_SECS = "security.max_clock_drift_secs", Relay, Live,
        Integer { what: SECONDS, min: 1, max: 86_400, default: 300 };

    PER_PEER_PER_MINUTE = "rate_limit.per_peer_per_minute", Relay, Live,
        Integer { what: "messages a minute (0: unlimited)", min: 0, max: 1_000_000, default: 120 };

    ACCESS_ALLOW = "access.allow", Relay, Live,
        List { of: NODE_IDS, example: SOME_NODES, empty: "whoever is not denied may use the relay" };
    ACCESS_DENY = "access.deny", Relay, Live,
        List { of: NODE_IDS, example: SOME_NODES, empty: "nobody is denied" };

    PENDING_HANDSHAKES = "quotas.pending_handshakes", Relay, Live,
        Integer { what: HANDSHAKES, min: 1, max: 65_536, default: 1024 };
    CONNECTIONS_PER_PREFIX = "quotas.connections_per_prefix", Relay, Live,
        Derived { what: CONNECTIONS, min: 1, max: 1_000_000, default: "half of max_connections, at least 32" };
    ANNOUNCED_AGENTS = "quotas.announced_agents", Relay, Live,
        Derived { what: "a number of agents", min: 1, max: 1_000_000, default: "max_connections" };
    OFFERS_PER_SOURCE = "quotas.offers_per_source", Relay, Live,
        Integer { what: OFFERS, min: 1, max: 4096, default: 8 };
    OFFERS_PER_TARGET = "quotas.offers_per_target", Relay, Live,
        Integer { what: OFFERS, min: 1, max: 4096, default: 32 };
    SESSIONS_PER_NODE = "quotas.sessions_per_node", Relay, Live,
        Integer { what: SESSIONS, min: 1, max: 4096, default: 64 };
    SESSIONS_PER_PREFIX = "quotas.sessions_per_prefix", Relay, Live,
        Integer { what: SESSIONS, min: 1, max: 1_048_576, default: 256 };
    MESSAGE_BYTES = "quotas.message_bytes", Relay, Live,
        // More would not fit what is held of a stream that is joined to another.
        Integer { what: BYTES, min: 1024, max: 65_536, default: 65_536 };
    CONNECTION_BYTES = "quotas.connection_bytes", Relay, Live,
        Integer { what: BYTES, min: 1024, max: 16_777_216, default: 262_144 };
    RELAY_TOTAL_LIMIT = "quotas.relay_total_limit", Relay, Live,
        Integer { what: BYTES_PER_SECOND, min: 0, max: 1_000_000_000_000, default: 0 };

    MODE = "datapath.mode", Relay, Restart,
        Text { what: "auto, xdp-native, xdp-generic or userspace", default: "auto" };
    INTERFACES = "datapath.interfaces", Relay, Restart,
        List {
            of: "names of network interfaces", example: "[\"eth0\"]", empty: "those of the default routes"
        };
    MAX_SESSIONS = "datapath.max_sessions", Relay, Restart,
        Integer { what: SESSIONS, min: 1, max: 1_048_576, default: 65_536 };
    READERS = "datapath.readers", Relay, Restart,
        // More than any machine this runs on has use for, and few enough descriptors.
        Integer { what: "a number of threads (0: one per CPU, up to 8)", min: 0, max: 64, default: 0 };
    BPFFS = "datapath.bpffs", Relay, Restart,
        Text { what: "the absolute path of a directory in a bpffs (empty: never)", default: PINS };

    SOCKET = "admin.socket", Both, Restart,
        Text { what: "a path of 1 to 107 bytes", default: "state/admin.sock under the Atlas root" };

    METRICS_LISTEN = "metrics.listen", Relay, Restart, Text { what: HOST_PORT, default: "off" };
    METRICS_HOSTS = "metrics.hosts", Relay, Restart,
        List {
            of: "names or IP addresses", example: "[\"relay.example.net\"]",
            empty: "it answers to its address, metrics.listen as written, and localhost"
        };

    AGENT_ACCEPT = "agent.accept", Agent, Live,
        List { of: NODE_IDS, example: SOME_NODES, empty: "nobody may connect" };
    AGENT_ALLOW = "agent.allow", Agent, Live,
        Tables {
            with: "both peer = \"atlas_...\" and to = \"HOST:PORT\"",
            empty: "nothing may be reached through this agent"
        };
    AGENT_ALLOW_PEER = "agent.allow.peer", Agent, Live, Text { what: "a node id", default: "required" };
    AGENT_ALLOW_TO = "agent.allow.to", Agent, Live, Text { what: HOST_PORT, default: "required" };
    AGENT_ALLOW_PROTOCOL = "agent.allow.protocol", Agent, Live, Text { what: "tcp or udp", default: "tcp" };
    AGENT_FORWARD = "agent.forward", Agent, Restart,
        Tables {
            with: "listen = \"HOST:PORT\", peer = \"atlas_...\" and to = \"HOST:PORT\", all three",
            empty: "the daemon forwards no port"
        };
    AGENT_FORWARD_LISTEN = "agent.forward.listen", Agent, Restart,
        Text { what: HOST_PORT, default: "required" };
    AGENT_FORWARD_PEER = "agent.forward.peer", Agent, Restart, Text { what: "a node id", default: "required" };
    AGENT_FORWARD_TO = "agent.forward.to", Agent, Restart, Text { what: HOST_PORT, default: "required" };
    AGENT_FORWARD_PROTOCOL = "agent.forward.protocol", Agent, Restart,
        Text { what: "tcp or udp", default: "tcp" };
    AGENT_ALLOW_READABLE_RELAY = "agent.allow_readable_relay", Agent, Restart, Boolean { default: false };
    AGENT_PACING = "agent.pacing", Agent, Restart, Boolean { default: true };
    AGENT_ECN = "agent.ecn", Agent, Restart, Boolean { default: true };

    EXEC_ENABLED = "exec.enabled", Both, Restart, Boolean { default: false };
    EXEC_DEFAULT_TIMEOUT_SECS = "exec.default_timeout_secs", Nothing(NEVER_EXECUTES), Restart,
        Integer { what: SECONDS, min: 0, max: 31_536_000, default: 300 };
    EXEC_SECURITY_MODE = "exec_security.mode", Nothing(NEVER_EXECUTES), Restart,
        Text { what: "deny, allowlist or full", default: "deny" };
    EXEC_SECURITY_STRICT_INLINE_EVAL = "exec_security.strict_inline_eval", Nothing(NEVER_EXECUTES), Restart,
        Boolean { default: true };
    STUN_SERVERS = "stun.servers", Nothing("the relay tells an agent its address"), Restart,
        List { of: HOST_PORT, example: "[\"192.0.2.1:3478\"]", empty: "none is asked, nor where some are listed" };
}

/// The key of this name.
pub fn named(name: &str) -> Option<AnyKey> {
    ALL.iter().copied().find(|key| key.name() == name)
}

/// The names that may stand under `prefix`: of its keys, or of its tables if it is empty.
pub fn under(prefix: &str) -> Vec<&'static str> {
    let mut names = Vec::new();
    for key in ALL {
        let rest = match prefix {
            "" => Some(key.name()),
            _ => key.name().strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.')),
        };
        let Some(name) = rest.and_then(|rest| rest.split('.').next()) else { continue };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_key_has_a_name_of_its_own() {
        let names: BTreeSet<&str> = ALL.iter().map(|key| key.name()).collect();
        assert_eq!(names.len(), ALL.len());
        assert!(ALL.iter().all(|key| named(key.name()).is_some_and(|found| found.name() == key.name())));
    }

    #[test]
    fn under_a_table_stand_its_keys_and_under_nothing_the_tables() {
        assert!(under("").starts_with(&["network", "transport"]));
        assert_eq!(under("security"), ["ban_duration_secs", "handshake_limit", "max_clock_drift_secs"]);
        assert_eq!(under("agent.allow"), ["peer", "to", "protocol"]);
        assert_eq!(under("agent.allow.to"), [""; 0]);
    }

    #[test]
    fn a_default_is_in_its_own_range() {
        for key in ALL {
            if let AnyKey::Integer(Key { name, form, .. }) = key {
                assert!((form.min..=form.max).contains(&form.default), "{name}");
            }
        }
    }
}
