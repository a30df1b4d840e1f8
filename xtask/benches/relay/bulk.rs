//! Section 3: bulk transfer, one flow of datagrams that are sent and received many at once (UDP_SEGMENT, UDP_GRO).
//!
//! One thread on one CPU sends a volley and takes what has arrived, in turns; what forwards has another CPU. The CPU time
//! of a forwarder in userspace is its threads': the system calls they make, with what the kernel does to a packet before
//! such a call returns, up to the receiver's queue. What the kernel does before the packet lies in the forwarder's queue is
//! in the sender's time, alike for all. Kernel forwarding has no thread: its time is what sender and receiver spend more
//! than over a link without a relay.

use std::io::{ErrorKind, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use rustix::net::sockopt;
use xtask::lab::Site;

use crate::Bench;
use crate::chain::{Chain, RECEIVER, RELAY, SENDER};
use crate::cpu;
use crate::frames::PORT;
use crate::readers::{self, Readers};
use crate::report::Report;
use crate::rounds::{Candidate, Samples, in_turns};
use crate::turn::{Allocation, CHANNEL_HEADER_LEN, Coturn, channel_data};

/// Payload of each datagram in bytes.
const PAYLOAD: usize = 1200;

/// Datagrams sent at once.
const BURST: usize = 50;

/// Bursts in a volley: what the sender is ahead of the receiver.
const VOLLEY: usize = 4;

/// One measurement.
const SPAN: Duration = Duration::from_millis(600);

const ROUNDS: usize = 7;

const GIB: f64 = (1u64 << 30) as f64;

/// Where coturn listens.
const TURN_PORT: u16 = 3478;

/// Measures the forwarders in turns, then one reader beside two.
pub fn run(_bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let site = Site::prepare()?;
    let chain = Chain::lay(&site)?;
    let [this, other] = cpu::two()?;
    // From here on everything that this thread starts runs where it does.
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| transfers(&site, &chain, [this, other], report));
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    readers::run(&chain, report)
}

/// What is compared, in this order.
const NAMES: [&str; 4] = ["userspace", "coturn", "kernel forwarding", "no relay"];

fn transfers(
    site: &Site,
    chain: &Chain,
    [this, other]: [usize; 2],
    report: &mut Report,
) -> anyhow::Result<()> {
    cpu::stay_on(this)?;
    let relayed = {
        let ends = Ends::open(chain, RECEIVER[0])?;
        let flow = [ends.from.local_addr()?, ends.to.local_addr()?];
        let relay = Readers::start(chain, 1, &[flow], Some(other))?;
        ends.from.connect((RELAY[0], PORT))?;
        let clock = move || {
            let _running = &relay;
            cpu::time_of_threads("reader-")
        };
        Transfer::new(ends, vec![0x5a; PAYLOAD], clock)?
    };
    let turned = {
        let server =
            Coturn::start(&chain.relay.host(), (RELAY[0], TURN_PORT).into(), other, site.directory())?;
        let mut ends = Ends::open(chain, RECEIVER[0])?;
        let mut allocation = Allocation::new(ends.from, server.address())?;
        let channel = allocation.bind_channel(ends.to.local_addr()?)?;
        ends.from = allocation.socket().try_clone()?;
        let clock = move || {
            let _running = &allocation;
            cpu::time_of_process(server.id())
        };
        Transfer::new(ends, channel_data(channel, &[0x5a; PAYLOAD]), clock)?
    };
    let unrelayed = |receiver| {
        let ends = Ends::open(chain, receiver)?;
        ends.from.connect(ends.to.local_addr()?)?;
        Transfer::new(ends, vec![0x5a; PAYLOAD], || Ok(0.0))
    };
    let (routed, direct) = (unrelayed(RECEIVER[0])?, unrelayed(RECEIVER[1])?);

    let found: Vec<_> = NAMES.iter().map(|_| std::cell::RefCell::new(Vec::new())).collect();
    let mut candidates: Vec<Candidate> = Vec::new();
    for ((name, transfer), found) in NAMES.into_iter().zip([relayed, turned, routed, direct]).zip(&found) {
        let mut transfer = transfer;
        transfer.go(SPAN / 4)?; // so that all is in place
        candidates.push(Candidate::new(name, move || {
            let carried = transfer.go(SPAN)?;
            found.borrow_mut().push(carried);
            Ok(carried.per_second())
        }));
    }
    let rates = in_turns(ROUNDS, &mut candidates)?;
    drop(candidates);
    let [relayed, turned, routed, direct] = [0, 1, 2, 3].map(|candidate| found[candidate].borrow().clone());

    for (name, rate) in NAMES.into_iter().zip(&rates).take(3) {
        let rate = Samples(rate.0.iter().map(|rate| rate / 1e6).collect());
        report.add(format!("bulk, {name}"), "MB/s", &rate);
    }
    let per_cpu = |carried: &[Carried]| {
        Samples(carried.iter().map(|carried| carried.bytes / carried.forwarder / 1e6).collect())
    };
    let (relayed_per_cpu, turned_per_cpu) = (per_cpu(&relayed), per_cpu(&turned));
    report.add("bulk, coturn, by its CPU time", "MB/CPU s", &turned_per_cpu);
    report.add_beside(
        "bulk, userspace, by its CPU time",
        "MB/CPU s",
        &relayed_per_cpu,
        "bulk, coturn, by its CPU time",
        &turned_per_cpu,
    );
    let per_gib = |carried: &[Carried], spent: fn(&Carried) -> f64| {
        Samples(carried.iter().map(|carried| spent(carried) / carried.bytes * GIB).collect())
    };
    let of_its_own: fn(&Carried) -> f64 = |carried| carried.forwarder;
    let at_the_ends: fn(&Carried) -> f64 = |carried| carried.ends;
    for (name, carried) in [(NAMES[0], &relayed), (NAMES[1], &turned)] {
        report.add(format!("bulk, {name}, per GiB"), "CPU s", &per_gib(carried, of_its_own));
    }
    let (routed, direct) = (per_gib(&routed, at_the_ends), per_gib(&direct, at_the_ends));
    let more = Samples(routed.0.iter().zip(&direct.0).map(|(routed, direct)| routed - direct).collect());
    report.add("bulk, kernel forwarding, per GiB", "CPU s", &more);
    Ok(())
}

/// The two sockets of a transfer.
struct Ends {
    from: UdpSocket,
    to: UdpSocket,
}

impl Ends {
    fn open(chain: &Chain, receiver: Ipv4Addr) -> anyhow::Result<Ends> {
        let from = if receiver == RECEIVER[0] { SENDER } else { Ipv4Addr::UNSPECIFIED };
        let from = chain.sender.inside(|| UdpSocket::bind((from, 0)))??;
        let to = chain.receiver.inside(|| UdpSocket::bind((receiver, 0)))??;
        // Room for all that may be on the way.
        sockopt::set_socket_recv_buffer_size_force(&to, 16 << 20)?;
        sockopt::set_socket_send_buffer_size(&from, 4 << 20)?;
        Ok(Ends { from, to })
    }
}

/// A transfer through one forwarder.
struct Transfer {
    ends: Ends,
    sending: UdpSocketState,
    receiving: UdpSocketState,
    to: SocketAddr,
    burst: Vec<u8>,
    segment_len: usize,
    room: Vec<Vec<u8>>,
    clock: Box<dyn Fn() -> anyhow::Result<f64>>,
}

/// What a transfer has carried, and what it took.
#[derive(Clone, Copy, Debug)]
struct Carried {
    /// Payload bytes that have arrived.
    bytes: f64,
    /// Seconds it lasted.
    span: f64,
    /// CPU seconds of the forwarder.
    forwarder: f64,
    /// CPU seconds of sender and receiver.
    ends: f64,
}

impl Carried {
    fn per_second(&self) -> f64 {
        self.bytes / self.span
    }
}

impl Transfer {
    /// Of datagrams like `datagram`. `clock` tells what the forwarder has spent so far, in seconds.
    fn new(
        ends: Ends,
        datagram: Vec<u8>,
        clock: impl Fn() -> anyhow::Result<f64> + 'static,
    ) -> anyhow::Result<Transfer> {
        let sending = UdpSocketState::new((&ends.from).into())?;
        let receiving = UdpSocketState::new((&ends.to).into())?;
        ensure!(sending.max_gso_segments() >= BURST, "this kernel does not cut datagrams (UDP_SEGMENT)");
        let to = ends.from.peer_addr()?;
        let room = vec![vec![0; 1 << 16]; quinn::udp::BATCH_SIZE];
        let (burst, segment_len) = (datagram.repeat(BURST), datagram.len());
        Ok(Transfer { ends, sending, receiving, to, burst, segment_len, room, clock: Box::new(clock) })
    }

    /// Sends as much as it can for `span`.
    fn go(&mut self, span: Duration) -> anyhow::Result<Carried> {
        self.take()?; // what is left of the last time
        let transmit = Transmit {
            destination: self.to,
            ecn: None,
            contents: &self.burst.clone(),
            segment_size: Some(self.segment_len),
            src_ip: None,
        };
        let (forwarder, ends, began) = ((self.clock)()?, cpu::thread_time(), Instant::now());
        let mut bytes = 0;
        while began.elapsed() < span {
            for _ in 0..VOLLEY {
                match self.sending.try_send((&self.ends.from).into(), &transmit) {
                    Err(error) if error.kind() != ErrorKind::WouldBlock => {
                        return Err(error).context("the sender cannot send");
                    }
                    _ => {}
                }
            }
            bytes += self.take()?;
        }
        let span = began.elapsed().as_secs_f64();
        ensure!(bytes > 0, "nothing has arrived");
        Ok(Carried {
            bytes: bytes as f64,
            span,
            forwarder: (self.clock)()? - forwarder,
            ends: (cpu::thread_time() - ends) / 1e9,
        })
    }

    /// Takes what has arrived and looks at some of it. Returns the bytes.
    fn take(&mut self) -> anyhow::Result<usize> {
        let mut taken = 0;
        loop {
            let mut metas = vec![RecvMeta::default(); self.room.len()];
            let mut room: Vec<_> = self.room.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
            match self.receiving.recv((&self.ends.to).into(), &mut room, &mut metas) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(taken),
                Err(error) => return Err(error).context("the receiver cannot receive"),
                Ok(count) => {
                    let header = self.segment_len - PAYLOAD;
                    ensure!(header == 0 || header == CHANNEL_HEADER_LEN, "a header of {header} bytes");
                    let payload = &self.burst[header..self.segment_len];
                    taken += metas[..count].iter().map(|meta| meta.len).sum::<usize>();
                    let first = &self.room[0][..metas[0].len];
                    ensure!(first.chunks(PAYLOAD).all(|chunk| chunk == payload), "other bytes have arrived");
                }
            }
        }
    }
}
