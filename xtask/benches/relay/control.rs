//! Section 6: what agents cost a relay before anything is relayed.
//!
//! Whole handshakes (QUIC, mutual TLS and the four documented messages) by the daemon as it is, log included, against quinn
//! with the same TLS and nothing after it; then pairings among announced agents. Servers are processes on one CPU, agents
//! use the other, and only the CPU time of the servers counts.

mod agents;
pub mod bare_quic;
mod pairings;

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use relay_userspace::identity::NodeKey;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use xtask::lab::{Host, Process};
use xtask::test::RELAY_BINARY;
use xtask::tool::Tool;

use crate::Bench;
use crate::cpu;
use crate::report::Report;
use crate::rounds::{Candidate, Samples, in_turns};
use agents::{Kind, Server, connect_again_and_again};
use bare_quic::BareQuic;
use pairings::{Announced, PAIRINGS, Paired, Until};

/// How long agents connect to one server in one round.
const SPAN: Duration = Duration::from_secs(1);

/// The rows that are compared.
const BARE: &str = "bare quinn, mutual TLS";
const RELAY: &str = "relay, agent's handshake";

/// Both servers' key.
pub fn server_key() -> NodeKey {
    NodeKey::from_seed(&[200; 32])
}

/// Measures handshakes and pairings.
pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    // A thread of its own: it stays on one CPU.
    std::thread::scope(|scope| {
        let measuring = scope.spawn(|| measure(bench, report));
        measuring.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn measure(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let [servers, clients] = cpu::two()?;
    cpu::stay_on(clients)?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let directory = tempfile::tempdir().context("a directory for keys and logs")?;
    let bare = Measured::bare(BareQuic::Plain, servers, directory.path())?;
    let bare_no_mtu = Measured::bare(BareQuic::NoMtuDiscovery, servers, directory.path())?;
    let relay = Measured::relay(servers, directory.path())?;

    let rounds = if bench.is_quick { 2 } else { 8 };
    let samples = in_turns(
        rounds,
        &mut [
            Candidate::new("bare quinn", || bare.handshakes(&runtime)),
            Candidate::new("bare quinn, no MTU discovery", || bare_no_mtu.handshakes(&runtime)),
            Candidate::new("relay", || relay.handshakes(&runtime)),
        ],
    )?;
    let unit = "handshakes/CPU s";
    let lean = format!("{BARE}, no MTU discovery");
    report.add(BARE, unit, &samples[0]);
    report.add_beside(lean.as_str(), unit, &samples[1], BARE, &samples[0]);
    report.add_beside(RELAY, unit, &samples[2], BARE, &samples[0]);
    report.add_beside(RELAY, unit, &samples[2], &lean, &samples[1]);

    let mut batch = 0;
    let mut pairings = |until| {
        batch += 1;
        relay.pairings(&runtime, until, batch)
    };
    let mut both = Vec::new();
    for _ in 0..rounds {
        both.push([pairings(Until::Offered)?, pairings(Until::Bound)?]);
    }
    let unit = "pairings/CPU s";
    for (column, name) in ["relay, pairing, offered", "relay, pairing, both bound"].into_iter().enumerate() {
        let samples = Samples(both.iter().map(|round| round[column]).collect());
        report.add(name, unit, &samples);
    }
    Ok(())
}

/// A server in a process of its own.
struct Measured {
    process: Process,
    server: Server,
}

impl Measured {
    fn new(process: Process, port: u16, kind: Kind) -> Measured {
        let server = Server { address: (Ipv4Addr::LOCALHOST, port).into(), key: server_key().public(), kind };
        Measured { process, server }
    }

    fn bare(kind: BareQuic, cpu: usize, directory: &Path) -> anyhow::Result<Measured> {
        let (process, port) = kind.start(cpu, directory)?;
        Ok(Measured::new(process, port, Kind::Bare))
    }

    /// The relay's daemon with room for the agents of this section, on CPU `cpu` alone.
    fn relay(cpu: usize, directory: &Path) -> anyhow::Result<Measured> {
        let binary = std::env::var_os(RELAY_BINARY)
            .map(PathBuf::from)
            .with_context(|| format!("no relay in {RELAY_BINARY}: run `cargo xtask bench`"))?;
        let root = directory.join("relay-root");
        for folder in ["keys", "state"] {
            fs::create_dir_all(root.join(folder))?;
        }
        server_key().save_new(&root.join("keys/node-key.pem"))?;
        fs::write(root.join("state/config.toml"), CONFIG)?;
        // Nobody has it at the moment.
        let port = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.local_addr()?.port();
        let tool = Tool::new("taskset")
            .args(["--cpu-list", &cpu.to_string()])
            .arg(binary)
            .words("net listen --port")
            .arg(port.to_string())
            .env("ATLAS_ROOT", &root)
            .without_env("RUST_LOG");
        let mut process = Host::here().start(&tool, directory, "relay")?;
        let listens = |process: &Process| process.log().contains("relay listening").then_some(());
        process.wait_until("the listener", Duration::from_secs(10), listens)?;
        Ok(Measured::new(process, port, Kind::Relay))
    }

    /// Handshakes for each second of the server's CPU time.
    fn handshakes(&self, runtime: &Runtime) -> anyhow::Result<f64> {
        let before = cpu::time_of_process(self.process.id())?;
        let made = runtime.block_on(connect_again_and_again(self.server, SPAN))?;
        Ok(made as f64 / (cpu::time_of_process(self.process.id())? - before))
    }

    /// Pairings for each second of the server's CPU time.
    fn pairings(&self, runtime: &Runtime, until: Until, batch: u8) -> anyhow::Result<f64> {
        runtime.block_on(async {
            let announced = Announced::connect(self.server, batch).await?;
            let before = cpu::time_of_process(self.process.id())?;
            let paired = announced.pair(until).await?;
            let spent = cpu::time_of_process(self.process.id())? - before;
            // All at once: each takes a while to acknowledge the relay's last word.
            let mut ending: JoinSet<_> = paired.into_iter().map(Paired::end).collect();
            while let Some(ended) = ending.join_next().await {
                ended??;
            }
            Ok(PAIRINGS as f64 / spent)
        })
    }
}

/// One source may have a quarter of the connections.
const CONFIG: &str = "[transport]\nenable_relay = true\noffer_relay = true\nmax_connections = 4000\n\
                      [datapath]\nmode = \"userspace\"\nmax_sessions = 10000\n";
