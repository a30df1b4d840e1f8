//! A network namespace that goes when its handle is dropped.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};

use super::Host;
use crate::syscall;
use crate::tool::Tool;

/// Where `ip netns` keeps namespaces by name.
const NAMED: &str = "/run/netns";

/// A network namespace of the lab.
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Creates the namespace `name` with its loopback up.
    pub(super) fn create(name: &str) -> anyhow::Result<Self> {
        Tool::new("ip").args(["netns", "add", name]).output()?;
        let namespace = Namespace { name: name.to_owned() };
        namespace.ip("link set lo up\n")?;
        Ok(namespace)
    }

    /// Takes over the namespace `name`, to remove it.
    pub(super) fn adopt(name: String) -> Self {
        Namespace { name }
    }

    /// The names of all namespaces on this machine.
    pub(super) fn names() -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(NAMED) else { return Vec::new() };
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// Its name for `ip netns exec`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The namespace as a place for processes.
    pub fn host(&self) -> Host {
        Host::in_namespace(self.path())
    }

    /// Runs `tool` inside, to its end, and returns what it wrote to stdout.
    ///
    /// # Errors
    /// It could not be started, or failed.
    pub fn run(&self, tool: &Tool) -> anyhow::Result<String> {
        self.host().run(tool)
    }

    /// Runs `commands`, one a line, each an `ip` command without the word `ip`.
    ///
    /// # Errors
    /// One of them failed.
    pub fn ip(&self, commands: &str) -> anyhow::Result<()> {
        // Not by `ip -netns`: that changes mounts, which is not possible everywhere.
        self.run(&Tool::new("ip").words("-batch -").input(commands))?;
        Ok(())
    }

    /// Writes `value` to each of the settings in `names`, which are paths below `/proc/sys`.
    ///
    /// # Errors
    /// There is no such setting, or it does not take the value.
    pub fn set(&self, names: &[&str], value: &str) -> anyhow::Result<()> {
        self.inside(|| {
            names.iter().try_for_each(|name| {
                std::fs::write(Path::new("/proc/sys").join(name), value)
                    .with_context(|| format!("cannot set {name} to {value} in {}", self.name))
            })
        })?
    }

    /// Runs `work` on a thread of its own that is inside, and waits for it. Sockets that it opens, and tasks of an async
    /// runtime that it drives, are inside as well.
    ///
    /// # Errors
    /// The namespace cannot be entered. A panic of `work` goes on here.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        let namespace =
            File::open(self.path()).with_context(|| format!("cannot open namespace {}", self.name))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                syscall::enter_network_namespace(&namespace)
                    .with_context(|| format!("cannot enter namespace {}", self.name))?;
                Ok(work())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn path(&self) -> PathBuf {
        Path::new(NAMED).join(&self.name)
    }

    /// The processes inside: without an end of theirs the namespace lives on, nameless.
    fn processes(&self) -> Vec<u32> {
        use std::os::unix::fs::MetadataExt as _;
        let Ok(namespace) = std::fs::metadata(self.path()) else { return Vec::new() };
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|process| {
                std::fs::metadata(format!("/proc/{process}/ns/net"))
                    .is_ok_and(|theirs| (theirs.dev(), theirs.ino()) == (namespace.dev(), namespace.ino()))
            })
            .collect()
    }

    fn remove(&self) -> anyhow::Result<()> {
        let until = Instant::now() + Duration::from_secs(2);
        loop {
            let processes = self.processes();
            if processes.is_empty() {
                break;
            }
            if Instant::now() > until {
                return Err(anyhow!("processes {processes:?} in {} do not end", self.name));
            }
            processes.into_iter().for_each(|process| syscall::send_signal(process, libc::SIGKILL));
            std::thread::sleep(Duration::from_millis(5));
        }
        Tool::new("ip").args(["netns", "delete", &self.name]).output()?;
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            crate::terminal::progress(format!("namespace {} stays behind: {error:#}", self.name));
        }
    }
}

/// Makes `command` start inside the namespace at `path`.
pub(super) fn start_inside(command: &mut Command, path: &Path) -> anyhow::Result<()> {
    let namespace = File::open(path).with_context(|| format!("cannot open namespace {}", path.display()))?;
    syscall::prepare_child(command, Some(namespace));
    Ok(())
}
