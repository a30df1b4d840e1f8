//! A relay in this process, on loopback, with a root of its own.

#![allow(dead_code, reason = "each test program uses its part")]

use std::net::SocketAddr;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use relay_userspace::admin::{self, Request};
use relay_userspace::config::{AtlasRoot, Config};
use relay_userspace::identity::NodeKey;
use relay_userspace::relay::report::Peers;
use relay_userspace::relay::stopping::{Stopper, Stopping};
use relay_userspace::relay::{Relay, StartError};
use tempfile::TempDir;

/// A relay whose key is `key(0)`. It stops when this is dropped.
pub struct TestRelay {
    pub address: SocketAddr,
    pub directory: TempDir,
    pub stopper: Stopper,
}

impl TestRelay {
    /// On any port, with more lines for the table `[transport]`, and tables after it.
    pub fn start(transport: &str) -> TestRelay {
        TestRelay::start_with(transport, |_| {}).unwrap().0
    }

    pub fn start_with(
        transport: &str,
        change: impl FnOnce(&mut Config),
    ) -> Result<(TestRelay, Relay), StartError> {
        let directory = tempfile::tempdir().unwrap();
        let text = format!(
            "[transport]\nenable_relay = true\noffer_relay = true\n{transport}\n\
             [datapath]\nmode = \"userspace\"\nmax_sessions = 16\n"
        );
        let root = AtlasRoot::at(directory.path());
        let mut config = Config::parse(&text, Path::new("config.toml"), &root).unwrap();
        config.network.port = 0;
        change(&mut config);
        let relay = Relay::start(&config, None, key(0), "relay")?;
        let address = ([127, 0, 0, 1], relay.local_addr().port()).into();
        Ok((TestRelay { address, directory, stopper: relay.stopper() }, relay))
    }

    pub async fn ask<T: serde::de::DeserializeOwned>(&self, request: Request) -> T {
        let socket = AtlasRoot::at(self.directory.path()).admin_socket();
        let answer = tokio::task::spawn_blocking(move || admin::ask(&socket, request)).await.unwrap();
        serde_json::from_value(answer.unwrap()).unwrap()
    }

    pub async fn peers(&self) -> Peers {
        self.ask(Request::Peers).await
    }
}

impl Drop for TestRelay {
    fn drop(&mut self) {
        self.stopper.stop(Stopping::End);
    }
}

pub fn key(seed: u8) -> NodeKey {
    NodeKey::from_seed(&[seed; 32])
}

/// The wall clock, in seconds since the Unix epoch.
pub fn unix_s() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}
