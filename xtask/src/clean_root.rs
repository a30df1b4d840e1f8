//! A Debian with nothing on it but systemd, as a folder, to take an operator's steps in: made by debootstrap from where this
//! machine's apt has its packages from.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::terminal;
use crate::tool::Tool;
use crate::workspace::Workspace;

/// What the commands of `deploy/README.md` need besides a minimal Debian.
const INCLUDED: &[&str] = &["systemd", "sudo", "procps", "xz-utils", "nftables"];

/// What single machines install on top of it: the packages lie in its apt's cache, with all that they need, and no other machine
/// has their programs. firewalld does not start without netbase's list of protocols, which all but a minimal Debian have.
const TO_INSTALL: &[&str] = &["firewalld", "netbase"];

/// The folder, if it has been made.
pub fn find(workspace: &Workspace) -> Option<PathBuf> {
    Some(path(workspace)).filter(|path| path.is_dir())
}

/// What makes it. It is complete or not there.
pub fn install_command(workspace: &Workspace) -> Tool {
    let script = "set -e; . /etc/os-release; rm -rf \"$1.new\" \"$1\"; mkdir -p \"$(dirname \"$1\")\"; \
                  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' \
                  \"Codename: $VERSION_CODENAME\" 'Component: main' | head -n 1); \
                  debootstrap --variant=minbase --include=\"$2\" \"$VERSION_CODENAME\" \"$1.new\" \"$mirror\" >\"$1.log\" 2>&1 \
                  || { tail -n 5 \"$1.log\" >&2; exit 1; }; \
                  rm -f \"$1.new\"/var/cache/apt/archives/*.deb; \
                  apt-get --option Dir::State::status=\"$1.new/var/lib/dpkg/status\" \
                  --option Dir::Cache::archives=\"$1.new/var/cache/apt/archives\" --option APT::Sandbox::User=root \
                  install --yes --quiet --no-install-recommends --download-only $3 >>\"$1.log\" 2>&1 \
                  || { tail -n 5 \"$1.log\" >&2; exit 1; }; mv \"$1.new\" \"$1\"";
    Tool::new("sh")
        .args(["-c", script, "sh"])
        .arg(path(workspace))
        .arg(INCLUDED.join(","))
        .arg(TO_INSTALL.join(" "))
}

/// Makes it.
///
/// # Errors
/// A command failed.
pub fn install(workspace: &Workspace) -> anyhow::Result<()> {
    terminal::progress("making a clean root below the target folder (a minute)");
    install_command(workspace).stream()?;
    find(workspace).map(drop).context("debootstrap has run, but there is no root")
}

/// One with other packages is another one.
fn path(workspace: &Workspace) -> PathBuf {
    let named = format!("clean-root-with-{}-to-install-{}", INCLUDED.join("-"), TO_INSTALL.join("-"));
    Path::new(&workspace.tools()).join(named)
}
