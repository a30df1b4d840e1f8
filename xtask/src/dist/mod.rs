//! Packages of the relay: a tarball in upstream's form, a Debian package, and their checksums.
//!
//! From the same binary and commit they are the same, byte by byte: times are the commit's (`SOURCE_DATE_EPOCH`), entries
//! are sorted, owners are numbers, and compression has one thread.

mod debian;
mod tree;

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::build;
use crate::setup::{Consent, Purpose};
use crate::terminal;
use crate::tool::Tool;
use crate::workspace::Workspace;
use tree::Tree;

/// The version of everything in this workspace.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What is made for: the XDP program knows no other yet.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The variable that says which time everything in a package has, in seconds since 1970.
const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// The files that were made.
#[derive(Clone, Debug)]
pub struct Packages {
    /// `atlas-relay-VERSION-x86_64-unknown-linux-gnu.tar.xz`, with one top folder of that name.
    pub tarball: PathBuf,
    /// The Debian package.
    pub deb: PathBuf,
    /// SHA256SUMS of both.
    pub checksums: PathBuf,
}

/// Builds the relay, and makes the packages in `target/dist`.
///
/// # Errors
/// Something is missing and may not or cannot be installed, or a command failed.
pub fn run(workspace: &Workspace, consent: Consent) -> anyhow::Result<Packages> {
    let built = build::build(workspace, Purpose::Package, consent)?;
    make(workspace, &built.relay_binary, &workspace.target().join("dist"))
}

/// Makes the packages of `binary` in `directory`.
///
/// # Errors
/// A file cannot be read or written, a command failed, or it cannot be told which time the files are to have.
pub fn make(workspace: &Workspace, binary: &Path, directory: &Path) -> anyhow::Result<Packages> {
    terminal::progress(format!("packing into {}", directory.display()));
    let source = Source::prepare(workspace, binary, &directory.join("parts"))?;
    let tarball = make_tarball(&source, directory)?;
    let deb = debian::make(&source, directory)?;
    let checksums = directory.join("SHA256SUMS");
    let sums = Tool::new("sha256sum")
        .args([&tarball, &deb].map(|file| file.file_name().unwrap_or_default()))
        .in_directory(directory)
        .output()?;
    std::fs::write(&checksums, sums).with_context(|| format!("cannot write {}", checksums.display()))?;
    for parts in ["parts", "tarball", "deb"] {
        std::fs::remove_dir_all(directory.join(parts)).with_context(|| format!("cannot remove {parts}"))?;
    }
    Ok(Packages { tarball, deb, checksums })
}

/// What packages are made of.
struct Source {
    /// The checkout.
    root: PathBuf,
    /// The program without what only a debugger reads: a fifth of the size, and functions still have their names.
    program: PathBuf,
    /// The folder of man pages and completions.
    manual: PathBuf,
    /// Seconds since 1970.
    epoch: String,
}

impl Source {
    fn prepare(workspace: &Workspace, binary: &Path, parts: &Path) -> anyhow::Result<Self> {
        let parts = Tree::new(parts.to_owned())?;
        let program = parts.root().join("atlas-relay");
        Tool::new("strip").arg("--strip-debug").arg("-o").arg(&program).arg(binary).output()?;
        let manual = parts.root().join("manual");
        Tool::new(binary).arg("manual").arg(&manual).output()?;
        Ok(Source { root: workspace.root().to_owned(), program, manual, epoch: epoch(workspace.root())? })
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// Text of the checkout.
    fn text(&self, relative: &str) -> anyhow::Result<String> {
        let path = self.path(relative);
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }
}

/// The time of the commit, unless whoever builds says another.
fn epoch(root: &Path) -> anyhow::Result<String> {
    if let Ok(epoch) = std::env::var(EPOCH) {
        return Ok(epoch);
    }
    let time = Tool::new("git").words("log -1 --format=%ct").in_directory(root).output();
    let time = time.with_context(|| format!("this is no git checkout: set {EPOCH} to seconds since 1970"))?;
    Ok(time.trim().to_owned())
}

fn make_tarball(source: &Source, directory: &Path) -> anyhow::Result<PathBuf> {
    let name = format!("atlas-relay-{VERSION}-{TARGET}");
    let tree = Tree::new(directory.join("tarball"))?;
    let place = |path: &str| format!("{name}/{path}");
    tree.copy(&source.program, &place("atlas-relay"), 0o755)?;
    for path in DOCUMENTS.iter().chain(DEPLOYMENT).chain(LICENSES).chain(UNITS) {
        tree.copy(&source.path(path), &place(path), 0o644)?;
    }
    let tarball = directory.join(format!("{name}.tar.xz"));
    Tool::new("tar")
        .words("--create --format=ustar --sort=name --owner=0 --group=0 --numeric-owner")
        .arg(format!("--mtime=@{}", source.epoch))
        .arg("--use-compress-program=xz -6 --threads=1")
        .arg("--file")
        .arg(&tarball)
        .arg("--directory")
        .arg(tree.root())
        .arg(&name)
        .output()?;
    Ok(tarball)
}

/// What there is to read.
const DOCUMENTS: &[&str] = &["README.md", "CHANGELOG.md", "deploy/README.md"];

/// What an operator copies and changes.
const DEPLOYMENT: &[&str] = &[
    "deploy/config.example.toml",
    "deploy/firewall/firewalld.sh",
    "deploy/firewall/nftables.conf",
    "deploy/firewall/ufw.rules",
    "deploy/prometheus/alerts.yml",
];

const LICENSES: &[&str] = &["LICENSE-APACHE", "LICENSE-GPL-2.0", "LICENSE-MIT"];

const UNITS: &[&str] = &["deploy/systemd/atlas-relay.service", "deploy/systemd/atlas-agent.service"];
