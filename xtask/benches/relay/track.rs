//! A forwarder between generator and sink.
//!
//! What runs in the kernel does so on the CPU of the generator, in the generator's own time: there, one core does
//! everything, generator and sink included. What has a process has a core of its own, and the generator another, which
//! offers more than the forwarder can take; its sink runs where the kernel receives from it, on the forwarder's core.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use xtask::interrupt;

use crate::course::Course;
use crate::cpu;
use crate::traffic::Traffic;
use crate::traffic_layout::{Arrived, BATCH, Sent, Watch, delay_floor};
use crate::wires::{Links, RECEIVER, Wires};

/// What forwards.
pub trait Forwarder {
    /// How many packets it has forwarded so far, by its own count or the kernel's count of its work; none if nobody counts.
    ///
    /// # Errors
    /// It cannot be asked.
    fn forwarded(&self, wires: &Wires) -> anyhow::Result<Option<u64>>;
}

/// Where it does that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the kernel, on the generator's core.
    Kernel,
    /// In a process, on a core of its own.
    Process,
}

/// What is at the end of the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A sink that counts.
    Sink,
    /// An echo, and the sink where the packets came from.
    Echo,
}

/// What the generator does.
#[derive(Clone, Copy, Debug)]
struct Work {
    /// How often it is asked for a frame.
    runs: u32,
    /// After how many the frames leave.
    batch: u32,
    /// The time from frame to frame in ns; 0: as fast as it goes.
    interval: u32,
}

/// A forwarder between generator and sink.
pub struct Track {
    forwarder: Box<dyn Forwarder>,
    place: Place,
    end: End,
    traffic: Traffic,
    course: Course,
    wires: Wires,
    /// Runs of the generator in a round.
    runs: u32,
    /// Whether everything that was offered has arrived.
    is_outrun: bool,
}

/// How long a round takes.
const ROUND: Duration = Duration::from_millis(300);

/// Batch of paced frames: a frame waits for the end of its batch.
const PACED_BATCH: u32 = 16;

/// How the sustainable rate is searched for: in so many halvings, offering each for so long.
const SEARCH_STEPS: u32 = 8;
const SEARCHED: Duration = Duration::from_millis(150);

/// Half of the packets take longer, in microseconds: they queue up.
const LONG_US: f64 = 1000.0;

/// Runs of the generator, at least, to tell how many a round takes.
const FIRST_RUNS: u32 = 1 << 17;

impl Track {
    /// The CPU of what is measured, the forwarder.
    ///
    /// # Errors
    /// There are not two CPUs.
    pub fn measured_cpu() -> anyhow::Result<usize> {
        Ok(cpu::two()?[0])
    }

    /// Puts `forwarder` to work on `course`: it is in place already.
    ///
    /// # Errors
    /// The kernel refuses the sink.
    pub fn new(
        mut traffic: Traffic,
        wires: Wires,
        course: Course,
        end: End,
        place: Place,
        forwarder: impl Forwarder + 'static,
    ) -> anyhow::Result<Track> {
        wires.agents.inside(|| {
            traffic.attach("sink", wires.inward[0].name)?;
            if wires.links == Links::Two {
                traffic.attach(if end == End::Echo { "echo" } else { "sink" }, wires.outward[1].name)?;
            }
            anyhow::Ok(())
        })??;
        Ok(Track {
            forwarder: Box::new(forwarder),
            place,
            end,
            traffic,
            course,
            wires,
            runs: FIRST_RUNS,
            is_outrun: false,
        })
    }

    /// Sends all flows once at least, so that everything is in place, and finds out how much a round has to send.
    ///
    /// # Errors
    /// As for [`Track::rate`].
    pub fn warm_up(&mut self) -> anyhow::Result<()> {
        let runs = self.course.load.flows.max(FIRST_RUNS);
        let (sent, _) = self.send(Work { runs, batch: BATCH, interval: 0 })?;
        self.runs = sent.runs_in(ROUND, runs).max(self.course.load.flows);
        Ok(())
    }

    /// Packets per second.
    ///
    /// # Errors
    /// What arrives is not what was forwarded: a packet is missing, there is one too many, or one is wrong.
    pub fn rate(&mut self) -> anyhow::Result<f64> {
        let (sent, arrived) = self.send(Work { runs: self.runs, batch: BATCH, interval: 0 })?;
        let lost = sent.frames.saturating_sub(arrived.frames);
        let is_all_there = lost <= sent.frames / 100;
        let (packets, ns) = match self.place {
            Place::Kernel if !is_all_there => bail!("{lost} of {} packets were lost", sent.frames),
            // Up to the beginning of the last batch.
            Place::Kernel => {
                let batch = u64::from(BATCH);
                let earlier = (sent.frames - 1) / batch * batch;
                let share = earlier as f64 / sent.frames as f64;
                (arrived.frames as f64 * share, sent.last - sent.first)
            }
            Place::Process => {
                self.is_outrun |= is_all_there;
                ((arrived.frames - 1) as f64, arrived.last - arrived.first)
            }
        };
        Ok(packets * 1e9 / ns as f64)
    }

    /// Whether a forwarder with a core of its own has taken all that the generator could offer: it might take more.
    pub fn is_outrun(&self) -> bool {
        self.is_outrun
    }

    /// How long packets take there and back, if `per_second` are sent for `span`, at even distances.
    ///
    /// # Errors
    /// As for [`Track::rate`], but packets may be lost on the way.
    pub fn round_trips(&mut self, per_second: f64, span: Duration) -> anyhow::Result<RoundTrips> {
        let interval = (1e9 / per_second) as u32;
        let work = |runs| Work { runs, batch: PACED_BATCH, interval };
        let (sent, _) = self.send(work(FIRST_RUNS))?;
        let runs = sent.runs_in(span, FIRST_RUNS);
        let before = self.traffic.delays()?;
        let (sent, arrived) = self.send(work(runs))?;
        let delays =
            self.traffic.delays()?.iter().zip(&before).map(|(after, before)| after - before).collect();
        Ok(RoundTrips { delays, sent: sent.frames, lost: sent.frames.saturating_sub(arrived.frames) })
    }

    /// The most round trips per second that do not wait long for each other, and of which next to none is lost.
    ///
    /// # Errors
    /// As for [`Track::round_trips`].
    pub fn sustainable(&mut self) -> anyhow::Result<f64> {
        let (sent, _) = self.send(Work { runs: FIRST_RUNS, batch: BATCH, interval: 0 })?;
        let (mut sustained, mut too_many) = (0.0, sent.frames as f64 * 1e9 / (sent.last - sent.first) as f64);
        for _ in 0..SEARCH_STEPS {
            let per_second = (sustained + too_many) / 2.0;
            let trips = self.round_trips(per_second, SEARCHED)?;
            let is_sustained = trips.lost <= trips.sent / 1000 && trips.quantile(0.5) < LONG_US;
            *(if is_sustained { &mut sustained } else { &mut too_many }) = per_second;
        }
        ensure!(sustained > 0.0, "not even {too_many:.0} round trips a second are sustained");
        Ok(sustained)
    }

    /// Has the generator do `work`, and waits until everything has arrived.
    fn send(&mut self, work: Work) -> anyhow::Result<(Sent, Arrived)> {
        let Track { forwarder, place, end, traffic, course, wires, .. } = self;
        let watch = Watch {
            port: course.arrives.destination.first.port().to_be_bytes(),
            echoed_port: RECEIVER.port().to_be_bytes(),
            timed: u8::from(*place == Place::Process),
            delays: u8::from(*end == End::Echo),
        };
        traffic.prepare(course.stream(work.interval)?, watch)?;
        let [measured, other] = cpu::two()?;
        let cpu = if *place == Place::Kernel { measured } else { other };
        let (frame, interface) = (course.frame()?, wires.inward[0].index);
        let before = forwarder.forwarded(wires)?;
        wires.agents.inside(|| {
            cpu::stay_on(cpu)?;
            traffic.generate(&frame, interface, work.runs, work.batch)
        })??;
        // It has settled when nothing more comes and what has come is what was forwarded.
        let (mut arrived, mut forwarded) = (Arrived::default(), None);
        interrupt::wait_for("what is on the way", Duration::from_secs(5), || {
            let seen = (arrived, forwarded);
            arrived = traffic.arrived()?;
            forwarded = forwarder.forwarded(wires)?.zip(before).map(|(after, before)| after - before);
            let is_right = forwarded.is_none_or(|forwarded| match end {
                End::Sink => forwarded == arrived.frames,
                // Each was forwarded twice, and what was lost perhaps once.
                End::Echo => forwarded >= 2 * arrived.frames,
            });
            Ok((arrived.frames > 0 && is_right && seen == (arrived, forwarded)).then_some(()))
        })
        .with_context(|| format!("{} packets have arrived, {forwarded:?} were forwarded", arrived.frames))?;
        let samples = traffic.samples()?;
        ensure!(!samples.is_empty(), "no packet was kept to be looked at");
        for sample in samples {
            course.check(&sample).context("a packet has arrived that is wrong")?;
        }
        Ok((traffic.sent()?, arrived))
    }
}

impl Sent {
    /// How many runs the generator makes in `span`, if it has made `runs` for this.
    fn runs_in(&self, span: Duration, runs: u32) -> u32 {
        let per_ns = f64::from(runs) / (self.last - self.first).max(1) as f64;
        (per_ns * span.as_nanos() as f64) as u32
    }
}

/// How long packets have taken there and back.
pub struct RoundTrips {
    /// How many have taken how long, by [`delay_bucket`](crate::traffic_layout::delay_bucket).
    delays: Vec<u64>,
    /// How many were sent.
    pub sent: u64,
    /// How many have not come back.
    pub lost: u64,
}

impl RoundTrips {
    /// What `share` of the packets have not exceeded, in microseconds.
    pub fn quantile(&self, share: f64) -> f64 {
        let wanted = (self.delays.iter().sum::<u64>() as f64 * share).ceil() as u64;
        let mut seen = 0;
        let within = |count: &u64| {
            seen += count;
            seen >= wanted
        };
        let bucket = self.delays.iter().position(within).unwrap_or(self.delays.len()) as u32;
        // The middle of the bucket.
        (delay_floor(bucket) + delay_floor(bucket + 1)) as f64 / 2e3
    }
}
