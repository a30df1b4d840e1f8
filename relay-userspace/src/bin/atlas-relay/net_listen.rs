//! `net listen`: the daemon, relay or agent by its configuration.

use anyhow::Context as _;
use relay_userspace::admin::{AdminSocket, Asked, Request};
use relay_userspace::agent::{
    Agent, AgentSettings, Delivery, DeliverySnapshot, IncomingMessage, Inspector, OutgoingMessage, Whom,
};
use relay_userspace::bootstrap::{OwnAddress, Registrant, Registrations};
use relay_userspace::config::{Config, ConfigSource, Reading, Readings, Reloaded, Role};
use relay_userspace::identity::NodeId;
use relay_userspace::privilege::{self, file_access::Restricted};
use relay_userspace::protocol::body::Body;
use relay_userspace::protocol::handshake::printable;
use relay_userspace::relay::Relay;
use relay_userspace::relay::datapath::OBJECT;
use relay_userspace::relay::stopping::Stopping;
use relay_userspace::supervision::{Ask, Supervision, keep_telling};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::agent_forwards;
use crate::args::Listen;
use crate::node::{Node, StopSignal, StopSignals, restrict_files, runtime, runtime_without_privilege};

pub fn run(options: Listen) -> anyhow::Result<()> {
    // First, while there is one thread: it changes the environment.
    let mut supervision = Supervision::of_environment();
    // Before anything that takes time: until then SIGHUP kills the process, and whoever has started it may send one soon.
    let reload = reload_signal()?;
    let mut node = Node::open()?;
    for warning in &node.config.warnings {
        tracing::warn!(line = warning.line, key = warning.key, "configuration: {}", warning.text);
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
    let source = ConfigSource {
        path: node.root.config(),
        root: node.root.clone(),
        port: options.port,
        bootstrap: options.bootstrap,
        mode: options.datapath,
        interfaces: options.interface,
    };
    node.config = source.load()?;
    // While this is the only thread: those it starts take after it.
    privilege::renounce().context("giving up the means to gain privilege")?;
    let files = restrict_files(&node.root, &node.config)?;
    let served = match relay {
        true => {
            runtime_without_privilege()?.block_on(serve_relay(&node, source, &mut supervision, reload, files))
        }
        false => runtime()?.block_on(serve_agent(&node, source, &supervision, reload, files)),
    };
    supervision.announcer().finish();
    served
}

async fn serve_relay(
    node: &Node,
    source: ConfigSource,
    supervision: &mut Supervision,
    mut reload: Signal,
    files: Restricted,
) -> anyhow::Result<()> {
    let mut stop = StopSignals::listen()?;
    let key = node.key.clone();
    let relay = Relay::start_under(&node.config, Some(source), key, node.name(), supervision)?;
    log_restricted(files);
    let reloader = relay.reloader();
    let address = match node.config.network.advertise.first() {
        Some(address) => OwnAddress::Known(*address),
        None => OwnAddress::OfConnection { port: Some(relay.local_addr().port()) },
    };
    let _registrations = register(node, address);
    let (stopper, at_sigterm) = (relay.stopper(), relay.at_sigterm());
    let stopped = relay.stopped();
    tokio::pin!(stopped);
    loop {
        tokio::select! {
            signal = stop.next() => {
                let how = match signal {
                    StopSignal::Interrupt => Stopping::End,
                    StopSignal::Terminate => at_sigterm,
                };
                tracing::info!(%signal, sessions = how.words(), "stopping");
                stopper.stop(how);
            }
            Some(()) = reload.recv() => reloader.reload().await,
            // By a signal, by a command, or because a part has failed.
            stopped = &mut stopped => return Ok(stopped?),
        }
    }
}

async fn serve_agent(
    node: &Node,
    source: ConfigSource,
    supervision: &Supervision,
    reload: Signal,
    files: Restricted,
) -> anyhow::Result<()> {
    let mut stop = StopSignals::listen()?;
    let (accept, allow) = (node.config.agent.accept.clone(), node.config.agent.allow.clone());
    let settings = AgentSettings { announce: true, accept, allow, ..node.agent()? };
    let forwards = agent_forwards::listen(&node.config.agent.forward).await?;
    let admin = AdminSocket::bind(&node.config.admin.socket)?;
    let (asked, questions) = mpsc::channel(1);
    tracing::info!(node = %node.key.node_id(), name = node.name(), relays = settings.relays.len(), "agent starting");
    log_restricted(files);
    let agent = Agent::spawn(settings);
    let _registrations = register(node, OwnAddress::OfConnection { port: None });
    let _forwarding = agent_forwards::start(&agent, forwards);
    let serving = tokio::spawn(admin.serve(asked));
    let announcer = supervision.announcer();
    let readings = Readings::of(source, announcer.clone());
    let answers = Answers { agent: agent.inspector(), readings, present: node.config.clone() };
    announcer.ready();
    keep_telling(supervision, AskAgent(agent.inspector()));
    let answering = tokio::spawn(answers.serve(questions, reload));
    loop {
        tokio::select! {
            signal = stop.next() => {
                tracing::info!(%signal, "stopping");
                break;
            }
            Some(message) = agent.accept_message() => log_message(&message),
        }
    }
    announcer.stopping();
    agent.shutdown().await;
    answering.abort();
    // Its end removes the socket.
    serving.abort();
    let _aborted = serving.await;
    Ok(())
}

/// The agent's sign of life: its loop has answered how it is.
struct AskAgent(Inspector);

impl Ask for AskAgent {
    async fn ask(&mut self) -> Option<String> {
        let (relays, sessions) = self.0.counts().await?;
        Some(format!("connected to {relays} relays, {sessions} sessions"))
    }
}

/// Keeps the node registered with its bootstrap nodes.
fn register(node: &Node, address: OwnAddress) -> Registrations {
    let registrant = Registrant { key: node.key.clone(), name: node.name().to_owned(), address };
    Registrations::keep(registrant, node.config.network.bootstrap.clone())
}

/// Once the daemon has started: of one that does not, only why is of interest.
fn log_restricted(files: Restricted) {
    tracing::info!(restricted = %files, "files that the daemon does not need are out of its reach");
}

/// One line of the log for each. What it says is nobody's but the peers' unless it is asked for.
fn log_message(message: &IncomingMessage) {
    let IncomingMessage { id, from, path, reply_to, topic, body, .. } = message;
    let shown = |text: &Option<String>| text.as_deref().map(|text| printable(text, 64)).unwrap_or_default();
    tracing::info!(
        %from,
        id,
        %path,
        topic = shown(topic),
        reply_to = shown(reply_to),
        body_bytes = body.as_str().len(),
        "a message has come"
    );
    tracing::debug!(id, body = printable(body.as_str(), SHOWN_CHARS), "what the message says");
}

/// Characters of a message's body that the log shows at level `debug`.
const SHOWN_CHARS: usize = 256;

/// What an agent's admin socket is answered with.
struct Answers {
    agent: Inspector,
    readings: Readings,
    /// What is in effect.
    present: Config,
}

impl Answers {
    async fn serve(mut self, mut questions: mpsc::Receiver<Asked>, mut reload: Signal) {
        loop {
            tokio::select! {
                Some(asked) = questions.recv() => self.answer(asked).await,
                // What comes of it is in the log.
                Some(()) = reload.recv() => self.readings.ask(oneshot::channel().0),
                reading = self.readings.next() => self.reconfigure(reading).await,
            }
        }
    }

    async fn answer(&mut self, Asked { request, answer }: Asked) {
        let value = match request {
            Request::Send { target, topic, body } => {
                // It may take long: others are answered meanwhile. Asked by so many at once as the socket serves.
                let agent = self.agent.clone();
                tokio::spawn(async move {
                    let sent = send(&agent, target, topic, &body).await.and_then(|sent| json(&sent));
                    let _asker_gone = answer.send(sent);
                });
                return;
            }
            Request::EndSession { session } => match self.agent.disconnect(Whom::Session(session)).await {
                0 => Err(format!("no session {session} here: `net sessions` shows those there are")),
                sessions => Ok(json!({ "sessions": sessions })),
            },
            Request::EndSessionsOf { node } => {
                Ok(json!({ "sessions": self.agent.disconnect(Whom::Peer(node)).await }))
            }
            Request::Peers => json(&self.agent.peers().await),
            Request::Sessions => json(&self.agent.sessions().await),
            Request::Settings => json(&self.present.settings()),
            Request::Status | Request::Drain { .. } | Request::Explain { .. } | Request::Probe { .. } => {
                Err("this daemon is an agent: it relays nothing".to_owned())
            }
            Request::Stop => {
                Err("this daemon is an agent: SIGTERM stops it, as a service `systemctl stop atlas-agent`"
                    .to_owned())
            }
            Request::Reload => return self.readings.ask(answer),
            Request::Bans | Request::AddBan { .. } | Request::LiftBan { .. } => {
                Err("this daemon is an agent: it bans nobody".to_owned())
            }
        };
        let _asker_gone = answer.send(value);
    }

    /// Applies, logs and answers what has changed.
    async fn reconfigure(&mut self, reading: Reading) {
        let reloaded = Reloaded::apply(&mut self.present, &reading.config);
        reloaded.log();
        if !reloaded.applied.is_empty() {
            self.agent.permit(self.present.agent.clone()).await;
        }
        reading.answer(&json(&reloaded));
    }
}

async fn send(
    agent: &Inspector,
    target: NodeId,
    topic: Option<String>,
    body: &Value,
) -> Result<DeliverySnapshot, String> {
    let body = Body::of(body).map_err(|error| error.to_string())?;
    let connection = agent.reach(target).await.map_err(|error| error.to_string())?;
    let sent = connection.send(OutgoingMessage { topic, reply_to: None, body }).await;
    let peer = connection.snapshot();
    connection.close().await;
    let Delivery { msg_id, status } = sent.map_err(|error| error.to_string())?;
    Ok(DeliverySnapshot { msg_id, ack: status.to_string(), peer })
}

fn json(value: &impl Serialize) -> Result<Value, String> {
    serde_json::to_value(value).map_err(|error| error.to_string())
}

/// SIGHUP. From its making on it no longer kills the process. Signals belong to the process, not to a runtime: one that has
/// no threads will do until there is the daemon's.
fn reload_signal() -> anyhow::Result<Signal> {
    let for_now =
        tokio::runtime::Builder::new_current_thread().enable_io().build().context("starting a runtime")?;
    let _within = for_now.enter();
    signal(SignalKind::hangup()).context("listening for signals")
}
