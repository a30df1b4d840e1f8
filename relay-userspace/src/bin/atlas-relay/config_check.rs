//! `config check`: is the file sound, would a daemon start with it, and what does it make of this node?

use std::net::ToSocketAddrs as _;
use std::path::{Path, PathBuf};

use anyhow::bail;
use relay_userspace::config::{AtlasRoot, Config, HostPort, Role};
use relay_userspace::identity::NodeKey;
use relay_userspace::relay;

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
    Ok(())
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
