//! A relay that is drained to another one while its agents go on talking, over loopback.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "in a test a panic is a failure"
)]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use relay_userspace::admin::{self, Request};
use relay_userspace::agent::{Agent, AgentSettings, Incoming, RawSession, SessionEvent};
use relay_userspace::config::{AtlasRoot, Config, RelayHint};
use relay_userspace::identity::NodeKey;
use relay_userspace::relay::Relay;
use relay_userspace::relay::report::{Drain, Sessions};
use relay_userspace::relay::stopping::Stopping;
use tempfile::TempDir;

/// It takes seconds, and longer on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Datagrams that may be under way in one direction: no buffer overflows, however the machine is loaded.
const WINDOW: usize = 32;

/// So many go each way after the sessions have moved.
const AFTERWARDS: u64 = 500;

#[tokio::test(flavor = "multi_thread")]
async fn what_agents_send_goes_on_without_a_loss_while_their_relay_is_drained_to_one_they_did_not_know() {
    let [drained, named] = [101, 102].map(TestRelay::start);
    let served = AgentSettings { announce: true, accept: vec![key(1).node_id()], ..drained.settings(2) };
    let raw = AgentSettings { key: key(3), incoming: Incoming::Raw, ..served.clone() };
    let targets = [Agent::spawn(served), Agent::spawn(raw)];
    for target in &targets {
        until(async || target.peers().await.peers.iter().any(|relay| relay.announced)).await;
    }
    let source = Agent::spawn(drained.settings(1));
    let connection = source.connect(key(2).node_id()).await.unwrap();
    let near = source.connect_raw(key(3).node_id()).await.unwrap();
    let far = targets[1].accept_raw().await.unwrap();
    let mut events = [&source, &targets[1]].map(Agent::session_events);

    let (moved, has_moved) = tokio::sync::watch::channel(false);
    let talking = tokio::spawn(talk([near, far], has_moved));
    let hint = Some(named.hint());
    let drain: Drain = drained.ask(Request::Drain { deadline_s: None, hint: hint.clone() }).await;
    assert_eq!(drain, Drain { sessions: 2, left_s: None, hint: hint.map(|hint| hint.to_string()) });

    // Nobody stops it: its sessions leave.
    let stopped = tokio::time::timeout(PATIENCE, drained.relay.stopped()).await;
    stopped.expect("it is drained").unwrap();
    for events in &mut events {
        let (_, event) = events.next().await.unwrap();
        let SessionEvent::Moved { relay, .. } = event else { panic!("{event:?}") };
        assert_eq!(relay, named.address);
    }
    let there: Sessions = named.ask(Request::Sessions).await;
    assert_eq!(there.sessions.iter().filter(|session| session.state == "paired").count(), 2, "{there:?}");
    connection.ping().await.unwrap();

    moved.send_replace(true);
    let [near, far] = talking.await.unwrap();
    for (session, moves) in [(near, 1), (far, 1)] {
        assert_eq!(session.session().moves(), moves);
        assert_eq!(session.session().snapshot().relay, named.address.to_string());
    }
    // The new relay serves those who did not know it like its own.
    let another = source.connect_raw(key(3).node_id()).await.unwrap();
    assert_eq!(another.session().snapshot().relay, named.address.to_string());
    named.relay.stop(Stopping::End);
    named.relay.stopped().await.unwrap();
}

/// Sends numbered datagrams both ways until `enough`, and a while longer. Each arrives, and once.
async fn talk(mut ends: [RawSession; 2], mut enough: tokio::sync::watch::Receiver<bool>) -> [RawSession; 2] {
    let mut arrived = [BTreeSet::new(), BTreeSet::new()];
    let (mut sent, mut last) = (0_u64, None);
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    let talking = async {
        let [near, far] = &mut ends;
        loop {
            if last.is_none() && *enough.borrow_and_update() {
                last = Some(sent + AFTERWARDS);
            }
            let slowest = arrived.iter().map(BTreeSet::len).min().unwrap_or(0);
            let may_send = last.is_none_or(|last| sent < last) && sent as usize - slowest < WINDOW;
            if !may_send && slowest as u64 == sent {
                return;
            }
            let datagram = tokio::select! {
                _ = tick.tick(), if may_send => {
                    near.send(&sent.to_be_bytes()).await.unwrap();
                    far.send(&sent.to_be_bytes()).await.unwrap();
                    sent += 1;
                    continue;
                }
                datagram = near.recv() => (0, datagram),
                datagram = far.recv() => (1, datagram),
            };
            let (end, Some(datagram)) = datagram else { panic!("the session of end {} is over", datagram.0) };
            let number = u64::from_be_bytes(datagram[..].try_into().unwrap());
            assert!(arrived[end].insert(number), "{number} has come twice to end {end}");
        }
    };
    let in_time = tokio::time::timeout(2 * PATIENCE, talking).await;
    let missing = |end: usize| (0..sent).filter(|number| !arrived[end].contains(number)).collect::<Vec<_>>();
    in_time.unwrap_or_else(|_| panic!("of {sent} are lost: {:?}, {:?}", missing(0), missing(1)));
    ends
}

struct TestRelay {
    relay: Relay,
    key: NodeKey,
    address: SocketAddr,
    directory: TempDir,
}

impl TestRelay {
    fn start(seed: u8) -> TestRelay {
        let directory = tempfile::tempdir().unwrap();
        let text = "[transport]\nenable_relay = true\noffer_relay = true\nrelay_bandwidth_limit = 0\n\
                    [datapath]\nmode = \"userspace\"\nmax_sessions = 64\n";
        let root = AtlasRoot::at(directory.path());
        let mut config = Config::parse(text, Path::new("config.toml"), &root).unwrap();
        config.network.port = 0;
        let relay = Relay::start(&config, None, key(seed), "relay").unwrap();
        let address = ([127, 0, 0, 1], relay.local_addr().port()).into();
        TestRelay { relay, key: key(seed), address, directory }
    }

    fn hint(&self) -> RelayHint {
        format!("{}@{}", self.key.node_id(), self.address).parse().unwrap()
    }

    /// Of an agent that knows this relay alone.
    fn settings(&self, seed: u8) -> AgentSettings {
        let known = self.directory.path().join("known");
        AgentSettings::dialer(key(seed), format!("agent-{seed}"), vec![self.hint().into()], known)
    }

    async fn ask<T: serde::de::DeserializeOwned>(&self, request: Request) -> T {
        let socket = AtlasRoot::at(self.directory.path()).admin_socket();
        let answer = tokio::task::spawn_blocking(move || admin::ask(&socket, request)).await.unwrap();
        serde_json::from_value(answer.unwrap()).unwrap()
    }
}

async fn until(mut reached: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !reached().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("it comes to that");
}

fn key(seed: u8) -> NodeKey {
    NodeKey::from_seed(&[seed; 32])
}
