//! Attaches the XDP program to an interface and detaches it, for development: through the daemon's own commands.

use anyhow::Context as _;

use crate::build;
use crate::setup::{Consent, Purpose};
use crate::tool::Tool;
use crate::workspace::Workspace;

/// Builds, then attaches the program to `interface` in `mode` (`native` or `generic`; `None`: the daemon's default).
///
/// # Errors
/// The build failed, or the interface refused the program.
pub fn load(workspace: &Workspace, interface: &str, mode: Option<&str>) -> anyhow::Result<()> {
    let built = build::build(workspace, Purpose::Build, Consent::Install)?;
    mount_bpffs()?;
    let mut load = Tool::new(built.relay_binary).words("xdp load --interface").arg(interface);
    if let Some(mode) = mode {
        load = load.args(["--mode", mode]);
    }
    load.stream()
}

/// Builds, then detaches the program from `interface`.
///
/// # Errors
/// The build failed, or nothing of ours is attached there.
pub fn unload(workspace: &Workspace, interface: &str) -> anyhow::Result<()> {
    let built = build::build(workspace, Purpose::Build, Consent::Install)?;
    Tool::new(built.relay_binary).words("xdp unload --interface").arg(interface).stream()
}

/// Makes sure that there is a file system for what keeps the program attached. systemd mounts it; containers and small
/// systems lack it.
///
/// # Errors
/// The mounts cannot be read, or mounting is not permitted.
pub fn mount_bpffs() -> anyhow::Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    let mut mounts = mounts.lines().map(|mount| mount.split(' ').skip(1).take(2));
    if mounts.any(|mount| mount.eq(["/sys/fs/bpf", "bpf"])) {
        return Ok(());
    }
    Tool::new("mount").words("-t bpf bpf /sys/fs/bpf").output()?;
    Ok(())
}
