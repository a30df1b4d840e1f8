//! A program behind the prologue: frames of many flows, as fast as one CPU can.
#![expect(unsafe_code, reason = "what lies in a BPF map is declared to be plain data")]

use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use aya::maps::{Array, MapData, ProgramArray};
use aya::programs::{ProgramFd, Xdp};
use aya::{Ebpf, EbpfLoader, TestRun as _, TestRunOptions};

use relay_userspace::clock::MonoTime;

use crate::bench_layout::Template;
use crate::cpu;
use crate::frames::{Family, Kind};

// SAFETY: made of numbers only, without padding.
unsafe impl aya::Pod for Template {}

/// What is measured behind the prologue.
pub enum Subject {
    /// The bare reflector.
    Bare,
    /// The relay's program.
    Relay(ProgramFd),
}

/// Which flows the frames are of.
#[derive(Clone, Copy, Debug)]
pub struct Flows {
    /// How many.
    pub count: u32,
    /// Every which one: 2 for one direction of each session.
    pub step: u32,
}

/// No bare program has more instructions.
pub const BARE_INSTRUCTIONS: u32 = 32;

/// The prologue, loaded, and a program behind it.
pub struct Prologue {
    ebpf: Ebpf,
    frame: Vec<u8>,
    _subject: ProgramArray<MapData>,
}

impl Prologue {
    /// Puts the prologue for frames of `kind` before `subject`.
    ///
    /// # Errors
    /// The kernel refuses: the error says what.
    pub fn load(object: &Path, kind: Kind, flows: Flows, subject: Subject) -> anyhow::Result<Prologue> {
        Prologue::load_with(object, kind, flows, subject, false)
    }

    /// As [`Prologue::load`], and the time of each frame is kept for [`Prologue::last_frame`].
    ///
    /// # Errors
    /// As for [`Prologue::load`].
    pub fn load_timed(object: &Path, kind: Kind, flows: Flows, subject: Subject) -> anyhow::Result<Prologue> {
        Prologue::load_with(object, kind, flows, subject, true)
    }

    fn load_with(
        object: &Path,
        kind: Kind,
        flows: Flows,
        subject: Subject,
        is_timed: bool,
    ) -> anyhow::Result<Prologue> {
        let mut loader = EbpfLoader::new();
        let mut ebpf = loader
            .override_global("FLOWS", &flows.count, true)
            .override_global("FLOW_STEP", &flows.step, true)
            .override_global("IS_TIMED", &u32::from(is_timed), true)
            .override_global("IS_V6", &u32::from(kind.family == Family::V6), true)
            .load_file(object)
            .context("loading the benchmark's programs")?;
        for name in ["prologue", "bare"] {
            xdp(&mut ebpf, name)?.load().with_context(|| format!("loading `{name}`"))?;
        }
        let bare = xdp(&mut ebpf, "bare")?.info()?.size_translated().context("the length of `bare`")? / 8;
        ensure!(bare <= BARE_INSTRUCTIONS, "`bare` is not bare: it has {bare} instructions");
        let mut template = Array::<_, Template>::try_from(ebpf.map_mut("TEMPLATE").context("no TEMPLATE")?)?;
        template.set(0, kind.template(), 0)?;
        let subject = match subject {
            Subject::Relay(descriptor) => descriptor,
            Subject::Bare => xdp(&mut ebpf, "bare")?.fd()?.try_clone()?,
        };
        let mut subjects = ProgramArray::try_from(ebpf.take_map("SUBJECT").context("no SUBJECT")?)?;
        subjects.set(0, &subject, 0).context("putting the program behind the prologue")?;
        Ok(Prologue { ebpf, frame: kind.frame(), _subject: subjects })
    }

    /// When the last frame was sent, if that is kept.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn last_frame(&self) -> anyhow::Result<MonoTime> {
        let times = Array::<_, u64>::try_from(self.ebpf.map("LAST_FRAME").context("no LAST_FRAME")?)?;
        Ok(MonoTime(times.get(&0, 0)?))
    }

    /// Sends `repeat` frames on the calling thread's CPU: the CPU time of one in nanoseconds, the system call's own
    /// included, which is less than a hundredth.
    ///
    /// # Errors
    /// The kernel refuses, or the prologue could not write a frame.
    pub fn run(&mut self, repeat: u32) -> anyhow::Result<f64> {
        /// linux/bpf.h: XDP_ABORTED.
        const ABORTED: u32 = 0;
        let came = self.frame.clone();
        let mut left = vec![0; came.len() + 64];
        let options = TestRunOptions {
            data_in: Some(&came),
            data_out: Some(&mut left),
            repeat,
            ..TestRunOptions::new()
        };
        let before = cpu::thread_time();
        let result = xdp(&mut self.ebpf, "prologue")?.test_run(options)?;
        let ns = (cpu::thread_time() - before) / f64::from(repeat);
        if result.return_value == ABORTED {
            bail!("the last frame was aborted");
        }
        Ok(ns)
    }
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut Xdp> {
    Ok(ebpf.program_mut(name).with_context(|| format!("no program `{name}`"))?.try_into()?)
}
