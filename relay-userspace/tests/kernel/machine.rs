//! What these tests need of the machine.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::loadable_object::loadable_object;
use crate::skipping;

/// The machine, to be used by one test at a time: each needs both CPUs.
pub struct Machine {
    /// The object with the probe.
    pub probe: PathBuf,
    /// Two CPUs this process may run on.
    pub cpus: [usize; 2],
    _turn: MutexGuard<'static, ()>,
}

impl Machine {
    /// The machine, or `None` after the test `name` has said why it cannot run.
    pub fn or_skip(name: &str) -> Option<Machine> {
        static TURN: Mutex<()> = Mutex::new(());
        match (Self::fit(), std::env::var_os("RELAY_BPF_PROBE")) {
            (Ok(cpus), Some(probe)) => {
                let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
                return Some(Machine { probe: probe.into(), cpus, _turn: turn });
            }
            (Err(why), _) => skipping::skip(name, why),
            (Ok(_), None) => skipping::skip(name, "no probe in RELAY_BPF_PROBE: run `cargo xtask test`"),
        }
        None
    }

    fn fit() -> Result<[usize; 2], &'static str> {
        loadable_object()?;
        <[usize; 2]>::try_from(allowed_cpus()).map_err(|_| "needs two CPUs")
    }
}

/// The first two of the CPUs that this process may run on.
fn allowed_cpus() -> Vec<usize> {
    // SAFETY: a set of CPUs is a plain array of bits, for which zeroes are valid; the kernel writes no more than the size
    // it is told.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        assert_eq!(libc::sched_getaffinity(0, size_of_val(&set), &mut set), 0);
        set
    };
    // SAFETY: the number is below the size of the set.
    (0..libc::CPU_SETSIZE as usize).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).take(2).collect()
}

/// Keeps the calling thread on one CPU from now on.
pub fn stay_on(cpu: usize) {
    // SAFETY: as for `allowed_cpus`; the kernel only reads the set.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set)
    };
    assert_eq!(result, 0, "sched_setaffinity: {}", std::io::Error::last_os_error());
}
