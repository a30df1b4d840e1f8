//! `net sessions`: the running daemon's sessions. A relay sees two sides, an agent its own.

use std::collections::BTreeMap;

use relay_userspace::admin::{self, Request};
use relay_userspace::relay::report::{Session, Sessions};
use serde::Deserialize;

use crate::args::Format;
use crate::{node, output};

const NONE: &str = "the running daemon has no sessions";

/// Of an agent, whose commands do not use its daemon.
const NONE_OF_AGENT: &str = "the running daemon has no sessions; net forward, net ping and net connect have sessions of their own, \
                             seen at the relay and at the peer";

/// What an agent answers.
#[derive(Deserialize)]
struct AgentSessions {
    sessions: Vec<AgentSession>,
    refused: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
struct AgentSession {
    session: String,
    peer: String,
    role: String,
    relay: String,
    relay_round_trip_us: Option<u64>,
    datagrams_sent: u64,
    datagrams_received: u64,
    bytes_sent: u64,
    bytes_received: u64,
    limited_packets: u64,
    limited_bytes: u64,
}

pub fn run(format: Format) -> anyhow::Result<()> {
    let answer = admin::ask(&node::admin_socket()?, Request::Sessions)?;
    if format.json {
        return output::json(&answer);
    }
    // Only an agent tells here what it has refused; a relay does so in `xdp status`.
    match serde_json::from_value::<AgentSessions>(answer.clone()) {
        Ok(AgentSessions { sessions, refused }) => {
            agent_table(&sessions);
            output::counts(["REFUSED", "TIMES"], &refused);
        }
        Err(_) => relay_table(&serde_json::from_value::<Sessions>(answer)?.sessions),
    }
    Ok(())
}

fn relay_table(sessions: &[Session]) {
    let titles = [
        "SESSION",
        "CONNECTOR",
        "TARGET",
        "STATE",
        "PATH",
        "AGE",
        "RATE",
        "KERNEL",
        "USERSPACE",
        "BYTES",
        "LIMITED",
        "LIMITED BYTES",
    ];
    let rows = sessions.iter().map(|session| {
        let sum = |count: fn(&relay_userspace::relay::report::SessionSide) -> u64| {
            session.sides.iter().map(count).sum::<u64>().to_string()
        };
        [
            session.session.clone(),
            output::short_id(&session.connector),
            output::short_id(&session.target),
            session.state.clone(),
            session.path.clone(),
            output::seconds(session.age_s),
            match session.rate_bytes_per_s {
                0 => "unlimited".to_owned(),
                rate => format!("{rate} B/s"),
            },
            sum(|side| side.packets_kernel),
            sum(|side| side.packets_userspace),
            sum(|side| side.bytes),
            session.limited_packets.to_string(),
            session.limited_bytes.to_string(),
        ]
    });
    output::table(titles, rows, NONE);
}

fn agent_table(sessions: &[AgentSession]) {
    let titles = [
        "SESSION",
        "PEER",
        "ROLE",
        "RELAY",
        "ROUND TRIP",
        "SENT",
        "RECEIVED",
        "BYTES SENT",
        "BYTES RECEIVED",
        "LIMITED",
        "LIMITED BYTES",
    ];
    let rows = sessions.iter().map(|session| {
        [
            session.session.clone(),
            output::short_id(&session.peer),
            session.role.clone(),
            session.relay.clone(),
            output::round_trip(session.relay_round_trip_us),
            session.datagrams_sent.to_string(),
            session.datagrams_received.to_string(),
            session.bytes_sent.to_string(),
            session.bytes_received.to_string(),
            session.limited_packets.to_string(),
            session.limited_bytes.to_string(),
        ]
    });
    output::table(titles, rows, NONE_OF_AGENT);
}
