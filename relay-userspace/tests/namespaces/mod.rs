//! Network namespaces of a test's own, and what happens in them. They go when the test's threads end.
#![allow(dead_code, reason = "each test program uses its part")]
#![expect(unsafe_code, reason = "leaving the network namespace is not in std")]

use std::net::IpAddr;
use std::process::Command;
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use relay_common::Reason;
use relay_userspace::relay::forwarder::Forwarder;

use crate::skipping;

/// Runs `test` in a network namespace of its own, or says why it cannot. Where nothing may skip, it fails then.
///
/// One at a time: a command that one test starts has, until it executes, copies of the sockets of all, and a port that
/// another test has just closed would still be in use.
pub fn in_namespace(name: &str, test: impl FnOnce() + Send) {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    thread::scope(|scope| {
        let run = scope.spawn(|| match leave_namespace() {
            Ok(()) => test(),
            Err(reason) => skipping::skip(name, &reason),
        });
        if let Err(panic) = run.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Gives the calling thread a new network namespace, which its children and sockets are in.
fn leave_namespace() -> Result<(), String> {
    // SAFETY: the call takes no pointers and affects the calling thread alone.
    match unsafe { libc::unshare(libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(format!("needs root, to make a network namespace ({})", std::io::Error::last_os_error())),
    }
}

/// A second namespace: a thread that is inside and does what it is told.
pub struct Inside {
    pub thread: i32,
    work: mpsc::Sender<Box<dyn FnOnce() + Send>>,
}

impl Inside {
    pub fn new() -> Inside {
        let (work, todo) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            leave_namespace().unwrap();
            // SAFETY: the call takes nothing and cannot fail.
            tell.send(unsafe { libc::gettid() }).unwrap();
            todo.into_iter().for_each(|work| work());
        });
        Inside { thread: told.recv().unwrap(), work }
    }

    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = mpsc::channel();
        self.work.send(Box::new(move || tell.send(work()).unwrap())).unwrap();
        told.recv().unwrap()
    }
}

pub fn ip(arguments: &str) {
    run("ip", arguments);
}

pub fn run(program: &str, arguments: &str) -> Vec<u8> {
    let output = Command::new(program).args(arguments.split(' ')).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; install it"));
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

pub fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Lets the readers work until they have counted `count` datagrams of `reason`.
pub fn until_counted(forwarder: &Forwarder, reason: Reason, count: u64) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while forwarder.count(reason) != count {
        assert!(Instant::now() < deadline, "{} {}", forwarder.count(reason), reason.name());
        thread::yield_now();
    }
}
