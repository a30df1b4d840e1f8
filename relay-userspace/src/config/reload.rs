//! A configuration read again while its daemon runs: from where, what has changed, and what became of that.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::key::When;
use super::{AtlasRoot, Config, ConfigError, DatapathMode, HostPort, Origin, Value, keys};

/// Where a daemon's configuration comes from: a file, and the command line, which has the last word.
#[derive(Clone, Debug)]
pub struct ConfigSource {
    /// The file.
    pub path: PathBuf,
    /// Where defaults that are paths lie.
    pub root: AtlasRoot,
    /// From the command line, instead of `network.port`.
    pub port: Option<u16>,
    /// From the command line, unless empty, instead of `network.bootstrap`.
    pub bootstrap: Vec<HostPort>,
    /// From the command line, instead of `datapath.mode`.
    pub mode: Option<DatapathMode>,
    /// From the command line, unless empty, instead of `datapath.interfaces`.
    pub interfaces: Vec<String>,
}

impl ConfigSource {
    /// The keys that the command line of `net listen` has the last word on, and its options for them.
    pub const OPTIONS: [(&'static str, &'static str); 4] = [
        (keys::PORT.name, "--port"),
        (keys::BOOTSTRAP.name, "--bootstrap"),
        (keys::MODE.name, "--datapath"),
        (keys::INTERFACES.name, "--interface"),
    ];

    /// Reads it anew.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load(&self) -> Result<Config, ConfigError> {
        let file = Config::load(&self.path, &self.root)?;
        let mut config = file.clone();
        let Config { network, datapath, origins, .. } = &mut config;
        if let Some(port) = self.port {
            network.port = port;
            origins.set_on_command_line(keys::PORT.name);
        }
        if !self.bootstrap.is_empty() {
            network.bootstrap.clone_from(&self.bootstrap);
            origins.set_on_command_line(keys::BOOTSTRAP.name);
        }
        if let Some(mode) = self.mode {
            datapath.mode = mode;
            origins.set_on_command_line(keys::MODE.name);
        }
        if !self.interfaces.is_empty() {
            datapath.interfaces.clone_from(&self.interfaces);
            origins.set_on_command_line(keys::INTERFACES.name);
        }
        config.overridden = config.overridden_of(&file);
        Ok(config)
    }
}

/// A key of the file on which the command line has the last word, with another value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overridden {
    /// The key with its table.
    pub key: String,
    /// The option that has the last word.
    pub option: String,
    /// What that says.
    pub value: String,
    /// What the file says in vain.
    pub file: String,
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
    /// In effect at no time, as long as the daemon is started with the same command line.
    pub overridden: Vec<Overridden>,
}

impl Reloaded {
    /// Changes `present` to `new` as far as that can be done while the daemon runs, and says what has changed. Nothing has
    /// if the node is to be something else: what such a file says is not meant for the daemon that runs.
    pub fn apply(present: &mut Config, new: &Config) -> Reloaded {
        let same_role = present.role() == new.role();
        let is_live = |change: &Change| {
            same_role && keys::named(&change.key).is_some_and(|key| key.when() == When::Live)
        };
        let (applied, needs_restart) = present.changes_to(new).into_iter().partition(is_live);
        if same_role {
            present.take_live(new);
        }
        Reloaded { applied, needs_restart, overridden: new.overridden.clone() }
    }

    /// Writes it to the log of the daemon.
    pub fn log(&self) {
        for Change { key, from, to } in &self.applied {
            tracing::info!(key, from, to, "configuration reloaded: applied");
        }
        for Change { key, from, to } in &self.needs_restart {
            tracing::warn!(key, from, to, "configuration reloaded: this change needs a restart");
        }
        for Overridden { key, option, value, file } in &self.overridden {
            tracing::warn!(
                key,
                option,
                value,
                file,
                "configuration reloaded: the command line has the last word on this key"
            );
        }
        if self.applied.is_empty() && self.needs_restart.is_empty() {
            tracing::info!("configuration reloaded: nothing has changed");
        }
    }
}

impl Config {
    /// The keys that have another value in `new`, as far as they matter for what this node is.
    pub fn changes_to(&self, new: &Config) -> Vec<Change> {
        let shown = |config: &Config, name: &str, value: &Value| {
            let concerned = keys::named(name).is_some_and(|key| config.concerns(key));
            if concerned { value.to_string() } else { String::new() }
        };
        let changes = self.values().into_iter().zip(new.values()).map(|((key, from), (_, to))| Change {
            key: key.to_owned(),
            from: shown(self, key, &from),
            to: shown(new, key, &to),
        });
        changes.filter(|change| change.from != change.to).collect()
    }

    /// What `file` says and this, which is of that file and a command line, says otherwise.
    fn overridden_of(&self, file: &Config) -> Vec<Overridden> {
        let written = |change: &Change| matches!(file.origins.of(&change.key), Origin::File { .. });
        let of_option = |Change { key, from: value, to: file }| {
            let (_, option) = ConfigSource::OPTIONS.into_iter().find(|(of, _)| *of == key)?;
            Some(Overridden { key, option: option.to_owned(), value, file })
        };
        self.changes_to(file).into_iter().filter(written).filter_map(of_option).collect()
    }

    /// Takes over from `new` what changes live, and nothing else.
    pub fn take_live(&mut self, new: &Config) {
        let Config { transport, security, rate_limit, access, quotas, agent, origins, .. } = self;
        transport.max_connections = new.transport.max_connections;
        transport.relay_bandwidth_limit = new.transport.relay_bandwidth_limit;
        security.clone_from(&new.security);
        rate_limit.clone_from(&new.rate_limit);
        access.clone_from(&new.access);
        quotas.clone_from(&new.quotas);
        agent.accept.clone_from(&new.agent.accept);
        agent.allow.clone_from(&new.agent.allow);
        for key in keys::ALL.iter().filter(|key| key.when() == When::Live) {
            origins.follow(key.name(), &new.origins);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Origin;
    use super::super::Role;
    use super::super::key::{AnyKey, Key, Of};
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
        let mut present = before.clone();
        let reloaded = Reloaded::apply(&mut present, &after);
        assert_eq!(reloaded.applied, [change("transport.relay_bandwidth_limit", "1048576", "5")]);
        assert_eq!(
            reloaded.needs_restart,
            [change("transport.idle_timeout", "300", "60"), change("datapath.interfaces", "", "a, b")]
        );
        assert_eq!(present.changes_to(&after), reloaded.needs_restart, "the rest is in effect");
        assert_eq!(Reloaded::apply(&mut before.clone(), &before), Reloaded::default());
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
            let mut still = present.clone();
            let reloaded = Reloaded::apply(&mut still, new);
            assert_eq!((&reloaded.applied, &still), (&Vec::new(), present));
            let keys: Vec<&str> = reloaded.needs_restart.iter().map(|change| &*change.key).collect();
            for key in ["transport.offer_relay", "transport.relay_bandwidth_limit", "agent.accept"] {
                assert!(keys.contains(&key), "{key} of {keys:?}");
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
            bootstrap: vec!["192.0.2.1:1".parse().unwrap()],
            mode: Some(DatapathMode::Userspace),
            interfaces: vec!["a".to_owned()],
        };
        std::fs::write(&path, RELAY).unwrap();
        let before = source.load().unwrap();
        let text = "[network]\nport = 2\nbootstrap = [\"192.0.2.2:2\"]\n[datapath]\nmode = \"auto\"\n";
        std::fs::write(&path, format!("{RELAY}{text}")).unwrap();
        let after = source.load().unwrap();
        assert_eq!(before.changes_to(&after), []);
        let told = |config: &Config| -> Vec<(String, String)> {
            config.overridden.iter().map(|it| (it.key.clone(), it.option.clone())).collect()
        };
        assert_eq!(told(&before), [], "what the file does not say is not in vain");
        let first = Overridden {
            key: "network.port".to_owned(),
            option: "--port".to_owned(),
            value: "1".to_owned(),
            file: "2".to_owned(),
        };
        assert_eq!(after.overridden[0], first);
        let others = [("network.bootstrap", "--bootstrap"), ("datapath.mode", "--datapath")];
        assert_eq!(told(&after)[1..], others.map(|(key, option)| (key.to_owned(), option.to_owned())));
        let reloaded = Reloaded::apply(&mut before.clone(), &after);
        assert_eq!((reloaded.needs_restart, reloaded.overridden), (Vec::new(), after.overridden.clone()));
        let same = text.replace("port = 2", "port = 1");
        std::fs::write(&path, format!("{RELAY}{same}")).unwrap();
        assert_eq!(told(&source.load().unwrap()).len(), 2, "the same value is not in vain");
        for key in ["network.port", "network.bootstrap", "datapath.mode", "datapath.interfaces"] {
            assert_eq!(after.origins.of(key), Origin::CommandLine, "{key}");
        }
        std::fs::write(&path, "[network]\nport = 0\n").unwrap();
        assert!(source.load().unwrap_err().to_string().contains("config.toml:2: network.port"));
    }

    /// A configuration of a node that is a relay or not, in which every key has another value than its default.
    fn everything_else(relay: bool) -> String {
        let mut text = String::new();
        for key in keys::ALL.iter().filter(|key| !key.name().starts_with("exec")) {
            let value = match key {
                AnyKey::Integer(Key { form, .. }) if form.default == form.max => (form.max - 1).to_string(),
                AnyKey::Integer(Key { form, .. }) => (form.default + 1).to_string(),
                AnyKey::Derived(Key { form, .. }) => (form.min + 1).to_string(),
                AnyKey::Boolean(key) if key.name == keys::OFFER_RELAY.name => relay.to_string(),
                AnyKey::Boolean(Key { form, .. }) => (!form.default).to_string(),
                AnyKey::Text(key) if key.name == keys::MODE.name => "\"userspace\"".to_owned(),
                AnyKey::Text(key) if key.name == keys::SOCKET.name => "\"/run/admin.sock\"".to_owned(),
                AnyKey::Text(key) if key.name == keys::BPFFS.name => "\"\"".to_owned(),
                AnyKey::Text(key) if key.name == keys::METRICS_LISTEN.name => "\"127.0.0.1:9433\"".to_owned(),
                AnyKey::List(Key { form, .. }) => form.example.replace("atlas_...", NODE),
                AnyKey::Text(_) | AnyKey::Tables(_) => continue,
            };
            text.push_str(&format!("{} = {value}\n", key.name()));
        }
        let to = format!("peer = \"{NODE}\"\nto = \"127.0.0.1:1\"\n");
        format!("{text}[[agent.allow]]\n{to}[[agent.forward]]\nlisten = \"127.0.0.1:2\"\n{to}")
    }

    #[test]
    fn every_key_is_applied_or_needs_a_restart_as_the_table_says() {
        for (relay, role) in [(true, Role::Relay), (false, Role::Agent)] {
            let is_relay = format!("transport.enable_relay = true\ntransport.offer_relay = {relay}\n");
            let mut present = config(&is_relay);
            let new = config(&everything_else(relay));
            let reloaded = Reloaded::apply(&mut present, &new);
            let told = |changes: &[Change]| -> Vec<String> {
                changes.iter().map(|change| change.key.clone()).collect()
            };
            let expected = |when: When| -> Vec<String> {
                let of_this_role = match role {
                    Role::Relay => Of::Relay,
                    Role::Agent => Of::Agent,
                };
                let concerns = |key: &&AnyKey| key.of() == of_this_role || key.of() == Of::Both;
                // These decide the role, or have but one value, or stand in the tables of another.
                let fixed = |name: &str| {
                    [keys::ENABLE_RELAY.name, keys::OFFER_RELAY.name, keys::EXEC_ENABLED.name].contains(&name)
                        || name.split('.').count() > 2
                };
                let keys = keys::ALL.iter().filter(concerns).filter(|key| key.when() == when);
                keys.map(|key| key.name().to_owned()).filter(|name| !fixed(name)).collect()
            };
            assert_eq!(told(&reloaded.applied), expected(When::Live));
            assert_eq!(told(&reloaded.needs_restart), expected(When::Restart));
            // What was applied is in effect, and is known to come from the file.
            assert_eq!(present.changes_to(&new), reloaded.needs_restart);
            for Change { key, .. } in &reloaded.applied {
                assert_eq!(present.origins.of(key), new.origins.of(key), "{key}");
                assert_ne!(present.origins.of(key), Origin::Default, "{key}");
            }
        }
    }

    #[test]
    fn every_key_that_has_an_effect_is_shown_with_the_default_that_the_table_has() {
        let shown: Vec<&str> = config("").values().into_iter().map(|(key, _)| key).collect();
        let stands_in_tables = |name: &str| name.split('.').count() > 2;
        let effective: Vec<&str> = keys::ALL
            .iter()
            .filter(|key| !matches!(key.of(), Of::Nothing(_)) && !stands_in_tables(key.name()))
            .map(|key| key.name())
            .collect();
        assert_eq!(shown, effective);
        for (name, value) in config("").values() {
            match keys::named(name).unwrap() {
                AnyKey::Integer(key) => assert_eq!(value.to_string(), key.form.default.to_string(), "{name}"),
                AnyKey::Boolean(key) => assert_eq!(value, Value::Boolean(key.form.default), "{name}"),
                AnyKey::List(_) | AnyKey::Tables(_) => assert_eq!(value, Value::List(Vec::new()), "{name}"),
                AnyKey::Text(key) if name == keys::MODE.name => {
                    assert_eq!(value.to_string(), key.form.default)
                }
                AnyKey::Text(_) | AnyKey::Derived(_) => {}
            }
        }
    }
}
