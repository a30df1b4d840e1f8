//! The few system calls that std has no name for. All of xtask's unsafe code is here.

#![expect(unsafe_code, reason = "namespaces, signals and death signals have no safe form in std")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Whether this process may do what root may.
pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Moves the calling thread, and no other, into the network namespace `namespace` is open on.
pub fn enter_network_namespace(namespace: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as `namespace` is borrowed; setns reads nothing else of ours.
    match unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes `command` start in a network namespace (`None`: ours), in a process group of its own, so that a Ctrl-C at the
/// terminal reaches xtask alone, and makes the kernel kill it when the thread that started it ends: even a SIGKILL of
/// xtask leaves no daemon behind.
pub fn prepare_child(command: &mut Command, namespace: Option<File>) {
    let child = move || {
        if let Some(namespace) = &namespace {
            enter_network_namespace(namespace)?;
        }
        // SAFETY: prctl with PR_SET_PDEATHSIG takes one integer and touches no memory.
        match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure runs between fork and exec; it makes two system calls and neither allocates nor locks.
    unsafe { command.pre_exec(child) };
    command.process_group(0);
}

/// Sends `signal` to `process`. A process that is gone already is no error.
pub fn send_signal(process: u32, signal: i32) {
    let Ok(process) = i32::try_from(process) else { return };
    // SAFETY: kill takes two integers. A positive id names one process, never a group.
    unsafe { libc::kill(process, signal) };
}

/// Makes SIGINT and SIGTERM call `handler`, which may do only what is safe in a signal handler.
pub fn on_stop_signals(handler: extern "C" fn(i32)) {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let handler = handler as *const () as libc::sighandler_t;
        // SAFETY: `handler` is a function of the type signal(2) asks for and lives as long as the program.
        unsafe { libc::signal(signal, handler) };
    }
}
