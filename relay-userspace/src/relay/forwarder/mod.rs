//! The userspace forwarder: what relays where the kernel does not, and what hands control datagrams to control.

mod amplification;
mod ancillary;
mod arrivals;
mod connection_ids;
mod control_gate;
mod control_share;
mod counters;
mod departures;
mod gathering;
mod kept_out;
mod message_header;
mod quic_socket;
mod reader;
mod relay_port;
mod socket_group;
mod socket_options;
mod steering;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use relay_common::{BIND_LEN, Reason, Tally};
use tokio::io::Interest;
use tokio::sync::mpsc;
use tokio::task;

pub use connection_ids::ConnectionIds;
pub use quic_socket::QuicSocket;
pub use reader::BindDatagram;
pub use relay_port::RelayPort;
pub use socket_group::{BUFFER_BYTES, OpenError};

use crate::privilege;
use crate::relay::datapath::{Hook, Tables};
use crate::relay::family::{Family, PerFamily};
use control_gate::{ControlGate, GateTally};
use counters::Counters;
use departures::send_one;
use gathering::Headers;
use reader::{Reader, Stop};

/// Whether the kernel merges datagrams of one sender that come one after another (UDP_GRO): they are received together,
/// for a fraction of the work. All sockets of the port agree: when the kernel merges, it asks one of them that it chooses
/// by a hash of its own, not the one that the datagram will come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merging {
    /// For the userspace datapath, and with the XDP program in the driver, which sees packets before they are merged.
    On,
    /// With the XDP program behind the driver: on an interface above another one, a bridge or a bond, it would be given
    /// merged packets, and would leave all of them to userspace.
    Off,
}

impl Merging {
    /// What suits a program that runs there, or none.
    pub fn beside(hook: Option<Hook>) -> Merging {
        match hook {
            None | Some(Hook::Native) => Merging::On,
            Some(Hook::Generic) => Merging::Off,
        }
    }
}

/// Bind datagrams that may wait for the rendezvous.
pub const BIND_QUEUE_LEN: usize = 256;

/// TTL of what the relay itself sends.
const OWN_TTL: u8 = 64;

/// The running readers. Dropping it stops them.
#[derive(Debug)]
pub struct Forwarder {
    stop: Arc<Stop>,
    readers: Vec<JoinHandle<()>>,
    /// The readers of control's sockets, which work beside control.
    tasks: Vec<task::JoinHandle<()>>,
    /// One per reader, as the others.
    sockets: Vec<Arc<UdpSocket>>,
    counters: Vec<Arc<Counters>>,
    gates: Vec<Arc<GateTally>>,
}

/// A started forwarder and its three connections to control.
#[derive(Debug)]
pub struct Started {
    /// The readers.
    pub forwarder: Forwarder,
    /// What quinn uses as its socket.
    pub quic: Arc<QuicSocket>,
    /// Bind datagrams from agents.
    pub binds: mpsc::Receiver<BindDatagram>,
    /// Sends the answers.
    pub bind_sender: BindSender,
}

impl Forwarder {
    /// Starts one reader per socket of `port`. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The system refuses a thread, a file descriptor or a socket option.
    pub fn start(port: RelayPort, tables: Arc<Tables>, merging: Merging) -> io::Result<Started> {
        let [control, ..] = &port.sockets[..] else { return Err(io::ErrorKind::InvalidInput.into()) };
        let quic = Arc::new(QuicSocket::new(control)?);
        for socket in port.sockets.iter().flat_map(PerFamily::iter) {
            socket_options::set_gro(socket, merging == Merging::On)?;
        }
        let (slots, bind_sender) = (tables.sizes().slots, BindSender { sockets: control.clone() });
        let (bind_queue, binds) = mpsc::channel(BIND_QUEUE_LEN);
        let stop = Arc::new(Stop::new()?);
        let mut forwarder = Forwarder {
            stop: Arc::clone(&stop),
            readers: Vec::new(),
            tasks: Vec::new(),
            sockets: Vec::new(),
            counters: Vec::new(),
            gates: Vec::new(),
        };
        for (number, senders) in port.sockets.iter().enumerate() {
            for socket in senders.iter() {
                let counters = Arc::new(Counters::new());
                forwarder.counters.push(Arc::clone(&counters));
                forwarder.sockets.push(Arc::clone(socket));
                let gate = Arc::<GateTally>::default();
                forwarder.gates.push(Arc::clone(&gate));
                let reader = Reader {
                    socket: Arc::clone(socket),
                    senders: senders.clone(),
                    gate: (number == 0).then(|| ControlGate::new(Arc::clone(socket), slots, gate)),
                    port: port.port(),
                    tables: Arc::clone(&tables),
                    binds: bind_queue.clone(),
                    quic: Arc::clone(&quic),
                    counters,
                    stop: Arc::clone(&stop),
                };
                if number == 0 {
                    let readable = socket_options::register(socket.try_clone()?, Interest::READABLE)?;
                    forwarder.tasks.push(tokio::spawn(reader.run_beside_control(readable)));
                    continue;
                }
                let thread = thread::Builder::new().name(format!("reader-{}", forwarder.readers.len()));
                forwarder.readers.push(thread.spawn(move || {
                    privilege::drop_in_thread();
                    reader.run();
                })?);
            }
        }
        Ok(Started { forwarder, quic, binds, bind_sender })
    }

    /// Stops the readers. Once this returns, they have let go of the port.
    pub async fn stop(mut self) {
        let tasks = std::mem::take(&mut self.tasks);
        drop(self);
        for task in tasks {
            task.abort();
            let _aborted = task.await;
        }
    }

    /// Datagrams by what became of them; each has one reason.
    pub fn count(&self, reason: Reason) -> u64 {
        self.tally(reason).packets
    }

    /// The same with their payload bytes; of what the kernel has dropped those are not known.
    pub fn tally(&self, reason: Reason) -> Tally {
        let by_kernel = if reason == Reason::ControlShare { self.dropped_by_kernel().0 } else { 0 };
        sum(Tally { packets: by_kernel, bytes: 0 }, self.counters.iter().map(|counters| counters.get(reason)))
    }

    /// Datagrams that were marked CE, with their payload bytes.
    pub fn marked(&self) -> Tally {
        sum(Tally::default(), self.counters.iter().map(|counters| counters.marked()))
    }

    /// Messages the kernel dropped before a reader saw them because a socket's buffer was full, of all sockets since they
    /// were opened: datagrams, but merged ones count as one. Wraps at 2^32 per socket.
    pub fn socket_queue_drops(&self) -> u64 {
        self.dropped_by_kernel().1
    }

    /// Those that were kept out of control's sockets, and those that did not fit a socket's buffer.
    fn dropped_by_kernel(&self) -> (u64, u64) {
        let each = self.sockets.iter().zip(&self.gates).map(|(socket, gate)| gate.of(socket));
        each.fold((0, 0), |(kept_out, full), (k, f)| (kept_out + u64::from(k), full + u64::from(f)))
    }
}

fn sum(from: Tally, of: impl Iterator<Item = Tally>) -> Tally {
    of.fold(from, |sum, Tally { packets, bytes }| Tally {
        packets: sum.packets + packets,
        bytes: sum.bytes + bytes,
    })
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.stop.ask();
        self.tasks.iter().for_each(task::JoinHandle::abort);
        for reader in self.readers.drain(..) {
            if reader.join().is_err() {
                tracing::error!("a reader of the relay's port had panicked");
            }
        }
    }
}

/// Sends bind answers from the relay's port.
#[derive(Clone, Debug)]
pub struct BindSender {
    sockets: PerFamily<Arc<UdpSocket>>,
}

impl BindSender {
    /// Sends a bind datagram from the relay address `from` to `to`. What cannot be sent is lost, as on the way: the agent
    /// asks again.
    pub fn send_bind(&self, from: SocketAddr, to: SocketAddr, datagram: &[u8; BIND_LEN]) {
        // One of the socket's family was received for every answer.
        let Some(socket) = self.sockets.get(Family::of(to)) else { return };
        let headers = Headers { to, from: from.ip(), tos: 0, ttl: OWN_TTL };
        if let Err(error) = send_one(socket, datagram, headers) {
            tracing::debug!(%to, %error, "a bind answer was not sent");
        }
    }
}
