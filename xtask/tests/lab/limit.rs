//! `relay_bandwidth_limit` is what arrives, whoever forwards.

use std::time::{Duration, Instant};

use relay_userspace::identity::{NodeId, NodeKey};

use super::raw_agents::{connect, dialer, listener, run_inside};
use super::world::{NATIVE, USERSPACE, World};

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

fn hold_the_limit(world: &World, relay_options: &str) {
    let _relay = world.deployment.start_relay(Some(LIMIT), relay_options).unwrap();
    let keys = [0, 1].map(|_| NodeKey::generate().unwrap());
    let ids = keys.each_ref().map(NodeKey::node_id);
    let (offered, arrivals) = std::thread::scope(|scope| {
        let sending = scope.spawn(|| send_at_twice_the_limit(world, &keys[0], ids[1]));
        let receiving = scope.spawn(|| receive(world, &keys[1], ids[0]));
        (sending.join().unwrap(), receiving.join().unwrap())
    });

    let first = arrivals.first().unwrap().0;
    let measured = first + BURST_SPENT..first + BURST_SPENT + MEASURED;
    let bytes: usize =
        arrivals.iter().filter(|(at, _)| measured.contains(at)).map(|(_, length)| length).sum();
    let rate = bytes as f64 / MEASURED.as_secs_f64();
    let deviation = rate / LIMIT as f64 - 1.0;
    println!("offered {offered:.0} bytes/s, arrived {rate:.0} ({:+.2} % of the limit)", 100.0 * deviation);
    assert!(offered > 1.9 * LIMIT as f64, "only {offered:.0} bytes/s were offered");
    assert!(deviation.abs() <= 0.02, "{rate:.0} bytes/s arrived, {:+.2} % of the limit", 100.0 * deviation);
}

/// Sends for as long as is measured; gives the bytes per second it sent.
fn send_at_twice_the_limit(world: &World, key: &NodeKey, peer: NodeId) -> f64 {
    run_inside(&world.lab.agents[0], async || {
        let agent = dialer(world, key);
        let session = connect(&agent, peer).await;
        let datagram = [0x5a; PAYLOAD];
        let start = Instant::now();
        let mut sent = 0u64;
        while start.elapsed() < BURST_SPENT + MEASURED + Duration::from_millis(500) {
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

/// When how many bytes arrived, until the session ends.
fn receive(world: &World, key: &NodeKey, peer: NodeId) -> Vec<(Instant, usize)> {
    run_inside(&world.lab.agents[1], async || {
        let agent = listener(world, key, peer);
        let mut session = agent.accept_raw().await.unwrap();
        let mut arrivals = Vec::new();
        while let Some(datagram) = session.recv().await {
            arrivals.push((Instant::now(), datagram.len()));
        }
        arrivals
    })
}
