//! What the kernel makes of the XDP program, in figures.

use crate::build::{self, Built};
use crate::setup::{Consent, Purpose};
use crate::test::MUST_RUN;
use crate::tool::Tool;
use crate::workspace::{Workspace, cargo};

/// The variable that makes the test of the figures write them down instead of comparing.
const RECORD: &str = "RELAY_VERIFIER_RECORD";

/// Builds, loads the program, and prints its figures beside those in `relay-ebpf/verifier.toml`: compares, or `record`s.
///
/// # Errors
/// The program has grown beyond what is recorded, or it cannot be loaded: that takes root.
pub fn run(workspace: &Workspace, consent: Consent, record: bool) -> anyhow::Result<()> {
    let Built { bpf_object, .. } = build::build(workspace, Purpose::Build, consent)?;
    let mut test = Tool::new(cargo())
        .words("test --workspace --test kernel -- --nocapture the_program_has_not_grown")
        .in_directory(workspace.root())
        .env("RELAY_BPF_OBJECT", &bpf_object)
        .env(MUST_RUN, "1");
    if record {
        test = test.env(RECORD, "1");
    }
    test.stream()
}
