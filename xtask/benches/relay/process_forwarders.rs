//! Forwarders in userspace, each on a core of its own: the relay's, a plain loop, and coturn.

use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{io, path::Path};

use anyhow::{Context as _, ensure};
use relay_common::Reason;
use relay_userspace::relay::datapath::{FlowTable, NoRoutes, Tables};
use relay_userspace::relay::forwarder::{Forwarder as Readers, Merging, RelayPort, Started};
use tokio::runtime::{Builder, Runtime};

use crate::course::{Course, Ends, Leg, Load, Numbered, TTL};
use crate::cpu;
use crate::frames::{MAGIC, PORT};
use crate::plain_loop;
use crate::relayed::{self, receivers, senders};
use crate::sessions::KEY;
use crate::track::{End, Forwarder, Place, Track};
use crate::traffic::Traffic;
use crate::turn::{Allocation, Coturn};
use crate::wires::{AGENTS, RELAY, Wires};

/// One core is what is measured.
const READERS: u32 = 1;

/// The relay's readers.
struct Relay {
    // Before the runtime that it is registered with.
    started: Started,
    _runtime: Runtime,
    _table: FlowTable<NoRoutes>,
}

impl Forwarder for Relay {
    fn forwarded(&self, _: &Wires) -> anyhow::Result<Option<u64>> {
        Ok(Some(self.started.forwarder.count(Reason::Forwarded)))
    }
}

/// Lets the relay's userspace forwarder do it, with tables of its own.
///
/// # Errors
/// It does not start.
pub fn relay(traffic: Traffic, wires: Wires, load: Load, end: End) -> anyhow::Result<Track> {
    let tables = Arc::new(Tables::private(relayed::sizes(load.flows), KEY, MAGIC));
    let mut table = FlowTable::new(Arc::clone(&tables), NoRoutes);
    relayed::install(&mut table, load.flows, wires.links)?;
    let cpu = Track::measured_cpu()?;
    // Its threads stay where the one is that starts them: in this namespace, on this CPU.
    let (started, runtime) = wires.relay.inside(|| {
        cpu::stay_on(cpu)?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let within = runtime.enter();
        let started = Readers::start(RelayPort::open(PORT, READERS, MAGIC)?, tables, Merging::On)?;
        drop(within);
        anyhow::Ok((started, runtime))
    })??;
    let course = relayed::course(&wires, load, end);
    let forwarder = Relay { started, _runtime: runtime, _table: table };
    Track::new(traffic, wires, course, end, Place::Process, forwarder)
}

/// A plain loop on a thread of its own.
struct Plain {
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Forwarder for Plain {
    fn forwarded(&self, _: &Wires) -> anyhow::Result<Option<u64>> {
        ensure!(self.thread.as_ref().is_some_and(|thread| !thread.is_finished()), "the plain loop has ended");
        Ok(Some(self.sent.load(Ordering::Relaxed)))
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

/// Lets a plain loop do it: all flows to one receiver.
///
/// # Errors
/// It does not start.
pub fn plain(traffic: Traffic, wires: Wires, load: Load) -> anyhow::Result<Track> {
    let relay = SocketAddrV4::new(RELAY[0], PORT);
    let receiver = receivers().of(0);
    let (sent, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let cpu = Track::measured_cpu()?;
    let (counted, stopped) = (Arc::clone(&sent), Arc::clone(&stop));
    let thread = wires.relay.inside(|| {
        cpu::stay_on(cpu)?;
        let socket = UdpSocket::bind(relay)?;
        // As much as the relay's own sockets have.
        set_socket_recv_buffer_size_force(&socket, 4 << 20)?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        anyhow::Ok(std::thread::spawn(move || plain_loop::forward(&socket, receiver, &stopped, &counted)))
    })??;
    let sent_leg =
        Leg { stations: wires.to_relay(), source: senders(), destination: Numbered::fixed(relay), ttl: TTL };
    let arrives = Leg {
        stations: wires.to_receiver(),
        source: Numbered::fixed(relay).into(),
        destination: Numbered::fixed(receiver),
        ttl: TTL,
    };
    let course = Course { load, channel: None, sent: sent_leg, arrives };
    let forwarder = Plain { sent, stop, thread: Some(thread) };
    Track::new(traffic, wires, course, End::Sink, Place::Process, forwarder)
}

/// coturn, with an allocation for each flow.
struct Turn {
    _server: Coturn,
    _allocations: Vec<Allocation>,
}

impl Forwarder for Turn {
    fn forwarded(&self, wires: &Wires) -> anyhow::Result<Option<u64>> {
        wires.relay_counter("Udp", "OutDatagrams").map(Some)
    }
}

/// coturn's port, and that of the first client.
const TURN_PORT: u16 = 3478;
const FIRST_CLIENT: u16 = 40000;

/// Lets coturn do it: ChannelData by one allocation for each flow.
///
/// # Errors
/// It does not start, or refuses an allocation.
pub fn coturn(traffic: Traffic, wires: Wires, load: Load, directory: &Path) -> anyhow::Result<Track> {
    let address = SocketAddrV4::new(RELAY[0], TURN_PORT);
    let clients = Numbered::by_port(SocketAddrV4::new(AGENTS[0], FIRST_CLIENT));
    let cpu = Track::measured_cpu()?;
    let server = Coturn::start(&wires.relay.host(), address.into(), cpu, directory)?;
    let mut channel = 0;
    let allocations = wires.agents.inside(|| {
        let allocate = |flow| {
            let socket = UdpSocket::bind(clients.of(flow))?;
            let mut allocation = Allocation::new(socket, address.into())?;
            channel = allocation.bind_channel(receivers().of(flow).into())?;
            anyhow::Ok(allocation)
        };
        (0..load.flows).map(allocate).collect::<anyhow::Result<Vec<_>>>()
    })??;
    let relayed = allocations.iter().map(|allocation| match allocation.relayed() {
        SocketAddr::V4(address) => Ok(address),
        SocketAddr::V6(address) => Err(anyhow::anyhow!("{address} is not IPv4")),
    });
    let relayed = relayed.collect::<anyhow::Result<Vec<_>>>().context("coturn's addresses")?;
    let sent =
        Leg { stations: wires.to_relay(), source: clients, destination: Numbered::fixed(address), ttl: TTL };
    let arrives = Leg {
        stations: wires.to_receiver(),
        source: Ends::Listed(relayed),
        destination: receivers(),
        ttl: TTL - 1,
    };
    let course = Course { load, channel: Some(channel), sent, arrives };
    let forwarder = Turn { _server: server, _allocations: allocations };
    Track::new(traffic, wires, course, End::Sink, Place::Process, forwarder)
}
