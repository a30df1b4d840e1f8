//! Control is answered while sessions send more than twice what the forwarder can carry.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use quinn::udp::{Transmit, UdpSocketState};
use relay_userspace::identity::NodeKey;
use xtask::tool::Tool;

use super::hand_agent::{HandAgent, HandBind};
use super::raw_agents::run_inside;
use super::scheduling::{allowed_or_said, run_first, this_thread};
use super::world::{RELAY, USERSPACE, World, wait_for};

/// Sessions that flood the relay, both sides of each.
const FLOODING: usize = 4;

/// Pairs of agents that come while they do, one after the other.
const ATTEMPTS: usize = 50;

/// Both of a pair are connected, verified, announced, paired and bound within this.
const PATIENCE: Duration = Duration::from_secs(1);

/// The flood's datagrams between two attempts: more than a socket's queue holds.
const BETWEEN_ATTEMPTS: u64 = 20_000;

/// Threads of other work on the relay's processor.
const OTHERS: usize = 8;

#[test]
fn new_agents_are_paired_within_a_second_while_small_packets_flood_the_relay() {
    let name = "new_agents_are_paired_within_a_second_while_small_packets_flood_the_relay";
    pair_under(name, &[vec![7; 64]]);
}

#[test]
fn new_agents_are_paired_within_a_second_while_long_headers_flood_the_relay() {
    let name = "new_agents_are_paired_within_a_second_while_long_headers_flood_the_relay";
    pair_under(name, &[long_header(INITIAL, 1200), long_header(INITIAL, 64), long_header(HANDSHAKE, 1200)]);
}

#[test]
fn new_agents_are_paired_within_a_second_while_a_flood_looks_like_their_first_datagrams() {
    let name = "new_agents_are_paired_within_a_second_while_a_flood_looks_like_their_first_datagrams";
    let small = || vec![7; 64];
    pair_under(name, &[long_header(INITIAL, 1200), small(), small(), small()]);
}

const INITIAL: u8 = 0xc0;
const HANDSHAKE: u8 = 0xe0;

/// A datagram that begins like one of QUIC version 1 (RFC 9000 section 17.2).
fn long_header(first: u8, len: usize) -> Vec<u8> {
    let mut datagram = vec![first, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0];
    datagram.resize(len, 0x5a);
    datagram
}

/// Pairs new agents while sessions flood the relay with copies of `datagrams`.
fn pair_under(name: &str, datagrams: &[Vec<u8>]) {
    let Some(world) = World::new(name) else { return };
    let relay = world.deployment.start_relay(Some(0), USERSPACE).unwrap();
    // In life they are different hosts: the flood takes nothing of the relay's processor, nor the relay of the flood's.
    allowed_or_said(
        &Tool::new("taskset").words("--all-tasks --cpu-list --pid 0").arg(relay.id().to_string()),
    );
    let _others = Others::start();

    run_inside(&world.lab.agents[0], async || {
        allowed_or_said(&Tool::new("taskset").words("--cpu-list --pid 1").arg(this_thread()));
        let (mut agents, mut sockets) = (Vec::new(), Vec::new());
        for _ in 0..FLOODING {
            let (pair, [near, far]) = pair().await;
            agents.push(pair);
            sockets.extend([near.socket, far.socket]);
        }
        let flood = Flood::start(sockets, datagrams);
        // New agents are hosts of their own as well.
        allowed_or_said(&Tool::new("chrt").words("--rr --pid 2").arg(this_thread()));
        let idle = Counted::of(&world);
        wait_for("the overload", Duration::from_secs(10), || {
            (Counted::of(&world).since(idle).overflowed > 10_000).then_some(())
        });

        let before = Counted::of(&world);
        let (mut took, mut bound) = (Vec::new(), Vec::new());
        for _ in 0..ATTEMPTS {
            let enough = flood.sent() + BETWEEN_ATTEMPTS;
            wait_for("the flood", Duration::from_secs(10), || (flood.sent() >= enough).then_some(()));
            let start = Instant::now();
            // A task of its own: whatever goes wrong in it is one failed attempt.
            let paired = tokio::spawn(tokio::time::timeout(PATIENCE, pair())).await;
            if let Ok(Ok((_agents, sockets))) = paired {
                took.push(start.elapsed());
                // Else a new agent may be given the port, and with it the NAT's mapping, of a session that still lives.
                bound.push(sockets);
            }
        }
        let Counted { forwarded, overflowed } = Counted::of(&world).since(before);

        println!(
            "{} of {ATTEMPTS} pairings, the longest in {:?}; {forwarded} relayed packets forwarded, {overflowed} found a queue full",
            took.len(),
            took.iter().max()
        );
        // Those alone that the readers have not come to: what is kept out of control's queue is no work for them.
        assert!(
            forwarded + overflowed >= 2 * forwarded,
            "no overload: {forwarded} forwarded, {overflowed} found a queue full"
        );
        assert!(took.len() == ATTEMPTS && took.iter().all(|took| *took <= PATIENCE), "{took:?}");
    });
}

/// Two new agents, from their first datagram to the session that both have bound.
async fn pair() -> ([HandAgent; 2], [HandBind; 2]) {
    let mut target = HandAgent::verified(NodeKey::generate().unwrap()).await;
    target.announce().await;
    let mut connector = HandAgent::verified(NodeKey::generate().unwrap()).await;
    connector.announce().await;
    connector.connect(target.key.node_id()).await;
    let mut near = HandBind::new(connector.terms().await);
    let mut far = HandBind::new(target.terms().await);
    near.prove();
    far.prove();
    ([connector, target], [near, far])
}

/// Other work of the relay's host: a slow processor is what is left for the relay.
struct Others {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Others {
    fn start() -> Others {
        let stop = Arc::<AtomicBool>::default();
        let work = || {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                allowed_or_said(&Tool::new("taskset").words("--cpu-list --pid 0").arg(this_thread()));
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        };
        let threads = (0..OTHERS).map(|_| work()).collect();
        Others { stop, threads }
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

/// Sends as fast as it can until it is dropped.
struct Flood {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    sent: AtomicU64,
}

impl Flood {
    /// From each of `sockets`, copies of each of `datagrams`.
    fn start(sockets: Vec<UdpSocket>, datagrams: &[Vec<u8>]) -> Flood {
        let shared = Arc::<Shared>::default();
        let datagrams = datagrams.to_vec();
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::spawn(move || of_thread.send(&sockets, &datagrams));
        Flood { shared, thread: Some(thread) }
    }

    fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn send(&self, sockets: &[UdpSocket], datagrams: &[Vec<u8>]) {
        // Whatever else this machine does, more is sent than can be relayed.
        run_first();
        let state = UdpSocketState::new((&sockets[0]).into()).unwrap();
        // Many in one call, which the kernel divides: one processor offers several times what another can relay.
        let runs: Vec<_> = datagrams
            .iter()
            .map(|datagram| {
                let count = state.max_gso_segments().min(MAX_UDP_PAYLOAD / datagram.len());
                (datagram.len(), count, datagram.repeat(count))
            })
            .collect();
        sockets.iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
        while !self.stop.load(Ordering::Relaxed) {
            for ((len, count, run), socket) in
                runs.iter().flat_map(|run| sockets.iter().map(move |socket| (run, socket)))
            {
                let transmit = Transmit {
                    destination: RELAY,
                    ecn: None,
                    contents: run,
                    segment_size: Some(*len),
                    src_ip: None,
                };
                if state.try_send(socket.into(), &transmit).is_ok() {
                    self.sent.fetch_add(*count as u64, Ordering::Relaxed);
                }
            }
        }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let _its_panic_was_shown = self.thread.take().map(JoinHandle::join);
    }
}

/// What fits one IPv4 packet.
const MAX_UDP_PAYLOAD: usize = 65_507;

/// Datagrams that reached the relay's sockets.
#[derive(Clone, Copy, Debug)]
struct Counted {
    forwarded: u64,
    /// Dropped by the kernel because a queue was full.
    overflowed: u64,
}

impl Counted {
    fn of(world: &World) -> Counted {
        let userspace = world.status().userspace;
        Counted { forwarded: userspace["forwarded"], overflowed: userspace["socket_queue_full"] }
    }

    fn since(self, before: Counted) -> Counted {
        Counted {
            forwarded: self.forwarded - before.forwarded,
            overflowed: self.overflowed - before.overflowed,
        }
    }
}
