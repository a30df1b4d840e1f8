//! Where things are in this checkout.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Deserialize;

use crate::tool::Tool;

/// The checkout that the tasks work on.
#[derive(Clone, Debug)]
pub struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// The checkout this program was started from by cargo.
    ///
    /// # Errors
    /// cargo cannot tell where its target folder is.
    pub fn find() -> anyhow::Result<Self> {
        // cargo sets the variable for `cargo run` and `cargo test`; the constant is for a program started by hand.
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest.parent().context("xtask's folder has no parent")?.to_owned();
        let metadata = Tool::new(cargo())
            .words("metadata --no-deps --format-version 1")
            .in_directory(&root)
            .output()
            .context("cannot ask cargo for its target folder")?;
        let metadata: Metadata =
            serde_json::from_str(&metadata).context("cargo metadata names no target folder")?;
        Ok(Workspace { root, target: metadata.target_directory })
    }

    /// The top folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// cargo's target folder: `target`, or what the user's cargo configuration or `CARGO_TARGET_DIR` says.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// The XDP program as the linker leaves it, ready to be embedded.
    pub fn bpf_object(&self) -> PathBuf {
        self.target.join("bpf/relay.bpf.o")
    }

    /// The programs that test it.
    pub fn bpf_probe(&self) -> PathBuf {
        self.target.join("bpf/probe.bpf.o")
    }

    /// The programs of the benchmark.
    pub fn bpf_bench(&self) -> PathBuf {
        self.target.join("bpf/bench.bpf.o")
    }

    /// The daemon, agent and command line in one.
    pub fn relay_binary(&self) -> PathBuf {
        self.target.join("release/atlas-relay")
    }

    /// Where a tool that we build ourselves goes, so that it disappears with the target folder.
    pub fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }
}

/// What we read of `cargo metadata`.
#[derive(Deserialize)]
struct Metadata {
    target_directory: PathBuf,
}

/// The cargo that runs us, or the one on the path.
pub fn cargo() -> PathBuf {
    std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}
