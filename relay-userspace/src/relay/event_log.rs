//! The relay's log: one line for each event, with fields that can be searched for.

use relay_common::Side;

use super::accounting::Account;
use super::line_pace::LinePace;
use super::rendezvous::Event;
use crate::clock::MonoTime;
use crate::refusals::RefusalReason as _;

/// Writes the lines. Of sessions all are written: agents can have only so many. What else agents can make come is bounded.
#[derive(Debug)]
pub struct EventLog {
    connections: LinePace,
    ends: LinePace,
    moves: LinePace,
}

impl Default for EventLog {
    fn default() -> EventLog {
        EventLog { connections: LinePace::OF_EVENTS, ends: LinePace::OF_EVENTS, moves: LinePace::OF_EVENTS }
    }
}

impl EventLog {
    /// Writes the line of an event.
    pub fn log(&mut self, event: &Event, now: MonoTime) {
        let pace = match event {
            Event::Connected { .. } => &mut self.connections,
            Event::Closed { .. } => &mut self.ends,
            Event::Migrated { .. } => &mut self.moves,
            _ => return write(event),
        };
        pace.write(now, || write(event));
    }
}

fn write(event: &Event) {
    match event {
        Event::Connected { node, name, remote } => {
            tracing::info!(%node, name, %remote, "agent connected");
        }
        Event::Migrated { node, remote } => {
            tracing::info!(%node, %remote, "control connection migrated");
        }
        Event::Closed { node, reason } => {
            tracing::info!(%node, reason, "control connection closed");
        }
        Event::Announced { node, flow, allowed, times } => match allowed {
            Some(allowed) => tracing::info!(%node, flow, allowed, times, "agent announced"),
            None => tracing::info!(%node, flow, allowed = "anyone", times, "agent announced"),
        },
        Event::Replaced { node, remote } => {
            tracing::warn!(%node, %remote, "agent replaced: the same identity has announced itself again");
        }
        Event::AgentReports { node, code, message, times } => {
            tracing::warn!(%node, code, report = message, times, "agent reports an error");
        }
        Event::Offered { session, connector, target } => {
            tracing::info!(%session, %connector, %target, "session offered");
        }
        Event::Bound { session, side, tuple } => {
            tracing::info!(%session, side = word(*side), agent = %tuple.agent, relay = %tuple.relay, "side bound");
        }
        Event::Moved { session, side, tuple } => {
            tracing::info!(%session, side = word(*side), agent = %tuple.agent, relay = %tuple.relay, "side moved");
        }
        Event::TupleLost { session, side, to } => {
            tracing::warn!(%session, side = word(*side), %to, "tuple lost to another session");
        }
        Event::Paired { session, connector, target, tuples: [from, to], limit, offered_for } => {
            tracing::info!(
                %session, %connector, %target,
                connector_at = %from.agent, target_at = %to.agent, bytes_per_s = limit.bytes_per_s,
                offered_ms = offered_for.map(|span| span.as_millis()),
                "session paired"
            );
        }
        Event::Spliced { session, connector, target, limit } => {
            tracing::info!(
                %session, %connector, %target, bytes_per_s = limit.bytes_per_s,
                "session paired by streams: this relay can read it"
            );
        }
        Event::Limited { session, packets, bytes, first: true } => {
            tracing::info!(%session, packets, bytes, "the limit drops packets of the session");
        }
        Event::Limited { session, packets, bytes, first: false } => {
            // The whole is in the line of the session's end; at a busy relay this one would come too often.
            tracing::debug!(%session, packets, bytes, "the limit drops packets of the session");
        }
        Event::Ended { session, connector, target, reason, age, traffic } => {
            let (session, connector, target) = (*session, *connector, *target);
            let account = Account { session, connector, target, reason: *reason, age: *age, traffic };
            account.log();
        }
        Event::Refused { refusal, times, node, from } => {
            let node = node.map(|node| node.to_string()).unwrap_or_default();
            let from = from.map(|from| from.to_string()).unwrap_or_default();
            tracing::warn!(reason = refusal.name(), times, node, from, "refused");
        }
    }
}

fn word(side: Side) -> &'static str {
    match side {
        Side::Connector => "connector",
        Side::Target => "target",
    }
}
