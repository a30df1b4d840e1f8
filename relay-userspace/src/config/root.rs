//! Where a node keeps what it owns.

use std::path::{Path, PathBuf};

/// The directory of a node: `$ATLAS_ROOT`, else `$HOME/.atlas`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtlasRoot(PathBuf);

/// Neither variable is set.
#[derive(Debug, thiserror::Error)]
#[error("neither ATLAS_ROOT nor HOME is set: set ATLAS_ROOT to the directory that holds keys/ and state/")]
pub struct RootError;

impl AtlasRoot {
    /// The root that the environment names.
    ///
    /// # Errors
    /// Neither `ATLAS_ROOT` nor `HOME` is set to something.
    pub fn from_env() -> Result<AtlasRoot, RootError> {
        let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        var("ATLAS_ROOT").or_else(|| Some(var("HOME")?.join(".atlas"))).map(AtlasRoot).ok_or(RootError)
    }

    /// The root at `path`.
    pub fn at(path: impl Into<PathBuf>) -> AtlasRoot {
        AtlasRoot(path.into())
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The node's Ed25519 key, PKCS#8 PEM, mode 0600.
    pub fn node_key(&self) -> PathBuf {
        self.0.join("keys/node-key.pem")
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.state("config.toml")
    }

    /// Name, bio and skills of the node.
    pub fn profile(&self) -> PathBuf {
        self.state("identity.json")
    }

    /// The keys that relays showed at first use, one a line.
    pub fn known_relays(&self) -> PathBuf {
        self.state("known_relays")
    }

    /// Who is banned at a relay, for its next start.
    pub fn bans(&self) -> PathBuf {
        self.state("bans.json")
    }

    /// The running daemon's admin socket, unless `[admin] socket` names another.
    pub fn admin_socket(&self) -> PathBuf {
        self.state("admin.sock")
    }

    fn state(&self, name: &str) -> PathBuf {
        self.0.join("state").join(name)
    }
}
