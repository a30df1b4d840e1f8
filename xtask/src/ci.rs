//! What continuous integration runs, so that it runs here as well.

use crate::setup::Consent;
use crate::test::{self, Selection};
use crate::tool::Tool;
use crate::workspace::{Workspace, cargo};
use crate::{bench, build, demo, dist, terminal, tidy};

/// Format, lints, pages of the library, every test, the packages, the demo, the program's cost and the benchmark, cheapest first.
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

    terminal::progress("the library's pages");
    Tool::new(cargo())
        .words("doc -p relay-userspace --no-deps --open")
        .in_directory(workspace.root())
        .env("RUSTDOCFLAGS", "-D warnings")
        .env("BROWSER", "true") // looks at nothing, and says that it has
        .stream()?;

    test::run_built(workspace, &built, &Selection { nothing_skips: true, ..Selection::default() })?;
    // Of the long tests those that a page shows.
    let shown = Selection { long: true, filter: Some("quic_in".to_owned()), nothing_skips: true };
    test::run_built(workspace, &built, &shown)?;

    terminal::progress("the packages");
    dist::run(workspace, Consent::Install)?;

    terminal::progress("the demo");
    demo::run(&[], None)?;

    terminal::progress("the program's cost");
    let cost = bench::Selection { quick: true, check: true, ..bench::Selection::default() };
    bench::run_built(workspace, &built, &cost)?;

    // Whether all of it can be measured. What comes out fails nothing, on a machine that others use as well.
    terminal::progress("the benchmark");
    let whole = bench::Selection::default();
    bench::run(workspace, Consent::Install, &whole)
}
