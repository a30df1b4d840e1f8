//! `net ping`: round trips to another agent, end to end through a relay.

use std::time::Duration;

use anyhow::bail;
use relay_userspace::agent::{Agent, PingSample};
use relay_userspace::identity::NodeId;
use serde::Serialize;

use crate::args::Ping;
use crate::node::{Node, runtime};
use crate::output;

pub fn run(options: &Ping) -> anyhow::Result<()> {
    let settings = Node::open()?.agent()?;
    runtime()?.block_on(async {
        let agent = Agent::spawn(settings);
        let outcome = ping(&agent, options).await;
        agent.shutdown().await;
        outcome
    })
}

async fn ping(agent: &Agent, options: &Ping) -> anyhow::Result<()> {
    let connection = agent.connect(options.node).await?;
    let mut samples = Vec::new();
    let mut failure = None;
    let mut pause = tokio::time::interval(Duration::from_millis(options.interval_ms.max(1)));
    for number in 0..options.count {
        pause.tick().await;
        match connection.ping().await {
            Ok(sample) => {
                if !options.format.json && number == 0 {
                    show_first(options.node, sample);
                }
                samples.push(sample);
            }
            Err(error) => failure = Some(error),
        }
    }
    connection.close().await;
    let report = Report::of(options, &samples);
    if options.format.json {
        output::json(&report)?;
    } else if let Some(RoundTrips { min, p50, p99, max }) = report.rtt_us {
        let Report { sent, received, .. } = report;
        let [min, p50, p99, max] = [min, p50, p99, max].map(milliseconds);
        output::line(format_args!(
            "{sent} sent, {received} received; round trip min {min}, median {p50}, p99 {p99}, max {max}"
        ));
    }
    match failure {
        Some(error) if samples.is_empty() => bail!("no ping was answered: {error}"),
        _ => Ok(()),
    }
}

/// Upstream's four lines.
fn show_first(peer: NodeId, sample: PingSample) {
    output::line(format_args!("Peer : {}", peer.short()));
    output::line("Path : relay");
    output::line(format_args!("Ping : {}", sample.sent_unix_s));
    output::line(format_args!("Pong : {}", sample.answered_unix_s));
}

#[derive(Serialize)]
struct Report {
    peer: NodeId,
    path: &'static str,
    sent: u32,
    received: usize,
    /// None if nothing was received.
    rtt_us: Option<RoundTrips>,
}

/// Microseconds.
#[derive(Clone, Copy, Serialize)]
struct RoundTrips {
    min: u64,
    p50: u64,
    p99: u64,
    max: u64,
}

impl Report {
    fn of(options: &Ping, samples: &[PingSample]) -> Report {
        let micros = |sample: &PingSample| u64::try_from(sample.round_trip.as_micros()).unwrap_or(u64::MAX);
        let mut sorted: Vec<u64> = samples.iter().map(micros).collect();
        sorted.sort_unstable();
        Report {
            peer: options.node,
            path: "relay",
            sent: options.count,
            received: samples.len(),
            rtt_us: RoundTrips::of(&sorted),
        }
    }
}

impl RoundTrips {
    /// Of sorted samples: the smallest that at least the given share does not exceed.
    fn of(sorted: &[u64]) -> Option<RoundTrips> {
        let share = |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).max(1) - 1).copied();
        Some(RoundTrips { min: *sorted.first()?, p50: share(50)?, p99: share(99)?, max: *sorted.last()? })
    }
}

fn milliseconds(micros: u64) -> String {
    format!("{}.{:03} ms", micros / 1000, micros % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_taken_from_the_samples_themselves() {
        let hundred: Vec<u64> = (1..=100).collect();
        let RoundTrips { min, p50, p99, max } = RoundTrips::of(&hundred).unwrap();
        assert_eq!([min, p50, p99, max], [1, 50, 99, 100]);
        let RoundTrips { min, p50, p99, max } = RoundTrips::of(&[7]).unwrap();
        assert_eq!([min, p50, p99, max], [7; 4]);
        assert!(RoundTrips::of(&[]).is_none());
    }
}
