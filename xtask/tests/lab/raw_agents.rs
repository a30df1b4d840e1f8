//! Agents in this process, each in its namespace, that send datagrams of their own over a session.

use std::net::SocketAddr;
use std::time::Duration;

use relay_userspace::agent::{Agent, AgentSettings, Incoming, RawSession};
use relay_userspace::identity::{NodeId, NodeKey};
use xtask::lab::Namespace;

use super::world::World;

/// Runs `work` inside `namespace`, on a runtime of its own.
pub fn run_inside<T: Send>(namespace: &Namespace, work: impl AsyncFnOnce() -> T + Send) -> T {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(work())
    };
    namespace.inside(run).unwrap()
}

/// An agent that knows the world's relay and asks for sessions.
pub fn dialer(world: &World, key: &NodeKey) -> Agent {
    Agent::spawn(settings(world, key, world.deployment.reached().connector))
}

/// An agent that takes raw sessions from `peer`.
pub fn listener(world: &World, key: &NodeKey, peer: NodeId) -> Agent {
    Agent::spawn(AgentSettings {
        announce: true,
        accept: vec![peer],
        incoming: Incoming::Raw,
        ..settings(world, key, world.deployment.reached().target)
    })
}

/// Asks for a raw session until `peer` is there.
pub async fn connect(agent: &Agent, peer: NodeId) -> RawSession {
    for _ in 0..100 {
        match agent.connect_raw(peer).await {
            Ok(session) => return session,
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
    panic!("no session with {peer}");
}

/// What such an agent starts with.
pub fn settings(world: &World, key: &NodeKey, relay: SocketAddr) -> AgentSettings {
    let relay = format!("{}@{relay}", world.deployment.relay.id());
    let known_relays = world.lab.directory().join(key.node_id().to_string());
    AgentSettings::dialer(key.clone(), "raw", vec![relay.parse().unwrap()], known_relays)
}
