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

/// Makes the calling thread, and the threads and processes that it starts from now on, run before all ordinary ones. For
/// less than a second at a time: then the kernel lets the others run.
///
/// # Errors
/// Not permitted.
pub fn come_first() -> anyhow::Result<()> {
    xtask::bench::run_first().context("cannot come before other processes")
}

/// What the calling thread has spent on CPUs so far, in nanoseconds.
pub fn thread_time() -> f64 {
    let spent = clock_gettime(ClockId::ThreadCPUTime);
    spent.tv_sec as f64 * 1e9 + spent.tv_nsec as f64
}

/// What those threads of this process have spent on CPUs so far whose names begin with `name`, in seconds.
///
/// # Errors
/// The kernel does not tell.
pub fn time_of_threads(name: &str) -> anyhow::Result<f64> {
    time_of("self", |thread| thread.starts_with(name))
}

/// What a process has spent on CPUs so far, in seconds.
///
/// # Errors
/// There is no such process, or the kernel does not tell.
pub fn time_of_process(id: u32) -> anyhow::Result<f64> {
    time_of(&id.to_string(), |_| true)
}

/// By the scheduler's own account, which is exact; the process's times are counted in ticks.
fn time_of(process: &str, is_wanted: impl Fn(&str) -> bool) -> anyhow::Result<f64> {
    let mut sum = 0.0;
    for thread in std::fs::read_dir(format!("/proc/{process}/task")).context("the threads of a process")? {
        let thread = thread?.path();
        let read = |file: &str| std::fs::read_to_string(thread.join(file));
        // It may just have ended.
        let (Ok(name), Ok(account)) = (read("comm"), read("schedstat")) else { continue };
        if is_wanted(&name) {
            let spent = account.split(' ').next().context("an empty account of a thread")?;
            sum += spent.parse::<f64>().context("an account of a thread")? / 1e9;
        }
    }
    Ok(sum)
}
