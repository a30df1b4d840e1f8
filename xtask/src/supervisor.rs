//! A supervisor of one process that speaks to it as systemd does: `NOTIFY_SOCKET`, the file descriptor store, the
//! watchdog. For tests, where systemd does not run.

use std::io::{IoSliceMut, PipeReader};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::lab::{Host, Process};
use crate::syscall;
use crate::tool::Tool;

/// The first descriptor that a supervisor hands over (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;

/// `FileDescriptorStoreMax=`.
const STORE_MAX: usize = 512;

/// How long a process may take to end after SIGTERM, as `TimeoutStopSec=`.
const STOP_PATIENCE: Duration = Duration::from_secs(30);

/// A supervisor, and its process while that runs.
pub struct Supervisor {
    host: Host,
    tool: Tool,
    directory: PathBuf,
    name: String,
    watchdog: Option<Duration>,
    process: Option<Process>,
    socket: PathBuf,
    service: Arc<Mutex<Service>>,
    reader: Option<JoinHandle<()>>,
}

/// What is known of the service.
#[derive(Default)]
struct Service {
    states: Vec<String>,
    ready: bool,
    store: Vec<Stored>,
    /// How many of our own marks have been read.
    marks: u64,
    over: bool,
}

/// What is in the store.
struct Stored {
    name: String,
    descriptor: OwnedFd,
    /// Thrown out once it reports an error or a hang-up.
    polled: bool,
}

/// What the supervisor tells itself, to know that everything before has been read.
const MARK: &str = "X_MARK=1";
/// The same, once nothing more is to be read.
const OVER: &str = "X_OVER=1";

impl Supervisor {
    /// A supervisor of `tool` on `host`, which is not started yet. What the process writes goes to `NAME.out` and
    /// `NAME.log` in `directory`, and there its socket is.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn of(host: Host, tool: Tool, directory: &Path, name: &str) -> anyhow::Result<Self> {
        let socket = directory.join(format!("{name}.notify"));
        let receiving = UnixDatagram::bind(&socket)
            .with_context(|| format!("cannot make the socket {}", socket.display()))?;
        let service = Arc::new(Mutex::new(Service::default()));
        let reading = Arc::clone(&service);
        let reader = std::thread::spawn(move || while Service::read(&reading, &receiving) {});
        Ok(Supervisor {
            host,
            tool,
            directory: directory.to_owned(),
            name: name.to_owned(),
            watchdog: None,
            process: None,
            socket,
            service,
            reader: Some(reader),
        })
    }

    /// Asks the next process for a sign of life in every `period`, as `WatchdogSec=`. Nothing happens to one that gives none;
    /// its signs are among the [`Supervisor::states`].
    pub fn watchdog(&mut self, period: Duration) {
        self.watchdog = Some(period);
    }

    /// Has the next process started from `tool`: another version of the program, say.
    pub fn replace(&mut self, tool: Tool) {
        self.tool = tool;
    }

    /// Starts the process with what is in the store.
    ///
    /// # Errors
    /// It runs already, or cannot be started.
    pub fn start(&mut self) -> anyhow::Result<()> {
        if self.process.is_some() {
            bail!("{} runs already", self.name);
        }
        self.settle()?;
        let (names, descriptors) = {
            let mut service = self.service();
            service.ready = false;
            service.throw_out_failed();
            service.handed_over()?
        };
        let mut tool = self.tool.clone().env("NOTIFY_SOCKET", &self.socket);
        // What xtask itself may have been started with is none of its children's business.
        for theirs in ["WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID"] {
            tool = tool.without_env(theirs);
        }
        let mut before = String::from(":");
        if let Some(period) = self.watchdog {
            tool = tool.env("WATCHDOG_USEC", period.as_micros().to_string());
            before += "; export WATCHDOG_PID=$$";
        }
        if !names.is_empty() {
            tool = tool.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
            before += "; export LISTEN_PID=$$";
        }
        // Nothing that std opens for the start may have a number that is to be handed over.
        let _placeholders = placeholders(descriptors.len())?;
        let descriptors = above(descriptors)?;
        let process =
            self.host.start_prepared(&tool.after(&before), &self.directory, &self.name, |command| {
                syscall::hand_over(command, FIRST, descriptors);
            });
        self.process = Some(process?);
        Ok(())
    }

    /// Starts the process and waits until it is ready.
    ///
    /// # Errors
    /// It cannot be started, ends, or is not ready in time.
    pub fn start_ready(&mut self, patience: Duration) -> anyhow::Result<()> {
        self.start()?;
        self.wait_ready(patience)
    }

    /// Waits until the process that runs has said `READY=1`.
    ///
    /// # Errors
    /// It ends, or does not say so in time.
    pub fn wait_ready(&mut self, patience: Duration) -> anyhow::Result<()> {
        let service = Arc::clone(&self.service);
        self.process()?.wait_until("the readiness", patience, |_| lock(&service).ready.then_some(()))
    }

    /// SIGTERM, and a start with the store once it has ended: `systemctl restart`.
    ///
    /// # Errors
    /// It does not end in time or fails, or cannot be started.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.end_process()?;
        self.start()
    }

    /// SIGKILL. The store stays.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.take().with_context(|| format!("{} does not run", self.name))?.kill();
        self.settle()
    }

    /// SIGTERM, and the end of the store once it has ended: `systemctl stop`.
    ///
    /// # Errors
    /// It does not end in time, or fails.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.end_process()?;
        self.service().store.clear();
        Ok(())
    }

    /// The process that runs.
    ///
    /// # Errors
    /// None does.
    pub fn process(&mut self) -> anyhow::Result<&mut Process> {
        self.process.as_mut().with_context(|| format!("{} does not run", self.name))
    }

    /// Everything that processes have said, one `NAME=value` each, in order.
    pub fn states(&self) -> Vec<String> {
        self.service().states.clone()
    }

    /// The names of what is in the store, in the order of its coming.
    pub fn stored(&self) -> Vec<String> {
        self.service().store.iter().map(|stored| stored.name.clone()).collect()
    }

    /// SIGTERM, and waits for the end.
    fn end_process(&mut self) -> anyhow::Result<()> {
        let process = self.process.take().with_context(|| format!("{} does not run", self.name))?;
        process.stop_within(STOP_PATIENCE)?;
        self.settle()
    }

    /// Waits until everything that was said has been read.
    fn settle(&self) -> anyhow::Result<()> {
        let before = self.service().marks;
        self.tell_ourselves(MARK)?;
        crate::interrupt::wait_for("the reader of the notify socket", Duration::from_secs(10), || {
            Ok((self.service().marks > before).then_some(()))
        })
    }

    fn tell_ourselves(&self, what: &str) -> anyhow::Result<()> {
        let sent = UnixDatagram::unbound().and_then(|socket| socket.send_to(what.as_bytes(), &self.socket));
        sent.with_context(|| format!("cannot send to {}", self.socket.display()))?;
        Ok(())
    }

    fn service(&self) -> MutexGuard<'_, Service> {
        lock(&self.service)
    }
}

impl Drop for Supervisor {
    /// Ends the process before the socket that it speaks to.
    fn drop(&mut self) {
        drop(self.process.take());
        if self.tell_ourselves(OVER).is_ok() {
            let _panicked = self.reader.take().map(JoinHandle::join);
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}

impl Service {
    /// Reads one message. False: it was the last.
    fn read(service: &Mutex<Service>, socket: &UnixDatagram) -> bool {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags);
        let Ok(received) = received else { return true };
        let descriptors: Vec<OwnedFd> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            })
            .flatten()
            .collect();
        let text = String::from_utf8_lossy(bytes.get(..received.bytes).unwrap_or_default()).into_owned();
        let mut service = lock(service);
        service.take(&text, descriptors);
        !service.over
    }

    /// Does what a message asks for.
    fn take(&mut self, text: &str, descriptors: Vec<OwnedFd>) {
        let lines: Vec<&str> = text.lines().collect();
        match *lines {
            [MARK] => return self.marks += 1,
            [OVER] => return self.over = true,
            _ => {}
        }
        self.states.extend(lines.iter().map(|&line| line.to_owned()));
        let name = lines.iter().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("stored");
        if lines.contains(&"FDSTOREREMOVE=1") {
            self.store.retain(|stored| stored.name != name);
        } else if lines.contains(&"FDSTORE=1") {
            for descriptor in descriptors {
                self.store(name, descriptor, !lines.contains(&"FDPOLL=0"));
            }
        } // else with BARRIER=1: its descriptor is closed here, and that is what its sender waits for
        if lines.contains(&"READY=1") {
            self.ready = true;
        }
    }

    /// As systemd does: what is in the store already is not stored again, under whatever name; of one name there may be
    /// several.
    fn store(&mut self, name: &str, descriptor: OwnedFd, polled: bool) {
        let known = |stored: &Stored| syscall::is_same_file(stored.descriptor.as_fd(), descriptor.as_fd());
        if self.store.len() < STORE_MAX && !self.store.iter().any(known) {
            self.store.push(Stored { name: name.to_owned(), descriptor, polled });
        }
    }

    /// Throws out what reports an error or a hang-up, unless that was not to be asked for.
    fn throw_out_failed(&mut self) {
        self.store.retain(|stored| {
            let mut asked = [PollFd::new(&stored.descriptor, PollFlags::empty())];
            let failed =
                poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|events| events > 0);
            !(stored.polled && failed)
        });
    }

    /// Names and descriptors for the next process.
    fn handed_over(&self) -> anyhow::Result<(Vec<String>, Vec<OwnedFd>)> {
        let copy = |stored: &Stored| Ok((stored.name.clone(), stored.descriptor.try_clone()?));
        let pairs: Vec<(String, OwnedFd)> = self.store.iter().map(copy).collect::<std::io::Result<_>>()?;
        Ok(pairs.into_iter().unzip())
    }
}

fn lock(service: &Mutex<Service>) -> MutexGuard<'_, Service> {
    service.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the numbers from [`FIRST`] on that `count` descriptors will have in the child, as far as they are free.
fn placeholders(count: usize) -> anyhow::Result<Vec<PipeReader>> {
    let (reader, _) = std::io::pipe()?;
    let mut taken = vec![reader];
    for _ in 0..count {
        let Some(last) = taken.last() else { break };
        taken.push(last.try_clone()?); // the lowest number that is free
    }
    Ok(taken)
}

/// Copies with numbers above those that they will have in the child.
fn above(descriptors: Vec<OwnedFd>) -> anyhow::Result<Vec<OwnedFd>> {
    let least = FIRST + RawFd::try_from(descriptors.len())?;
    let copy = |descriptor: OwnedFd| Ok(rustix::io::fcntl_dupfd_cloexec(&descriptor, least)?);
    descriptors.into_iter().map(copy).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn copy(stream: &UnixStream) -> OwnedFd {
        stream.try_clone().unwrap().into()
    }

    fn names(service: &Service) -> Vec<&str> {
        service.store.iter().map(|stored| stored.name.as_str()).collect()
    }

    #[test]
    fn of_one_name_there_may_be_several_and_they_go_together() {
        let (one, other) = UnixStream::pair().unwrap();
        let mut service = Service::default();
        for stream in [&one, &other, &one] {
            service.take("FDSTORE=1\nFDNAME=a\nFDPOLL=0", vec![copy(stream)]);
        }
        service.take("FDSTORE=1\nFDNAME=b\n", vec![copy(&one)]);
        assert_eq!(names(&service), ["a", "a"], "the same open file is stored once");
        service.take("FDSTOREREMOVE=1\nFDNAME=a", Vec::new());
        assert_eq!(names(&service), [""; 0]);
    }

    #[test]
    fn what_reports_a_failure_is_thrown_out_unless_it_was_not_to_be_asked() {
        let [(one, far), (other, other_far)] = [UnixStream::pair().unwrap(), UnixStream::pair().unwrap()];
        let mut service = Service::default();
        service.take("FDSTORE=1\nFDNAME=polled", vec![copy(&one)]);
        service.take("FDSTORE=1\nFDNAME=unpolled\nFDPOLL=0", vec![copy(&other)]);
        service.throw_out_failed();
        assert_eq!(names(&service), ["polled", "unpolled"]);
        drop((far, other_far));
        service.throw_out_failed();
        assert_eq!(names(&service), ["unpolled"]);
    }

    /// A supervisor of the shell, which runs `script`.
    fn of_shell(script: &str, directory: &Path) -> Supervisor {
        let tool = Tool::new("sh").args(["-c", script]);
        Supervisor::of(Host::here(), tool, directory, "shell").unwrap()
    }

    #[test]
    fn the_next_process_is_given_what_is_stored_under_its_names_and_the_one_after_a_stop_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let script =
            "echo \"$LISTEN_FDS $LISTEN_FDNAMES $((LISTEN_PID - $$)) $((WATCHDOG_PID - $$)) $WATCHDOG_USEC\"
                      cat <&4
                      exec sleep 1000";
        let mut supervisor = of_shell(script, directory.path());
        supervisor.watchdog(Duration::from_secs(3));
        let (stream, far) = UnixStream::pair().unwrap();
        let (reader, mut writer) = std::io::pipe().unwrap();
        std::io::Write::write_all(&mut writer, b"from the pipe\n").unwrap();
        drop(writer);
        {
            let mut service = supervisor.service();
            service.take("FDSTORE=1\nFDNAME=META\nFDPOLL=0", vec![copy(&stream)]);
            service.take("FDSTORE=1\nFDNAME=udp4-0\nFDPOLL=0", vec![reader.into()]);
        }
        supervisor.start().unwrap();
        let expected = "2 META:udp4-0 0 0 3000000\nfrom the pipe\n";
        let said = |process: &Process| (process.output() == expected).then_some(());
        supervisor.process().unwrap().wait_until("its words", PATIENCE, said).unwrap();
        assert_eq!(supervisor.stored(), ["META", "udp4-0"]);
        supervisor.stop().unwrap();
        assert_eq!(supervisor.stored(), [""; 0]);
        drop((stream, far));
    }

    #[test]
    fn a_process_that_ends_before_it_is_ready_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let mut supervisor = of_shell("exit 3", directory.path());
        let error = format!("{:#}", supervisor.start_ready(PATIENCE).unwrap_err());
        assert!(error.contains("exit status: 3"), "{error}");
    }
}
