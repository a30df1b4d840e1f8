//! What a supervisor says to its child by the environment, taken out of it.

#![expect(
    unsafe_code,
    reason = "descriptors known by number alone, and variables to be taken away, have no safe form"
)]

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What is said.
#[derive(Debug, Default)]
pub struct Given {
    /// `NOTIFY_SOCKET`.
    pub notify_socket: Option<OsString>,
    /// `FDSTORE`: for how many descriptors the supervisor has room, where it says so.
    pub store: Option<u32>,
    /// `WATCHDOG_USEC`, if it is meant for this process.
    pub watchdog: Option<Duration>,
    /// `LISTEN_FDS` with their names, if they are meant for this process.
    pub descriptors: Vec<(String, OwnedFd)>,
}

/// All variables that are taken.
const NAMES: [&str; 7] = [
    "NOTIFY_SOCKET",
    "FDSTORE",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PID",
];

/// `SD_LISTEN_FDS_START`.
const FIRST: RawFd = 3;

/// More descriptors than a relay ever keeps: another number is a mistake.
const MOST: u32 = 4096;

/// Takes all of it: a second call finds nothing.
pub fn take() -> Given {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Given::default();
    }
    let text = |name| env::var(name).ok();
    let number = |name| text(name).and_then(|text| text.parse::<u64>().ok());
    let process = u64::from(std::process::id());
    let for_us = number("LISTEN_PID") == Some(process);
    let count = if for_us { count(number("LISTEN_FDS").unwrap_or(0)) } else { 0 };
    let names = named(&text("LISTEN_FDNAMES").unwrap_or_default(), count);
    let given = Given {
        notify_socket: env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()),
        store: number("FDSTORE").map(|count| count.try_into().unwrap_or(u32::MAX)),
        watchdog: number("WATCHDOG_USEC")
            .filter(|period| *period > 0 && number("WATCHDOG_PID").is_none_or(|meant| meant == process))
            .map(Duration::from_micros),
        descriptors: (FIRST..).zip(names).filter_map(|(number, name)| Some((name, adopt(number)?))).collect(),
    };
    remove();
    given
}

fn count(said: u64) -> u32 {
    u32::try_from(said).ok().filter(|count| *count <= MOST).unwrap_or(0)
}

/// A name for each of `count` descriptors. Missing ones are empty: such a descriptor is closed as nobody's.
fn named(names: &str, count: u32) -> Vec<String> {
    let names = names.split(':').map(str::to_owned).chain(std::iter::repeat_with(String::new));
    names.take(count as usize).collect()
}

/// The descriptor of this number, if there is one. No child inherits it.
fn adopt(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: fcntl with F_SETFD takes three integers and touches no memory.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return None;
    }
    // SAFETY: it is open; LISTEN_PID says that it was opened for this process before its start, and `take` gives it out
    // once, so nobody else closes it.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Takes the variables away if no other thread can be reading them. Where that cannot be told they stay.
fn remove() {
    let alone = fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1);
    if !alone {
        return;
    }
    for name in NAMES {
        // SAFETY: this is the only thread of the process, so nobody reads or writes the environment meanwhile.
        unsafe { env::remove_var(name) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_descriptor_has_a_name_even_if_the_list_of_names_is_short_or_long() {
        assert_eq!(named("a:b:c", 2), ["a", "b"]);
        assert_eq!(named("a", 3), ["a", "", ""]);
        assert_eq!(named("", 0), [""; 0]);
    }

    #[test]
    fn a_number_of_descriptors_beyond_all_reason_is_none() {
        assert_eq!([3, 4096, 4097, u64::MAX].map(count), [3, 4096, 0, 0]);
    }

    #[test]
    fn what_is_no_descriptor_is_not_adopted() {
        assert!(adopt(-1).is_none());
    }
}
