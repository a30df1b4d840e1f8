//! `config check`: is the file sound, would a daemon start with it, and what does it make of this node?

use std::net::ToSocketAddrs as _;
use std::path::{Path, PathBuf};

use anyhow::bail;
use relay_userspace::admin::{self, Request};
use relay_userspace::config::{AtlasRoot, Config, HostPort, Role};
use relay_userspace::identity::NodeKey;
use relay_userspace::relay;
use relay_userspace::relay::datapath::LAYOUT;
use relay_userspace::relay::report::Status;

use crate::{node, output};

pub fn run(path: Option<PathBuf>) -> anyhow::Result<()> {
    let root = AtlasRoot::from_env()?;
    let path = path.unwrap_or_else(|| root.config());
    let config = Config::load(&path, &root)?;
    let obstacles = obstacles(&config, &path, &root);
    if !obstacles.is_empty() {
        bail!("{}", obstacles.join("; and "));
    }
    for warning in &config.warnings {
        output::line(format_args!("{}:{warning}", path.display()));
    }
    let role = match config.role() {
        Role::Relay => "a relay",
        Role::Agent => "an agent",
    };
    output::line(format_args!("{}: sound; it makes {role}", path.display()));
    // Nobody answers if none runs, or this user may not ask.
    if config.role() == Role::Relay
        && let Ok(answer) = admin::ask(&config.admin.socket, Request::Status)
        && let Ok(status) = serde_json::from_value(answer)
    {
        output::line(format_args!("the relay that runs: {}", what_a_restart_does(&status)));
    }
    Ok(())
}

/// What becomes of a running relay's sessions if this program takes its place, said before it does.
fn what_a_restart_does(status: &Status) -> String {
    let Status { layout, kept_by, survives_restart, table, .. } = status;
    let sessions = table.sessions;
    if sessions == 0 {
        "it has no sessions that a restart could end".to_owned()
    } else if !survives_restart {
        format!(
            "a restart ends its {sessions} sessions, which are kept by {kept_by}; `atlas-relay drain` first loses none"
        )
    } else if *layout != LAYOUT {
        format!(
            "a restart with this program ends its {sessions} sessions, since its tables have layout {layout} and this \
             program's layout {LAYOUT}; `atlas-relay drain` first loses none"
        )
    } else {
        format!("a restart with this program goes on with its {sessions} sessions, kept by {kept_by}")
    }
}

/// What a daemon with this configuration would trip over, each with what to do.
fn obstacles(config: &Config, path: &Path, root: &AtlasRoot) -> Vec<String> {
    let mut obstacles = Vec::new();
    if let Err(error) = NodeKey::load(&root.node_key()) {
        obstacles.push(error.to_string());
    }
    for node in &config.network.bootstrap {
        if let Err(error) = resolve(node) {
            obstacles.push(format!("{}: network.bootstrap: {node}: {error}", path.display()));
        }
    }
    match config.role() {
        Role::Relay => {
            if let Some(listen) = &config.metrics.listen
                && let Err(error) = resolve(listen)
            {
                obstacles.push(format!("{}: metrics.listen: {listen}: {error}", path.display()));
            }
            if let Err(error) = relay::check_interfaces(&config.datapath) {
                obstacles.push(format!("{}: datapath.interfaces: {error}", path.display()));
            }
        }
        Role::Agent => {
            if let Err(error) = node::check_agent(config, path) {
                obstacles.push(error.to_string());
            }
            for relay in &config.network.relays {
                if let Err(error) = resolve(&relay.at) {
                    obstacles.push(format!("{}: network.relays: {relay}: {error}", path.display()));
                }
            }
        }
    }
    obstacles
}

fn resolve(node: &HostPort) -> Result<(), String> {
    let resolved = (node.host(), node.port()).to_socket_addrs();
    let mut addresses = resolved.map_err(|error| format!("the name does not resolve: {error}"))?;
    addresses.next().map(drop).ok_or_else(|| "the name has no address".to_owned())
}

#[cfg(test)]
mod tests {
    use relay_userspace::relay::report::Table;

    use super::*;

    #[test]
    fn what_a_restart_would_lose_is_said_before_it() {
        let status = Status {
            layout: LAYOUT,
            kept_by: "pins".to_owned(),
            survives_restart: true,
            table: Table { sessions: 12, ..Table::default() },
            ..Status::default()
        };
        assert!(what_a_restart_does(&status).contains("goes on with its 12 sessions"));
        let other = what_a_restart_does(&Status { layout: LAYOUT + 1, ..status.clone() });
        assert!(
            other.contains("ends its 12 sessions") && other.contains("layout 2") && other.contains("drain")
        );
        let unkept = what_a_restart_does(&Status {
            survives_restart: false,
            kept_by: "nobody: x".to_owned(),
            ..status
        });
        assert!(unkept.contains("ends its 12 sessions") && unkept.contains("nobody: x"), "{unkept}");
        let empty = what_a_restart_does(&Status::default());
        assert!(empty.contains("no sessions"), "{empty}");
    }
}
