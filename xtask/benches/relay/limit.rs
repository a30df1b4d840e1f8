//! Section 7: how exactly the limit is kept.
//!
//! Many sessions with limits of their own, all offered more than they may: what each carries between two times at which it
//! is at its limit, over what it may carry in that time. By BPF_PROG_TEST_RUN, in the time of the buckets' own clock.

use std::time::{Duration, Instant};

use relay_userspace::relay::datapath::{Flows as _, Limit, SlotId};

use xtask::interrupt;

use crate::Bench;
use crate::cpu;
use crate::frames::{Family, Kind};
use crate::prologue::{Flows, Prologue, Subject};
use crate::report::{Report, figure};
use crate::rounds::Samples;
use crate::sessions::Sessions;

/// Limits in bytes per second, and for how long: sessions of a group share what one core can offer. Of the slowest one
/// packet is less than a fifth of a percent.
const GROUPS: [(&[u64], Duration); 3] = [
    (&[64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20], Duration::from_secs(10)),
    (&[64 << 20, 256 << 20], Duration::from_secs(2)),
    (&[1_000_000_000], Duration::from_secs(2)),
];

/// UDP payloads in bytes.
const PAYLOADS: [usize; 3] = [64, 256, 1200];

/// Frames of one system call: a tenth of a second.
const REPEAT: u32 = 1_000_000;

/// Measures every limit with every payload, in one and in both directions.
pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let cpus = cpu::two()?;
    let mut errors = Vec::new();
    for payload in PAYLOADS {
        // One direction on one CPU, both directions on the other.
        let found = std::thread::scope(|scope| {
            let lanes = [2, 1].map(|step| {
                let cpu = cpus[step as usize - 1];
                scope.spawn(move || {
                    cpu::stay_on(cpu)?;
                    let groups =
                        GROUPS.iter().map(|(rates, span)| measure(bench, payload, step, rates, *span));
                    anyhow::Ok(groups.collect::<anyhow::Result<Vec<_>>>()?.concat())
                })
            });
            lanes.map(|lane| lane.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        for (found, directions) in found.into_iter().zip(["one direction", "both directions"]) {
            for (rate, ratio) in found? {
                let name = format!("limit {} bytes/s, {payload} B, {directions}", figure(rate as f64));
                match ratio {
                    Some(ratio) => {
                        report.add(name, "of the limit", &Samples(vec![ratio]));
                        errors.push(100.0 * (ratio - 1.0).abs());
                    }
                    None => report.note(format!("{name}: more than one core can offer")),
                }
            }
        }
    }
    let largest = errors.iter().copied().fold(0.0, f64::max);
    report.add("limit, largest error", "percent", &Samples(vec![largest]));
    report.note(format!("limit: {} combinations were measured, each once", errors.len()));
    Ok(())
}

/// For each limit what was carried of it, or none if not enough was offered.
fn measure(
    bench: &Bench,
    payload: usize,
    step: u32,
    rates: &[u64],
    span: Duration,
) -> anyhow::Result<Vec<(u64, Option<f64>)>> {
    let kind = Kind::plain(Family::V4, payload);
    let count = rates.len() as u32;
    // A second's worth of burst: what is not offered between two calls is still there in the next.
    let limit = |session| {
        let bytes_per_s = rates[session as usize];
        Limit { bytes_per_s, burst_bytes: bytes_per_s.max(Limit::MIN_BURST_BYTES) }
    };
    let mut sessions = Sessions::load_with(count, [Family::V4; 2], limit)?;
    let flows = Flows { count: 2 * count / step, step };
    let subject = Subject::Relay(sessions.program.descriptor()?);
    let mut prologue = Prologue::load_timed(&bench.object, kind, flows, subject)?;
    spend_bursts(&mut prologue, &sessions)?;
    // A call returns long after its last frame: what counts is when that was.
    let (from, before) = (prologue.last_frame()?, carried(&sessions));
    offer(&mut prologue, span)?;
    let (until, after) = (prologue.last_frame()?, carried(&sessions));
    let seconds = until.since(from).as_secs_f64();
    let mut found = Vec::new();
    for ((rate, before), after) in rates.iter().copied().zip(before).zip(after) {
        let (bytes, refused) = (after.bytes - before.bytes, after.refused - before.refused);
        let forwarded = bytes / payload as u64;
        // At its limit throughout: a hundredth of what was offered had to be refused.
        let is_at_limit = refused * 100 > forwarded;
        found.push((rate, is_at_limit.then(|| bytes as f64 / (rate as f64 * seconds))));
    }
    Ok(found)
}

/// What a session has carried, and what was too much.
struct Carried {
    bytes: u64,
    refused: u64,
}

fn carried(sessions: &Sessions) -> Vec<Carried> {
    let of = |slot: &SlotId| {
        let traffic = sessions.flows.traffic(*slot);
        let bytes = traffic.sides.iter().map(|side| side.bytes).sum();
        Carried { bytes, refused: traffic.limited_packets }
    };
    sessions.slots.iter().map(of).collect()
}

/// Sends until every session has had packets refused in one call; what no core can offer is given up after a while.
fn spend_bursts(prologue: &mut Prologue, sessions: &Sessions) -> anyhow::Result<()> {
    const PATIENCE: Duration = Duration::from_secs(6);
    let started = Instant::now();
    let mut before = carried(sessions);
    while started.elapsed() < PATIENCE {
        interrupt::check()?;
        prologue.run(REPEAT)?;
        let after = carried(sessions);
        if before.iter().zip(&after).all(|(before, after)| after.refused > before.refused) {
            break;
        }
        before = after;
    }
    Ok(())
}

/// Sends for `span`.
fn offer(prologue: &mut Prologue, span: Duration) -> anyhow::Result<()> {
    let started = Instant::now();
    while started.elapsed() < span {
        interrupt::check()?;
        prologue.run(REPEAT)?;
    }
    Ok(())
}
