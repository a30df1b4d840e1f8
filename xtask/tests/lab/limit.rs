//! `relay_bandwidth_limit` is what arrives, whoever forwards.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use relay_userspace::config::Reloaded;
use relay_userspace::identity::{NodeId, NodeKey};
use xtask::deployment::relay_configuration;

use super::forwarder::Forwarder;
use super::raw_agents::{connect, dialer, listener, run_inside};
use super::world::{World, wait_for};

pub const LIMIT: u64 = 1_048_576;
const PAYLOAD: usize = 1200;
const BURST_SPENT: Duration = Duration::from_secs(2);
const MEASURED: Duration = Duration::from_secs(10);

#[test]
fn the_kernel_holds_the_limit_against_a_sender_at_twice_the_rate() {
    let Some(world) = World::new("the_kernel_holds_the_limit_against_a_sender_at_twice_the_rate") else {
        return;
    };
    hold_the_limit(&world, Forwarder::Kernel);
}

#[test]
fn the_daemon_holds_the_limit_against_a_sender_at_twice_the_rate() {
    let Some(world) = World::new("the_daemon_holds_the_limit_against_a_sender_at_twice_the_rate") else {
        return;
    };
    hold_the_limit(&world, Forwarder::Daemon);
}

#[test]
fn the_kernel_holds_another_limit_as_soon_as_the_configuration_is_reloaded() {
    let name = "the_kernel_holds_another_limit_as_soon_as_the_configuration_is_reloaded";
    let Some(world) = World::new(name) else { return };
    follow_the_limit(&world, Forwarder::Kernel);
}

#[test]
fn the_daemon_holds_another_limit_as_soon_as_the_configuration_is_reloaded() {
    let name = "the_daemon_holds_another_limit_as_soon_as_the_configuration_is_reloaded";
    let Some(world) = World::new(name) else { return };
    follow_the_limit(&world, Forwarder::Daemon);
}

/// The sender goes on as before, at twice the limit that was configured first.
fn follow_the_limit(world: &World, forwarder: Forwarder) {
    const WINDOW: Duration = Duration::from_secs(2);
    let relay = &world.deployment.relay;
    let _relay = forwarder.start_relay(world, Some(LIMIT));
    let keys = [0, 1].map(|_| NodeKey::generate().unwrap());
    let ids = keys.each_ref().map(NodeKey::node_id);
    let (stop, arrivals) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let measure = |limit| {
        let before = Counted::by(world, forwarder);
        let measured = Instant::now()..Instant::now() + WINDOW;
        std::thread::sleep(WINDOW);
        let counted = Counted::by(world, forwarder).since(&before);
        let rate = rate(&arrivals.lock().unwrap(), &measured);
        Measured { limit, rate, counted, lasted: WINDOW }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| send_at_twice_the_limit(world, &keys[0], ids[1], |_| !stop.load(Ordering::Relaxed)));
        scope.spawn(|| receive(world, &keys[1], ids[0], &arrivals));
        // The scope waits for the sender, whatever fails below.
        let _stops = SetWhenDropped(&stop);
        wait_for("the first datagram", Duration::from_secs(10), || {
            (!arrivals.lock().unwrap().is_empty()).then_some(())
        });
        std::thread::sleep(BURST_SPENT);
        let mut measured = vec![measure(LIMIT)];
        for limit in [LIMIT / 2, LIMIT * 3 / 2] {
            relay.configure(&relay_configuration(limit)).unwrap();
            let reloaded: Reloaded = relay.json("config reload --json").unwrap();
            assert_eq!(reloaded.applied.len(), 1, "{reloaded:?}");
            measured.push(measure(limit));
        }
        println!("{measured:#?}");
        for measured in &measured {
            measured.assert_held();
        }
    });
}

fn hold_the_limit(world: &World, forwarder: Forwarder) {
    let _relay = forwarder.start_relay(world, Some(LIMIT));
    let keys = [0, 1].map(|_| NodeKey::generate().unwrap());
    let ids = keys.each_ref().map(NodeKey::node_id);
    let arrivals = Mutex::new(Vec::new());
    let long_enough = BURST_SPENT + MEASURED + Duration::from_millis(500);
    let offered = std::thread::scope(|scope| {
        let sending =
            scope.spawn(|| send_at_twice_the_limit(world, &keys[0], ids[1], |since| since < long_enough));
        scope.spawn(|| receive(world, &keys[1], ids[0], &arrivals));
        sending.join().unwrap()
    });

    let arrivals = arrivals.into_inner().unwrap();
    let first = arrivals.first().unwrap().at;
    let rate = rate(&arrivals, &(first + BURST_SPENT..first + BURST_SPENT + MEASURED));
    // Of the whole transfer, so somewhat more than while it was measured.
    let measured = Measured { limit: LIMIT, rate, counted: Counted::by(world, forwarder), lasted: MEASURED };
    println!("offered {offered:.0} bytes/s: {measured:#?}");
    assert!(offered > 1.9 * LIMIT as f64, "only {offered:.0} bytes/s were offered");
    measured.assert_held();
}

/// What a sender at twice [`LIMIT`] came to.
#[derive(Debug)]
struct Measured {
    /// The limit, in bytes per second.
    limit: u64,
    /// The bytes per second that arrived.
    rate: f64,
    /// What was counted while that was measured, or longer.
    counted: Counted,
    /// How long it was measured.
    lasted: Duration,
}

impl Measured {
    /// The limit arrived, and the forwarder that was to hold it did so, alone.
    fn assert_held(&self) {
        let Counted { forwarded, limited, by_other } = self.counted;
        let deviation = self.rate / self.limit as f64 - 1.0;
        assert!(deviation.abs() <= 0.02, "{:+.2} % of the limit arrived: {self:?}", 100.0 * deviation);
        let packets = |bytes_per_s: f64| bytes_per_s * self.lasted.as_secs_f64() / PAYLOAD as f64;
        // What is counted at an edge of the time may arrive beyond it.
        assert!(forwarded as f64 >= 0.95 * packets(self.rate), "it has forwarded what arrived: {self:?}");
        let too_much = packets((2 * LIMIT - self.limit) as f64);
        assert!(limited as f64 >= 0.9 * too_much, "it has dropped what was too much: {self:?}");
        assert!(by_other * 100 <= forwarded, "the other has forwarded and dropped next to nothing: {self:?}");
    }
}

/// Packets.
#[derive(Clone, Copy, Debug)]
struct Counted {
    /// Those that the forwarder which is to hold the limit has forwarded.
    forwarded: u64,
    /// Those that it has dropped for the limit.
    limited: u64,
    /// Those that the other forwarder has forwarded, or dropped for the limit.
    by_other: u64,
}

impl Counted {
    fn by(world: &World, forwarder: Forwarder) -> Counted {
        let other = forwarder.other();
        Counted {
            forwarded: forwarder.counted(world, "forwarded"),
            limited: forwarder.counted(world, "limited"),
            by_other: other.counted(world, "forwarded") + other.counted(world, "limited"),
        }
    }

    fn since(&self, before: &Counted) -> Counted {
        Counted {
            forwarded: self.forwarded - before.forwarded,
            limited: self.limited - before.limited,
            by_other: self.by_other - before.by_other,
        }
    }
}

/// Sets a flag when it is dropped, also by a panic.
pub struct SetWhenDropped<'a>(pub &'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A datagram that has arrived.
pub struct Arrival {
    at: Instant,
    bytes: usize,
}

/// The bytes per second that arrived in a span of time.
fn rate(arrivals: &[Arrival], span: &Range<Instant>) -> f64 {
    let within = arrivals.iter().filter(|arrival| span.contains(&arrival.at));
    let bytes: usize = within.map(|arrival| arrival.bytes).sum();
    bytes as f64 / (span.end - span.start).as_secs_f64()
}

/// Sends while `goes_on` says so of the time since it began; gives the bytes per second it sent.
pub fn send_at_twice_the_limit(
    world: &World,
    key: &NodeKey,
    peer: NodeId,
    goes_on: impl Fn(Duration) -> bool + Sync,
) -> f64 {
    run_inside(&world.lab.agents[0], async || {
        let agent = dialer(world, key);
        let session = connect(&agent, peer).await;
        let datagram = [0x5a; PAYLOAD];
        let start = Instant::now();
        let mut sent = 0u64;
        while goes_on(start.elapsed()) {
            let due = (2.0 * LIMIT as f64 * start.elapsed().as_secs_f64()) as u64 / PAYLOAD as u64;
            for _ in sent..due {
                session.send(&datagram).await.unwrap();
            }
            sent = due;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let rate = (sent * PAYLOAD as u64) as f64 / start.elapsed().as_secs_f64();
        agent.shutdown().await;
        rate
    })
}

/// Notes what arrives until the session ends.
pub fn receive(world: &World, key: &NodeKey, peer: NodeId, arrivals: &Mutex<Vec<Arrival>>) {
    run_inside(&world.lab.agents[1], async || {
        let agent = listener(world, key, peer);
        let accepted = tokio::time::timeout(Duration::from_secs(20), agent.accept_raw()).await;
        let mut session = accepted.expect("a session within 20 s").unwrap();
        while let Some(datagram) = session.recv().await {
            arrivals.lock().unwrap().push(Arrival { at: Instant::now(), bytes: datagram.len() });
        }
    });
}
