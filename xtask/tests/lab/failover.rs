//! A relay dies, its network with it, and what agents have open goes on over another.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use relay_userspace::agent::{Agent, AgentSettings, PeerConnection, PingError, SessionSnapshot};
use relay_userspace::identity::NodeKey;
use xtask::answers::{Peers, RelaySession, RelaySessions};
use xtask::deployment::Node;
use xtask::lab::{LabPlan, RELAY_GATEWAY_DEVICE};

use super::other_relay::{OTHER, other_relay, relay_at, start_other};
use super::raw_agents::run_inside;
use super::world::{FORWARDED, NATIVE, RELAY, SERVED, World, wait_for};

/// An exchange of the echo this often.
const INTERVAL: Duration = Duration::from_millis(50);

/// A dead path is noticed after 1 s without an answer and 3 s of silence, and the timers of QUIC have doubled meanwhile.
/// The agents' own QUIC would give up after 30 s.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_relay_dies_and_quic_connections_and_forwards_go_on_over_another() {
    const NAME: &str = "a_relay_dies_and_quic_connections_and_forwards_go_on_over_another";
    let plan = LabPlan { other_relay: true, ..LabPlan::default() };
    let Some(world) = World::planned(NAME, &plan, RELAY) else { return };
    let other = other_relay(&world);
    know_both(&world, &other);
    let deployment = &world.deployment;
    let relay = deployment.start_relay(Some(0), NATIVE).unwrap();
    let _target = deployment.start_target().unwrap();
    let keys = [0, 1].map(|_| NodeKey::generate().unwrap());
    let [connector, target] = keys.each_ref().map(|key| key.node_id());
    let relays = [relay_at(&deployment.relay, RELAY), relay_at(&other, OTHER)];
    let settings = |key: &NodeKey| {
        let known = world.lab.directory().join(key.node_id().to_string());
        AgentSettings::dialer(
            key.clone(),
            "echo",
            relays.iter().map(|it| it.parse().unwrap()).collect(),
            known,
        )
    };
    let _forward = deployment.start_forward(FORWARDED, SERVED).unwrap();
    let (tcp, quic) = (Echo::default(), Echo::default());
    std::thread::scope(|scope| {
        let _over = OverWhenDropped([&tcp.over, &quic.over]);
        scope.spawn(|| world.lab.agents[1].inside(|| tcp.serve(SERVED)).unwrap());
        scope.spawn(|| world.lab.agents[0].inside(|| tcp.ask(FORWARDED)).unwrap());
        scope.spawn(|| {
            run_inside(&world.lab.agents[1], async || {
                let accept = vec![connector];
                let agent = Agent::spawn(AgentSettings { announce: true, accept, ..settings(&keys[1]) });
                quic.until_over().await;
                agent.shutdown().await;
            });
        });
        let asking = scope.spawn(|| {
            run_inside(&world.lab.agents[0], async || {
                let agent = Agent::spawn(settings(&keys[0]));
                let connection = connected(&agent, target).await;
                quic.ping(&connection).await
            })
        });
        tcp.wait_for_more(20);
        quic.wait_for_more(20);
        // Only now: so both sessions are through the first.
        let _other = start_other(&other);
        let expected = [deployment.connector.id(), deployment.target.id()].map(str::to_owned);
        let expected = expected.into_iter().chain([connector, target].map(|id| id.to_string()));
        wait_for_peers(&other, &expected.collect::<Vec<_>>());
        assert_eq!(world.sessions().len(), 2);
        for echo in [&tcp, &quic] {
            echo.longest_gap_us.store(0, Ordering::Relaxed);
        }

        relay.kill();
        world.lab.router.ip(&format!("link set {RELAY_GATEWAY_DEVICE} down\n")).unwrap();

        for (echo, what) in [(&tcp, "TCP forward"), (&quic, "QUIC connection")] {
            echo.wait_for_more(100);
            let gap = Duration::from_micros(echo.longest_gap_us.load(Ordering::Relaxed));
            println!("the relay died: the {what} was silent for {:.1} s", gap.as_secs_f64());
        }
        let sessions = other.json::<RelaySessions>("net sessions --json").unwrap().sessions;
        let by_kernel = |it: &RelaySession| it.sides.iter().all(|side| side.packets_kernel > 0);
        assert_eq!(sessions.iter().filter(|it| it.state == "paired" && by_kernel(it)).count(), 2);
        assert_shows_other_relay(&deployment.target);
        quic.over.store(true, Ordering::Relaxed);
        let session = asking.join().unwrap();
        assert_eq!((session.relay.parse(), session.moves), (Ok(OTHER), 1));
    });
}

/// `net sessions` and `net peers` of an agent name the relay in use and its round trip.
fn assert_shows_other_relay(agent: &Node) {
    let shown: serde_json::Value = agent.json("net sessions --json").unwrap();
    let sessions = shown["sessions"].as_array().unwrap();
    let through_other = |session: &&serde_json::Value| session["relay"] == OTHER.to_string();
    let session = sessions.iter().find(through_other).unwrap_or_else(|| panic!("{shown}"));
    assert!(session["relay_round_trip_us"].as_u64().is_some_and(|us| us > 0), "{shown}");
    let shown: serde_json::Value = agent.json("net peers --json").unwrap();
    let relays = shown["peers"].as_array().unwrap();
    let other = relays.iter().find(|relay| relay["address"] == OTHER.to_string());
    assert!(other.unwrap()["round_trip_us"].as_u64().is_some_and(|us| us > 0), "{shown}");
}

/// Makes the world's agents know both relays, the first one first.
fn know_both(world: &World, other: &Node) {
    let deployment = &world.deployment;
    let relays = [relay_at(&deployment.relay, RELAY), relay_at(other, OTHER)];
    let knows = format!("[network]\nrelays = {relays:?}\n\n[transport]\nenable_relay = true\n");
    deployment.connector.configure(&knows).unwrap();
    let connector = deployment.connector.id();
    let serves = format!(
        "{knows}\n[agent]\naccept = [\"{connector}\"]\n\n[[agent.allow]]\npeer = \"{connector}\"\nto = \"{SERVED}\"\n"
    );
    deployment.target.configure(&serves).unwrap();
}

/// Waits until a relay knows all of these nodes, and others can find those that announce themselves.
fn wait_for_peers(relay: &Node, expected: &[String]) {
    wait_for("all agents at the other relay", PATIENCE, || {
        let peers = relay.json::<Peers>("net peers --json").ok()?.peers;
        let all = expected.iter().all(|id| peers.iter().any(|peer| peer.node_id == *id));
        (all && peers.iter().filter(|peer| peer.announced).count() == 2).then_some(())
    });
}

async fn connected(agent: &Agent, peer: relay_userspace::identity::NodeId) -> PeerConnection {
    let asking = async {
        loop {
            if let Ok(connection) = agent.connect(peer).await {
                return connection;
            }
            tokio::time::sleep(INTERVAL).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.expect("the peer is there")
}

/// An exchange that goes on until it is over.
#[derive(Default)]
struct Echo {
    over: AtomicBool,
    answers: AtomicU64,
    /// The longest time between two answers, in microseconds.
    longest_gap_us: AtomicU64,
}

impl Echo {
    /// Sends back what comes by one TCP connection.
    fn serve(&self, at: SocketAddr) {
        let listener = TcpListener::bind(at).unwrap();
        listener.set_nonblocking(true).unwrap();
        let accepted = || (!self.over.load(Ordering::Relaxed)).then(|| listener.accept());
        let mut stream = loop {
            match accepted() {
                None => return,
                Some(Ok((stream, _))) => break stream,
                Some(Err(_)) => std::thread::sleep(INTERVAL),
            }
        };
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(INTERVAL)).unwrap();
        let mut bytes = [0; 1024];
        loop {
            match stream.read(&mut bytes) {
                Ok(0) => return,
                Ok(len) => stream.write_all(&bytes[..len]).unwrap(),
                Err(_) if self.over.load(Ordering::Relaxed) => return,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "the forward goes on"),
            }
        }
    }

    /// Exchanges numbers over one TCP connection.
    fn ask(&self, at: SocketAddr) {
        let mut stream = TcpStream::connect(at).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut heard = Instant::now();
        for number in 0u64.. {
            if self.over.load(Ordering::Relaxed) {
                return;
            }
            let mut back = [0; 8];
            let exchanged =
                stream.write_all(&number.to_be_bytes()).and_then(|()| stream.read_exact(&mut back));
            if let Err(error) = exchanged {
                assert!(self.over.load(Ordering::Relaxed), "the forward goes on: {error}");
                return;
            }
            assert_eq!(u64::from_be_bytes(back), number);
            self.answered(&mut heard);
            std::thread::sleep(INTERVAL);
        }
    }

    /// Pings over one connection; gives its session as it is in the end.
    async fn ping(&self, connection: &PeerConnection) -> SessionSnapshot {
        let mut heard = Instant::now();
        while !self.over.load(Ordering::Relaxed) {
            match connection.ping().await {
                Ok(_) => self.answered(&mut heard),
                Err(error) => assert_eq!(error, PingError::Timeout, "the connection is still there"),
            }
            tokio::time::sleep(INTERVAL).await;
        }
        connection.session().snapshot()
    }

    fn answered(&self, heard: &mut Instant) {
        let gap = u64::try_from(heard.elapsed().as_micros()).unwrap();
        self.longest_gap_us.fetch_max(gap, Ordering::Relaxed);
        self.answers.fetch_add(1, Ordering::Relaxed);
        *heard = Instant::now();
    }

    fn wait_for_more(&self, count: u64) {
        let before = self.answers.load(Ordering::Relaxed);
        wait_for(&format!("{count} more answers"), PATIENCE, || {
            (self.answers.load(Ordering::Relaxed) >= before + count).then_some(())
        });
    }

    async fn until_over(&self) {
        while !self.over.load(Ordering::Relaxed) {
            tokio::time::sleep(INTERVAL).await;
        }
    }
}

struct OverWhenDropped<'a>([&'a AtomicBool; 2]);

impl Drop for OverWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|over| over.store(true, Ordering::Relaxed));
    }
}
