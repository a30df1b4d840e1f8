//! What a relay with the XDP program tells those who watch it.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use super::world::{NATIVE, World, wait_for};

/// Where it is watched: on loopback of its own host.
const WATCHED: &str = "127.0.0.1:9433";

#[test]
fn what_the_program_and_its_interface_count_is_read_at_each_scrape() {
    let name = "what_the_program_and_its_interface_count_is_read_at_each_scrape";
    let Some(world) = World::new(name) else { return };
    let _relay = watched(&world);
    let before = metrics(&world);
    assert_eq!(before["atlas_relay_interface_info{interface=\"r0\",mode=\"xdp-native\"}"], 1.0);
    assert!(before.keys().any(|series| series.starts_with("atlas_relay_datapath_info{mode=\"xdp-native\"")));
    assert!(before.keys().any(|series| series.starts_with("atlas_relay_build_info{") && series.contains("program=\"yes\"")));

    let by_kernel = world.copy_a_file().by_kernel();

    let after = metrics(&world);
    let grown = |series: &str| after[series] - before[series];
    let forwarded = grown("atlas_relay_packets_total{datapath=\"kernel\",reason=\"forwarded\"}");
    assert!(forwarded >= by_kernel as f64 && by_kernel > 0, "{forwarded} of {by_kernel}");
    // With their headers, but for the smallest.
    let bytes = grown("atlas_relay_bytes_total{datapath=\"kernel\",reason=\"forwarded\"}");
    assert!(bytes > forwarded * 60.0, "{bytes} bytes of {forwarded} packets");
    let status = world.status();
    for (reason, count) in &status.kernel {
        let series = format!("atlas_relay_packets_total{{datapath=\"kernel\",reason=\"{reason}\"}}");
        assert!(after[&series] <= *count as f64, "{series}");
    }
    for direction in ["receive", "transmit"] {
        let series = |metric: &str| {
            format!("atlas_relay_interface_{metric}_total{{interface=\"r0\",direction=\"{direction}\"}}")
        };
        assert!(grown(&series("packets")) > 0.0, "{direction}");
        assert_eq!(grown(&series("errors")), 0.0, "{direction}");
        assert!(after.contains_key(&series("dropped_packets")), "{direction}");
    }
    assert!(after["atlas_relay_sweep_seconds_count"] > 0.0);
}

#[test]
fn marked_packets_of_a_limited_session_are_counted_with_their_bytes() {
    let name = "marked_packets_of_a_limited_session_are_counted_with_their_bytes";
    let Some(world) = World::new(name) else { return };
    // Agents that keep to the limit by themselves have nothing marked.
    for node in [&world.deployment.connector, &world.deployment.target] {
        let config = std::fs::read_to_string(node.directory().join("state/config.toml")).unwrap();
        let (before, after) = config.split_once("[agent]\n").unwrap_or((&config, ""));
        node.configure(&format!("{before}[agent]\npacing = false\n{after}")).unwrap();
    }
    let _relay = watched_with(&world, Some(2_000_000));

    let copied = world.copy_a_file();

    let after = metrics(&world);
    let marked = |what: &str| after[&format!("atlas_relay_marked_{what}_total{{datapath=\"kernel\"}}")];
    let (packets, bytes, told) = (marked("packets"), marked("bytes"), copied.session.marked_packets);
    assert!(told > 0 && packets >= told as f64, "{packets} of {told}");
    // Of QUIC, in frames of Ethernet.
    assert!((packets * 20.0..packets * 1472.0).contains(&bytes), "{bytes} bytes of {packets} packets");
    assert_eq!(after["atlas_relay_marked_packets_total{datapath=\"userspace\"}"], 0.0);
}

#[test]
fn a_relay_whose_only_interface_is_gone_lives_but_is_not_ready() {
    let name = "a_relay_whose_only_interface_is_gone_lives_but_is_not_ready";
    let Some(world) = World::new(name) else { return };
    let _relay = watched(&world);
    assert_eq!(get(&world, "/readyz"), (200, "ready\n".to_owned()));

    world.lab.relay.ip("link del r0\n").unwrap();

    let why = wait_for("the relay to say that it is not ready", Duration::from_secs(30), || {
        let (status, why) = get(&world, "/readyz");
        (status == 503).then_some(why)
    });
    assert!(why.starts_with("no datapath: ") && why.contains("(r0)"), "{why}");
    assert_eq!(get(&world, "/livez").0, 200);
    assert_eq!(metrics(&world)["atlas_relay_interface_info{interface=\"r0\",mode=\"xdp-native\"}"], 0.0);
}

fn watched(world: &World) -> xtask::lab::Process {
    watched_with(world, None)
}

/// A relay whose sessions have a limit.
fn watched_with(world: &World, limit: Option<u64>) -> xtask::lab::Process {
    let more = format!("[metrics]\nlisten = \"{WATCHED}\"\n");
    world.deployment.start_relay_with(limit, &more, NATIVE).unwrap()
}

/// Every series with its value.
fn metrics(world: &World) -> BTreeMap<String, f64> {
    let (status, text) = get(world, "/metrics");
    assert_eq!(status, 200, "{text}");
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        })
        .collect()
}

/// Status and text, asked for on the relay's host.
fn get(world: &World, path: &str) -> (u16, String) {
    let answer = world.lab.relay.inside(|| {
        let mut stream = TcpStream::connect(WATCHED).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {WATCHED}\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let answer = answer.unwrap();
    let (head, text) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), text.to_owned())
}
