//! A clean Debian on a host of the lab, with a real systemd as its PID 1, and what is typed there.
//!
//! It is made of namespaces (see `machine.sh`). Nothing that is changed in it lasts.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use xtask::clean_root;
use xtask::interrupt;
use xtask::lab::{Host, Process};
use xtask::tool::Tool;
use xtask::workspace::Workspace;

use super::world::wait_for;

const PATIENCE: Duration = Duration::from_secs(30);

/// Where commands are typed: the folder of a checkout.
const CHECKOUT: &str = "/root/atlas-relay";

/// A machine that has started.
pub struct Machine {
    process: Process,
    host: Host,
    work: PathBuf,
    /// Its PID 1, as the real machine numbers it.
    init: u32,
}

impl Machine {
    /// Starts it and waits until systemd is ready. Its own files are in a folder of that `name` in `directory`.
    pub fn start(host: Host, directory: &Path, name: &str) -> Machine {
        let workspace = Workspace::find().unwrap();
        let debian = clean_root::find(&workspace).expect("`cargo xtask test` makes a clean root");
        let work = directory.join(name);
        std::fs::create_dir(&work).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/machine.sh");
        let tool = Tool::new("unshare").words("--mount sh").arg(script).args([&work, &debian]);
        let process = host.start(&tool, &work, "machine").unwrap();
        let mut machine = Machine { process, host, work, init: 0 };
        machine.init = wait_for("PID 1", PATIENCE, || machine.process_named("systemd"));
        machine.wait_until("systemd", || {
            machine.try_type("systemctl is-system-running").ok().filter(|state| state.trim() == "running")
        });
        std::fs::create_dir(machine.path(CHECKOUT)).unwrap();
        machine
    }

    /// Runs what root would type, in the checkout's folder.
    pub fn type_in(&self, line: &str) -> String {
        self.try_type(line).unwrap_or_else(|error| panic!("{line}: {error:#}\n{:?}", self.try_journal()))
    }

    /// As [`Machine::type_in`]; a failure is a value.
    pub fn try_type(&self, line: &str) -> anyhow::Result<String> {
        // An error shows stderr alone, and commands say much on stdout.
        self.host.run(&self.tool(&format!(
            "said=$(mktemp); {{ {line}\n}} >$said; status=$?; cat $said; [ $status = 0 ] || cat $said >&2; rm $said; exit $status"
        )))
    }

    /// As [`Machine::type_in`], for what asks for a terminal.
    pub fn type_at_terminal(&self, line: &str) -> String {
        self.type_in(&format!("script --quiet --return --command '{line}' /dev/null < /dev/null"))
    }

    /// What `line`, which does not end by itself and is typed at a terminal, has said once it has said `awaited`.
    pub fn see(&self, line: &str, awaited: &str) -> String {
        let typed = format!("stty rows 24 columns 80; {line}");
        let terminal =
            format!("sleep {} | script --quiet --flush --command '{typed}' /dev/null", PATIENCE.as_secs());
        let name = line.split_whitespace().last().unwrap();
        let mut live = self.host.start(&self.tool(&terminal), &self.work, name).unwrap();
        let said = live
            .wait_until(awaited, PATIENCE, |live| Some(live.output()).filter(|said| said.contains(awaited)));
        said.unwrap_or_else(|error| panic!("{line}: {error:#}"))
    }

    fn tool(&self, line: &str) -> Tool {
        let inside = Tool::new("nsenter").args(["--target", &self.init.to_string()]);
        let inside = inside.words("--root --mount --pid --uts --ipc --cgroup");
        // As a login of root has it, and nothing of ours.
        let shell =
            inside.words("/usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        shell
            .words("HOME=/root LC_ALL=C DEBIAN_FRONTEND=noninteractive sh -c")
            .arg(format!("cd {CHECKOUT} 2>/dev/null; {line}"))
    }

    /// Where a file of it is for the real machine.
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.init))
    }

    /// Puts a copy of a file into the checkout's folder there.
    pub fn put(&self, from: &Path, relative: &str) {
        let to = self.path(CHECKOUT).join(relative);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(from, &to).unwrap();
    }

    /// Writes a file into the checkout's folder there.
    pub fn write(&self, relative: &str, text: &str) {
        std::fs::write(self.path(CHECKOUT).join(relative), text).unwrap();
    }

    /// Writes a file anew, whose owner and mode stay.
    pub fn change_file(&self, inside: &str, change: impl FnOnce(&str) -> String) {
        let path = self.path(inside);
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        std::fs::write(&path, change(&text)).unwrap();
    }

    /// The program that its service `unit` runs.
    pub fn runs(&self, unit: &str) -> Vec<u8> {
        let process = self.type_in(&format!("systemctl show {unit} -P MainPID"));
        std::fs::read(self.path(&format!("/proc/{}/exe", process.trim()))).unwrap()
    }

    /// What its services have said.
    pub fn journal(&self) -> String {
        self.try_journal().unwrap_or_else(|error| panic!("{error:#}"))
    }

    fn try_journal(&self) -> anyhow::Result<String> {
        self.try_type("journalctl --no-pager --output cat --unit 'atlas-*'")
    }

    pub fn wait_until<T>(&self, awaited: &str, attempt: impl FnMut() -> Option<T>) -> T {
        let waited =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| wait_for(awaited, PATIENCE, attempt)));
        waited.unwrap_or_else(|_| panic!("{awaited}: {} {:?}", self.process.said(), self.try_journal()))
    }

    /// /proc/PID/status of the first process of its service `unit`.
    pub fn status_of(&self, unit: &str) -> String {
        let process = self.type_in(&format!("systemctl show {unit} -P MainPID"));
        self.type_in(&format!("cat /proc/{}/status", process.trim()))
    }

    /// All files, links and folders of it, less the checkout and what dpkg, systemd and the machine keep of their own work.
    pub fn files(&self) -> BTreeSet<PathBuf> {
        let found = Tool::new("find").arg(self.path("/")).words("-xdev -printf %P\\n").output().unwrap();
        let kept = [
            "var/lib/apt",
            "var/lib/dpkg",
            "var/lib/systemd",
            "var/log",
            "var/cache",
            "root",
            "tmp",
            "var/tmp",
        ];
        found
            .lines()
            .map(PathBuf::from)
            .filter(|path| !kept.iter().any(|kept| path.starts_with(kept)))
            .collect()
    }

    /// As the real machine numbers it.
    fn process_named(&self, name: &str) -> Option<u32> {
        let mut found = vec![self.process.id()];
        while let Some(process) = found.pop() {
            let read =
                |what: &str| std::fs::read_to_string(format!("/proc/{process}/{what}")).unwrap_or_default();
            if read("comm").trim() == name {
                return Some(process);
            }
            let children = read(&format!("task/{process}/children"));
            found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
        None
    }
}

impl Drop for Machine {
    /// It takes its cgroups along.
    fn drop(&mut self) {
        self.process.signal(libc::SIGTERM);
        // Also after a failure: what it has made would stay if it were killed.
        let ended = interrupt::wait_for("the machine's end", PATIENCE, || self.process.ended());
        assert!(std::thread::panicking() || ended.is_ok(), "{ended:?}");
        let _root = std::fs::remove_dir(self.work.join("root"));
    }
}
