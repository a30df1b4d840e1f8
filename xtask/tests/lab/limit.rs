//! `relay_bandwidth_limit` is what arrives, whoever forwards.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use relay_userspace::config::Reloaded;
use relay_userspace::identity::{NodeId, NodeKey};
use xtask::deployment::relay_configuration;

use super::raw_agents::{connect, dialer, listener, run_inside};
use super::world::{NATIVE, USERSPACE, World, wait_for};

const LIMIT: u64 = 1_048_576;
const PAYLOAD: usize = 1200;
const BURST_SPENT: Duration = Duration::from_secs(2);
const MEASURED: Duration = Duration::from_secs(10);

#[test]
fn the_kernel_holds_the_limit_against_a_sender_at_twice_the_rate() {
    let Some(world) = World::new("the_kernel_holds_the_limit_against_a_sender_at_twice_the_rate") else {
        return;
    };
    hold_the_limit(&world, NATIVE);
}

#[test]
fn the_daemon_holds_the_limit_against_a_sender_at_twice_the_rate() {
    let Some(world) = World::new("the_daemon_holds_the_limit_against_a_sender_at_twice_the_rate") else {
        return;
    };
    hold_the_limit(&world, USERSPACE);
}

#[test]
fn the_kernel_holds_another_limit_as_soon_as_the_configuration_is_reloaded() {
    let name = "the_kernel_holds_another_limit_as_soon_as_the_configuration_is_reloaded";
    let Some(world) = World::new(name) else { return };
    follow_the_limit(&world, NATIVE);
}

#[test]
fn the_daemon_holds_another_limit_as_soon_as_the_configuration_is_reloaded() {
    let name = "the_daemon_holds_another_limit_as_soon_as_the_configuration_is_reloaded";
    let Some(world) = World::new(name) else { return };
    follow_the_limit(&world, USERSPACE);
}

/// The sender goes on as before, at twice the limit that was configured first.
fn follow_the_limit(world: &World, relay_options: &str) {
    const WINDOW: Duration = Duration::from_secs(2);
    let relay = &world.deployment.relay;
    let _relay = world.deployment.start_relay(Some(LIMIT), relay_options).unwrap();
    let keys = [0, 1].map(|_| NodeKey::generate().unwrap());
    let ids = keys.each_ref().map(NodeKey::node_id);
    let (stop, arrivals) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let measure = || {
        let measured = Instant::now()..Instant::now() + WINDOW;
        std::thread::sleep(WINDOW);
        let arrivals = arrivals.lock().unwrap();
        rate(&arrivals, &measured)
    };
    std::thread::scope(|scope| {
        scope.spawn(|| send_at_twice_the_limit(world, &keys[0], ids[1], |_| !stop.load(Ordering::Relaxed)));
        scope.spawn(|| receive(world, &keys[1], ids[0], &arrivals));
        wait_for("the first datagram", Duration::from_secs(10), || {
            (!arrivals.lock().unwrap().is_empty()).then_some(())
        });
        std::thread::sleep(BURST_SPENT);
        let mut measured = vec![(LIMIT, measure())];
        for limit in [LIMIT / 2, LIMIT * 3 / 2] {
            relay.configure(&relay_configuration(limit)).unwrap();
            let reloaded: Reloaded = relay.json("config reload --json").unwrap();
            assert_eq!(reloaded.applied.len(), 1, "{reloaded:?}");
            // A quarter of a second's worth may pass at once when the limit has risen.
            std::thread::sleep(Duration::from_millis(500));
            measured.push((limit, measure()));
        }
        stop.store(true, Ordering::Relaxed);
        println!("limits and what arrived, in bytes/s: {measured:?}");
        for (limit, rate) in measured {
            let deviation = rate / limit as f64 - 1.0;
            assert!(
                deviation.abs() <= 0.02,
                "{rate:.0} bytes/s arrived under {limit}: {:+.2} %",
                100.0 * deviation
            );
        }
    });
}

fn hold_the_limit(world: &World, relay_options: &str) {
    let _relay = world.deployment.start_relay(Some(LIMIT), relay_options).unwrap();
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
    let deviation = rate / LIMIT as f64 - 1.0;
    println!("offered {offered:.0} bytes/s, arrived {rate:.0} ({:+.2} % of the limit)", 100.0 * deviation);
    assert!(offered > 1.9 * LIMIT as f64, "only {offered:.0} bytes/s were offered");
    assert!(deviation.abs() <= 0.02, "{rate:.0} bytes/s arrived, {:+.2} % of the limit", 100.0 * deviation);
}

/// A datagram that has arrived.
struct Arrival {
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
fn send_at_twice_the_limit(
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
fn receive(world: &World, key: &NodeKey, peer: NodeId, arrivals: &Mutex<Vec<Arrival>>) {
    run_inside(&world.lab.agents[1], async || {
        let agent = listener(world, key, peer);
        let mut session = agent.accept_raw().await.unwrap();
        while let Some(datagram) = session.recv().await {
            arrivals.lock().unwrap().push(Arrival { at: Instant::now(), bytes: datagram.len() });
        }
    });
}
