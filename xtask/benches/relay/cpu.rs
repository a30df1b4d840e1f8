//! The CPU that a measurement runs on, and the time that it spends there.

use anyhow::Context as _;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// The first two of the CPUs that this process may run on.
///
/// # Errors
/// It may run on one only.
pub fn two() -> anyhow::Result<[usize; 2]> {
    let allowed = sched_getaffinity(None).context("which CPUs this process may use")?;
    let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).take(2).collect();
    <[usize; 2]>::try_from(cpus).ok().context("the benchmark needs two CPUs")
}

/// Keeps the calling thread on one CPU from now on.
///
/// # Errors
/// There is no such CPU.
pub fn stay_on(cpu: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| format!("cannot stay on CPU {cpu}"))
}

/// What the calling thread has spent on CPUs so far, in nanoseconds.
pub fn thread_time() -> f64 {
    let spent = clock_gettime(ClockId::ThreadCPUTime);
    spent.tv_sec as f64 * 1e9 + spent.tv_nsec as f64
}
