//! Python with the packages of the agent on another QUIC stack: a virtual environment in the target folder.

use std::path::PathBuf;

use anyhow::Context as _;

use crate::setup::Package;
use crate::terminal;
use crate::tool::Tool;
use crate::workspace::Workspace;

/// The packages, with their versions and hashes.
const REQUIREMENTS: &str = "relay-userspace/tests/other_stack/requirements.txt";

/// Imports what the agent imports, so that an environment whose Python has been replaced is not taken for whole.
const PROBE: &str = "import aioquic.asyncio, cryptography.x509, msgpack";

/// The interpreter, if it is here with the packages as they are listed now.
pub fn find(workspace: &Workspace) -> Option<PathBuf> {
    let listed = std::fs::read(requirements(workspace)).ok()?;
    let installed = std::fs::read(record(workspace)).ok()?;
    let interpreter = interpreter(workspace);
    let works = || Tool::new(&interpreter).args(["-c", PROBE]).output().is_ok();
    (listed == installed && works()).then_some(interpreter)
}

/// The Debian package without which no environment can be made, if it is missing.
pub fn missing_package() -> Option<Package> {
    let can_make = Tool::new("python3").args(["-c", "import ensurepip, venv"]).output().is_ok();
    (!can_make).then(|| Package::new("python3-venv", "an agent on another QUIC stack, in Python"))
}

/// What makes the environment.
pub fn install_commands(workspace: &Workspace) -> [Tool; 2] {
    let make = Tool::new("python3").words("-m venv --clear").arg(environment(workspace));
    let install = Tool::new(interpreter(workspace))
        .words("-m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: --requirement")
        .arg(requirements(workspace));
    [make, install]
}

/// Makes the environment.
///
/// # Errors
/// A command failed.
pub fn install(workspace: &Workspace) -> anyhow::Result<()> {
    terminal::progress("installing Python packages below the target folder");
    for command in install_commands(workspace) {
        command.stream()?;
    }
    // Last: what was not installed to its end is not found.
    std::fs::copy(requirements(workspace), record(workspace)).context("cannot record what was installed")?;
    find(workspace).map(drop).context("the Python packages were installed, but do not work")
}

fn requirements(workspace: &Workspace) -> PathBuf {
    workspace.root().join(REQUIREMENTS)
}

fn environment(workspace: &Workspace) -> PathBuf {
    workspace.tools().join("python")
}

fn interpreter(workspace: &Workspace) -> PathBuf {
    environment(workspace).join("bin/python3")
}

fn record(workspace: &Workspace) -> PathBuf {
    environment(workspace).join("requirements.txt")
}
