//! Whether the host's clock is synchronised, by adjtimex(2).

#![expect(unsafe_code, reason = "adjtimex is not in std, and asking with it needs no privilege")]

use std::io;
use std::mem::zeroed;

/// Whether it is.
///
/// # Errors
/// Why that cannot be told, for people.
pub fn is_synchronised() -> Result<bool, String> {
    // SAFETY: integers only, for which zeroes are a value; no mode is set, so that the call only reads.
    let mut clock: libc::timex = unsafe { zeroed() };
    // SAFETY: `clock` is valid and exclusive for the call.
    match unsafe { libc::adjtimex(&raw mut clock) } {
        -1 => Err(io::Error::last_os_error().to_string()),
        state => Ok(state != libc::TIME_ERROR && clock.status & libc::STA_UNSYNC == 0),
    }
}
