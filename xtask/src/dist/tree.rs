//! A tree of files that a package is made from: every mode is said, so that neither the umask nor the checkout has a say.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// A tree of files below a folder.
pub struct Tree {
    root: PathBuf,
}

impl Tree {
    /// An empty tree at `root`. What was there is gone.
    pub fn new(root: PathBuf) -> anyhow::Result<Self> {
        if root.exists() {
            std::fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))?;
        }
        let tree = Tree { root };
        tree.directory(Path::new(""))?;
        Ok(tree)
    }

    /// What is at `root` already.
    pub fn existing(root: PathBuf) -> Self {
        Tree { root }
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Copies `from` to `to` in the tree.
    pub fn copy(&self, from: &Path, to: &str, mode: u32) -> anyhow::Result<()> {
        let content = std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.write(to, &content, mode)
    }

    /// Writes `content` to `to` in the tree.
    pub fn write(&self, to: &str, content: &[u8], mode: u32) -> anyhow::Result<()> {
        let path = self.place(to)?;
        std::fs::write(&path, content)
            .and_then(|()| std::fs::set_permissions(&path, Permissions::from_mode(mode)))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Makes `to` in the tree a link to `target`.
    pub fn link(&self, to: &str, target: &str) -> anyhow::Result<()> {
        let path = self.place(to)?;
        symlink(target, &path).with_context(|| format!("cannot make the link {}", path.display()))
    }

    /// The paths of all files and links in the tree, sorted.
    pub fn files(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        let mut folders = vec![self.root.clone()];
        while let Some(folder) = folders.pop() {
            let entries =
                std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
            for entry in entries {
                let entry = entry?;
                let found = if entry.file_type()?.is_dir() { &mut folders } else { &mut files };
                found.push(entry.path());
            }
        }
        files.sort();
        Ok(files)
    }

    /// Where `to` is, in a folder that is there.
    fn place(&self, to: &str) -> anyhow::Result<PathBuf> {
        let to = Path::new(to);
        self.directory(to.parent().unwrap_or(Path::new("")))?;
        Ok(self.root.join(to))
    }

    fn directory(&self, relative: &Path) -> anyhow::Result<()> {
        let mut path = self.root.clone();
        let parts = relative.iter().map(Some);
        for part in std::iter::once(None).chain(parts) {
            path.extend(part);
            std::fs::create_dir_all(&path)
                .and_then(|()| std::fs::set_permissions(&path, Permissions::from_mode(0o755)))
                .with_context(|| format!("cannot create {}", path.display()))?;
        }
        Ok(())
    }
}
