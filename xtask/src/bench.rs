//! Builds and runs the benchmark, which is `benches/relay` of this package.

use std::path::PathBuf;

use crate::build::{self, Built};
use crate::setup::{Consent, Purpose};
use crate::test::RELAY_BINARY;
use crate::tool::Tool;
use crate::workspace::{Workspace, cargo};

pub use crate::syscall::run_first;

/// The variable that names the object with the benchmark's BPF programs.
pub const OBJECT: &str = "RELAY_BPF_BENCH";

/// What to measure.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Selection {
    /// Only the programs' cost, in less than a minute.
    #[arg(long)]
    pub quick: bool,
    /// Only this section: cost, rates, bulk, latency, scale, control or limit; may be given several times.
    #[arg(long)]
    pub section: Vec<String>,
    /// Writes the same as JSON: `results` with `name`, `unit`, `value`, `min`, `max`, `ratio_to`, `ratio`.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Fails if the program has become slower than it may, in times of the bare reflector.
    #[arg(long)]
    pub check: bool,
}

/// Gets there what is missing, builds, and measures.
///
/// # Errors
/// Something is missing and cannot be installed, a build failed, or something could not be measured.
pub fn run(workspace: &Workspace, consent: Consent, selection: &Selection) -> anyhow::Result<()> {
    let purpose = if selection.quick { Purpose::Lab } else { Purpose::Bench };
    run_built(workspace, &build::build(workspace, purpose, consent)?, selection)
}

/// Measures what was built.
///
/// # Errors
/// A build failed, or something could not be measured.
pub fn run_built(workspace: &Workspace, built: &Built, selection: &Selection) -> anyhow::Result<()> {
    let mut bench = Tool::new(cargo())
        .words("bench --package xtask --bench relay --")
        .in_directory(workspace.root())
        .env("RELAY_BPF_OBJECT", &built.bpf_object)
        .env(RELAY_BINARY, &built.relay_binary)
        .env(OBJECT, &built.bpf_bench);
    for (flag, is_set) in [("--quick", selection.quick), ("--check", selection.check)] {
        bench = if is_set { bench.arg(flag) } else { bench };
    }
    for section in &selection.section {
        bench = bench.arg("--section").arg(section);
    }
    if let Some(report) = &selection.report {
        // Cargo runs it in the package's folder.
        bench = bench.arg("--report").arg(std::path::absolute(report)?);
    }
    bench.stream()
}
