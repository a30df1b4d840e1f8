//! Ctrl-C in the demo leaves nothing behind.

use std::path::{Path, PathBuf};
use std::time::Duration;

use xtask::lab::{Host, Process};
use xtask::test::privileged_or_skip;
use xtask::tool::Tool;

use super::world::wait_for;

#[test]
fn a_demo_interrupted_while_its_lab_is_wired_leaves_nothing_behind() {
    let Some(mut demo) = Demo::start("a_demo_interrupted_while_its_lab_is_wired_leaves_nothing_behind")
    else {
        return;
    };
    // The first of six.
    demo.wait_for("the relay's namespace", |demo| demo.namespaces().first().map(drop));

    demo.interrupt();

    demo.has_left_nothing();
}

#[test]
fn a_demo_interrupted_in_mid_transfer_leaves_nothing_behind() {
    let Some(mut demo) = Demo::start("a_demo_interrupted_in_mid_transfer_leaves_nothing_behind") else {
        return;
    };
    let received = demo.lab_folder().join("target/received");
    let arrived = demo.wait_for("the file's first MiB", |_| {
        let length = std::fs::metadata(&received).ok()?.len();
        (length > 1 << 20).then_some(length)
    });
    let programs: Vec<u32> = demo.processes().into_iter().flat_map(programs_of).collect();

    demo.interrupt();

    assert!(arrived < 64 << 20, "it was in the middle of the file");
    assert!(!programs.is_empty(), "the relay had a program");
    demo.has_left_nothing();
    let loaded = || aya::programs::loaded_programs().flatten().any(|loaded| programs.contains(&loaded.id()));
    wait_for("the end of the relay's program", Duration::from_secs(5), || (!loaded()).then_some(()));
}

/// A running `cargo xtask demo`, and all that it makes: every name has its process id in it.
struct Demo {
    process: Process,
    _log: tempfile::TempDir,
}

impl Demo {
    fn start(name: &str) -> Option<Demo> {
        let binary = privileged_or_skip(name)?.relay_binary;
        let log = tempfile::tempdir().unwrap();
        let tool = Tool::new(env!("CARGO_BIN_EXE_xtask"))
            .words("demo --datapath xdp-native")
            .env("RELAY_BIN", &binary);
        let process = Host::here().start(&tool, log.path(), "demo").unwrap();
        Some(Demo { process, _log: log })
    }

    fn wait_for<T>(&mut self, awaited: &str, mut attempt: impl FnMut(&Demo) -> Option<T>) -> T {
        wait_for(awaited, Duration::from_secs(60), || {
            let value = attempt(self);
            let ended = self.process.ended().unwrap();
            assert!(value.is_some() || ended.is_none(), "it ended before {awaited}: {}", self.process.said());
            value
        })
    }

    fn interrupt(&mut self) {
        self.process.signal(libc::SIGINT);
        let ended = wait_for("the demo's end", Duration::from_secs(20), || self.process.ended().unwrap());
        let log = self.process.log();
        assert_eq!(ended.code(), Some(1), "{log}");
        let errors: Vec<&str> = log.lines().filter(|line| !line.starts_with('[')).collect();
        assert_eq!(errors, ["error: stopped by a signal"], "one line besides the progress: {log}");
        assert_eq!(self.process.output(), "");
    }

    fn has_left_nothing(&self) {
        assert_eq!(self.namespaces(), Vec::<String>::new());
        assert!(!self.lab_folder().exists());
        let processes = self.processes();
        assert!(processes.is_empty(), "{processes:?}");
    }

    /// What every name of the lab begins with.
    fn lab(&self) -> String {
        format!("atlas-lab-{}-0", self.process.id())
    }

    fn lab_folder(&self) -> PathBuf {
        std::env::temp_dir().join(self.lab())
    }

    fn namespaces(&self) -> Vec<String> {
        let names = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
        names
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.starts_with(&self.lab()))
            .collect()
    }

    /// Processes that have the lab's name in their command line or environment.
    fn processes(&self) -> Vec<u32> {
        let lab = self.lab().into_bytes();
        let names_lab = |file: &Path| {
            let bytes = std::fs::read(file).unwrap_or_default();
            bytes.windows(lab.len()).any(|window| window == lab)
        };
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        entries
            .filter(|entry| ["cmdline", "environ"].iter().any(|file| names_lab(&entry.path().join(file))))
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect()
    }
}

/// The ids of the BPF programs that a process has open.
fn programs_of(process: u32) -> Vec<u32> {
    let descriptors = std::fs::read_dir(format!("/proc/{process}/fdinfo")).into_iter().flatten().flatten();
    descriptors
        .filter_map(|descriptor| std::fs::read_to_string(descriptor.path()).ok())
        .filter_map(|info| info.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok()))
        .collect()
}
