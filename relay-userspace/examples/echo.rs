//! An echo over the end-to-end connection of two agents. They know each other by their ids alone; the relay sees neither what is
//! said nor what comes back.
//!
//! ```text
//! cargo run --example echo -- serve KEY RELAY PEER              # on one host, until Ctrl-C
//! cargo run --example echo -- ask   KEY RELAY PEER "some text"  # on another: prints what comes back
//! ```
//!
//! KEY is a node key (`atlas-relay id init` makes one: $ATLAS_ROOT/keys/node-key.pem), RELAY is `atlas_<id>@HOST:PORT`, PEER the
//! other agent's id.

#![allow(clippy::print_stdout, reason = "a command line")]

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use relay_userspace::agent::{
    Agent, AgentSettings, IncomingMessage, OutgoingMessage, PeerConnection, Remedy, SessionEvent,
};
use relay_userspace::config::RelayAddress;
use relay_userspace::identity::{NodeId, NodeKey};
use relay_userspace::protocol::body::Body;

/// The topic of what is to come back.
const TOPIC: &str = "example/echo";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (role, key, relay, peer, text) = match words[..] {
        [role @ "serve", key, relay, peer] => (role, key, relay, peer, ""),
        [role @ "ask", key, relay, peer, text] => (role, key, relay, peer, text),
        _ => bail!("usage: echo serve KEY RELAY PEER | echo ask KEY RELAY PEER TEXT"),
    };
    let key = NodeKey::load(Path::new(key))?;
    let peer: NodeId = peer.parse()?;
    let known_relays = std::env::temp_dir().join("echo-known-relays");
    let agent = Agent::spawn(settings(key, relay.parse()?, peer, &known_relays));
    match role {
        "serve" => {
            tokio::select! {
                served = serve(&agent) => served?,
                _ = tokio::signal::ctrl_c() => {}
            }
        }
        _ => println!("{}", ask(&agent, peer, text).await?),
    }
    // Whom it talks to is told, rather than left to wait.
    agent.shutdown().await;
    Ok(())
}

/// An agent that its peer can find, and nobody else.
pub fn settings(key: NodeKey, relay: RelayAddress, peer: NodeId, known_relays: &Path) -> AgentSettings {
    AgentSettings {
        announce: true,
        accept: vec![peer],
        ..AgentSettings::dialer(key, "echo", vec![relay], known_relays.to_owned())
    }
}

/// Sends every text back to where it came from, and says what happens to the sessions it comes by.
pub async fn serve(agent: &Agent) -> anyhow::Result<()> {
    let mut events = agent.session_events();
    loop {
        tokio::select! {
            Some(message) = agent.accept_message() => {
                let from = message.from;
                if let Err(error) = answer(agent, message).await {
                    println!("{from} gets no echo: {error}");
                }
            }
            Some((session, event)) = events.next() => match event {
                SessionEvent::Paired => println!("{} is connected", session.peer()),
                SessionEvent::Moved { relay, .. } => println!("{} goes by {relay} now", session.peer()),
                SessionEvent::Limited { packets, .. } => println!("the relay has dropped {packets} datagrams"),
                SessionEvent::Ended { why } => println!("{} is gone: {why}", session.peer()),
            },
            else => return Ok(()),
        }
    }
}

async fn answer(agent: &Agent, message: IncomingMessage) -> anyhow::Result<()> {
    let IncomingMessage { id, from, body, .. } = message;
    let answer = OutgoingMessage { topic: Some(TOPIC.to_owned()), reply_to: Some(id), body };
    connect(agent, from).await?.send(answer).await?;
    Ok(())
}

/// Sends `text` to `peer` and gives what comes back.
pub async fn ask(agent: &Agent, peer: NodeId, text: &str) -> anyhow::Result<String> {
    let connection = connect(agent, peer).await?;
    let question = OutgoingMessage { topic: Some(TOPIC.to_owned()), reply_to: None, body: Body::of(&text)? };
    let delivery = connection.send(question).await?;
    loop {
        let message = agent.accept_message().await.context("the agent has been stopped")?;
        if message.from == peer && message.reply_to.as_ref() == Some(&delivery.msg_id) {
            return message.body.read().context("the echo is no text");
        }
    }
}

/// Connects, and tries again while that may help: the peer may not be there yet.
async fn connect(agent: &Agent, peer: NodeId) -> anyhow::Result<PeerConnection> {
    const ATTEMPTS: u32 = 8;
    let mut attempt = 1;
    loop {
        match agent.connect(peer).await {
            Err(error) if error.remedy() == Remedy::TryAgain && attempt < ATTEMPTS => {
                tokio::time::sleep(Duration::from_millis(100) * 2_u32.pow(attempt)).await;
                attempt += 1;
            }
            connected => return Ok(connected?),
        }
    }
}
