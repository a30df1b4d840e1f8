//! Which object a descriptor stands for.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// Names an object among those that exist at present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    device: u64,
    inode: u64,
    /// What is its own where all of a kind share one inode: a map's or link's id.
    bpf: Option<String>,
}

impl Object {
    /// That of `descriptor`.
    ///
    /// # Errors
    /// The system does not say.
    pub fn of(descriptor: BorrowedFd<'_>) -> io::Result<Object> {
        let status = rustix::fs::fstat(descriptor)?;
        // proc_pid_fdinfo(5)
        let facts = fs::read_to_string(format!("/proc/self/fdinfo/{}", descriptor.as_raw_fd()))?;
        let mut lines = facts.lines();
        let bpf = lines.find(|line| line.starts_with("map_id:") || line.starts_with("link_id:"));
        Ok(Object { device: status.st_dev, inode: status.st_ino, bpf: bpf.map(str::to_owned) })
    }

    /// Whether it is a BPF map or link.
    pub fn is_bpf(&self) -> bool {
        self.bpf.is_some()
    }
}
