//! `config check`: is the file sound, and what does it make of this node?

use std::path::PathBuf;

use relay_userspace::config::{AtlasRoot, Config, Role};

use crate::output;

pub fn run(path: Option<PathBuf>) -> anyhow::Result<()> {
    let root = AtlasRoot::from_env()?;
    let path = path.unwrap_or_else(|| root.config());
    let config = Config::load(&path, &root)?;
    for warning in &config.warnings {
        output::line(format_args!("{}: {warning}", path.display()));
    }
    let role = match config.role() {
        Role::Relay => "a relay",
        Role::Agent => "an agent",
    };
    output::line(format_args!("{}: sound; it makes {role}", path.display()));
    Ok(())
}
