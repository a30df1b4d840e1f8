//! Strangers begin handshakes by the ten thousand, from addresses of their own and from others'. It is nobody's business but
//! theirs.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use relay_userspace::identity::NodeKey;
use relay_userspace::relay::rendezvous::KEEPALIVE;
use relay_userspace::tls;
use xtask::lab::Process;

use super::hand_agent::{HandBind, paired};
use super::raw_agents::run_inside;
use super::world::{RELAY, USERSPACE, World, wait_for};

/// Handshakes begun from an address each, at which nobody answers.
const FORGED: usize = 45_000;

/// Addresses at which somebody does, and how many handshakes that do not hold each of them begins.
const ANSWERING: u8 = 8;
const OF_EACH: usize = 700;

/// A new agent has to be paired within this.
const PATIENCE: Duration = Duration::from_secs(10);

/// So many attempts of strangers lie between two pairs of agents.
const BETWEEN_PAIRS: u64 = 1000;

/// More memory than this the relay may not take for all that.
const MAX_GROWTH_KIB: u64 = 64 << 10;

#[test]
fn a_flood_of_fifty_thousand_handshakes_leaves_sessions_and_new_agents_alone() {
    const NAME: &str = "a_flood_of_fifty_thousand_handshakes_leaves_sessions_and_new_agents_alone";
    let Some(world) = World::new(NAME) else { return };
    let relay = world.deployment.start_relay(Some(0), USERSPACE).unwrap();
    // All of it is the router's.
    world.lab.router.ip("route add local 10.64.0.0/10 dev lo\n").unwrap();
    let flood = Arc::<Flood>::default();
    let before = resident_kib(&relay);

    let (took, banned, session) = run_inside(&world.lab.agents[0], async || {
        let [(connector, near), (target, far)] = paired().await;
        let session = Session::start(near, far);
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| world.lab.router.inside(|| flood.forge()).unwrap());
            let dialler = scope.spawn(|| run_inside(&world.lab.router, async || flood.dial().await));
            let watcher = scope.spawn(move || {
                sender.join().unwrap();
                dialler.join().unwrap();
            });
            wait_for("the flood", Duration::from_secs(30), || {
                (world.refused("retry_demanded") > 0).then_some(())
            });
            let bans = scope.spawn(|| flood.bans(&world));
            let newcomers = scope.spawn(|| run_inside(&world.lab.agents[1], async || flood.meet().await));
            let took = newcomers.join().unwrap();
            watcher.join().unwrap();
            drop([connector, target]);
            (took, bans.join().unwrap(), session.stop())
        })
    });

    let status = world.status();
    let (grown, peak) = (peak_kib(&relay).saturating_sub(before), peak_kib(&relay));
    let begun = flood.begun();
    let refused: Vec<_> = status.control.iter().filter(|(_, count)| **count > 0).collect();
    println!(
        "{begun} handshakes begun in {:?}: refused {refused:?}; {} found a queue full; {} datagrams of a session, {} lost; \
         {} new pairs, the longest in {:?}; the relay's memory at most {peak} KiB, {grown} KiB more than before",
        flood.took(),
        status.userspace["socket_queue_full"] + status.userspace["quic_queue_full"],
        session.sent,
        session.lost,
        took.len(),
        took.iter().max(),
    );
    assert!(session.sent > 0 && session.lost == 0, "{} of {} were lost", session.lost, session.sent);
    assert!(!took.is_empty(), "a new agent was paired while the flood lasted");
    assert!(grown <= MAX_GROWTH_KIB, "{grown} KiB more than before");
    let counted: u64 = status.control.values().sum();
    let dropped = status.userspace["socket_queue_full"] + status.userspace["quic_queue_full"];
    assert!(counted + dropped >= begun, "{counted} refused and {dropped} dropped of {begun}");
    assert!(world.refused("retry_demanded") > begun / 2, "most cost no more than a Retry");
    let answered = (0..ANSWERING).map(|number| answering(number).to_string());
    assert_eq!(banned, answered.collect::<BTreeSet<_>>(), "who answered was banned, and nobody else");
}

/// The strangers.
#[derive(Default)]
struct Flood {
    begun: AtomicU64,
    ended: AtomicU64,
    took_ms: AtomicU64,
}

impl Flood {
    /// First datagrams of real connections, each from an address of its own.
    fn forge(&self) {
        let start = Instant::now();
        let key = NodeKey::generate().unwrap();
        let config = tls::client_config(&key, tls::ALPN_RELAY, None).unwrap();
        let mut endpoint = None;
        for number in 0..FORGED {
            if number % 1000 == 0 {
                endpoint = Some(quinn_proto::Endpoint::new(Arc::default(), None, false, None));
            }
            let [_, _, high, low] = (number as u32).to_be_bytes();
            let socket = UdpSocket::bind((Ipv4Addr::new(10, 65, high, low), 0)).unwrap();
            socket.send_to(&initial(endpoint.as_mut().unwrap(), config.clone()), RELAY).unwrap();
            self.begun.fetch_add(1, Ordering::Relaxed);
        }
        self.ends(start);
    }

    /// Connections from addresses that prove themselves, by a protocol that is not the relay's.
    async fn dial(&self) {
        let start = Instant::now();
        let mut config = tls::client_config(&NodeKey::generate().unwrap(), tls::ALPN_PEER, None).unwrap();
        // Who is not answered is no reason to wait for long.
        let mut transport = quinn::TransportConfig::default();
        transport.max_idle_timeout(Some(Duration::from_secs(3).try_into().unwrap()));
        config.transport_config(Arc::new(transport));
        let mut dialling = tokio::task::JoinSet::new();
        for number in 0..ANSWERING {
            let mut endpoint = quinn::Endpoint::client((answering(number), 0).into()).unwrap();
            endpoint.set_default_client_config(config.clone());
            dialling.spawn(async move {
                for _ in 0..OF_EACH {
                    let refused = endpoint.connect(RELAY, tls::SERVER_NAME).unwrap().await;
                    assert!(refused.is_err(), "another protocol is not spoken");
                }
            });
        }
        while let Some(ended) = dialling.join_next().await {
            ended.unwrap();
            self.begun.fetch_add(OF_EACH as u64, Ordering::Relaxed);
        }
        self.ends(start);
    }

    /// New agents are paired while it lasts, one pair after so many attempts of strangers. How long each took.
    async fn meet(&self) -> Vec<Duration> {
        let (mut took, mut bound) = (Vec::new(), Vec::new());
        while !self.is_over() {
            let enough = self.begun() + BETWEEN_PAIRS;
            wait_for("the flood", Duration::from_secs(60), || {
                (self.begun() >= enough || self.is_over()).then_some(())
            });
            let start = Instant::now();
            let paired = tokio::time::timeout(PATIENCE, paired()).await;
            let [(_connector, near), (_target, far)] = paired.expect("a new agent is paired");
            took.push(start.elapsed());
            // Else a new agent may be given the port, and with it the NAT's mapping, of a session that still lives.
            bound.push([near, far]);
        }
        took
    }

    /// All who are banned for it at any time. None is for longer than a minute, and the flood may last longer.
    fn bans(&self, world: &World) -> BTreeSet<String> {
        let mut banned = BTreeSet::new();
        loop {
            let is_over = self.is_over();
            let listed = world.deployment.relay.run("bans").unwrap();
            let for_it = listed.lines().filter(|line| line.contains("tls_failed"));
            banned.extend(for_it.filter_map(|line| line.split_whitespace().next()).map(str::to_owned));
            if is_over {
                return banned;
            }
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    fn ends(&self, start: Instant) {
        self.took_ms.fetch_max(start.elapsed().as_millis() as u64, Ordering::Relaxed);
        self.ended.fetch_add(1, Ordering::Relaxed);
    }

    fn is_over(&self) -> bool {
        self.ended.load(Ordering::Relaxed) == 2
    }

    fn took(&self) -> Duration {
        Duration::from_millis(self.took_ms.load(Ordering::Relaxed))
    }
}

fn answering(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 66, 0, number + 1)
}

/// The first datagram of a new connection.
fn initial(endpoint: &mut quinn_proto::Endpoint, config: quinn::ClientConfig) -> Vec<u8> {
    let now = Instant::now();
    let (_, mut connection) = endpoint.connect(now, config, RELAY, tls::SERVER_NAME).unwrap();
    let mut datagram = Vec::new();
    let transmit = connection.poll_transmit(now, 1, &mut datagram).unwrap();
    datagram.truncate(transmit.size);
    datagram
}

/// Datagrams that go over a session one after the other, each once the one before has arrived or is lost.
struct Session {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Carried>,
}

struct Carried {
    sent: u64,
    lost: u64,
}

impl Session {
    fn start(mut near: HandBind, mut far: HandBind) -> Session {
        let stop = Arc::<AtomicBool>::default();
        let until = Arc::clone(&stop);
        // What is still not there by then does not come any more.
        for side in [&near, &far] {
            side.socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        }
        let thread = std::thread::spawn(move || {
            let (mut carried, mut proved) = (Carried { sent: 0, lost: 0 }, Instant::now());
            while !until.load(Ordering::Relaxed) {
                if proved.elapsed() > KEEPALIVE {
                    near.prove();
                    far.prove();
                    proved = Instant::now();
                }
                let datagram = carried.sent.to_be_bytes();
                near.socket.send_to(&datagram, RELAY).unwrap();
                carried.sent += 1;
                let mut received = [0; 8];
                let arrived = far.socket.recv(&mut received).is_ok() && received == datagram;
                carried.lost += u64::from(!arrived);
            }
            carried
        });
        Session { stop, thread }
    }

    fn stop(self) -> Carried {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// What the relay's memory takes at the moment.
fn resident_kib(relay: &Process) -> u64 {
    memory_kib(relay, "VmRSS:")
}

/// What it took at most.
fn peak_kib(relay: &Process) -> u64 {
    memory_kib(relay, "VmHWM:")
}

fn memory_kib(relay: &Process, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", relay.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}
