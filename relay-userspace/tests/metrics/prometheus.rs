//! That Prometheus reads what a relay tells, and that the alert rules of deploy/ fire.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::skipping::skip;
use super::{agent, get, key, metrics_when, own_address, value, watched, watched_with};

/// The folder of a program of Prometheus, or `None` after the test `name` said why it cannot run.
fn programs_or_skip(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("RELAY_PROMETHEUS").map(PathBuf::from);
    if folder.is_none() {
        skip(name, "needs Prometheus: run `cargo xtask test` as root");
    }
    folder
}

fn deployed(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/prometheus").join(file).canonicalize().unwrap()
}

fn assert_content(output: &Output) {
    let [said, complained] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success() && complained.is_empty(), "{said}{complained}");
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_finds_nothing_wrong_with_the_metrics_of_a_relay_with_a_session() {
    const NAME: &str = "promtool_finds_nothing_wrong_with_the_metrics_of_a_relay_with_a_session";
    let Some(folder) = programs_or_skip(NAME) else { return };
    let at = own_address(11);
    let relay = watched(at);
    let _target = agent(&relay, 2, &[key(1).node_id()]);
    let source = agent(&relay, 1, &[]);
    metrics_when(at, |text| value(text, "atlas_relay_announced_agents") == 2.0).await;
    let _connection = source.connect(key(2).node_id()).await.unwrap();
    let (_, text) = get(at, "/metrics").await;
    let mut promtool = Command::new(folder.join("promtool"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert_content(&promtool.wait_with_output().unwrap());
}

#[test]
fn every_alert_fires_when_it_is_to_and_none_of_a_relay_that_is_well() {
    const NAME: &str = "every_alert_fires_when_it_is_to_and_none_of_a_relay_that_is_well";
    let Some(folder) = programs_or_skip(NAME) else { return };
    for [task, file] in [["check", "alerts.yml"], ["test", "alerts_test.yml"]] {
        let output = Command::new(folder.join("promtool")).args([task, "rules"]).arg(deployed(file)).output();
        assert_content(&output.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_by_a_reasons_name_fires_in_a_prometheus_that_scrapes_a_relay() {
    const NAME: &str = "an_alert_by_a_reasons_name_fires_in_a_prometheus_that_scrapes_a_relay";
    let Some(folder) = programs_or_skip(NAME) else { return };
    let [at, web] = [own_address(12), own_address(13)];
    let relay = watched_with(at, |config| config.quotas.announced_agents = 1);
    let _first = agent(&relay, 1, &[]);
    metrics_when(at, |text| value(text, "atlas_relay_announced_agents") == 1.0).await;
    let prometheus = Prometheus::start(&folder, relay.directory.path(), web, at);
    let up = "up{job=\"atlas-relay\"} == 1";
    until(|| async { is_so(web, up).await }, &prometheus, "the relay is scraped").await;
    assert_eq!(firing(web).await, [""; 0]);

    let _one_too_many = agent(&relay, 2, &[]);

    let fires = || async { firing(web).await == ["AtlasRelayFull"] };
    until(fires, &prometheus, "the alert fires, and no other").await;
}

/// A Prometheus with the rules of deploy/. Dropping it ends it.
struct Prometheus {
    process: Child,
    log: PathBuf,
}

impl Prometheus {
    /// It answers at `web` and scrapes the relay at `target`.
    fn start(folder: &Path, directory: &Path, web: SocketAddr, target: SocketAddr) -> Prometheus {
        let configuration = directory.join("prometheus.yml");
        let rules = deployed("alerts.yml");
        let text = format!(
            "global: {{scrape_interval: 500ms, evaluation_interval: 500ms}}\n\
             rule_files: [\"{}\"]\n\
             scrape_configs: [{{job_name: atlas-relay, static_configs: [{{targets: [\"{target}\"]}}]}}]\n",
            rules.display()
        );
        std::fs::write(&configuration, text).unwrap();
        let log = directory.join("prometheus.log");
        let process = Command::new(folder.join("prometheus"))
            .arg(format!("--config.file={}", configuration.display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("prometheus").display()))
            .arg(format!("--web.listen-address={web}"))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Prometheus { process, log }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// Waits until it is so.
async fn until<F: Future<Output = bool>>(is_so: impl Fn() -> F, prometheus: &Prometheus, what: &str) {
    let waiting = async {
        while !is_so().await {
            sleep(Duration::from_millis(100)).await;
        }
    };
    if timeout(Duration::from_secs(120), waiting).await.is_err() {
        panic!("{what}: {}", std::fs::read_to_string(&prometheus.log).unwrap());
    }
}

/// Whether an expression has any result. Not before Prometheus answers.
async fn is_so(web: SocketAddr, expression: &str) -> bool {
    let encoded: String = expression.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let answer = api(web, &format!("/api/v1/query?query={encoded}")).await;
    answer
        .is_some_and(|answer| answer["data"]["result"].as_array().is_some_and(|results| !results.is_empty()))
}

/// The names of the alerts that fire.
async fn firing(web: SocketAddr) -> Vec<String> {
    let answer = api(web, "/api/v1/alerts").await.unwrap();
    let alerts = answer["data"]["alerts"].as_array().unwrap();
    let fires = alerts.iter().filter(|alert| alert["state"] == "firing");
    fires.map(|alert| alert["labels"]["alertname"].as_str().unwrap().to_owned()).collect()
}

/// What Prometheus answers, once it does.
async fn api(web: SocketAddr, path: &str) -> Option<Value> {
    // It answers HTTP/1.0 in one piece.
    let (status, text) =
        super::ask(web, &format!("GET {path} HTTP/1.0\r\nHost: {web}\r\n\r\n")).await.ok()?;
    (status == 200).then(|| serde_json::from_str(&text).unwrap())
}
