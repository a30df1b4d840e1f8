//! The kernel's version and switches: uname(2), /proc/sys, /sys/kernel.

use std::fs;
use std::path::Path;

use rustix::process::{Resource, getrlimit};
use rustix::system::uname;

use crate::doctor::facts::Kernel;

/// All of it.
pub fn kernel() -> Kernel {
    Kernel {
        release: uname().release().to_string_lossy().into_owned(),
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        jit: number("/proc/sys/net/core/bpf_jit_enable"),
        unprivileged_bpf_disabled: number("/proc/sys/kernel/unprivileged_bpf_disabled"),
        rmem_max: number("/proc/sys/net/core/rmem_max"),
        memlock: getrlimit(Resource::Memlock).current,
    }
}

/// The number that a file of /proc/sys has.
pub fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}
