//! What a relay tells over HTTP, and that Prometheus understands it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "in a test a panic is a failure"
)]

#[path = "metrics/prometheus.rs"]
mod prometheus;
mod relay_on_loopback;
mod skipping;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use relay_userspace::admin::Request;
use relay_userspace::agent::{Agent, AgentSettings};
use relay_userspace::config::{Config, RelayAddress};
use relay_userspace::identity::NodeId;
use relay_userspace::relay::StartError;
use relay_userspace::relay::report::{Drain, Ended};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use relay_on_loopback::{TestRelay, key};

/// A loopback address that no other process takes: its number is in it.
fn own_address(last: u8) -> SocketAddr {
    let [.., high, low] = std::process::id().to_be_bytes();
    SocketAddr::from(([127, high | 1, low, last], 9433))
}

/// A relay that is watched at `at`.
fn watched(at: SocketAddr) -> TestRelay {
    watched_with(at, |_| {})
}

/// The same with another change of its configuration.
fn watched_with(at: SocketAddr, change: impl FnOnce(&mut Config)) -> TestRelay {
    let started = TestRelay::start_with("", |config| {
        config.metrics.listen = Some(at.to_string().parse().unwrap());
        change(config);
    });
    started.unwrap().0
}

/// Status and text.
async fn get(at: SocketAddr, path: &str) -> (u16, String) {
    ask(at, &format!("GET {path} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n")).await.unwrap()
}

/// The same of any request; an error: nobody is there.
async fn ask(at: SocketAddr, request: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(at).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, text) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok((head.split(' ').nth(1).unwrap().parse().unwrap(), text.to_owned()))
}

/// The value of a series, written as Prometheus has it.
fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{series} in\n{text}")).parse().unwrap()
}

/// The metrics, once `holds` does of them.
async fn metrics_when(at: SocketAddr, holds: impl Fn(&str) -> bool) -> String {
    let looking = async {
        loop {
            let (status, text) = get(at, "/metrics").await;
            assert_eq!(status, 200, "{text}");
            if holds(&text) {
                return text;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(60), looking).await.expect("it comes to that")
}

fn agent(relay: &TestRelay, seed: u8, accept: &[NodeId]) -> Agent {
    let relays = vec![relay.address.to_string().parse::<RelayAddress>().unwrap()];
    let known = relay.directory.path().join(format!("known_relays_{seed}"));
    let dialer = AgentSettings::dialer(key(seed), "agent", relays, known);
    Agent::spawn(AgentSettings { announce: true, accept: accept.to_vec(), ..dialer })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_is_watched_where_its_configuration_says_and_nowhere_else() {
    let at = own_address(1);
    let unwatched = TestRelay::start("");
    assert!(TcpStream::connect(at).await.is_err(), "{at} is this test's");
    drop(unwatched);
    let relay = watched(at);
    assert_eq!(get(at, "/livez").await, (200, "alive\n".to_owned()));
    assert_eq!(get(at, "/readyz").await, (200, "ready\n".to_owned()));
    assert_eq!(get(at, "/").await.0, 404);
    let listen = Some(at.to_string().parse().unwrap());
    let other = TestRelay::start_with("", |config| config.metrics.listen = listen);
    let Err(StartError::Metrics(error)) = other else { panic!("it is taken") };
    assert!(error.to_string().starts_with(&format!("metrics.listen = \"{at}\": ")), "{error}");
    drop(relay);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_agents_do_is_seen_in_the_metrics() {
    let at = own_address(2);
    let relay = watched(at);
    let _target = agent(&relay, 2, &[key(1).node_id()]);
    let source = agent(&relay, 1, &[]);
    let announced = |text: &str| value(text, "atlas_relay_announced_agents") == 2.0;
    let before = metrics_when(at, announced).await;
    assert_eq!(value(&before, "atlas_relay_control_connections"), 2.0);
    assert_eq!(value(&before, "atlas_relay_handshake_seconds_count"), 2.0);
    assert_eq!(value(&before, "atlas_relay_sessions{path=\"datagrams\"}"), 0.0);
    let connection = source.connect(key(2).node_id()).await.unwrap();
    for _ in 0..10 {
        connection.ping().await.unwrap();
    }
    let (_, text) = get(at, "/metrics").await;
    for (series, expected) in [
        ("atlas_relay_sessions{path=\"datagrams\"}", 1.0),
        ("atlas_relay_open_offers", 0.0),
        ("atlas_relay_offers_total", 1.0),
        ("atlas_relay_pairings_total{path=\"datagrams\"}", 1.0),
        ("atlas_relay_pairing_seconds_count", 1.0),
        ("atlas_relay_pairing_seconds_bucket{le=\"10\"}", 1.0),
        ("atlas_relay_table_used_slots", 1.0),
        ("atlas_relay_table_slots", 16.0),
        ("atlas_relay_sessions_ended_total{reason=\"operator\"}", 0.0),
        ("atlas_relay_datapath_info{mode=\"userspace\",why=\"asked for\"}", 1.0),
    ] {
        assert_eq!(value(&text, series), expected, "{series}\n{text}");
    }
    let forwarded = |what| {
        value(&text, &format!("atlas_relay_{what}_total{{datapath=\"userspace\",reason=\"forwarded\"}}"))
    };
    let (packets, bytes) = (forwarded("packets"), forwarded("bytes"));
    assert!(packets > 10.0 && bytes > packets * 20.0, "{packets} packets, {bytes} bytes");
    let ended: Ended = relay.ask(Request::EndSessionsOf { node: key(1).node_id() }).await;
    assert_eq!(ended.sessions, 1);
    let (_, text) = get(at, "/metrics").await;
    assert_eq!(value(&text, "atlas_relay_sessions_ended_total{reason=\"operator\"}"), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_drains_says_that_it_is_not_ready() {
    let at = own_address(3);
    let relay = watched(at);
    let _target = agent(&relay, 2, &[key(1).node_id()]);
    let source = agent(&relay, 1, &[]);
    metrics_when(at, |text| value(text, "atlas_relay_announced_agents") == 2.0).await;
    // With a session it does not stop at once.
    let _connection = source.connect(key(2).node_id()).await.unwrap();
    let _drain: Drain = relay.ask(Request::Drain { deadline_s: Some(600), hint: None }).await;
    let (status, why) = get(at, "/readyz").await;
    assert_eq!((status, &*why), (503, "draining: no new sessions are taken; 1 are left\n"));
    assert_eq!(get(at, "/livez").await.0, 200);
    let (_, text) = get(at, "/metrics").await;
    assert_eq!(value(&text, "atlas_relay_draining"), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_counted_by_its_reason() {
    const REFUSED: &str = "atlas_relay_refusals_total{reason=\"announced_full\"}";
    let at = own_address(4);
    let relay = watched_with(at, |config| config.quotas.announced_agents = 1);
    let _first = agent(&relay, 1, &[]);
    let before = metrics_when(at, |text| value(text, "atlas_relay_announced_agents") == 1.0).await;
    assert_eq!(value(&before, REFUSED), 0.0);
    let _second = agent(&relay, 2, &[]);
    let after = metrics_when(at, |text| value(text, REFUSED) >= 1.0).await;
    assert_eq!(value(&after, "atlas_relay_announced_agents"), 1.0);
}
