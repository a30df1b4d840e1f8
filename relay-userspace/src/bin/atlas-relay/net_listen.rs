//! `net listen`: the daemon, relay or agent by its configuration.

use relay_userspace::admin::{AdminSocket, Asked, Request};
use relay_userspace::agent::{Agent, AgentSettings, Inspector};
use relay_userspace::config::Role;
use relay_userspace::relay::Relay;
use relay_userspace::relay::datapath::OBJECT;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::args::Listen;
use crate::node::{Node, StopSignals, runtime};

pub fn run(options: Listen) -> anyhow::Result<()> {
    let mut node = Node::open()?;
    for warning in &node.config.warnings {
        tracing::warn!(line = warning.line, key = warning.key, "configuration: {}", warning.text);
    }
    if !options.bootstrap.is_empty() {
        tracing::warn!("--bootstrap has no effect yet: this version registers with relays only");
    }
    let relay = node.config.role() == Role::Relay;
    if !relay && (options.datapath.is_some() || !options.interface.is_empty()) {
        tracing::warn!(
            "--datapath and --interface have no effect: this node is an agent (transport.offer_relay)"
        );
    }
    if relay && OBJECT.is_none() {
        tracing::warn!(
            "built without the BPF program: userspace forwards everything; `cargo xtask build` builds with it"
        );
    }
    if !relay && options.port.is_some_and(|port| port != 0) {
        tracing::warn!("--port has no effect: an agent's ports are the system's choice");
    }
    let config = &mut node.config;
    config.network.port = options.port.unwrap_or(config.network.port);
    config.datapath.mode = options.datapath.unwrap_or(config.datapath.mode);
    if !options.interface.is_empty() {
        config.datapath.interfaces = options.interface;
    }
    let runtime = runtime()?;
    if relay { runtime.block_on(serve_relay(&node)) } else { runtime.block_on(serve_agent(&node)) }
}

async fn serve_relay(node: &Node) -> anyhow::Result<()> {
    let mut stop = StopSignals::listen()?;
    let shutdown = CancellationToken::new();
    let relay = Relay::start(&node.config, node.key.clone(), node.name(), shutdown.clone())?;
    let stopped = relay.stopped();
    tokio::pin!(stopped);
    tokio::select! {
        signal = stop.next() => tracing::info!(signal, "stopping"),
        failed = &mut stopped => return Ok(failed?),
    }
    shutdown.cancel();
    Ok(stopped.await?)
}

async fn serve_agent(node: &Node) -> anyhow::Result<()> {
    let mut stop = StopSignals::listen()?;
    let (accept, allow) = (node.config.agent.accept.clone(), node.config.agent.allow.clone());
    let settings = AgentSettings { announce: true, accept, allow, ..node.agent()? };
    let admin = AdminSocket::bind(&node.config.admin.socket)?;
    let (asked, questions) = mpsc::channel(1);
    tracing::info!(node = %node.key.node_id(), name = node.name(), relays = settings.relays.len(), "agent starting");
    let agent = Agent::spawn(settings);
    let serving = tokio::spawn(admin.serve(asked));
    let answering = tokio::spawn(answer(questions, agent.inspector()));
    tracing::info!(signal = stop.next().await, "stopping");
    agent.shutdown().await;
    answering.abort();
    // Its end removes the socket.
    serving.abort();
    let _aborted = serving.await;
    Ok(())
}

async fn answer(mut questions: mpsc::Receiver<Asked>, agent: Inspector) {
    while let Some(Asked { request, answer }) = questions.recv().await {
        let value = match request {
            Request::Peers => serde_json::to_value(agent.peers().await),
            Request::Sessions => serde_json::to_value(agent.sessions().await),
            Request::Status => {
                let _asker_gone = answer.send(Err("this daemon is an agent: it relays nothing".to_owned()));
                continue;
            }
        };
        let _asker_gone = answer.send(value.map_err(|error| error.to_string()));
    }
}
