//! An agent that shares no code with ours, on another QUIC stack (agent.py, written from docs/wire.md), with a real relay and
//! our agents.
//!
//! Needs Python with the packages in requirements.txt: `cargo xtask test` installs them and says where they are.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "in a test a panic is a failure, and a test that cannot run says why"
)]

#[path = "../skipping/mod.rs"]
mod skipping;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use relay_userspace::agent::{Agent, AgentSettings, Incoming, RawSession, SessionEnd};
use relay_userspace::config::{AtlasRoot, Config};
use relay_userspace::identity::{NodeId, NodeKey};
use relay_userspace::relay::Relay;
use relay_userspace::relay::stopping::Stopping;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// Whatever is waited for comes within this time even on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// What two IPv4 agents are told that fits.
const MAX_DATAGRAM: usize = 1472;

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_on_another_stack_is_reached_by_ours() {
    let Some(relay) = TestRelay::start("an_agent_on_another_stack_is_reached_by_ours") else { return };
    let mut other = relay.other(OTHER, "--accept", OURS);
    other.says("announced").await;
    let ours = Agent::spawn(relay.settings(OURS));
    let mut session = ours.connect_raw(id(OTHER)).await.unwrap();
    let paired = other.says("paired").await;
    assert_eq!(paired.split(' ').take(2).collect::<Vec<_>>(), ["target", &MAX_DATAGRAM.to_string()]);
    datagrams_cross(&mut session, &mut other).await;

    drop(session);
    assert_eq!(other.says("ended").await, "DISCONNECT_PEER_GONE");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_on_another_stack_reaches_ours() {
    let Some(relay) = TestRelay::start("an_agent_on_another_stack_reaches_ours") else { return };
    let ours = Agent::spawn(AgentSettings {
        announce: true,
        accept: vec![id(OTHER)],
        incoming: Incoming::Raw,
        ..relay.settings(OURS)
    });
    let mut other = relay.connected(OTHER, OURS).await;
    let mut session = ours.accept_raw().await.unwrap();
    datagrams_cross(&mut session, &mut other).await;

    other.order("leave").await;
    let end = tokio::time::timeout(PATIENCE, session.session().ended()).await.expect("the end is told");
    assert!(matches!(end, SessionEnd::PeerGone { .. }), "{end}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_on_another_stack_keep_their_session_when_one_moves_to_another_port() {
    let name = "two_agents_on_another_stack_keep_their_session_when_one_moves_to_another_port";
    let Some(relay) = TestRelay::start(name) else { return };
    let mut target = relay.other(OURS, "--accept", OTHER);
    target.says("announced").await;
    let mut connector = relay.other(OTHER, "--connect", OURS);
    target.says("paired").await;
    let before = connector.says("paired").await;
    each_way(&mut connector, &mut target).await;

    connector.order("rebind").await;
    let after = connector.says("moved").await;
    assert_ne!(before.split(' ').next_back(), Some(&*after), "another address than before");
    each_way(&mut connector, &mut target).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_on_another_stack_is_told_that_its_target_is_absent() {
    let name = "an_agent_on_another_stack_is_told_that_its_target_is_absent";
    let Some(relay) = TestRelay::start(name) else { return };
    let mut other = relay.other(OTHER, "--connect", OURS);
    assert!(other.says("refused").await.starts_with("3001 "));
}

/// Who ours is, and who the other.
const OURS: u8 = 1;
const OTHER: u8 = 2;

/// Datagrams of every kind of length, as they were sent, both ways.
async fn datagrams_cross(session: &mut RawSession, other: &mut OtherAgent) {
    assert_eq!(session.max_datagram(), MAX_DATAGRAM);
    for datagram in datagrams() {
        session.send(&datagram).await.unwrap();
        assert_eq!(other.says("received").await, hex(&datagram));
        let back: Vec<u8> = datagram.iter().rev().map(|byte| !byte).collect();
        other.order(&format!("send {}", hex(&back))).await;
        let received = tokio::time::timeout(PATIENCE, session.recv()).await.expect("a datagram").unwrap();
        assert_eq!(hex(&received), hex(&back));
    }
}

async fn each_way(one: &mut OtherAgent, two: &mut OtherAgent) {
    for datagram in datagrams().iter().map(|datagram| hex(datagram)) {
        one.order(&format!("send {datagram}")).await;
        assert_eq!(two.says("received").await, datagram);
        two.order(&format!("send {datagram}")).await;
        assert_eq!(one.says("received").await, datagram);
    }
}

/// The smallest, the length of a bind datagram, a QUIC packet's and the largest; all bytes, and QUIC's first bits.
fn datagrams() -> Vec<Vec<u8>> {
    let lengths = [1, 2, 64, 96, 255, 256, 1200, MAX_DATAGRAM];
    lengths.iter().map(|length| (0..*length).map(|place| (place * 7 + length) as u8).collect()).collect()
}

/// A relay on loopback, its userspace forwarder, and the Python that runs the other agent.
struct TestRelay {
    relay: Relay,
    address: SocketAddr,
    directory: TempDir,
    python: PathBuf,
}

impl TestRelay {
    /// None after the test `name` has said why it cannot run.
    fn start(name: &str) -> Option<TestRelay> {
        let Some(python) = std::env::var_os("RELAY_PYTHON").map(PathBuf::from) else {
            skipping::skip(name, "needs Python with aioquic: run `cargo xtask test` as root");
            return None;
        };
        let directory = tempfile::tempdir().unwrap();
        let text = "[transport]\nenable_relay = true\noffer_relay = true\n\
                    [datapath]\nmode = \"userspace\"\nmax_sessions = 16\n";
        let root = AtlasRoot::at(directory.path());
        let mut config = Config::parse(text, Path::new("config.toml"), &root).unwrap();
        config.network.port = 0;
        let relay = Relay::start(&config, None, key(0), "relay").unwrap();
        let address = (Ipv4Addr::LOCALHOST, relay.local_addr().port()).into();
        Some(TestRelay { relay, address, directory, python })
    }

    /// An agent of ours that only dials.
    fn settings(&self, seed: u8) -> AgentSettings {
        let relay = format!("{}@{}", id(0), self.address).parse().unwrap();
        AgentSettings::dialer(key(seed), "ours", vec![relay], self.directory.path().join("known"))
    }

    /// One on the other stack; `role` says what it does with `peer`.
    fn other(&self, seed: u8, role: &str, peer: u8) -> OtherAgent {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/other_stack/agent.py");
        let mut process = Command::new(&self.python)
            .arg("-B") // no compiled files beside the source
            .arg(script)
            .args(["--relay", &self.address.to_string(), "--relay-id", &id(0).to_string()])
            .args(["--seed", &hex(&[seed; 32]), role, &id(peer).to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (orders, says) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        OtherAgent { _process: process, orders, lines: BufReader::new(says).lines() }
    }

    /// One on the other stack that has asked for `peer` until that had announced itself.
    async fn connected(&self, seed: u8, peer: u8) -> OtherAgent {
        let connected = async {
            loop {
                let mut other = self.other(seed, "--connect", peer);
                let (word, rest) = other.line().await;
                match word.as_str() {
                    "paired" => return other,
                    "refused" => assert!(rest.starts_with("3001 "), "{rest}"),
                    _ => panic!("{word} {rest}"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, connected).await.expect("ours announces itself")
    }
}

impl Drop for TestRelay {
    fn drop(&mut self) {
        self.relay.stop(Stopping::End);
    }
}

struct OtherAgent {
    _process: Child,
    orders: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl OtherAgent {
    /// What it says next: `word`, and what follows.
    async fn says(&mut self, word: &str) -> String {
        let (said, rest) = self.line().await;
        assert_eq!(said, word, "{said} {rest}");
        rest
    }

    async fn line(&mut self) -> (String, String) {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await.expect("it says something");
        let line = line.unwrap().expect("it goes on; what it failed with stands above");
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        (word.to_owned(), rest.to_owned())
    }

    async fn order(&mut self, order: &str) {
        self.orders.write_all(format!("{order}\n").as_bytes()).await.unwrap();
    }
}

fn key(seed: u8) -> NodeKey {
    NodeKey::from_seed(&[seed; 32])
}

fn id(seed: u8) -> NodeId {
    key(seed).node_id()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
