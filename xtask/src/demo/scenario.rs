//! What a demo does with one datapath, and what it makes of it.

use std::fs::File;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::report::Run;
use super::{Addresses, Datapath};
use crate::answers::{AgentSessions, ForwardEvent, Pings, RelaySessions, Status};
use crate::deployment::{Deployment, Hosts, Reached};
use crate::lab::Process;
use crate::tool::Tool;
use crate::{interrupt, tcp_copy, terminal};

/// Size of the file that is copied.
const FILE_MIB: u64 = 64;

/// How long the transfer under the limit runs before it is measured: its burst is spent by then.
const BURST_SPENT: Duration = Duration::from_secs(2);

/// How long the transfer under the limit is measured.
const MEASURED: Duration = Duration::from_secs(5);

/// The default of `relay_bandwidth_limit`.
const DEFAULT_LIMIT: u64 = 1_048_576;

/// Where and with what a run takes place.
pub struct Scene<'a> {
    /// What forwards.
    pub datapath: Datapath,
    /// Which versions of IP the agents speak.
    pub addresses: Addresses,
    /// Where relay and agents run.
    pub hosts: Hosts,
    /// Where the relay is reached.
    pub reached: Reached,
    /// Where the TCP receiver listens at the target.
    pub served: SocketAddr,
    /// Where `net forward` listens at the connector.
    pub forwarded: SocketAddr,
    /// The interface that the relay's XDP program is attached to.
    pub interface: Option<&'a str>,
    /// The relay's and agents' program.
    pub binary: &'a Path,
    /// A folder for files, which the caller removes.
    pub directory: &'a Path,
}

impl Scene<'_> {
    fn step(&self, what: &str) {
        terminal::progress(format!("{}, {}: {what}", self.datapath.name(), self.addresses.name()));
    }

    fn relay_options(&self) -> String {
        let interface =
            self.interface.map(|interface| format!(" --interface {interface}")).unwrap_or_default();
        format!("--datapath {}{interface}", self.datapath.name())
    }
}

/// Plays the whole scenario: pairing, ping, file, limit.
///
/// # Errors
/// Something did not even start, or a stop signal has come. What started and went wrong is a complaint of the run.
pub fn play(scene: &Scene) -> anyhow::Result<Run> {
    let deployment = Deployment::prepare(
        scene.hosts.clone(),
        scene.binary,
        scene.directory,
        scene.reached,
        &scene.served.to_string(),
    )?;
    let file = scene.directory.join("file");
    let mut run = Run {
        datapath: scene.datapath.name().to_owned(),
        addresses: scene.addresses.name().to_owned(),
        limit_bytes_per_s: DEFAULT_LIMIT,
        ..Run::default()
    };

    if let Err(error) = acts(&deployment, scene, &file, &mut run) {
        interrupt::check()?;
        run.complain(format!("{error:#}"));
        return Ok(run);
    }
    judge(scene.datapath, &mut run);
    Ok(run)
}

fn acts(deployment: &Deployment, scene: &Scene, file: &Path, run: &mut Run) -> anyhow::Result<()> {
    scene.step("starting the relay without limit, and the target agent");
    let relay = deployment.start_relay(Some(0), &scene.relay_options())?;
    check_datapath(deployment, scene, run)?;
    let target = deployment.start_target()?;
    ping(deployment, scene, run)?;
    copy_file(deployment, scene, file, run)?;
    target.stop()?;
    relay.stop()?;

    scene.step("starting the relay again, with its default limit");
    let relay = deployment.start_relay(None, &scene.relay_options())?;
    let target = deployment.start_target()?;
    measure_limit(deployment, scene, file, run)?;
    target.stop()?;
    relay.stop()
}

fn check_datapath(deployment: &Deployment, scene: &Scene, run: &mut Run) -> anyhow::Result<()> {
    let status: Status = deployment.relay.json("xdp status --json")?;
    if status.datapath != scene.datapath.name() {
        run.complain(format!("the relay runs with {}: {}", status.datapath, status.why));
    }
    Ok(())
}

fn ping(deployment: &Deployment, scene: &Scene, run: &mut Run) -> anyhow::Result<()> {
    scene.step("pairing over QUIC, then 50 pings through the relay");
    let command = format!("net ping {} --count 50 --interval-ms 10 --json", deployment.target.id());
    let pings: Pings = deployment.connector.json(&command)?;
    run.pings_sent = pings.sent;
    run.pings_received = pings.received;
    let round_trips = pings.rtt_us.unwrap_or_default();
    run.rtt_us_p50 = round_trips.p50;
    run.rtt_us_p99 = round_trips.p99;
    Ok(())
}

fn copy_file(deployment: &Deployment, scene: &Scene, file: &Path, run: &mut Run) -> anyhow::Result<()> {
    scene.step(&format!("copying {FILE_MIB} MiB of random bytes from agent to agent through `net forward`"));
    let size = FILE_MIB << 20;
    write_random(file, size)?;
    let received = deployment.target.directory().join("received");

    let forward = deployment.start_forward(scene.forwarded, scene.served)?;
    let dropped_before = dropped(deployment)?;
    let mut receiver = tcp_copy::receive(deployment.target.host(), scene.served, &received)?;
    let start = Instant::now();
    let mut sender =
        tcp_copy::send(deployment.connector.host(), scene.forwarded, file, deployment.connector.directory())?;
    receiver.wait_success(Duration::from_secs(60))?;
    let took = start.elapsed();
    sender.wait_success(Duration::from_secs(5))?;
    run.bytes = std::fs::metadata(&received).map(|metadata| metadata.len()).unwrap_or(0);
    run.throughput_bytes_per_s = size as f64 / took.as_secs_f64();
    run.sha256_match = sha256(file)? == sha256(&received)?;

    let target: AgentSessions = deployment.target.json("net sessions --json")?;
    let relay = Relayed::of(deployment)?;
    run.packets_kernel = relay.kernel;
    run.packets_userspace = relay.userspace;
    run.relayed_bytes = relay.bytes;
    run.packets_dropped = dropped(deployment)?.saturating_sub(dropped_before);
    let (sent, received) = end_forward(forward)?;
    run.agents_datagrams_sent =
        sent + target.sessions.iter().map(|session| session.datagrams_sent).sum::<u64>();
    run.agents_datagrams_received =
        received + target.sessions.iter().map(|session| session.datagrams_received).sum::<u64>();
    Ok(())
}

fn measure_limit(deployment: &Deployment, scene: &Scene, file: &Path, run: &mut Run) -> anyhow::Result<()> {
    scene.step(&format!(
        "the same file for {} s, measured in the last {}",
        (BURST_SPENT + MEASURED).as_secs(),
        MEASURED.as_secs()
    ));
    let received = deployment.target.directory().join("received-under-limit");
    let arrived = || std::fs::metadata(&received).map(|metadata| metadata.len()).unwrap_or(0);
    let _forward = deployment.start_forward(scene.forwarded, scene.served)?;
    let _receiver = tcp_copy::receive(deployment.target.host(), scene.served, &received)?;
    let _sender =
        tcp_copy::send(deployment.connector.host(), scene.forwarded, file, deployment.connector.directory())?;
    interrupt::sleep(BURST_SPENT)?;
    let (from, relayed_from, arrived_from) = (Instant::now(), Relayed::of(deployment)?.bytes, arrived());
    interrupt::sleep(MEASURED)?;
    let (relayed, arrived) =
        (Relayed::of(deployment)?.bytes.saturating_sub(relayed_from), arrived().saturating_sub(arrived_from));
    let took = from.elapsed().as_secs_f64();
    run.limited_relayed_bytes_per_s = relayed as f64 / took;
    run.limited_throughput_bytes_per_s = arrived as f64 / took;
    Ok(())
}

/// What must hold for the verdict ok.
fn judge(datapath: Datapath, run: &mut Run) {
    let mut complaints = Vec::new();
    if !run.sha256_match {
        complaints.push(format!("the file differs at the target ({} bytes arrived)", run.bytes));
    }
    if run.pings_received < run.pings_sent {
        complaints.push(format!("{} of {} pings came back", run.pings_received, run.pings_sent));
    }
    let relayed = run.packets_kernel + run.packets_userspace;
    let (expected, forwarder) = match datapath {
        Datapath::Userspace => (run.packets_userspace, "daemon"),
        Datapath::XdpNative | Datapath::XdpGeneric => (run.packets_kernel, "kernel"),
    };
    if relayed == 0 || (expected as f64) < 0.99 * relayed as f64 {
        complaints.push(format!("the {forwarder} forwarded {expected} of {relayed} packets"));
    }
    // Nothing is counted that was not relayed, nothing relayed that was not counted. Without limit a queue before or
    // behind the relay may overflow, so what was sent, relayed and received need not be equal.
    let (sent, received) = (run.agents_datagrams_sent, run.agents_datagrams_received);
    if !is_at_most(relayed + run.packets_dropped, sent) || !is_at_most(received, relayed) {
        complaints.push(format!(
            "agents sent {sent} packets, the relay counted {relayed}, agents received {received}"
        ));
    }
    let limit = run.limit_bytes_per_s as f64;
    if run.limited_relayed_bytes_per_s > 1.02 * limit || run.limited_throughput_bytes_per_s < 0.85 * limit {
        complaints.push(format!(
            "under the limit of {limit} bytes/s the relay carried {:.0}, of which the file {:.0}",
            run.limited_relayed_bytes_per_s, run.limited_throughput_bytes_per_s
        ));
    }
    run.complaints.extend(complaints);
}

/// Up to one percent: counts are taken one after the other, while acknowledgements still move.
fn is_at_most(a: u64, b: u64) -> bool {
    a as f64 <= 1.01 * b as f64
}

/// What the relay has forwarded for its sessions.
#[derive(Debug, Default)]
struct Relayed {
    kernel: u64,
    userspace: u64,
    bytes: u64,
}

impl Relayed {
    fn of(deployment: &Deployment) -> anyhow::Result<Self> {
        let sessions: RelaySessions = deployment.relay.json("net sessions --json")?;
        let mut relayed = Relayed::default();
        for side in sessions.sessions.iter().flat_map(|session| &session.sides) {
            relayed.kernel += side.packets_kernel;
            relayed.userspace += side.packets_userspace;
            relayed.bytes += side.bytes;
        }
        Ok(relayed)
    }
}

/// Ends `net forward` and reads how many datagrams it says it sent and received.
fn end_forward(mut forward: Process) -> anyhow::Result<(u64, u64)> {
    forward.signal(libc::SIGTERM);
    forward.wait_success(Duration::from_secs(5))?;
    let ended = forward.events().into_iter().find_map(|event| match event {
        ForwardEvent::Ended { datagrams_sent, datagrams_received } => {
            Some((datagrams_sent, datagrams_received))
        }
        _ => None,
    });
    ended.context("`net forward --json` ended without the event `ended`")
}

/// Packets that the relay has dropped since its start.
fn dropped(deployment: &Deployment) -> anyhow::Result<u64> {
    Ok(deployment.relay.json::<Status>("xdp status --json")?.dropped())
}

fn write_random(path: &Path, size: u64) -> anyhow::Result<()> {
    let mut file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let random = File::open("/dev/urandom").context("cannot open /dev/urandom")?;
    std::io::copy(&mut random.take(size), &mut file)
        .with_context(|| format!("cannot fill {}", path.display()))?;
    Ok(())
}

fn sha256(path: &Path) -> anyhow::Result<String> {
    let line = Tool::new("sha256sum").arg(path).output()?;
    Ok(line.split_whitespace().next().unwrap_or_default().to_owned())
}
