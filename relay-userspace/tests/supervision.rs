//! What a supervisor says by the environment, in a process of its own: this program once more.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    unsafe_code,
    reason = "in a test a panic is a failure, the process says what it has found, and fork is not in std"
)]

use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use relay_userspace::supervision::Supervision;

/// Says that this is the process that is started.
const STARTED: &str = "STARTED_BY_THE_TEST";

/// Starts the test `name` once more, in a process of one thread, after the shell has run `before`.
fn start_again(name: &str, before: &str) -> String {
    let socket = tempfile::tempdir().unwrap();
    let path = socket.path().join("notify");
    let _listening = UnixDatagram::bind(&path).unwrap();
    let output = Command::new("sh")
        .args(["-c", &format!("{before}; exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(STARTED, "1")
        .env("NOTIFY_SOCKET", &path)
        .envs([("WATCHDOG_USEC", "30000000"), ("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "SLOTS:udp4-0")])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

/// Whether this is the process that is started. Then it says what was given to it.
fn says_what_was_given() -> bool {
    if std::env::var_os(STARTED).is_none() {
        return false;
    }
    let mut supervision = Supervision::of_environment();
    println!(); // the harness has begun a line
    for (name, descriptor) in supervision.take_descriptors() {
        let target = std::fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd())).unwrap();
        println!("given {name} {}", target.display());
        let child = Command::new("ls").args(["-l", "/proc/self/fd"]).output().unwrap();
        assert!(!String::from_utf8(child.stdout).unwrap().contains(target.to_str().unwrap()), "inherited");
    }
    println!("watchdog {:?}", supervision.watchdog());
    println!("store {}", supervision.store().is_some());
    assert!(Supervision::of_environment().take_descriptors().is_empty(), "given once");
    true
}

#[test]
fn what_is_meant_for_the_daemon_is_taken_and_no_child_inherits_the_descriptors() {
    if says_what_was_given() {
        return;
    }
    let said = start_again(
        "what_is_meant_for_the_daemon_is_taken_and_no_child_inherits_the_descriptors",
        "export LISTEN_PID=$$ WATCHDOG_PID=$$; exec 3</dev/full 4</dev/zero",
    );
    for line in ["given SLOTS /dev/full", "given udp4-0 /dev/zero", "watchdog Some(30s)", "store true"] {
        assert!(said.lines().any(|said| said == line), "{line}: {said}");
    }
}

#[test]
fn what_is_meant_for_another_process_is_left_alone() {
    if says_what_was_given() {
        let open = std::fs::read_link("/proc/self/fd/4").unwrap();
        assert_eq!(open.to_str(), Some("/dev/zero"), "its descriptors are still open");
        return;
    }
    let said = start_again(
        "what_is_meant_for_another_process_is_left_alone",
        "export LISTEN_PID=1 WATCHDOG_PID=1; exec 3</dev/null 4</dev/zero",
    );
    assert!(!said.contains("given ") && said.contains("watchdog None"), "{said}");
}

#[test]
fn a_supervisor_that_has_no_room_keeps_nothing() {
    if says_what_was_given() {
        return;
    }
    let said = start_again("a_supervisor_that_has_no_room_keeps_nothing", "export FDSTORE=0");
    assert!(said.contains("store false"), "{said}");
}

#[test]
fn the_variables_are_gone_from_the_environment_before_a_child_could_be_started() {
    if std::env::var_os(STARTED).is_some() {
        // SAFETY: the only other thread, the harness's, waits for this one, so no lock is held that the copy would need.
        let copy = unsafe { libc::fork() };
        if copy == 0 {
            let _supervision = Supervision::of_environment();
            let _printed = Command::new("env").status();
            // SAFETY: the call takes an integer and does not return.
            unsafe { libc::_exit(0) };
        }
        // SAFETY: the call takes an integer and, for the status, no pointer.
        assert_eq!(unsafe { libc::waitpid(copy, std::ptr::null_mut(), 0) }, copy);
        return;
    }
    let said = start_again(
        "the_variables_are_gone_from_the_environment_before_a_child_could_be_started",
        "export LISTEN_PID=$$ WATCHDOG_PID=$$ FDSTORE=9",
    );
    assert!(said.contains(STARTED), "{said}");
    for never in ["NOTIFY_SOCKET", "FDSTORE", "WATCHDOG_", "LISTEN_"] {
        assert!(!said.contains(never), "{never}: {said}");
    }
}
