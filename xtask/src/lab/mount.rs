//! A file system that goes when its handle is dropped.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::terminal;
use crate::tool::Tool;

/// A file system of the lab.
pub struct Mount {
    path: PathBuf,
}

impl Mount {
    /// Mounts a new file system of `kind` with `options` at `path`, where a folder is made for it.
    ///
    /// # Errors
    /// The folder cannot be made, or `mount` failed.
    pub fn new(kind: &str, options: &str, path: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
        Tool::new("mount").args(["-t", kind, "-o", options, "lab"]).arg(path).output()?;
        Ok(Mount { path: path.to_owned() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.path) {
            terminal::progress(format!("{} stays behind: {error:#}", self.path.display()));
        }
    }
}

/// Unmounts every file system below `directory`.
pub(super) fn unmount_below(directory: &Path) -> anyhow::Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(Path::new);
    points.filter(|point| point.starts_with(directory)).try_for_each(unmount)
}

/// Whoever still has files open there keeps them, but nobody finds it any more.
fn unmount(path: &Path) -> anyhow::Result<()> {
    Tool::new("umount").arg("--lazy").arg(path).output()?;
    Ok(())
}
