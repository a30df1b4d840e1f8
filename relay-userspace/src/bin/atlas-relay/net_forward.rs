//! `net forward`: a local TCP or UDP port comes out at another agent, until SIGINT or SIGTERM.

use std::collections::BTreeMap;

use relay_userspace::agent::{Agent, ForwardEvent, ForwardListener, SessionSnapshot, SessionTraffic};
use relay_userspace::identity::NodeId;
use serde_json::{Value, json};

use crate::args::{Format, Forward};
use crate::node::{Node, StopSignals, runtime};
use crate::output;

pub fn run(options: Forward) -> anyhow::Result<()> {
    let settings = Node::open()?.agent()?;
    runtime()?.block_on(async {
        let mut stop = StopSignals::listen()?;
        // Before the relay is dialled: a port in use is no reason to trouble it.
        let listener = match options.udp {
            true => ForwardListener::bind_udp(options.listen).await?,
            false => ForwardListener::bind(options.listen).await?,
        };
        let agent = Agent::spawn(settings);
        let outcome = forward(&agent, listener, options, &mut stop).await;
        agent.shutdown().await;
        outcome
    })
}

async fn forward(
    agent: &Agent,
    listener: ForwardListener,
    options: Forward,
    stop: &mut StopSignals,
) -> anyhow::Result<()> {
    let Forward { peer, to, format, .. } = options;
    let starting = agent.forward_from(listener, peer, to.clone());
    let mut forwarding = tokio::select! {
        forwarding = starting => forwarding?,
        _ = stop.next() => return ended(format, &SessionTraffic::default(), &BTreeMap::new()),
    };
    let address = forwarding.local_addr();
    show(format, &json!({ "event": "listening", "address": address }), || {
        format!("Forwarding {address} to {to} at {}", peer.short())
    })?;
    loop {
        tokio::select! {
            _ = stop.next() => break,
            event = forwarding.next_event() => match event {
                Some(event) => show_event(format, peer, &event)?,
                None => break,
            },
        }
    }
    let refused: BTreeMap<&str, u64> =
        agent.sessions().await.refused.into_iter().filter(|(_, times)| *times > 0).collect();
    ended(format, &forwarding.traffic(), &refused)
}

fn show_event(format: Format, peer: NodeId, event: &ForwardEvent) -> anyhow::Result<()> {
    match event {
        ForwardEvent::Session(session) => {
            let SessionSnapshot { session: id, relay, .. } = session.snapshot();
            let value =
                json!({ "event": "session", "session": id, "peer": peer, "path": "relay", "relay": relay });
            show(format, &value, || format!("Session {id} through relay {relay}"))
        }
        ForwardEvent::Lost { why } => show(format, &json!({ "event": "lost", "why": why }), || {
            format!("Connection to the peer lost: {why}; the next client makes a new one")
        }),
        ForwardEvent::Failed { client, why } => {
            let value = json!({ "event": "failed", "client": client, "why": why });
            show(format, &value, || format!("Client {client} failed: {why}"))
        }
    }
}

/// `refused` is what was, by reason: of a UDP forward, the datagrams that were dropped here.
fn ended(format: Format, traffic: &SessionTraffic, refused: &BTreeMap<&str, u64>) -> anyhow::Result<()> {
    let SessionTraffic { datagrams_sent, datagrams_received, bytes_sent, bytes_received, .. } = traffic;
    let value = json!({
        "event": "ended",
        "datagrams_sent": datagrams_sent,
        "datagrams_received": datagrams_received,
        "bytes_sent": bytes_sent,
        "bytes_received": bytes_received,
        "refused": refused,
    });
    show(format, &value, || {
        let dropped = refused.iter().map(|(reason, times)| format!("; {reason}: {times}"));
        format!(
            "Ended: {datagrams_sent} datagrams ({bytes_sent} bytes) sent, \
             {datagrams_received} ({bytes_received} bytes) received{}",
            dropped.collect::<String>()
        )
    })
}

fn show(format: Format, value: &Value, text: impl FnOnce() -> String) -> anyhow::Result<()> {
    if format.json {
        output::json_line(value)
    } else {
        output::line(text());
        Ok(())
    }
}
