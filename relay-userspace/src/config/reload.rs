//! A configuration read again while its daemon runs: from where, what has changed, and what became of that.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{
    Access, Admin, Agent, AtlasRoot, Config, ConfigError, Datapath, DatapathMode, Network, Quotas, RateLimit,
    Role, Security, Transport,
};

/// Where a daemon's configuration comes from: a file, and the command line, which has the last word.
#[derive(Clone, Debug)]
pub struct ConfigSource {
    /// The file.
    pub path: PathBuf,
    /// Where defaults that are paths lie.
    pub root: AtlasRoot,
    /// From the command line, instead of `network.port`.
    pub port: Option<u16>,
    /// From the command line, instead of `datapath.mode`.
    pub mode: Option<DatapathMode>,
    /// From the command line, unless empty, instead of `datapath.interfaces`.
    pub interfaces: Vec<String>,
}

impl ConfigSource {
    /// Reads it anew.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load(&self) -> Result<Config, ConfigError> {
        let mut config = Config::load(&self.path, &self.root)?;
        config.network.port = self.port.unwrap_or(config.network.port);
        config.datapath.mode = self.mode.unwrap_or(config.datapath.mode);
        if !self.interfaces.is_empty() {
            config.datapath.interfaces.clone_from(&self.interfaces);
        }
        Ok(config)
    }
}

/// A key whose value has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The key with its table.
    pub key: String,
    /// What is in effect, or was.
    pub from: String,
    /// What the file says now.
    pub to: String,
}

/// What `config reload` answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// In effect from now on.
    pub applied: Vec<Change>,
    /// In effect once the daemon has been restarted.
    pub needs_restart: Vec<Change>,
}

impl Reloaded {
    /// The changes from `present` to `new`; those of the keys in `live` are to be applied. None is if the node is to be
    /// something else: what such a file says is not meant for the daemon that runs.
    pub fn of(present: &Config, new: &Config, live: &[&str]) -> Reloaded {
        let same_role = present.role() == new.role();
        let is_live = |change: &Change| same_role && live.contains(&change.key.as_str());
        let (applied, needs_restart) = present.changes_to(new).into_iter().partition(is_live);
        Reloaded { applied, needs_restart }
    }

    /// Whether the change of `key` is to be applied.
    pub fn applies(&self, key: &str) -> bool {
        self.applied.iter().any(|change| change.key == key)
    }

    /// Writes it to the log of the daemon.
    pub fn log(&self) {
        for Change { key, from, to } in &self.applied {
            tracing::info!(key, from, to, "configuration reloaded: applied");
        }
        for Change { key, from, to } in &self.needs_restart {
            tracing::warn!(key, from, to, "configuration reloaded: this change needs a restart");
        }
        if *self == Reloaded::default() {
            tracing::info!("configuration reloaded: nothing has changed");
        }
    }
}

impl Config {
    /// The keys that have another value in `new`, as far as they matter for what this node is.
    pub fn changes_to(&self, new: &Config) -> Vec<Change> {
        let changed = self.values().into_iter().zip(new.values()).filter(|((_, from), (_, to))| from != to);
        changed.map(|((key, from), (_, to))| Change { key: key.to_owned(), from, to }).collect()
    }

    /// Every key and its value, in one order for all configurations. What has no effect in this role is empty.
    fn values(&self) -> Vec<(&'static str, String)> {
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
            agent,
            warnings: _,
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
        let Access { allow: allowed, deny } = access;
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
        let Datapath { mode, interfaces, max_sessions, readers } = datapath;
        let Admin { socket } = admin;
        let Agent { accept, allow, pacing, ecn, allow_readable_relay, forward } = agent;
        let of = |role: Role, value: String| if self.role() == role { value } else { String::new() };
        let of_relays = |value: String| of(Role::Relay, value);
        let of_agents = |value: String| of(Role::Agent, value);
        let permits: Vec<String> = allow.iter().map(|rule| format!("{} to {}", rule.peer, rule.to)).collect();
        let forwards: Vec<String> = forward
            .iter()
            .map(|rule| format!("{} {} to {} {}", rule.protocol, rule.listen, rule.peer, rule.to))
            .collect();
        vec![
            ("network.port", of_relays(port.to_string())),
            ("network.bootstrap", list(bootstrap)),
            ("network.relays", of_agents(list(relays))),
            ("network.advertise", of_relays(list(advertise))),
            ("transport.max_connections", of_relays(max_connections.to_string())),
            ("transport.max_streams_per_conn", of_relays(max_streams_per_conn.to_string())),
            ("transport.idle_timeout", of_relays(idle_timeout.as_secs().to_string())),
            ("transport.enable_relay", enable_relay.to_string()),
            ("transport.offer_relay", offer_relay.to_string()),
            (RELAY_BANDWIDTH_LIMIT, of_relays(relay_bandwidth_limit.bytes_per_s.to_string())),
            ("security.ban_duration_secs", of_relays(ban_duration.as_secs().to_string())),
            ("security.handshake_limit", of_relays(handshake_limit.to_string())),
            ("security.max_clock_drift_secs", of_relays(max_clock_drift.as_secs().to_string())),
            ("rate_limit.per_peer_per_minute", of_relays(per_peer_per_minute.to_string())),
            ("access.allow", of_relays(list(allowed))),
            ("access.deny", of_relays(list(deny))),
            ("quotas.pending_handshakes", of_relays(pending_handshakes.to_string())),
            ("quotas.connections_per_prefix", of_relays(connections_per_prefix.to_string())),
            ("quotas.announced_agents", of_relays(announced_agents.to_string())),
            ("quotas.offers_per_source", of_relays(offers_per_source.to_string())),
            ("quotas.offers_per_target", of_relays(offers_per_target.to_string())),
            ("quotas.sessions_per_node", of_relays(sessions_per_node.to_string())),
            ("quotas.sessions_per_prefix", of_relays(sessions_per_prefix.to_string())),
            ("quotas.message_bytes", of_relays(message_bytes.to_string())),
            ("quotas.connection_bytes", of_relays(connection_bytes.to_string())),
            ("quotas.relay_total_limit", of_relays(relay_total_limit.to_string())),
            ("datapath.mode", of_relays(mode.to_string())),
            ("datapath.interfaces", of_relays(list(interfaces))),
            ("datapath.max_sessions", of_relays(max_sessions.to_string())),
            ("datapath.readers", of_relays(readers.to_string())),
            ("admin.socket", socket.display().to_string()),
            (AGENT_ACCEPT, of_agents(list(accept))),
            (AGENT_ALLOW, of_agents(list(&permits))),
            ("agent.pacing", of_agents(pacing.to_string())),
            ("agent.ecn", of_agents(ecn.to_string())),
            ("agent.allow_readable_relay", of_agents(allow_readable_relay.to_string())),
            ("agent.forward", of_agents(list(&forwards))),
        ]
    }
}

/// The key that a relay applies while it runs.
pub const RELAY_BANDWIDTH_LIMIT: &str = "transport.relay_bandwidth_limit";

/// The keys that an agent applies while it runs.
pub const AGENT_ACCEPT: &str = "agent.accept";
/// As [`AGENT_ACCEPT`].
pub const AGENT_ALLOW: &str = "agent.allow";

fn list<T: std::fmt::Display>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(T::to_string).collect();
    items.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "atlas_1111111111111111111111111111111111111111111111111111111111111111";
    const RELAY: &str = "[transport]\nenable_relay = true\noffer_relay = true\n";

    fn config(text: &str) -> Config {
        Config::parse(text, "config.toml".as_ref(), &AtlasRoot::at("/atlas")).unwrap()
    }

    #[test]
    fn what_has_changed_is_told_by_key_with_both_values() {
        let before = config(RELAY);
        let after = config(&format!(
            "{RELAY}relay_bandwidth_limit = 5\nidle_timeout = 60\n[datapath]\ninterfaces = [\"a\", \"b\"]\n"
        ));
        let change = |key: &str, from: &str, to: &str| Change {
            key: key.to_owned(),
            from: from.to_owned(),
            to: to.to_owned(),
        };
        let reloaded = Reloaded::of(&before, &after, &[RELAY_BANDWIDTH_LIMIT]);
        assert_eq!(reloaded.applied, [change("transport.relay_bandwidth_limit", "1048576", "5")]);
        assert_eq!(
            reloaded.needs_restart,
            [change("transport.idle_timeout", "300", "60"), change("datapath.interfaces", "", "a, b")]
        );
        assert_eq!(Reloaded::of(&before, &config(RELAY), &[]), Reloaded::default());
    }

    #[test]
    fn what_has_no_effect_in_this_role_is_no_change() {
        let relay = config(&format!("{RELAY}[network]\nrelays = [\"192.0.2.1:1\"]\n"));
        assert_eq!(config(RELAY).changes_to(&relay), []);
        let agent = config("[transport]\nenable_relay = true\nrelay_bandwidth_limit = 5\n");
        assert_eq!(config("[transport]\nenable_relay = true\n").changes_to(&agent), []);
    }

    #[test]
    fn a_file_that_makes_the_node_something_else_has_nothing_that_is_applied() {
        let relay = config(RELAY);
        let agent = config(&format!("[transport]\nenable_relay = true\n[agent]\naccept = [\"{NODE}\"]\n"));
        for (present, new) in [(&relay, &agent), (&agent, &relay)] {
            let reloaded = Reloaded::of(present, new, &[RELAY_BANDWIDTH_LIMIT, AGENT_ACCEPT, AGENT_ALLOW]);
            assert_eq!(reloaded.applied, []);
            let keys: Vec<&str> = reloaded.needs_restart.iter().map(|change| &*change.key).collect();
            for key in ["transport.offer_relay", RELAY_BANDWIDTH_LIMIT, AGENT_ACCEPT] {
                assert!(keys.contains(&key) && !reloaded.applies(key), "{key} of {keys:?}");
            }
        }
    }

    #[test]
    fn what_the_command_line_says_does_not_change_with_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        let source = ConfigSource {
            path: path.clone(),
            root: AtlasRoot::at(directory.path()),
            port: Some(1),
            mode: Some(DatapathMode::Userspace),
            interfaces: vec!["a".to_owned()],
        };
        std::fs::write(&path, RELAY).unwrap();
        let before = source.load().unwrap();
        std::fs::write(&path, format!("{RELAY}[network]\nport = 2\n[datapath]\nmode = \"auto\"\n")).unwrap();
        assert_eq!(before.changes_to(&source.load().unwrap()), []);
        std::fs::write(&path, "[network]\nport = 0\n").unwrap();
        assert!(source.load().unwrap_err().to_string().contains("config.toml:2: network.port"));
    }
}
