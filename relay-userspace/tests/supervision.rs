//! What a supervisor says by the environment, in a process of its own: this program once more.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "in a test a panic is a failure, and the process says what it has found"
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

/// What the started process does: it says what was given to it, then what a child of its is given.
fn say_what_was_given() -> bool {
    if std::env::var_os(STARTED).is_none() {
        return false;
    }
    let mut supervision = Supervision::of_environment();
    let descriptors = supervision.take_descriptors();
    let target = |descriptor: i32| std::fs::read_link(format!("/proc/self/fd/{descriptor}")).unwrap();
    for (name, descriptor) in &descriptors {
        println!("given {name} {}", target(descriptor.as_raw_fd()).display());
    }
    println!("watchdog {:?}", supervision.watchdog());
    println!("store {}", supervision.store().is_some());
    let child = Command::new("sh").args(["-c", "env; ls -l /proc/self/fd"]).output().unwrap();
    for line in String::from_utf8(child.stdout).unwrap().lines() {
        println!("child {line}");
    }
    assert!(Supervision::of_environment().take_descriptors().is_empty(), "given once");
    true
}

#[test]
fn what_is_meant_for_the_daemon_is_taken_and_no_child_is_given_it() {
    if say_what_was_given() {
        return;
    }
    let said = start_again(
        "what_is_meant_for_the_daemon_is_taken_and_no_child_is_given_it",
        "export LISTEN_PID=$$ WATCHDOG_PID=$$; exec 3</dev/null 4</dev/zero",
    );
    for line in ["given SLOTS /dev/null", "given udp4-0 /dev/zero", "watchdog Some(30s)", "store true"] {
        assert!(said.lines().any(|said| said == line), "{line}: {said}");
    }
    let child: Vec<&str> = said.lines().filter(|line| line.starts_with("child ")).collect();
    assert!(child.iter().any(|line| line.contains(STARTED)), "{said}");
    for never in ["NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_", "/dev/zero"] {
        assert!(!child.iter().any(|line| line.contains(never)), "{never}: {said}");
    }
}

#[test]
fn what_is_meant_for_another_process_is_left_alone() {
    if say_what_was_given() {
        return;
    }
    let said = start_again(
        "what_is_meant_for_another_process_is_left_alone",
        "export LISTEN_PID=1 WATCHDOG_PID=1; exec 3</dev/null 4</dev/zero",
    );
    assert!(!said.contains("given ") && said.contains("watchdog None"), "{said}");
    assert!(said.contains("/dev/zero"), "its descriptors are still open: {said}");
}

#[test]
fn a_supervisor_that_has_no_room_keeps_nothing() {
    if say_what_was_given() {
        return;
    }
    let said = start_again("a_supervisor_that_has_no_room_keeps_nothing", "export FDSTORE=0");
    assert!(said.contains("store false"), "{said}");
}
