//! Section 4: how long a packet takes through the relay to its receiver and, sent back at once, through the relay again.
//!
//! The load is a share of what the same forwarder was found to forward: so many packets a second, half of them on their way
//! there and half on their way back, at even distances. The time counts from when a packet was due, not from when the
//! generator came to it, and generator and echo are BPF programs: sockets would take longer than what is measured. As in
//! `rates.rs`, XDP and the kernel's forwarders share their core with the generator; there a packet also waits for the end of
//! its batch.
//!
//! The program leaves packets to the userspace forwarder whose checksum looks unfinished, one in 65536 (`rewrite.rs` of
//! relay-common). None runs here beside the program, so these are lost.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use xtask::interrupt;
use xtask::lab::Site;

use crate::Bench;
use crate::course::Load;
use crate::cpu;
use crate::rates::Subject;
use crate::report::Report;
use crate::rounds::Samples;
use crate::track::{End, Track};

const ROUNDS: usize = 3;
const LOAD: Load = Load { flows: 256, payload: 64 };

/// The kernel's own way first: others are compared with it.
const SUBJECTS: [Subject; 3] = [Subject::Routing, Subject::Native, Subject::Userspace];

/// Shares of the sustainable rate in percent, and how long each is offered in a round: few packets take longer to tell.
const SHARES: [(u32, Duration); 3] =
    [(1, Duration::from_millis(2500)), (50, Duration::from_secs(1)), (90, Duration::from_secs(1))];

/// One lost packet in so many need not be told.
const LOST_UNSAID: u64 = 1000;

const QUANTILES: [(&str, f64); 3] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)];

/// Measures each under each load.
pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    cpu::come_first()?;
    let site = Site::prepare()?;
    let mut tracks = Vec::new();
    for subject in SUBJECTS {
        let row = subject.row(LOAD);
        let rate = report.results.iter().find(|found| found.name == row).map(|found| found.value);
        let rate =
            rate.with_context(|| format!("measured only together with the section that has `{row}`"))?;
        let track = subject.track(bench, &site, LOAD, End::Echo).with_context(|| subject.name())?;
        tracks.push((subject, rate, track));
    }
    for (percent, span) in SHARES {
        measure(report, &mut tracks, percent, span)?;
    }
    Ok(())
}

fn measure(
    report: &mut Report,
    tracks: &mut [(Subject, f64, Track)],
    percent: u32,
    span: Duration,
) -> anyhow::Result<()> {
    let mut found = SUBJECTS.map(|_| QUANTILES.map(|_| Samples(Vec::new())));
    for _ in 0..ROUNDS {
        for ((subject, rate, track), found) in tracks.iter_mut().zip(&mut found) {
            interrupt::check()?;
            let name = format!("{}, at {percent} %", subject.name());
            let round_trips = *rate * f64::from(percent) / 100.0 / 2.0;
            let trips = track.round_trips(round_trips, span).with_context(|| name.clone())?;
            ensure!(trips.lost < trips.sent, "{name}: none of {} packets has come back", trips.sent);
            if trips.lost > trips.sent / LOST_UNSAID {
                report
                    .note(format!("round trip, {name}: {} of {} packets were lost", trips.lost, trips.sent));
            }
            for ((_, share), samples) in QUANTILES.into_iter().zip(found) {
                samples.0.push(trips.quantile(share));
            }
        }
    }
    for (place, (quantile, _)) in QUANTILES.into_iter().enumerate() {
        let row = |subject: Subject| format!("round trip {quantile}, {}, at {percent} %", subject.name());
        let (first, others) = found.split_first().context("nothing was measured")?;
        report.add(row(SUBJECTS[0]), UNIT, &first[place]);
        for (subject, samples) in SUBJECTS.into_iter().skip(1).zip(others) {
            report.add_beside(row(subject), UNIT, &samples[place], &row(SUBJECTS[0]), &first[place]);
        }
    }
    Ok(())
}

const UNIT: &str = "us";
