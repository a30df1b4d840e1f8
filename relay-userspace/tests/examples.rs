//! What stands in `examples` works.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is a failure")]

#[path = "../examples/echo.rs"]
#[allow(dead_code, reason = "its command line is not used here")]
mod echo;

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use relay_userspace::agent::Agent;
use relay_userspace::config::{AtlasRoot, Config};
use relay_userspace::identity::NodeKey;
use relay_userspace::relay::Relay;
use relay_userspace::relay::stopping::Stopping;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_comes_back_over_the_end_to_end_connection() {
    let directory = tempfile::tempdir().unwrap();
    let text = "[transport]\nenable_relay = true\noffer_relay = true\n\
                [datapath]\nmode = \"userspace\"\nmax_sessions = 16\n";
    let root = AtlasRoot::at(directory.path());
    let mut config = Config::parse(text, Path::new("config.toml"), &root).unwrap();
    config.network.port = 0;
    let relay = Relay::start(&config, None, key(0), "relay").unwrap();
    let address = format!("{}@{}:{}", key(0).node_id(), Ipv4Addr::LOCALHOST, relay.local_addr().port());
    let agent = |seed: u8, peer: u8| {
        let known_relays = directory.path().join(format!("known-{seed}"));
        Agent::spawn(echo::settings(key(seed), address.parse().unwrap(), key(peer).node_id(), &known_relays))
    };
    let (serving, asking) = (agent(1, 2), agent(2, 1));
    let server = serving.node_id();
    tokio::spawn(async move { echo::serve(&serving).await });

    for text in ["once", "and again", "", "zwölf Boxkämpfer"] {
        let asked = echo::ask(&asking, server, text);
        let echo = tokio::time::timeout(Duration::from_secs(60), asked).await.expect("an echo");
        assert_eq!(echo.unwrap(), text);
    }

    asking.shutdown().await;
    relay.stop(Stopping::End);
    relay.stopped().await.unwrap();
}

fn key(seed: u8) -> NodeKey {
    NodeKey::from_seed(&[seed; 32])
}
