//! `id init`, `id show`, `id set-name`; `id rotate` is `id_rotate`.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;

use anyhow::Context as _;
use relay_userspace::config::{AtlasRoot, Profile};
use relay_userspace::identity::NodeKey;
use serde_json::json;

use crate::args::{Format, IdCommand};
use crate::{id_rotate, node, output};

pub fn run(command: &IdCommand) -> anyhow::Result<()> {
    let root = AtlasRoot::from_env()?;
    match command {
        IdCommand::Init => init(&root),
        IdCommand::Show(format) => show(&root, *format),
        IdCommand::Rotate(options) => id_rotate::run(&root, options),
        IdCommand::SetName { name } => set_name(&root, name),
    }
}

fn init(root: &AtlasRoot) -> anyhow::Result<()> {
    for path in [root.node_key(), root.config()] {
        if let Some(directory) = path.parent() {
            let private = DirBuilder::new().recursive(true).mode(0o700).create(directory);
            private.with_context(|| format!("cannot create {}", directory.display()))?;
        }
    }
    let key = NodeKey::generate()?;
    key.save_new(&root.node_key())?;
    output::line(format_args!("Node ID  : {}", key.node_id()));
    output::line(format_args!("Key      : {}", root.node_key().display()));
    Ok(())
}

fn show(root: &AtlasRoot, format: Format) -> anyhow::Result<()> {
    let node_id = NodeKey::load(&root.node_key())?.node_id();
    let Profile { name, bio, skills } = Profile::load(&root.profile())?;
    if format.json {
        return output::json(&json!({ "node_id": node_id, "name": name, "bio": bio, "skills": skills }));
    }
    output::line(format_args!("Node ID  : {node_id}"));
    output::line(format_args!("Name     : {name}"));
    output::line(format_args!("Bio      : {bio}"));
    output::line(format_args!("Skills   : {}", skills.join(", ")));
    output::line("Operator : (not linked)");
    Ok(())
}

fn set_name(root: &AtlasRoot, name: &str) -> anyhow::Result<()> {
    // A name is of somebody: without a key there is nobody yet.
    NodeKey::load(&root.node_key())?;
    let path = root.profile();
    let profile = Profile::load(&path)?.with_name(name)?;
    profile.save(&path)?;
    output::line(format_args!("Name     : {}", profile.name));
    // A name is set whatever is wrong with the configuration.
    if node::daemon_runs().unwrap_or(false) {
        output::line("the daemon that runs goes by the name that it started with, until it is started again");
    }
    Ok(())
}
