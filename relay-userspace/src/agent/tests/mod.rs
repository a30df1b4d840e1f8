//! Agents against a relay that is just good enough: it verifies, pairs, binds and copies datagrams.

mod connections;
mod fake_relay;
mod forwards;
mod messages;
mod probes;
mod raw_sessions;
mod replaced;
mod restarts;
mod session_events;
mod trust;
mod udp_forwards;

use std::path::PathBuf;

use fake_relay::FakeRelay;

use super::{Agent, AgentSettings};
use crate::config::{Allow, ForwardProtocol};
use crate::identity::{NodeId, NodeKey};

/// A relay, and a directory for what agents remember.
struct Network {
    relay: FakeRelay,
    directory: tempfile::TempDir,
}

impl Network {
    async fn start() -> Self {
        Network { relay: FakeRelay::start().await, directory: tempfile::tempdir().unwrap() }
    }

    fn known_relays(&self, seed: u8) -> PathBuf {
        self.directory.path().join(format!("known_relays.{seed}"))
    }

    fn dialing(&self, seed: u8) -> AgentSettings {
        let relays = vec![self.relay.control.to_string().parse().unwrap()];
        AgentSettings::dialer(key(seed), format!("agent {seed}"), relays, self.known_relays(seed))
    }

    fn serving(&self, seed: u8, accept: &[u8], allow: &[&str]) -> AgentSettings {
        let accept: Vec<NodeId> = accept.iter().map(|seed| node(*seed)).collect();
        let rules = accept.iter().flat_map(|peer| allow.iter().map(|to| (*peer, to.parse().unwrap())));
        let allow = rules.map(|(peer, to)| Allow { peer, to, protocol: ForwardProtocol::Tcp }).collect();
        AgentSettings { announce: true, accept, allow, ..self.dialing(seed) }
    }

    fn dialer(&self, seed: u8) -> Agent {
        Agent::spawn(self.dialing(seed))
    }

    async fn server(&self, seed: u8, accept: &[u8], allow: &[&str]) -> Agent {
        self.agent(self.serving(seed, accept, allow)).await
    }

    /// An agent that has announced itself.
    async fn agent(&self, settings: AgentSettings) -> Agent {
        let agent = Agent::spawn(settings);
        self.relay.until(|state| state.announces >= 1).await;
        agent
    }
}

fn key(seed: u8) -> NodeKey {
    NodeKey::from_seed(&[seed; 32])
}

fn node(seed: u8) -> NodeId {
    key(seed).node_id()
}
