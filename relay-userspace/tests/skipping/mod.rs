//! What a test does that cannot run here.

use std::io::Write as _;

/// Says why the test `name` cannot run, and notes it for `cargo xtask test`.
///
/// # Panics
/// Where nothing may skip: `CI=true`, or `RELAY_MUST_RUN` is set.
pub fn skip(name: &str, reason: &str) {
    let must_run =
        std::env::var_os("CI").is_some_and(|ci| ci == "true") || std::env::var_os("RELAY_MUST_RUN").is_some();
    assert!(!must_run, "{name} cannot run, and here nothing may skip: {reason}");
    eprintln!("{name} skipped: {reason}");
    let list = std::env::var_os("RELAY_SKIPPED_LIST");
    if let Some(mut list) = list.and_then(|list| std::fs::OpenOptions::new().append(true).open(list).ok()) {
        writeln!(list, "{name}: {reason}").expect("the list of skipped tests can be written");
    }
}
