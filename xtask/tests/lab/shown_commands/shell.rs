//! A shell that lines are typed into, one after the other, as a reader of the pages does.

use std::io::{PipeWriter, Write as _};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use xtask::lab::{Host, Process};
use xtask::tool::Tool;

use super::super::terminal::Terminal;
use super::pages::Pages;

/// How long a line, or the first sign of life of what it starts, may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// bash, somewhere.
pub struct Shell {
    process: Process,
    keyboard: PipeWriter,
    /// What stands in a page for something of the reader's, and what it is here.
    places: Vec<(String, String)>,
    /// How much of what was said belongs to lines before.
    heard: usize,
}

/// Where one is opened.
#[derive(Clone)]
pub struct Place {
    pub host: Host,
    /// The folder that it is in, where what it says is kept.
    pub at: PathBuf,
    pub home: PathBuf,
    /// Programs that go before the usual ones.
    pub programs: PathBuf,
}

impl Place {
    /// Opens one; `name` is its own here.
    pub fn shell(&self, name: &str) -> Shell {
        self.open(name, Tool::new("bash"))
    }

    /// As [`Place::shell`], with mounts of its own, which `script` makes.
    pub fn shell_after(&self, name: &str, script: &str) -> Shell {
        let script = format!("set -e; {script}; exec \"$0\" \"$@\"");
        self.open(name, Tool::new("unshare").words("--mount sh -c").args([&script, "bash"]))
    }

    /// Types a line that `page` shows at a terminal of 80 columns, waits until it has drawn `sign`, and leaves it by `q`.
    pub fn draws(&self, pages: &mut Pages, page: &str, line: &str, sign: &str) {
        let tool = self.here(Tool::new("sh").args(["-c", &format!("exec {}", pages.take(page, line))]));
        let mut terminal = Terminal::start(&tool.command(), [80, 24]);
        terminal.until_seen(sign, |text| text.contains(sign));
        terminal.type_keys("q");
        assert_eq!(terminal.ended(), Some(0), "`{line}`: {}", terminal.text());
        terminal.until_given_back();
    }

    fn open(&self, name: &str, tool: Tool) -> Shell {
        assert!(!self.at.join(format!("{name}.out")).exists(), "{name} is another one's");
        let (typed, keyboard) = std::io::pipe().unwrap();
        let tool = self.here(tool.words("--norc --noprofile"));
        let from_keyboard = |command: &mut Command| {
            command.stdin(typed);
        };
        let process = self.host.start_prepared(&tool, &self.at, name, from_keyboard).unwrap();
        let mut shell = Shell { process, keyboard, places: Vec::new(), heard: 0 };
        shell.types("exec 2>&1").succeeds();
        shell
    }

    fn here(&self, tool: Tool) -> Tool {
        tool.in_directory(&self.at)
            .without_env("ATLAS_ROOT")
            .env("HOME", &self.home)
            .env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.programs.display()))
    }
}

impl Shell {
    /// From now on `place` in a line is `value`; places that were named before go first.
    pub fn fill(&mut self, place: &str, value: impl ToString) {
        self.places.push((place.to_owned(), value.to_string()));
    }

    /// Types a line that `page` shows, and waits for its end.
    pub fn runs(&mut self, pages: &mut Pages, page: &str, line: &str) -> Answer {
        let line = pages.take(page, line);
        self.types(&line)
    }

    /// Types a line of the test's own, and waits for its end.
    pub fn types(&mut self, line: &str) -> Answer {
        self.enter(line);
        self.answer(self.filled(line))
    }

    /// Types a line that `page` shows, which runs until it is stopped, and waits until it has said `sign`.
    pub fn starts(&mut self, pages: &mut Pages, page: &str, line: &str, sign: &str) {
        let line = &pages.take(page, line);
        self.enter(line);
        let ended = |said: &str| {
            let end = end_of(said);
            assert!(end.is_none(), "`{line}` has ended: {said}");
            said.contains(sign).then_some(())
        };
        self.until_said(line, ended);
    }

    /// Ctrl-C for what runs, and waits for its end.
    pub fn interrupts(&mut self) -> Answer {
        self.send(Signal::INT);
        self.answer("Ctrl-C".to_owned())
    }

    /// What was said since the last line came to its end.
    pub fn said(&self) -> String {
        since(&self.process, self.heard)
    }

    fn filled(&self, line: &str) -> String {
        self.places.iter().fold(line.to_owned(), |line, (place, value)| line.replace(place, value))
    }

    /// The keyboard is the shell's alone.
    fn enter(&mut self, line: &str) {
        let line = self.filled(line);
        write!(self.keyboard, "{{ {line}\n}} < /dev/null\nprintf '\\n{END}%s>>\\n' $?\n").unwrap();
    }

    /// Waits for the end of the line that was typed last.
    fn answer(&mut self, line: String) -> Answer {
        let said = self.until_said(&line, |said| end_of(said).map(|_| said.to_owned()));
        self.heard += said.len();
        let (output, code) = end_of(&said).unwrap();
        Answer { line, code, output: output.to_owned() }
    }

    fn until_said<T>(&mut self, line: &str, mut is_it: impl FnMut(&str) -> Option<T>) -> T {
        let heard = self.heard;
        let found =
            self.process.wait_until(&format!("`{line}`"), PATIENCE, |process| is_it(&since(process, heard)));
        found.unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// To the processes that it has started and that have not ended.
    fn send(&self, signal: Signal) {
        let shell = self.process.id();
        let children = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children"));
        for child in children.unwrap_or_default().split_whitespace() {
            let child = Pid::from_raw(child.parse().unwrap()).unwrap();
            let _gone_meanwhile = kill_process(child, signal);
        }
    }
}

impl Drop for Shell {
    /// What it runs would outlive it.
    fn drop(&mut self) {
        self.send(Signal::TERM);
    }
}

/// What the shell says at the end of a line, before the exit code.
const END: &str = "<<the line ended with ";

/// What `process` has said, without the first `heard` bytes.
fn since(process: &Process, heard: usize) -> String {
    process.output().get(heard..).unwrap_or_default().to_owned()
}

fn end_of(said: &str) -> Option<(&str, i32)> {
    let (output, rest) = said.split_once(END)?;
    let (code, _) = rest.split_once(">>\n")?;
    Some((output, code.parse().unwrap()))
}

/// What has become of a line.
#[derive(Debug)]
#[must_use = "a line may have failed"]
pub struct Answer {
    line: String,
    code: i32,
    output: String,
}

impl Answer {
    /// What it said, given that it has succeeded.
    pub fn succeeds(self) -> String {
        assert_eq!(self.code, 0, "`{}`: {}", self.line, self.output);
        self.output
    }

    /// As [`Answer::succeeds`], and it has said `words`.
    pub fn says(self, words: &str) -> String {
        let line = self.line.clone();
        let output = self.succeeds();
        assert!(output.contains(words), "`{line}` does not say `{words}`: {output}");
        output
    }

    /// What it said, given that its exit code is one of `codes`.
    pub fn ends_with(self, codes: &[i32]) -> String {
        assert!(codes.contains(&self.code), "{self:?}");
        self.output
    }
}
