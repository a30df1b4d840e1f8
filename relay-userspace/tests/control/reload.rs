//! What a configuration that is read again changes for those that are here and those that come.

use relay_userspace::config::{AtlasRoot, ConfigSource, Reloaded};
use relay_userspace::protocol::flow_terms::ErrorMessage;
use relay_userspace::relay::Relay;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_reloaded_holds_for_whoever_comes_next_and_only_who_is_denied_has_to_go() {
    let relay = FromFile::start();
    let mut stays = Agent::connected(&relay.running, 1).await;
    stays.send(&announce(1)).await;
    assert!(matches!(stays.receive().await, Message::RelayReady(_)));
    let denied = Agent::connected(&relay.running, 2).await;

    let limits = "transport.max_connections = 2\n[security]\nmax_clock_drift_secs = 10\n\
                  [rate_limit]\nper_peer_per_minute = 3\n[quotas]\nannounced_agents = 1\nmessage_bytes = 2048\n";
    let applied = relay.reload(&format!("{limits}[access]\ndeny = [\"{}\"]\n", key(2).node_id())).await;
    assert_eq!(
        applied,
        [
            "transport.max_connections",
            "security.max_clock_drift_secs",
            "rate_limit.per_peer_per_minute",
            "access.deny",
            "quotas.connections_per_prefix",
            "quotas.announced_agents",
            "quotas.message_bytes"
        ]
    );

    let ConnectionError::ApplicationClosed(_) = denied.connection.closed().await else { panic!() };
    Agent::greets(&relay.running, 2).await.is_refused(1004).await;
    stays.send(&Ping::new(1).into()).await;
    assert!(matches!(stays.receive().await, Message::Pong(_)), "it may be here");

    let mut slow = Agent::dialled(&relay.running, 3).await;
    slow.send(&Hello { timestamp: unix_s() - 100, ..hello(3) }.into()).await;
    slow.is_refused(1002).await;

    // Whoever was told to go may still have its place for a moment.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    let mut second = Agent::dialled(&relay.running, 4).await;
    while !second.is_let_in(4).await {
        assert!(tokio::time::Instant::now() < deadline, "the place is free again");
        second = Agent::dialled(&relay.running, 4).await;
    }
    Agent::greets(&relay.running, 5).await.is_refused(3005).await;
    relay.running.has_refused("connections_full").await;

    second.send(&announce(4)).await;
    let answer = second.receive().await;
    assert!(!matches!(answer, Message::RelayReady(_)), "{answer:?}");
    relay.running.has_refused("announced_full").await;
    for _ in 0..2 {
        second.send(&Ping::new(1).into()).await;
        assert!(matches!(second.receive().await, Message::Pong(_)));
    }
    second.send(&Ping::new(1).into()).await;
    let answer = second.receive().await;
    assert!(matches!(answer, Message::Error(ErrorMessage { code: 4001, .. })), "{answer:?}");
    second.to_relay.write_all(&[0xac, 1, 1, 0x30, 0, 0, 8, 1]).await.unwrap();
    second.is_refused(2002).await;
}

/// A relay that can read its configuration again.
struct FromFile {
    running: TestRelay,
    source: ConfigSource,
}

impl FromFile {
    fn start() -> FromFile {
        let directory = tempfile::tempdir().unwrap();
        let source = ConfigSource {
            path: directory.path().join("config.toml"),
            root: AtlasRoot::at(directory.path()),
            port: Some(0),
            bootstrap: Vec::new(),
            mode: None,
            interfaces: Vec::new(),
        };
        write(&source, "");
        let config = source.load().unwrap();
        let relay = Relay::start(&config, Some(source.clone()), key(0), "relay").unwrap();
        let address = ([127, 0, 0, 1], relay.local_addr().port()).into();
        FromFile { running: TestRelay { address, directory, stopper: relay.stopper() }, source }
    }

    /// The keys that are in effect once the file says so.
    async fn reload(&self, text: &str) -> Vec<String> {
        write(&self.source, text);
        let Reloaded { applied, needs_restart, .. } = self.running.ask(Request::Reload).await;
        assert_eq!(needs_restart, []);
        applied.into_iter().map(|change| change.key).collect()
    }
}

fn write(source: &ConfigSource, text: &str) {
    let relay = "transport.enable_relay = true\ntransport.offer_relay = true\n\
                 datapath.mode = \"userspace\"\ndatapath.max_sessions = 16\n";
    std::fs::write(&source.path, format!("{relay}{text}")).unwrap();
}
