//! Section 1: what the program costs a packet, by BPF_PROG_TEST_RUN, beside a bare reflector.
//!
//! Everything is on: consent, limit, counters. 1,000 flows, one of them chosen at random for each packet. Both programs
//! stand behind the same prologue, whose cost is in the figures.

use anyhow::{Context as _, bail};
use relay_common::Reason;
use relay_common::datagram::LONGEST_SUMMED;
use relay_userspace::relay::datapath::{Flows as _, Limit};

use crate::Bench;
use crate::cpu;
use crate::frames::{Family, Kind};
use crate::prologue::{Flows, Prologue, Subject};
use crate::report::Report;
use crate::rounds::{Candidate, in_turns};
use crate::sessions::Sessions;

/// Sessions in the tables: two flows each.
const SESSIONS: u32 = 500;

/// More than one CPU can send.
pub const AMPLE: Limit = Limit { bytes_per_s: 10_000_000_000, burst_bytes: 2_500_000_000 };

/// The same, with a burst so long that its level hardly moves in a run.
const DEEP: Limit = Limit { burst_bytes: 600_000_000_000, ..AMPLE };

/// Next to nothing.
const SCANTY: Limit = Limit { bytes_per_s: 64, burst_bytes: 0 };

/// ECT(0).
const ECT: u8 = 0b10;

/// A packet's way through the program.
struct Path {
    name: &'static str,
    kind: Kind,
    families: [Family; 2],
    limit: Limit,
    /// The sessions are as full as they get, so that nearly all are marked.
    is_marked: bool,
    /// The flows of the frames, among those installed or not.
    flows: Flows,
    reason: Reason,
}

const V4: Kind = Kind::plain(Family::V4, 64);
const V6: Kind = Kind::plain(Family::V6, 64);
const ALL: Flows = Flows { count: 2 * SESSIONS, step: 1 };
const CONNECTORS: Flows = Flows { count: SESSIONS, step: 2 };
/// A thousand times as many as are installed.
const STRANGERS: Flows = Flows { count: 2000 * SESSIONS, step: 1 };

const fn path(name: &'static str, kind: Kind, reason: Reason) -> Path {
    Path { name, kind, families: [kind.family; 2], limit: AMPLE, is_marked: false, flows: ALL, reason }
}

/// Paths by the family whose bare reflector they are compared with.
fn paths() -> Vec<Path> {
    vec![
        path("program, IPv4", V4, Reason::Forwarded),
        Path {
            families: [Family::V4, Family::V6],
            flows: CONNECTORS,
            ..path("program, IPv4 to IPv6", V4, Reason::Forwarded)
        },
        Path { flows: STRANGERS, ..path("program, IPv4, miss", V4, Reason::NoFlow) },
        Path {
            flows: STRANGERS,
            ..path(
                "program, IPv4, miss, 1472 B, looks unfinished",
                Kind { payload: LONGEST_SUMMED - 8, is_unfinished: true, ..V4 },
                Reason::NoFlow,
            )
        },
        Path { limit: SCANTY, ..path("program, IPv4, over the limit", V4, Reason::Limited) },
        Path {
            is_marked: true,
            limit: DEEP,
            ..path("program, IPv4, marked", Kind { tos: ECT, ..V4 }, Reason::Forwarded)
        },
        path("program, IPv4, bind", Kind::bind(Family::V4), Reason::Bind),
        path("program, IPv4, fragment", Kind { is_fragment: true, ..V4 }, Reason::Fragment),
        path("program, IPv6", V6, Reason::Forwarded),
        Path {
            families: [Family::V6, Family::V4],
            flows: CONNECTORS,
            ..path("program, IPv6 to IPv4", V6, Reason::Forwarded)
        },
    ]
}

const BARE: [&str; 2] = ["bare reflector, IPv4", "bare reflector, IPv6"];

/// Measures each path.
pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let [cpu, _] = cpu::two()?;
    std::thread::scope(|scope| {
        let here = scope.spawn(|| {
            cpu::stay_on(cpu)?;
            measure(bench, report)
        });
        here.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn measure(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let (rounds, repeat) = if bench.is_quick { (7, 300_000) } else { (15, 1_000_000) };
    let paths = paths();
    let mut candidates = Vec::new();
    for (name, kind) in BARE.into_iter().zip([V4, V6]) {
        let mut prologue = Prologue::load(&bench.object, kind, ALL, Subject::Bare)?;
        candidates.push(Candidate::new(name, move || prologue.run(repeat)));
    }
    for path in &paths {
        candidates.push(candidate(bench, path, repeat).context(path.name)?);
    }
    let samples = in_turns(rounds, &mut candidates)?;
    for (name, samples) in BARE.into_iter().zip(&samples) {
        report.add(name, UNIT, samples);
    }
    for (path, found) in paths.iter().zip(&samples[BARE.len()..]) {
        let bare = usize::from(path.kind.family == Family::V6);
        report.add_beside(path.name, UNIT, found, BARE[bare], &samples[bare]);
    }
    Ok(())
}

const UNIT: &str = "ns/packet";

fn candidate<'a>(bench: &Bench, path: &'a Path, repeat: u32) -> anyhow::Result<Candidate<'a>> {
    let mut sessions = Sessions::load(SESSIONS, path.families, path.limit)?;
    let subject = Subject::Relay(sessions.program.descriptor()?);
    let mut prologue = Prologue::load(&bench.object, path.kind, path.flows, subject)?;
    if path.reason == Reason::Limited {
        // The bursts are spent first.
        prologue.run(SESSIONS * 2000)?;
    }
    Ok(Candidate::new(path.name, move || {
        if path.is_marked {
            sessions.fill_buckets(0.98)?;
        }
        let before = (sessions.counted(path.reason)?, marked(&sessions));
        let ns = prologue.run(repeat)?;
        let after = (sessions.counted(path.reason)?, marked(&sessions));
        let share = |count: u64| count as f64 / f64::from(repeat);
        if share(after.0 - before.0) < 0.99 {
            bail!("{} of {repeat} frames were `{}`", after.0 - before.0, path.reason.name());
        }
        if path.is_marked && share(after.1 - before.1) < 0.9 {
            bail!("{} of {repeat} frames were marked", after.1 - before.1);
        }
        Ok(ns)
    }))
}

/// Packets marked in all sessions.
fn marked(sessions: &Sessions) -> u64 {
    sessions.slots.iter().map(|slot| sessions.flows.traffic(*slot).marked_packets).sum()
}
