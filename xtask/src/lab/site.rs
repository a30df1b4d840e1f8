//! Where a lab stands: its namespaces and its folder, which are known by their names when nobody is left to remove them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, bail};

use super::{Namespace, PREFIX, leftovers};
use crate::syscall;

/// A place for namespaces and for the files of their processes. Its lock is held as long as it lives: a free lock marks a
/// leftover.
pub struct Site {
    path: PathBuf,
    name: String,
    _lock: File,
}

impl Site {
    /// A place of its own, whatever other labs there are, after what killed runs have left behind was removed.
    ///
    /// # Errors
    /// This is not root, or the folder cannot be made.
    pub fn prepare() -> anyhow::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if !syscall::is_root() {
            bail!("the lab needs root: it creates network namespaces");
        }
        leftovers::remove()?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(&name);
        std::fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let lock = File::create(path.join("lock")).context("cannot create the lab's lock")?;
        lock.try_lock().context("cannot take the lab's lock")?;
        Ok(Site { path, name, _lock: lock })
    }

    /// A new namespace. Its role, without dashes, is its own on this site.
    ///
    /// # Errors
    /// `ip` failed.
    pub fn namespace(&self, role: &str) -> anyhow::Result<Namespace> {
        Namespace::create(&format!("{}-{role}", self.name))
    }

    /// The folder; it goes with the site.
    pub fn directory(&self) -> &Path {
        &self.path
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
