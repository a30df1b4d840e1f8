//! What the tasks need from the machine, and getting it there: one list of all that is missing, one way to install it.

use std::process::Stdio;

use anyhow::{Context as _, bail};

use crate::tool::{Tool, find};
use crate::toolchain::{self, Toolchain};
use crate::workspace::Workspace;
use crate::{clean_root, prometheus, python, syscall, terminal};

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

/// What a task is going to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Build the XDP program and the relay.
    Build,
    /// Make packages of the relay.
    Package,
    /// Run them in the lab as well.
    Lab,
    /// Run every test: the lab's, and those with programs that are not ours.
    Test,
    /// Measure them beside others.
    Bench,
}

/// Gets all there that `purpose` needs.
///
/// # Errors
/// Something is missing and cannot be installed here, or `consent` forbids it: one error names all of it.
pub fn provide(workspace: &Workspace, purpose: Purpose, consent: Consent) -> anyhow::Result<Toolchain> {
    if let Some(toolchain) = toolchain::find(workspace)
        && missing_programs(purpose).is_empty()
        && !lacks_python(workspace, purpose)
        && !lacks_prometheus(workspace, purpose)
        && !lacks_clean_root(workspace, purpose)
    {
        return Ok(toolchain);
    }
    let may_install = consent == Consent::Install && can_use_apt();
    if may_install {
        refresh_package_lists()?; // they tell which LLVM the packaged compiler has
    }
    let all_missing = missing(workspace, purpose);
    for package in &all_missing.packages {
        terminal::progress(format!("missing: {:14} {}", package.name, package.purpose));
    }
    if all_missing.linker.is_some() {
        terminal::progress("missing: bpf-linker     built for the compiler's LLVM");
    }
    if !all_missing.python.is_empty() {
        terminal::progress("missing: aioquic        an agent on another QUIC stack, in Python");
    }
    if all_missing.prometheus.is_some() {
        terminal::progress("missing: prometheus     what reads the relay's metrics in tests");
    }
    if all_missing.clean_root.is_some() {
        terminal::progress("missing: clean root     a Debian to install the package in");
    }
    if consent == Consent::ShowCommands {
        all_missing.commands().into_iter().for_each(terminal::result);
        bail!("something is missing; the commands above install it");
    }
    if all_missing.needs_apt() && !may_install {
        bail!("{}", all_missing.cannot_install());
    }
    if !all_missing.packages.is_empty() {
        install_command(&all_missing.packages).stream()?;
    }
    let still_missing = missing(workspace, purpose);
    if !still_missing.packages.is_empty() {
        bail!("{}", still_missing.cannot_install());
    }
    if let Some(install) = still_missing.linker {
        terminal::progress("building bpf-linker (one to two minutes)");
        install.stream()?;
    }
    if !still_missing.python.is_empty() {
        python::install(workspace)?;
    }
    if still_missing.prometheus.is_some() {
        prometheus::install(workspace)?;
    }
    if still_missing.clean_root.is_some() {
        clean_root::install(workspace)?;
    }
    toolchain::find(workspace).context("bpf-linker was installed, but does not run")
}

/// Gets there what the lab alone needs.
///
/// # Errors
/// As for [`provide`].
pub fn provide_lab_programs() -> anyhow::Result<()> {
    let packages = missing_programs(Purpose::Lab);
    if packages.is_empty() {
        return Ok(());
    }
    if !can_use_apt() {
        bail!("{}", Missing { packages, ..Missing::default() }.cannot_install());
    }
    refresh_package_lists()?;
    install_command(&packages).stream()
}

/// What is not here.
#[derive(Default)]
struct Missing {
    packages: Vec<Package>,
    /// The command that installs bpf-linker, if that is missing.
    linker: Option<Tool>,
    /// The commands that install the Python packages, if those are missing.
    python: Vec<Tool>,
    /// The command that unpacks Prometheus, if that is missing.
    prometheus: Option<Tool>,
    /// The command that makes a clean root, if that is missing.
    clean_root: Option<Tool>,
}

fn missing(workspace: &Workspace, purpose: Purpose) -> Missing {
    let mut missing = Missing { packages: missing_programs(purpose), ..Missing::default() };
    if toolchain::find(workspace).is_none() {
        let (packages, linker) = toolchain::missing(workspace);
        missing.packages.extend(packages);
        missing.linker = Some(linker);
    }
    if lacks_python(workspace, purpose) {
        missing.packages.extend(python::missing_package());
        missing.python.extend(python::install_commands(workspace));
    }
    if lacks_prometheus(workspace, purpose) {
        missing.prometheus = Some(prometheus::install_command(workspace));
    }
    if lacks_clean_root(workspace, purpose) {
        missing.clean_root = Some(clean_root::install_command(workspace));
    }
    missing
}

fn lacks_python(workspace: &Workspace, purpose: Purpose) -> bool {
    purpose == Purpose::Test && python::find(workspace).is_none()
}

fn lacks_prometheus(workspace: &Workspace, purpose: Purpose) -> bool {
    purpose == Purpose::Test && prometheus::find(workspace).is_none()
}

fn lacks_clean_root(workspace: &Workspace, purpose: Purpose) -> bool {
    purpose == Purpose::Test && clean_root::find(workspace).is_none()
}

/// The packages whose programs `purpose` needs and this machine has not.
fn missing_programs(purpose: Purpose) -> Vec<Package> {
    let packing = [
        ("strip", "binutils", "packages without what only a debugger reads"),
        ("xz", "xz-utils", "the tarball"),
        ("dpkg-deb", "dpkg", "the Debian package"),
    ];
    let programs = [
        ("ip", "iproute2", "the lab's network namespaces"),
        ("nft", "nftables", "the lab's NAT routers"),
        ("conntrack", "conntrack", "NATs that forget their mappings"),
        ("ethtool", "ethtool", "offload settings in the lab"),
        ("tcpdump", "tcpdump", "captures at the agents"),
        ("socat", "socat", "the TCP programs at both ends of a forward"),
        ("systemd-analyze", "systemd", "what systemd makes of the unit files"),
        ("c++", "g++", "the engine of the fuzz targets, which CI compiles"),
    ];
    let comparing = [("turnserver", "coturn", "a relay to compare with")];
    let installing = [
        ("debootstrap", "debootstrap", "a clean root to install the package in"),
        ("ufw", "ufw", "the firewall rules for ufw"),
        ("zsh", "zsh", "the completions for zsh"),
        ("fish", "fish", "the completions for fish"),
        ("sysctl", "procps", "settings that pages have operators make"),
    ];
    let needed: &[&[_]] = match purpose {
        Purpose::Build => &[],
        Purpose::Package => &[&packing],
        Purpose::Lab => &[&programs],
        Purpose::Test => &[&programs, &packing, &installing],
        Purpose::Bench => &[&programs, &comparing],
    };
    needed
        .iter()
        .copied()
        .flatten()
        .copied()
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
fn can_use_apt() -> bool {
    syscall::is_root() && find("apt-get").is_some()
}

fn refresh_package_lists() -> anyhow::Result<()> {
    terminal::progress("fetching the package lists");
    let refresh = refresh_command();
    refresh.output_of(refresh.command().stderr(Stdio::inherit()))?;
    Ok(())
}

fn refresh_command() -> Tool {
    Tool::new("apt-get").words("update --quiet")
}

/// Never removes a package to make room for another.
fn install_command(packages: &[Package]) -> Tool {
    Tool::new("apt-get")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .words("install --yes --quiet --no-install-recommends --no-remove")
        .args(packages.iter().map(|package| &package.name))
}

impl Missing {
    /// Whether apt has to fetch something.
    fn needs_apt(&self) -> bool {
        !self.packages.is_empty() || self.prometheus.is_some() || self.clean_root.is_some()
    }

    /// What a user would type.
    fn commands(&self) -> Vec<String> {
        let mut commands = Vec::new();
        if self.needs_apt() {
            commands.push(refresh_command().to_string());
        }
        if !self.packages.is_empty() {
            commands.push(install_command(&self.packages).to_string());
        }
        let others = self.linker.iter().chain(&self.python).chain(&self.prometheus).chain(&self.clean_root);
        commands.extend(others.map(Tool::to_string));
        commands
    }

    /// The one error for a machine where we cannot install: all that is missing, and the ways to get it.
    fn cannot_install(&self) -> String {
        let mut missing: Vec<&str> = self.packages.iter().map(|package| package.name.as_str()).collect();
        missing.extend(self.linker.as_ref().map(|_| "bpf-linker"));
        missing.extend(self.python.first().map(|_| "aioquic"));
        missing.extend(self.prometheus.as_ref().map(|_| "prometheus"));
        missing.extend(self.clean_root.as_ref().map(|_| "a clean root"));
        let mut text = format!(
            "missing: {}. On Debian or Ubuntu, as root:\n  {}",
            missing.join(", "),
            self.commands().join("\n  ")
        );
        if self.packages.iter().any(|package| package.name == toolchain::PACKAGED_COMPILER) {
            text.push_str(
                "\nWithout apt, a compiler is also: rustup toolchain install nightly --component rust-src",
            );
        }
        if self.linker.is_some() {
            text.push_str(
                "\nWithout all that, `cargo build --release` builds a relay that has the userspace datapath only.",
            );
        }
        text
    }
}
