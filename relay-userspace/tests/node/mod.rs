//! A node of the built program, as its user meets it: a root of its own, commands, a daemon.

#![allow(dead_code, reason = "each test program uses its part")]

use std::fs;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub const BINARY: &str = env!("CARGO_BIN_EXE_atlas-relay");

/// A node with a root of its own.
pub struct Node {
    root: TempDir,
}

impl Node {
    pub fn new() -> Node {
        Node { root: tempfile::tempdir().unwrap() }
    }

    pub fn with_identity() -> Node {
        let node = Node::new();
        assert_eq!(node.run("id init").code, 0);
        node
    }

    pub fn relay() -> Node {
        let node = Node::with_identity();
        node.configure(
            "[transport]\nenable_relay = true\noffer_relay = true\n[datapath]\nmax_sessions = 16\n",
        );
        node
    }

    pub fn id(&self) -> String {
        let shown: serde_json::Value = serde_json::from_str(&self.run("id show --json").stdout).unwrap();
        shown["node_id"].as_str().unwrap().to_owned()
    }

    pub fn path(&self, path: &str) -> String {
        self.root.path().join(path).to_str().unwrap().to_owned()
    }

    pub fn configure(&self, toml: &str) {
        fs::write(self.path("state/config.toml"), toml).unwrap();
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(BINARY);
        command.env("ATLAS_ROOT", self.root.path()).env_remove("RUST_LOG").stdin(Stdio::null());
        command
    }

    pub fn run(&self, words: &str) -> Finished {
        self.run_words(&words.split_whitespace().collect::<Vec<_>>())
    }

    pub fn run_words(&self, words: &[&str]) -> Finished {
        Finished::of(self.command().args(words).output().unwrap())
    }

    /// Starts a daemon that logs to the file `log`.
    pub fn start(&self, words: &str) -> Child {
        let log = fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        self.command().args(words.split_whitespace()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
    }

    /// Waits until the daemon has logged `text`.
    pub fn until_logged(&self, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(10);
        let log = || fs::read_to_string(self.path("log")).unwrap();
        while !log().contains(text) {
            assert!(Instant::now() < deadline, "{text:?} is missing: {}", log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Asks until the daemon answers, and returns the answer.
    pub fn until_it_answers(&self, words: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let asked = self.run(words);
            if asked.code == 0 {
                return asked.stdout;
            }
            let log = || fs::read_to_string(self.path("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "{asked:?}\n{}", log());
        }
    }
}

/// What a command has come to.
#[derive(Debug)]
pub struct Finished {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    pub fn of(output: Output) -> Finished {
        Finished {
            code: output.status.code().expect("it exits by itself"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// It exited with 1 and wrote one line with all of `parts` to stderr, warnings aside, and nothing to
    /// stdout.
    pub fn fails_with(&self, parts: &[&str]) {
        assert_eq!(self.code, 1, "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        let is_warning = |line: &&str| line.contains(" WARN ") || line.starts_with("warning: ");
        assert_eq!(self.stderr.lines().filter(|line| !is_warning(line)).count(), 1, "{self:?}");
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is missing: {self:?}");
        }
    }
}

pub fn terminate(process: &Child) {
    signal(process, "TERM");
}

pub fn signal(process: &Child, name: &str) {
    assert!(
        // The shell's own: the program `kill` is not on every system.
        Command::new("sh")
            .args(["-c", &format!("kill -{name} {}", process.id())])
            .status()
            .unwrap()
            .success()
    );
}

/// The exit code, if it ends in time.
pub fn wait(process: &mut Child, patience: Duration) -> Option<i32> {
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if let Some(status) = process.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    process.kill().unwrap();
    None
}

/// A port that nobody has at the moment.
pub fn free_port() -> u16 {
    std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
