//! What the kernel makes of the XDP program, in figures.

use anyhow::bail;

use crate::build::{self, Built};
use crate::setup::{Consent, Purpose};
use crate::terminal;
use crate::test::{Counts, MUST_RUN};
use crate::tool::Tool;
use crate::workspace::{Workspace, cargo};

/// The test of the figures, in the tests `kernel`.
const TEST: &str = "verifier::the_program_has_not_grown_beyond_what_is_recorded";

/// The variable that makes the test of the figures write them down instead of comparing.
const RECORD: &str = "RELAY_VERIFIER_RECORD";

/// Builds, loads the program, and prints its figures beside those in `relay-ebpf/verifier.toml`: compares, or `record`s.
///
/// # Errors
/// The program has grown beyond what is recorded, or it cannot be loaded: that takes root.
pub fn run(workspace: &Workspace, consent: Consent, record: bool) -> anyhow::Result<()> {
    let Built { bpf_object, .. } = build::build(workspace, Purpose::Build, consent)?;
    let mut test = Tool::new(cargo())
        .words("test --workspace --test kernel -- --nocapture --exact")
        .arg(TEST)
        .in_directory(workspace.root())
        .env("RELAY_BPF_OBJECT", &bpf_object)
        .env(MUST_RUN, "1");
    if record {
        test = test.env(RECORD, "1");
    }
    let mut counts = Counts::default();
    let status = test.stream_lines(|line| {
        terminal::result(line);
        counts.add_closing_line(line);
    })?;
    // A name that fits no test is none that fails.
    if !status.success() || counts != (Counts { passed: 1, failed: 0 }) {
        bail!("the test `{TEST}` has not passed");
    }
    Ok(())
}
