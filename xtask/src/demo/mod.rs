//! `cargo xtask demo`: the product at work, end to end, and what happened in figures.

mod report;
mod scenario;

use std::fs::File;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::ValueEnum;

use crate::build;
use crate::deployment::{Hosts, Reached};
use crate::lab::{Family, Host, Lab, RELAY_ADDRESSES, RELAY_INTERFACE};
use crate::setup::{Consent, Purpose};
use crate::test::RELAY_BINARY;
use crate::workspace::Workspace;
use crate::{syscall, terminal};

pub use report::{Report, Run};
pub use scenario::{Scene, play};

/// What forwards the relayed packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Datapath {
    /// The XDP program in the network driver.
    XdpNative,
    /// The XDP program behind the driver, on any interface.
    XdpGeneric,
    /// The daemon itself.
    Userspace,
}

impl Datapath {
    const ALL: [Datapath; 3] = [Datapath::XdpNative, Datapath::XdpGeneric, Datapath::Userspace];

    /// Its name in options, logs and reports.
    pub fn name(self) -> &'static str {
        match self {
            Datapath::XdpNative => "xdp-native",
            Datapath::XdpGeneric => "xdp-generic",
            Datapath::Userspace => "userspace",
        }
    }
}

/// Which versions of IP the agents speak to the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// IPv4, both.
    Ipv4,
    /// IPv6, both.
    Ipv6,
    /// IPv4 the one that connects, IPv6 the other: the relay translates.
    Ipv4Ipv6,
}

impl Addresses {
    const ALL: [Addresses; 3] = [Addresses::Ipv4, Addresses::Ipv6, Addresses::Ipv4Ipv6];

    /// Their name in logs and reports.
    pub fn name(self) -> &'static str {
        match self {
            Addresses::Ipv4 => "ipv4",
            Addresses::Ipv6 => "ipv6",
            Addresses::Ipv4Ipv6 => "ipv4-ipv6",
        }
    }

    fn families(self) -> [Family; 2] {
        match self {
            Addresses::Ipv4 => [Family::V4, Family::V4],
            Addresses::Ipv6 => [Family::V6, Family::V6],
            Addresses::Ipv4Ipv6 => [Family::V4, Family::V6],
        }
    }

    /// Those that are shown with `datapath`: what differs between them is the program's work, so once is enough.
    fn shown_with(datapath: Datapath) -> &'static [Addresses] {
        if datapath == Datapath::XdpNative { &Addresses::ALL } else { &[Addresses::Ipv4] }
    }
}

/// Runs the demo with each of `datapaths` (none: all), prints the table and writes it as JSON to `report`.
///
/// # Errors
/// Something could not be set up, or a run ended with another verdict than ok.
pub fn run(datapaths: &[Datapath], report: Option<&Path>) -> anyhow::Result<()> {
    let datapaths = if datapaths.is_empty() { &Datapath::ALL } else { datapaths };
    // Before the run: it takes minutes, and must not be in vain.
    let report = report.map(|path| Ok::<_, anyhow::Error>((path, open_report(path)?))).transpose()?;
    let result = if syscall::is_root() {
        run_in_lab(&relay_binary()?, datapaths)?
    } else {
        run_on_loopback(datapaths)?
    };

    terminal::result(result.table());
    if let Some((path, mut file)) = report {
        let json = serde_json::to_string_pretty(&result)? + "\n";
        let written = file.set_len(0).and_then(|()| file.write_all(json.as_bytes()));
        written.with_context(|| format!("cannot write {}", path.display()))?;
        terminal::progress(format!("wrote {}", path.display()));
    }
    if !result.is_ok() {
        bail!("not every run went as it should: see the verdicts above");
    }
    Ok(())
}

/// What is there already stays until there is something to put in its place.
fn open_report(path: &Path) -> anyhow::Result<File> {
    let opened = File::options().create(true).truncate(false).write(true).open(path);
    opened.with_context(|| format!("cannot write {}", path.display()))
}

/// The relay's binary: the one that [`RELAY_BINARY`] names, as for the tests, else one that is built now. Without root it
/// is built with what is here.
fn relay_binary() -> anyhow::Result<PathBuf> {
    match std::env::var_os(RELAY_BINARY) {
        Some(built) => Ok(built.into()),
        None if syscall::is_root() => {
            Ok(build::build(&Workspace::find()?, Purpose::Lab, Consent::Install)?.relay_binary)
        }
        None => build::build_with_what_is_here(&Workspace::find()?),
    }
}

fn run_in_lab(binary: &Path, datapaths: &[Datapath]) -> anyhow::Result<Report> {
    let mut runs = Vec::new();
    let scenes = datapaths.iter().flat_map(|datapath| {
        Addresses::shown_with(*datapath).iter().map(|addresses| (*datapath, *addresses))
    });
    for (datapath, addresses) in scenes {
        terminal::progress(format!(
            "{}, {}: building the lab (6 network namespaces, 2 NAT routers)",
            datapath.name(),
            addresses.name()
        ));
        let lab = Lab::up()?;
        let scene = Scene {
            datapath,
            addresses,
            hosts: Hosts::of(&lab)?,
            reached: Reached::by(addresses.families(), RELAY_ADDRESSES, 4433),
            served: SocketAddr::from((Ipv4Addr::LOCALHOST, 9000)),
            forwarded: SocketAddr::from((Ipv4Addr::LOCALHOST, 9001)),
            interface: Some(RELAY_INTERFACE),
            binary,
            directory: lab.directory(),
        };
        let mut run = play(&scene)?;
        let invalid = lab.invalid_packets_at_nats()?;
        if invalid > 0 {
            run.complain(format!("{invalid} packets were invalid at the NATs: wrong checksums"));
        }
        runs.push(run);
    }
    Ok(Report { runs, notes: Vec::new() })
}

fn run_on_loopback(datapaths: &[Datapath]) -> anyhow::Result<Report> {
    if !datapaths.contains(&Datapath::Userspace) {
        bail!(
            "without root only `--datapath userspace` can run; the XDP datapaths need root: {WHAT_ROOT_IS_FOR}"
        );
    }
    terminal::progress("not root: the userspace datapath alone, on loopback");
    let binary = relay_binary()?;
    let directory = TemporaryDirectory::create()?;
    let scene = Scene {
        datapath: Datapath::Userspace,
        addresses: Addresses::Ipv4,
        hosts: Hosts { relay: Host::here(), connector: Host::here(), target: Host::here() },
        reached: UdpSocket::bind(ANY_PORT).and_then(|socket| socket.local_addr())?.into(),
        served: TcpListener::bind(ANY_PORT).and_then(|socket| socket.local_addr())?,
        forwarded: TcpListener::bind(ANY_PORT).and_then(|socket| socket.local_addr())?,
        interface: None,
        binary: &binary,
        directory: &directory.0,
    };
    let run = play(&scene)?;
    let note = format!(
        "Without root this was the userspace datapath on loopback, without NAT. For xdp-native and xdp-generic run \
         `sudo cargo xtask demo`: {WHAT_ROOT_IS_FOR}."
    );
    Ok(Report { runs: vec![run], notes: vec![note] })
}

/// A port of the system's choice on loopback.
const ANY_PORT: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

const WHAT_ROOT_IS_FOR: &str = "network namespaces with their routers and NAT (CAP_SYS_ADMIN, CAP_NET_ADMIN), loading \
                                and attaching the XDP program (CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN), and installing \
                                Debian packages if the BPF toolchain, nftables, conntrack, socat or ethtool are \
                                missing";

/// A folder that goes when it is dropped.
struct TemporaryDirectory(PathBuf);

impl TemporaryDirectory {
    fn create() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("atlas-demo-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(TemporaryDirectory(path))
    }
}

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
