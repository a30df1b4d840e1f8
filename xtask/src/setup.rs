//! What a task needs from the machine, and getting it there.

use std::process::Stdio;

use anyhow::bail;

use crate::tool::{Tool, find};
use crate::{syscall, terminal};

/// Whether a task may change the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consent {
    /// Install what is missing.
    Install,
    /// Print the commands that would install it, and fail.
    ShowCommands,
}

/// A Debian package.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Package {
    /// Its name in Debian and Ubuntu.
    pub name: String,
    /// What we need it for.
    pub purpose: &'static str,
}

impl Package {
    /// A package and what it is for.
    pub fn new(name: impl Into<String>, purpose: &'static str) -> Self {
        Package { name: name.into(), purpose }
    }
}

/// The packages of the lab whose programs are not on this machine.
pub fn missing_lab_packages() -> Vec<Package> {
    let programs = [
        ("ip", "iproute2", "the lab's network namespaces"),
        ("nft", "nftables", "the lab's NAT routers"),
        ("ethtool", "ethtool", "offload settings in the lab"),
        ("tcpdump", "tcpdump", "captures at the agents"),
        ("socat", "socat", "the TCP programs at both ends of a forward"),
    ];
    programs
        .into_iter()
        .filter(|(program, ..)| find(program).is_none())
        .map(|(_, package, purpose)| Package::new(package, purpose))
        .collect()
}

/// Whether Debian's package `name` is installed.
pub fn is_installed(name: &str) -> bool {
    Tool::new("dpkg-query")
        .args(["--show", "--showformat=${Status}", name])
        .output()
        .is_ok_and(|status| status.trim() == "install ok installed")
}

/// Whether apt could install something here: Debian or Ubuntu, as root.
pub fn can_use_apt() -> bool {
    syscall::is_root() && find("apt-get").is_some()
}

/// Fetches the present package lists, so that what is asked of apt next is answered from them.
///
/// # Errors
/// apt failed.
pub fn refresh_package_lists() -> anyhow::Result<()> {
    terminal::progress("fetching the package lists");
    let refresh = refresh_command();
    refresh.output_of(refresh.command().stderr(Stdio::inherit()))?;
    Ok(())
}

/// Installs `packages`, or shows how.
///
/// # Errors
/// Something is missing and `consent` is [`Consent::ShowCommands`], or this is no place where apt works, or apt failed.
pub fn install(packages: &[Package], consent: Consent) -> anyhow::Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    list_missing(packages);
    let install = install_command(packages);
    if consent == Consent::ShowCommands {
        terminal::result(refresh_command().to_string());
        terminal::result(install.to_string());
        bail!("missing: {}", names(packages));
    }
    if !can_use_apt() {
        bail!(
            "missing: {}; on Debian or Ubuntu run as root: {} && {install}",
            names(packages),
            refresh_command()
        );
    }
    refresh_package_lists()?;
    install.stream()
}

/// Tells the user what is missing and what it is for.
pub fn list_missing(packages: &[Package]) {
    for package in packages {
        terminal::progress(format!("missing: {:14} {}", package.name, package.purpose));
    }
}

/// The command that fetches package lists.
pub fn refresh_command() -> Tool {
    Tool::new("apt-get").words("update --quiet")
}

/// The command that installs `packages`. It never removes one to make room.
pub fn install_command(packages: &[Package]) -> Tool {
    Tool::new("apt-get")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .words("install --yes --quiet --no-install-recommends --no-remove")
        .args(packages.iter().map(|package| &package.name))
}

fn names(packages: &[Package]) -> String {
    packages.iter().map(|package| package.name.as_str()).collect::<Vec<_>>().join(", ")
}
