//! Ctrl-C and SIGTERM: remembered, and asked for wherever something waits, so that every `Drop` still cleans up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::bail;

use crate::syscall;

static STOPPED: AtomicBool = AtomicBool::new(false);

/// From here on a stop signal does not end the process but makes [`check`] fail.
pub fn install() {
    extern "C" fn remember(_signal: i32) {
        STOPPED.store(true, Ordering::Relaxed);
    }
    syscall::on_stop_signals(remember);
}

/// Whether a stop signal has come.
pub fn is_stopped() -> bool {
    STOPPED.load(Ordering::Relaxed)
}

/// # Errors
/// A stop signal has come.
pub fn check() -> anyhow::Result<()> {
    if is_stopped() {
        bail!("stopped by a signal");
    }
    Ok(())
}

/// Waits for `span`.
///
/// # Errors
/// A stop signal has come.
pub fn sleep(span: Duration) -> anyhow::Result<()> {
    let until = Instant::now() + span;
    loop {
        check()?;
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}

/// Asks `attempt` every 20 ms until it gives a value.
///
/// # Errors
/// The value did not come within `patience` (the error names `awaited`), `attempt` failed, or a stop signal has come.
pub fn wait_for<T>(
    awaited: &str,
    patience: Duration,
    mut attempt: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let until = Instant::now() + patience;
    loop {
        check()?;
        if let Some(value) = attempt()? {
            return Ok(value);
        }
        if Instant::now() >= until {
            bail!("waited {patience:?} in vain for {awaited}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
