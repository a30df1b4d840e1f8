//! A place where processes run, and a process there.

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::de::DeserializeOwned;

use super::namespace::start_inside;
use crate::tool::Tool;
use crate::{interrupt, syscall};

/// This machine, or one of the lab's namespaces.
#[derive(Clone, Debug)]
pub struct Host {
    namespace: Option<PathBuf>,
}

impl Host {
    /// This machine itself.
    pub fn here() -> Self {
        Host { namespace: None }
    }

    pub(super) fn in_namespace(path: PathBuf) -> Self {
        Host { namespace: Some(path) }
    }

    /// Runs `tool` to its end and returns what it wrote to stdout.
    ///
    /// # Errors
    /// It could not be started, or failed.
    pub fn run(&self, tool: &Tool) -> anyhow::Result<String> {
        let mut command = tool.command();
        self.place(&mut command)?;
        tool.output_of(&mut command)
    }

    /// Starts `tool`; what it writes goes to `NAME.out` and `NAME.log` in `directory`, after what is there.
    ///
    /// # Errors
    /// It could not be started.
    pub fn start(&self, tool: &Tool, directory: &Path, name: &str) -> anyhow::Result<Process> {
        self.start_prepared(tool, directory, name, |_| {})
    }

    /// As [`Host::start`], after `prepare` has changed the command.
    ///
    /// # Errors
    /// As for [`Host::start`].
    pub fn start_prepared(
        &self,
        tool: &Tool,
        directory: &Path,
        name: &str,
        prepare: impl FnOnce(&mut Command),
    ) -> anyhow::Result<Process> {
        let open = |ending: &str| {
            let path = directory.join(format!("{name}.{ending}"));
            let file = File::options().create(true).append(true).open(&path);
            file.map(|file| (path.clone(), file)).with_context(|| format!("cannot write {}", path.display()))
        };
        let (output, output_file) = open("out")?;
        let (log, log_file) = open("log")?;
        let mut command = tool.command();
        command.stdout(Stdio::from(output_file)).stderr(Stdio::from(log_file));
        self.place(&mut command)?;
        prepare(&mut command);
        let child = command.spawn().with_context(|| format!("cannot start `{tool}`"))?;
        Ok(Process { child, name: name.to_owned(), shown: tool.to_string(), output, log })
    }

    fn place(&self, command: &mut Command) -> anyhow::Result<()> {
        match &self.namespace {
            Some(namespace) => start_inside(command, namespace),
            None => {
                syscall::prepare_child(command, None);
                Ok(())
            }
        }
    }
}

/// A process that was started and is killed when its handle is dropped.
pub struct Process {
    child: Child,
    name: String,
    shown: String,
    output: PathBuf,
    log: PathBuf,
}

impl Process {
    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to stdout so far.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// The JSON objects of the form `T` it has written to stdout so far, one a line.
    pub fn events<T: DeserializeOwned>(&self) -> Vec<T> {
        self.output().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// What it has written to stderr so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What it has written to either so far.
    pub fn said(&self) -> String {
        self.output() + &self.log()
    }

    /// Sends it `signal`.
    pub fn signal(&self, signal: i32) {
        syscall::send_signal(self.id(), signal);
    }

    /// Its exit status, if it has ended.
    ///
    /// # Errors
    /// The system does not say.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("cannot ask for the end of `{}`", self.shown))
    }

    /// Waits until `attempt` gives a value, asking every 20 ms.
    ///
    /// # Errors
    /// The process ends first, `patience` runs out or a stop signal comes: the error has the end of its log.
    pub fn wait_until<T>(
        &mut self,
        awaited: &str,
        patience: Duration,
        mut attempt: impl FnMut(&Process) -> Option<T>,
    ) -> anyhow::Result<T> {
        let awaited = format!("{} of {}", awaited, self.name);
        let result = interrupt::wait_for(&awaited, patience, || {
            let value = attempt(self);
            if let (None, Some(status)) = (&value, self.ended()?) {
                bail!("`{}` ended ({status}) before {awaited}", self.shown);
            }
            Ok(value)
        });
        result.with_context(|| format!("{} said: {}", self.name, end_of(&self.said())))
    }

    /// Waits for it to end by itself.
    ///
    /// # Errors
    /// It does not end within `patience`, a stop signal comes, or it fails.
    pub fn wait_success(&mut self, patience: Duration) -> anyhow::Result<()> {
        let awaited = format!("the end of {}", self.name);
        let status = interrupt::wait_for(&awaited, patience, || self.ended())?;
        if !status.success() {
            bail!("`{}` failed ({status}): {}", self.shown, end_of(&self.said()));
        }
        Ok(())
    }

    /// Asks it to end with SIGTERM and waits for that.
    ///
    /// # Errors
    /// It needs longer than 5 s, or ends with a failure.
    pub fn stop(self) -> anyhow::Result<()> {
        self.stop_within(Duration::from_secs(5))
    }

    /// As [`Process::stop`], with as much `patience`.
    ///
    /// # Errors
    /// It needs longer, or ends with a failure.
    pub fn stop_within(mut self, patience: Duration) -> anyhow::Result<()> {
        self.signal(libc::SIGTERM);
        let awaited = format!("the end of {} after SIGTERM", self.name);
        let status = interrupt::wait_for(&awaited, patience, || self.ended())?;
        if !status.success() && status.signal() != Some(libc::SIGTERM) {
            bail!("`{}` failed at its end ({status}): {}", self.shown, end_of(&self.said()));
        }
        Ok(())
    }

    /// Kills it with SIGKILL and waits until it is gone.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    /// Asks, so that a daemon detaches what it attached; insists after a second.
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return; // its id may be another's by now
        }
        self.signal(libc::SIGTERM);
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.end();
    }
}

/// The last lines of a log, for an error.
fn end_of(log: &str) -> String {
    let lines: Vec<&str> = log.trim_end().lines().collect();
    if lines.is_empty() {
        return "nothing".to_owned();
    }
    lines.iter().skip(lines.len().saturating_sub(12)).map(|line| format!("\n  | {line}")).collect()
}
