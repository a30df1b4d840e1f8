//! `net ping`: round trips to another agent, end to end through a relay.

use std::time::Duration;

use anyhow::bail;
use relay_userspace::agent::{Agent, PeerSnapshot, PingError, PingSample};
use serde::Serialize;

use crate::args::Ping;
use crate::node::{Node, StopSignals, runtime};
use crate::output;

pub fn run(options: &Ping) -> anyhow::Result<()> {
    let settings = Node::open()?.agent()?;
    runtime()?.block_on(async {
        let mut stop = StopSignals::listen()?;
        let agent = Agent::spawn(settings);
        let outcome = ping(&agent, options, &mut stop).await;
        agent.shutdown().await;
        outcome
    })
}

async fn ping(agent: &Agent, options: &Ping, stop: &mut StopSignals) -> anyhow::Result<()> {
    let connection = tokio::select! {
        connected = agent.reach(options.node) => connected?,
        signal = stop.next() => bail!("stopped by {signal} before there was a path"),
    };
    let (peer, count) = (connection.snapshot(), options.count);
    let for_people = !options.format.json;
    let (mut sent, mut samples, mut failure) = (0, Vec::new(), None);
    let mut pause = tokio::time::interval(Duration::from_millis(options.interval_ms.max(1)));
    while sent < count {
        let next = async {
            pause.tick().await;
            connection.ping().await
        };
        let answer = tokio::select! {
            answer = next => answer,
            // What is on its way is neither answered nor lost.
            _ = stop.next() => break,
        };
        sent += 1;
        if for_people {
            show(&peer, sent, count, &answer);
        }
        match answer {
            Ok(sample) => samples.push(sample),
            Err(error) => failure = Some(error),
        }
    }
    connection.close().await;
    let report = Report::of(&peer, sent, &samples);
    if for_people {
        output::line(report.summary());
    } else {
        output::json(&report)?;
    }
    match failure {
        Some(error) if samples.is_empty() => bail!("no ping was answered: {error}"),
        _ => Ok(()),
    }
}

/// One line for each; the first has upstream's four before it.
fn show(peer: &PeerSnapshot, number: u32, count: u32, answer: &Result<PingSample, PingError>) {
    match answer {
        Ok(PingSample { round_trip, sent_unix_s, answered_unix_s }) => {
            if number == 1 {
                output::line(format_args!("Peer : {}", output::short_id(&peer.node_id)));
                output::line(format_args!("Path : {}", peer.path));
                output::line(format_args!("Ping : {sent_unix_s}"));
                output::line(format_args!("Pong : {answered_unix_s}"));
            }
            output::line(format_args!("{number} of {count}: {}", milliseconds(micros(*round_trip))));
        }
        Err(error) => output::line(format_args!("{number} of {count}: {error}")),
    }
}

#[derive(Serialize)]
struct Report {
    peer: String,
    path: String,
    sent: u32,
    received: usize,
    /// None if nothing was received.
    rtt_us: Option<RoundTrips>,
}

/// Microseconds.
#[derive(Clone, Copy, Serialize)]
struct RoundTrips {
    min: u64,
    avg: u64,
    p50: u64,
    p99: u64,
    max: u64,
}

impl Report {
    fn of(PeerSnapshot { node_id, path, .. }: &PeerSnapshot, sent: u32, samples: &[PingSample]) -> Report {
        let mut sorted: Vec<u64> = samples.iter().map(|sample| micros(sample.round_trip)).collect();
        sorted.sort_unstable();
        let (peer, path) = (node_id.clone(), path.clone());
        Report { peer, path, sent, received: samples.len(), rtt_us: RoundTrips::of(&sorted) }
    }

    fn summary(&self) -> String {
        let counts = format!("{} sent, {} received", self.sent, self.received);
        let Some(RoundTrips { min, avg, p50, p99, max }) = self.rtt_us else { return counts };
        let [min, avg, p50, p99, max] = [min, avg, p50, p99, max].map(milliseconds);
        format!("{counts}; round trip min {min}, avg {avg}, max {max}, median {p50}, p99 {p99}")
    }
}

impl RoundTrips {
    /// Of sorted samples: the smallest that at least the given share does not exceed.
    fn of(sorted: &[u64]) -> Option<RoundTrips> {
        let share = |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).max(1) - 1).copied();
        let avg = sorted.iter().sum::<u64>().checked_div(sorted.len() as u64)?;
        Some(RoundTrips {
            min: *sorted.first()?,
            avg,
            p50: share(50)?,
            p99: share(99)?,
            max: *sorted.last()?,
        })
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
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
        let RoundTrips { min, avg, p50, p99, max } = RoundTrips::of(&hundred).unwrap();
        assert_eq!([min, avg, p50, p99, max], [1, 50, 50, 99, 100]);
        let RoundTrips { min, avg, p50, p99, max } = RoundTrips::of(&[7]).unwrap();
        assert_eq!([min, avg, p50, p99, max], [7; 5]);
        assert!(RoundTrips::of(&[]).is_none());
    }
}
