//! Section 4: how long a packet takes through the relay to its receiver and, sent back at once, through the relay again.
//!
//! The load is a share of the most round trips that each forwarder is found to sustain, at even distances. The time counts
//! from when a packet was due, not from when the generator came to it, and generator and echo are BPF programs: sockets
//! would take longer than what is measured. As in `rates.rs`, XDP and the kernel's forwarders share their core with the
//! generator; there a packet also waits for the end of its batch. What has a core of its own receives there what comes
//! back, which the generator's core does in `rates.rs`: it sustains less than half of its rate.

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

const ROUNDS: usize = 5;
const LOAD: Load = Load { flows: 256, payload: 64 };

/// The kernel's own way first: others are compared with it.
const SUBJECTS: [Subject; 3] = [Subject::Routing, Subject::Native, Subject::Userspace];

/// Shares of the sustainable rate, in percent.
const SHARES: [u32; 3] = [1, 50, 90];

/// How long each is offered in a round: as long as the kernel leaves the CPU to us, since few packets take longer to tell.
const SPAN: Duration = Duration::from_millis(800);

/// One lost packet in so many need not be told.
const LOST_UNSAID: u64 = 1000;

const QUANTILES: [(&str, f64); 3] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)];

/// Measures each under each load.
pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    cpu::come_first()?;
    let site = Site::prepare()?;
    let mut tracks = Vec::new();
    for subject in SUBJECTS {
        let mut track = subject.track(bench, &site, LOAD, End::Echo).with_context(|| subject.name())?;
        let rate = track.sustainable().with_context(|| subject.name())?;
        report.add(format!("round trips sustained, {}", subject.name()), "a second", &Samples(vec![rate]));
        tracks.push((subject, rate, track));
    }
    for percent in SHARES {
        measure(report, &mut tracks, percent)?;
    }
    Ok(())
}

fn measure(report: &mut Report, tracks: &mut [(Subject, f64, Track)], percent: u32) -> anyhow::Result<()> {
    let mut found = SUBJECTS.map(|_| QUANTILES.map(|_| Samples(Vec::new())));
    for _ in 0..ROUNDS {
        for ((subject, rate, track), found) in tracks.iter_mut().zip(&mut found) {
            interrupt::check()?;
            let name = format!("{}, at {percent} %", subject.name());
            let per_second = *rate * f64::from(percent) / 100.0;
            let trips = track.round_trips(per_second, SPAN).with_context(|| name.clone())?;
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
