//! One reader of the userspace forwarder beside two: packets per second of CPU time, with full queues.
//!
//! The relay's port is filled before its readers start, and they are measured until all is forwarded: each has as many
//! flows and packets, and nothing else uses a CPU. Their CPU time is what `bulk.rs` says.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use quinn::udp::{Transmit, UdpSocketState};
use relay_common::Reason;
use relay_userspace::clock::MonoTime;
use relay_userspace::relay::datapath::{
    FlowTable, FlowTuple, Flows as _, Limit, NoRoutes, Origin, TableSizes, Tables,
};
use relay_userspace::relay::forwarder::{Merging, RelayPort, Started};
use tokio::runtime::{Builder, Runtime};
use xtask::interrupt;

use crate::chain::{Chain, RECEIVERS, RELAY, SENDERS, numbered};
use crate::cpu;
use crate::frames::{MAGIC, PORT};
use crate::report::Report;
use crate::rounds::{Candidate, in_turns};

/// Flows of each reader, by and large: the kernel's choice is by a hash.
const FLOWS: u32 = 256;

/// Packets of each flow. All wait in the sockets' queues, which hold a good ten thousand each.
const PACKETS: u32 = 24;

/// UDP payload in bytes.
const PAYLOAD: [u8; 64] = [0x5a; 64];

const ROUNDS: usize = 15;

const SENDER_PORT: u16 = 40_000;
const RECEIVER_PORT: u16 = 50_000;

/// Longer than any run.
const CONSENT: Duration = Duration::from_secs(3600);

/// More than anything here can send: the bucket is charged, and never full.
const LIMIT: Limit = Limit { bytes_per_s: 10_000_000_000, burst_bytes: 2_500_000_000 };

/// Measures one reader and two in turns.
pub fn run(chain: &Chain, report: &mut Report) -> anyhow::Result<()> {
    let sink = chain.receiver.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, RECEIVER_PORT)))??;
    sink.set_nonblocking(true)?;
    let mut one = || rate(chain, &sink, 1);
    let mut two = || rate(chain, &sink, 2);
    one()?;
    let mut candidates = [Candidate::new("one reader", &mut one), Candidate::new("two readers", &mut two)];
    let [one, two] = &in_turns(ROUNDS, &mut candidates)?[..] else { unreachable!("there are two") };
    let name = "userspace, one reader, by its CPU time";
    report.add(name, "kpps/CPU", one);
    report.add_beside("userspace, two readers, by their CPU time", "kpps/CPU", two, name, one);
    Ok(())
}

/// Thousands of packets that `readers` forward in a second of CPU time.
fn rate(chain: &Chain, sink: &UdpSocket, readers: u32) -> anyhow::Result<f64> {
    let flows = readers * FLOWS;
    let tuples: Vec<_> = (0..flows)
        .map(|flow| [numbered(SENDERS, flow, SENDER_PORT), numbered(RECEIVERS, flow, RECEIVER_PORT)])
        .collect();
    let port = chain.relay.inside(|| RelayPort::open(PORT, readers, MAGIC))??;
    let sender = chain.sender.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, SENDER_PORT)))??;
    let sending = UdpSocketState::new((&sender).into())?;
    let before = heard(chain)?;
    for _ in 0..PACKETS {
        for [from, _] in &tuples {
            let destination = SocketAddr::new(RELAY[0].into(), PORT);
            let transmit = Transmit {
                destination,
                ecn: None,
                contents: &PAYLOAD,
                segment_size: None,
                src_ip: Some(from.ip()),
            };
            sending.try_send((&sender).into(), &transmit).context("the sender cannot send")?;
        }
    }
    let running = Readers::start_on(chain, port, &tuples, None)?;
    let expected = u64::from(flows * PACKETS);
    let forwarder = &running.started.forwarder;
    interrupt::wait_for("what was sent to be forwarded", Duration::from_secs(5), || {
        Ok((forwarder.count(Reason::Forwarded) >= expected).then_some(()))
    })
    .with_context(|| format!("{} dropped", forwarder.socket_queue_drops()))?;
    let spent = cpu::time_of_threads("reader-")?;
    drop(running);
    look_at(sink)?;
    let arrived = heard(chain)? - before;
    ensure!(arrived == expected, "{expected} packets were forwarded, {arrived} have arrived");
    Ok(expected as f64 / spent / 1e3)
}

/// Looks at what the sink has had room for.
fn look_at(sink: &UdpSocket) -> anyhow::Result<()> {
    let mut seen = 0;
    let mut buffer = [0; 2048];
    while let Ok((len, from)) = sink.recv_from(&mut buffer) {
        ensure!(
            buffer[..len] == PAYLOAD && from == SocketAddr::new(RELAY[1].into(), PORT),
            "a wrong packet from {from}"
        );
        seen += 1;
    }
    ensure!(seen > 0, "no packet was kept to be looked at");
    Ok(())
}

/// Datagrams that the receiver's kernel has had for its sockets so far and that were taken, or for which there was no
/// room.
fn heard(chain: &Chain) -> anyhow::Result<u64> {
    let counters = chain.receiver.inside(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))??;
    let mut lines = counters.lines().filter(|line| line.starts_with("Udp: "));
    let (names, values) = lines.next().zip(lines.next()).context("no counters of UDP")?;
    let mut sum = 0;
    for (name, value) in names.split(' ').zip(values.split(' ')) {
        if ["InDatagrams", "RcvbufErrors"].contains(&name) {
            sum += value.parse::<u64>()?;
        }
    }
    Ok(sum)
}

/// A running userspace forwarder with sessions.
pub struct Readers {
    // Before the runtime that it is registered with.
    started: Started,
    _runtime: Runtime,
    _table: FlowTable<NoRoutes>,
}

impl Readers {
    /// Starts it on the relay's host with `readers`, all on `cpu` if one is named.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(
        chain: &Chain,
        readers: u32,
        flows: &[[SocketAddr; 2]],
        cpu: Option<usize>,
    ) -> anyhow::Result<Readers> {
        let port = chain.relay.inside(|| RelayPort::open(PORT, readers, MAGIC))??;
        Readers::start_on(chain, port, flows, cpu)
    }

    /// As [`Readers::start`], on a port that is open already.
    fn start_on(
        chain: &Chain,
        port: RelayPort,
        flows: &[[SocketAddr; 2]],
        cpu: Option<usize>,
    ) -> anyhow::Result<Readers> {
        let sizes = TableSizes::for_sessions(u32::try_from(flows.len())?);
        let tables = Arc::new(Tables::private(sizes, [1, 2], MAGIC));
        let mut table = FlowTable::new(Arc::clone(&tables), NoRoutes);
        let now = MonoTime::now();
        let [here, there] = RELAY.map(|ip| SocketAddr::new(IpAddr::V4(ip), PORT));
        for [from, to] in flows {
            let sides = [FlowTuple { agent: *from, relay: here }, FlowTuple { agent: *to, relay: there }];
            table
                .install(sides, LIMIT, &Origin::NONE, [now + CONSENT; 2], now)
                .context("installing a session")?;
        }
        // Its threads stay where the one is that starts them.
        let (started, runtime) = chain.relay.inside(|| {
            cpu.map_or(Ok(()), cpu::stay_on)?;
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let within = runtime.enter();
            let started = relay_userspace::relay::forwarder::Forwarder::start(port, tables, Merging::On)?;
            drop(within);
            anyhow::Ok((started, runtime))
        })??;
        Ok(Readers { started, _runtime: runtime, _table: table })
    }
}
