//! The one place that prints: results to stdout, progress to stderr.

#![expect(clippy::print_stdout, reason = "the one place that prints results")]

use std::sync::LazyLock;
use std::time::Instant;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Starts the clock that progress lines show.
pub fn start_clock() {
    LazyLock::force(&START);
}

/// One line of progress, with the seconds since the start.
pub fn progress(line: impl AsRef<str>) {
    eprintln!("[{:6.1} s] {}", START.elapsed().as_secs_f64(), line.as_ref());
}

/// One line of result.
pub fn result(line: impl AsRef<str>) {
    println!("{}", line.as_ref());
}
