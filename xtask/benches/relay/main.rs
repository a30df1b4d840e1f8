//! The benchmark: what a relayed packet, a flow, a session and a handshake cost, beside the least that each could cost and
//! beside what others need for the same.
//!
//! Run it by `cargo xtask bench`, which gets there what it needs. Each section is a file; `goals.rs` is what we are
//! measured by. Only things measured in the same run, in turns, are put into a ratio.

#![allow(clippy::indexing_slicing, reason = "a benchmark that goes wrong may stop with a panic")]

#[path = "../../../relay-ebpf/src/bench_layout.rs"]
mod bench_layout;
mod bulk;
mod chain;
mod control;
mod course;
mod cpu;
mod frames;
mod goals;
mod kernel_forwarders;
mod latency;
mod limit;
mod memory;
mod plain_loop;
mod population;
mod process_forwarders;
mod program_cost;
mod prologue;
mod rates;
mod readers;
mod relayed;
mod report;
mod rounds;
mod scale;
mod sessions;
mod track;
mod traffic;
#[path = "../../../relay-ebpf/src/traffic_layout.rs"]
mod traffic_layout;
mod turn;
mod wires;
mod xdp_forwarders;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use xtask::{interrupt, terminal};

use control::bare_quic::BareQuic;
use report::Report;

/// What a section is told.
pub struct Bench {
    /// A fraction of the time, for a first look.
    pub is_quick: bool,
    /// The object with the benchmark's BPF programs.
    pub object: PathBuf,
}

/// Measures the relay. `cargo xtask bench` calls it.
#[derive(Parser)]
struct Arguments {
    /// Only the programs' cost, in less than a minute.
    #[arg(long)]
    quick: bool,
    /// Only this section; may be given several times.
    #[arg(long)]
    section: Vec<Section>,
    /// Writes the same as JSON.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Fails if the program's cost is beyond what is recorded, as in continuous integration.
    #[arg(long)]
    check: bool,
    /// Is the server that a relay's control is compared with: the section starts this program again.
    #[arg(long, hide = true)]
    bare_quic: Option<BareQuic>,
    /// What cargo says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Section {
    Cost,
    Rates,
    Bulk,
    Latency,
    Scale,
    Control,
    Limit,
}

impl Section {
    const ALL: [Section; 7] = [
        Section::Cost,
        Section::Rates,
        Section::Bulk,
        Section::Latency,
        Section::Scale,
        Section::Control,
        Section::Limit,
    ];

    fn run(self, bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
        match self {
            Section::Cost => program_cost::run(bench, report),
            Section::Rates => rates::run(bench, report),
            Section::Bulk => bulk::run(bench, report),
            Section::Latency => latency::run(bench, report),
            Section::Scale => scale::run(bench, report),
            Section::Control => control::run(bench, report),
            Section::Limit => limit::run(bench, report),
        }
    }
}

fn main() -> ExitCode {
    terminal::start_clock();
    let arguments = Arguments::parse();
    interrupt::install();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(bare_quic) = arguments.bare_quic {
        return bare_quic.serve(&control::server_key());
    }
    let object = std::env::var_os(xtask::bench::OBJECT)
        .with_context(|| format!("no programs in {}: run `cargo xtask bench`", xtask::bench::OBJECT))?;
    let bench = Bench { is_quick: arguments.quick, object: object.into() };
    let sections = match &arguments.section[..] {
        [] if bench.is_quick => &[Section::Cost][..],
        [] => &Section::ALL,
        chosen => chosen,
    };
    let mut report = Report::of_this_machine(bench.is_quick);
    for section in sections {
        terminal::progress(format!("section: {section:?}").to_lowercase());
        section
            .run(&bench, &mut report)
            .with_context(|| format!("in the section {section:?}").to_lowercase())?;
    }
    report.measures = goals::measures(&report);
    terminal::result(report.table());
    if let Some(file) = &arguments.report {
        let json = serde_json::to_string_pretty(&report)?;
        std::fs::write(file, json).with_context(|| format!("cannot write {}", file.display()))?;
    }
    if arguments.check { goals::check_cost(&report) } else { Ok(()) }
}
