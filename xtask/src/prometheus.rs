//! Prometheus and promtool, for the tests of what the relay tells: Debian's package, unpacked in the target folder. It is not
//! installed: that would start it.

use std::path::PathBuf;

use anyhow::Context as _;

use crate::terminal;
use crate::tool::{Tool, find as find_program};
use crate::workspace::Workspace;

/// The programs that tests run.
const PROGRAMS: [&str; 2] = ["prometheus", "promtool"];

/// The folder with both programs: of this machine, or unpacked.
pub fn find(workspace: &Workspace) -> Option<PathBuf> {
    let unpacked = unpacked(workspace).join("usr/bin");
    if PROGRAMS.iter().all(|program| unpacked.join(program).is_file()) {
        return Some(unpacked);
    }
    let folder = find_program(PROGRAMS[0])?.parent()?.to_owned();
    PROGRAMS.iter().all(|program| folder.join(program).is_file()).then_some(folder)
}

/// What unpacks them. It is complete or not there.
pub fn install_command(workspace: &Workspace) -> Tool {
    let script = "rm -rf \"$1.new\" && mkdir -p \"$1.new\" && cd \"$1.new\" && apt-get download --quiet prometheus \
                  && dpkg-deb --extract prometheus_*.deb . && rm prometheus_*.deb && rm -rf \"$1\" && mv \"$1.new\" \"$1\"";
    Tool::new("sh").args(["-c", script, "sh"]).arg(unpacked(workspace))
}

/// Unpacks them.
///
/// # Errors
/// A command failed.
pub fn install(workspace: &Workspace) -> anyhow::Result<()> {
    terminal::progress("unpacking Prometheus below the target folder");
    install_command(workspace).stream()?;
    find(workspace).map(drop).context("Prometheus was unpacked, but its programs are not there")
}

fn unpacked(workspace: &Workspace) -> PathBuf {
    workspace.tools().join("prometheus")
}
