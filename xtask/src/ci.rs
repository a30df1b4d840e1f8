//! What continuous integration runs, so that it runs here as well.

use crate::setup::Consent;
use crate::test::{self, Selection};
use crate::tool::Tool;
use crate::workspace::{Workspace, cargo};
use crate::{bench, build, demo, dist, terminal, tidy};

/// Format, lints, every test, the packages, the demo and the program's cost, cheapest first.
///
/// # Errors
/// The first check that failed.
pub fn run(workspace: &Workspace) -> anyhow::Result<()> {
    terminal::progress("format");
    let format =
        |folder| Tool::new(cargo()).words("fmt --all --check").in_directory(workspace.root().join(folder));
    format("").stream()?;
    format("relay-ebpf").stream()?;
    tidy::check(workspace)?;

    let built = build::build(workspace, test::purpose(), Consent::Install)?;

    terminal::progress("lints");
    Tool::new(cargo())
        // With the fuzz targets, which nothing else compiles.
        .words("clippy --workspace --all-targets --features relay-fuzz/libfuzzer -- -D warnings")
        .in_directory(workspace.root())
        .env("RELAY_BPF_OBJECT", &built.bpf_object) // the code around the embedded program is linted, too
        .stream()?;

    terminal::progress("the build without the BPF program");
    Tool::new(cargo()).words("check --workspace").in_directory(workspace.root()).stream()?;

    test::run_built(workspace, &built, &Selection { nothing_skips: true, ..Selection::default() })?;

    terminal::progress("the packages");
    dist::run(workspace, Consent::Install)?;

    terminal::progress("the demo");
    demo::run(&[], None)?;

    terminal::progress("the program's cost");
    let cost = bench::Selection { quick: true, check: true, ..bench::Selection::default() };
    bench::run_built(workspace, &built, &cost)
}
