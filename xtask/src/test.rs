//! Runs every test.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail};

use crate::build::{self, Built};
use crate::setup::{Consent, Purpose};
use crate::tool::Tool;
use crate::workspace::{Workspace, cargo};
use crate::{prometheus, python, syscall, terminal, tidy};

/// The variable that names the file in which a test that cannot run says so, one line `test: reason`.
pub const SKIPPED_LIST: &str = "RELAY_SKIPPED_LIST";

/// The variable that makes a test fail where it would skip. `CI=true` does the same.
pub const MUST_RUN: &str = "RELAY_MUST_RUN";

/// The variable that names the relay's binary.
pub const RELAY_BINARY: &str = "RELAY_BIN";

/// The variable that names the Python that runs the agent on another QUIC stack.
pub const PYTHON: &str = "RELAY_PYTHON";

/// The variable that names the folder with the programs of Prometheus.
pub const PROMETHEUS: &str = "RELAY_PROMETHEUS";

/// The variable that names the programs which test the XDP program.
pub const PROBE: &str = "RELAY_BPF_PROBE";

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// The long tests as well.
    pub long: bool,
    /// Only tests whose name contains this.
    pub filter: Option<String>,
    /// A test that cannot run fails.
    pub nothing_skips: bool,
}

/// Sets up what is missing, builds, and runs the tests of the workspace, then those in the lab.
///
/// # Errors
/// Something is missing and cannot be installed, a build failed, or a test did.
pub fn run(workspace: &Workspace, consent: Consent, selection: &Selection) -> anyhow::Result<()> {
    tidy::check(workspace)?;
    let built = build::build(workspace, purpose(), consent)?;
    run_built(workspace, &built, selection)
}

/// What tests need: everything, where it can be installed and the lab be brought up.
pub fn purpose() -> Purpose {
    if syscall::is_root() { Purpose::Test } else { Purpose::Build }
}

/// Runs the tests against what was built.
///
/// # Errors
/// A test failed.
pub fn run_built(workspace: &Workspace, built: &Built, selection: &Selection) -> anyhow::Result<()> {
    let skipped_list = workspace.target().join("skipped-tests");
    std::fs::write(&skipped_list, "").with_context(|| format!("cannot write {}", skipped_list.display()))?;

    let python = python::find(workspace);
    let prometheus = prometheus::find(workspace);
    let mut total = Counts::default();
    let mut failed = Vec::new();
    // Always the whole workspace: another selection would unify features otherwise and compile everything again.
    for (what, targets, harness) in [
        ("outside the lab", "", "--skip in_lab::"),
        // One after the other: some measure rates, and the lab's machines share the processors.
        ("in the lab", "--test lab", "--test-threads=1"),
    ] {
        terminal::progress(format!("tests {what}"));
        let mut test = Tool::new(cargo())
            .words("test --workspace --no-fail-fast")
            .words(targets)
            .arg("--")
            .args(&selection.filter)
            .words(harness)
            .in_directory(workspace.root())
            .env("RELAY_BPF_OBJECT", &built.bpf_object)
            .env(RELAY_BINARY, &built.relay_binary)
            .env(PROBE, &built.bpf_probe)
            .env(SKIPPED_LIST, &skipped_list);
        // A quick run of the comparison is part of `cargo test`; here it has time.
        test = test.env("RELAY_DIFFERENTIAL_CASES", if selection.long { "100000000" } else { "1000000" });
        if let Some(python) = &python {
            test = test.env(PYTHON, python);
        }
        if let Some(prometheus) = &prometheus {
            test = test.env(PROMETHEUS, prometheus);
        }
        if selection.nothing_skips {
            test = test.env(MUST_RUN, "1");
        }
        if selection.long {
            test = test.arg("--include-ignored");
        }
        let mut counts = Counts::default();
        let status = test.stream_lines(|line| {
            terminal::result(line);
            counts.add_closing_line(line);
        })?;
        if !status.success() {
            failed.push(what);
        }
        total.add(&counts);
    }

    let skipped = std::fs::read_to_string(&skipped_list).unwrap_or_default();
    terminal::result("");
    for line in skipped.lines() {
        terminal::result(format!("skipped {line}"));
    }
    // A test that skipped itself has passed for the harness.
    let skipped = skipped.lines().count() as u64;
    terminal::result(format!(
        "{} passed, {} failed, {skipped} skipped",
        total.passed.saturating_sub(skipped),
        total.failed
    ));
    if !failed.is_empty() {
        bail!("tests failed: those {}", failed.join(", those "));
    }
    Ok(())
}

/// What a privileged test needs.
#[derive(Debug)]
pub struct Privileged {
    /// The relay's binary, with the XDP program inside.
    pub relay_binary: PathBuf,
}

/// What the privileged test `name` needs, or `None` after it said why it cannot run.
///
/// # Panics
/// It cannot run where nothing may skip (`CI=true` or [`MUST_RUN`]).
pub fn privileged_or_skip(name: &str) -> Option<Privileged> {
    let reason = match std::env::var_os(RELAY_BINARY).map(PathBuf::from) {
        _ if !syscall::is_root() => "needs root",
        None => "needs the built relay: run `cargo xtask test`",
        Some(relay_binary) => return Some(Privileged { relay_binary }),
    };
    say_skipped(name, reason);
    None
}

/// The Python that runs the agent on another QUIC stack, or `None` after the test `name` said why it cannot run.
///
/// # Panics
/// As for [`privileged_or_skip`].
pub fn python_or_skip(name: &str) -> Option<PathBuf> {
    let python = std::env::var_os(PYTHON).map(PathBuf::from);
    if python.is_none() {
        say_skipped(name, "needs Python with aioquic: run `cargo xtask test` as root");
    }
    python
}

fn say_skipped(name: &str, reason: &str) {
    let must_run =
        std::env::var_os("CI").is_some_and(|ci| ci == "true") || std::env::var_os(MUST_RUN).is_some();
    assert!(!must_run, "{name} cannot run, and here nothing may skip: it {reason}");
    eprintln!("{name} skipped: {reason}");
    let list =
        std::env::var_os(SKIPPED_LIST).and_then(|list| OpenOptions::new().append(true).open(list).ok());
    if let Some(mut list) = list {
        let _ = writeln!(list, "{name}: {reason}");
    }
}

/// How many tests ended how.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub passed: u64,
    pub failed: u64,
}

impl Counts {
    /// Adds what the closing line of one test binary says; other lines count nothing.
    pub fn add_closing_line(&mut self, line: &str) {
        let Some((_, counts)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for part in counts.split("; ") {
            match part.split_once(' ') {
                Some((number, "passed")) => self.passed += number.parse().unwrap_or(0),
                Some((number, "failed")) => self.failed += number.parse().unwrap_or(0),
                _ => {}
            }
        }
    }

    fn add(&mut self, other: &Counts) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_counted() {
        let mut counts = Counts::default();
        counts
            .add_closing_line("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out");
        counts.add_closing_line(
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out",
        );
        counts.add_closing_line("test tests::closing_lines_are_counted ... ok");
        assert_eq!(counts, Counts { passed: 14, failed: 1 });
    }
}
