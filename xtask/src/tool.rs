//! Running other programs: every failure names the whole command line.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::{interrupt, syscall};

/// A command line that has not run yet.
#[derive(Clone)]
pub struct Tool {
    program: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, Option<OsString>)>,
    directory: Option<PathBuf>,
    input: Option<String>,
}

impl Tool {
    /// Runs `program`, found on the path or in the folders only root has on its path.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let program = program.as_ref();
        let found = find(program).map_or_else(|| program.to_owned(), PathBuf::into_os_string);
        Tool { program: found, arguments: Vec::new(), environment: Vec::new(), directory: None, input: None }
    }

    /// Adds one argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Adds the arguments in `words`, which are separated by blanks.
    pub fn words(self, words: &str) -> Self {
        self.args(words.split_whitespace())
    }

    /// Has the shell run `script` and then, in its own place, this program.
    pub fn after(self, script: &str) -> Self {
        let Tool { program, arguments, environment, directory, input } = self;
        let shell = Tool::new("sh").args(["-c", &format!("{script}; exec \"$0\" \"$@\"")]);
        Tool { environment, directory, input, ..shell.arg(program).args(arguments) }
    }

    /// Sets a variable for this program alone.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// Hides a variable of ours from this program.
    pub fn without_env(mut self, name: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().to_owned(), None));
        self
    }

    /// Runs it in `directory`.
    pub fn in_directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// What it reads from its standard input.
    pub fn input(mut self, text: impl Into<String>) -> Self {
        self.input = Some(text.into());
        self
    }

    /// The command for std, for callers that need more than this type offers.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::null());
        for (name, value) in &self.environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command
    }

    /// Runs it to its end and returns what it wrote to stdout.
    ///
    /// # Errors
    /// It could not be started, or failed; the error carries what it said on stderr.
    pub fn output(&self) -> anyhow::Result<String> {
        self.output_of(&mut self.command())
    }

    /// As [`Tool::output`], for a command made by [`Tool::command`] and changed since.
    ///
    /// # Errors
    /// As for [`Tool::output`].
    pub fn output_of(&self, command: &mut Command) -> anyhow::Result<String> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        if self.input.is_some() {
            command.stdin(Stdio::piped());
        }
        let mut child = command.spawn().with_context(|| format!("cannot start `{self}`"))?;
        if let (Some(input), Some(mut stdin)) = (&self.input, child.stdin.take()) {
            match stdin.write_all(input.as_bytes()) {
                // It ended before it had read all: how, its status tells.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                written => written.with_context(|| format!("cannot write to `{self}`"))?,
            }
        }
        let output = child.wait_with_output().with_context(|| format!("cannot wait for `{self}`"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("`{self}` failed ({}): {}", output.status, said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs it to its end, its output going where ours goes. A stop signal is passed on.
    ///
    /// # Errors
    /// It could not be started, or failed, or a stop signal has come.
    pub fn stream(&self) -> anyhow::Result<()> {
        let status = self.stream_status()?;
        if !status.success() {
            bail!("`{self}` failed ({status})");
        }
        Ok(())
    }

    /// As [`Tool::stream`], but a failure of the program is a value.
    ///
    /// # Errors
    /// It could not be started, or a stop signal has come.
    pub fn stream_status(&self) -> anyhow::Result<ExitStatus> {
        let mut child = self.command().spawn().with_context(|| format!("cannot start `{self}`"))?;
        wait_streaming(&mut child).with_context(|| format!("while `{self}` ran"))
    }

    /// As [`Tool::stream_status`], but each line of its stdout goes to `each`, without its end.
    ///
    /// # Errors
    /// As for [`Tool::stream_status`].
    pub fn stream_lines(&self, mut each: impl FnMut(&str) + Send) -> anyhow::Result<ExitStatus> {
        let mut child = self
            .command()
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{self}`"))?;
        let stdout = child.stdout.take();
        let status = std::thread::scope(|scope| {
            scope.spawn(|| {
                for line in stdout.into_iter().flat_map(|stdout| BufReader::new(stdout).split(b'\n')) {
                    let Ok(line) = line else { break };
                    each(&String::from_utf8_lossy(&line));
                }
            });
            wait_streaming(&mut child)
        });
        status.with_context(|| format!("while `{self}` ran"))
    }
}

/// The command line as a user would type it: variables that are set, then program and arguments.
impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.environment {
            if let Some(value) = value {
                write!(f, "{}={} ", name.to_string_lossy(), quoted(value))?;
            }
        }
        // What the path would find anyway is shown by its name alone.
        let name = Path::new(&self.program).file_name().unwrap_or(&self.program);
        let short = if find(name).is_some_and(|found| found == self.program) { name } else { &self.program };
        write!(f, "{}", quoted(short))?;
        for argument in &self.arguments {
            write!(f, " {}", quoted(argument))?;
        }
        Ok(())
    }
}

/// Where `program` is: on the path, or in the folders that distributions keep off an ordinary user's path.
pub fn find(program: impl AsRef<OsStr>) -> Option<PathBuf> {
    let program = Path::new(program.as_ref());
    if program.components().count() > 1 {
        return program.is_file().then(|| program.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

fn wait_streaming(child: &mut Child) -> anyhow::Result<ExitStatus> {
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            interrupt::check()?;
            return Ok(status);
        }
        if interrupt::is_stopped() {
            syscall::send_signal(child.id(), libc::SIGTERM);
            child.wait()?;
            interrupt::check()?;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_command_and_what_it_said() {
        let error =
            Tool::new("sh").args(["-c", "echo out of cheese >&2; exit 3"]).output().unwrap_err().to_string();
        assert!(error.contains("sh -c 'echo out of cheese >&2; exit 3'"), "{error}");
        assert!(error.contains("exit status: 3") && error.ends_with("out of cheese"), "{error}");
    }

    #[test]
    fn a_command_line_can_be_pasted_into_a_shell() {
        let tool = Tool::new("sh").env("A", "b c").without_env("D").arg("it's");
        assert_eq!(tool.to_string(), r"A='b c' sh 'it'\''s'");
    }

    #[test]
    fn what_a_shell_has_done_before_is_so_for_the_program() {
        let tool =
            Tool::new("sh").args(["-c", "echo $GREETING $0"]).arg("a b").after("export GREETING=hello");
        assert_eq!(tool.output().unwrap(), "hello a b\n");
    }

    #[test]
    fn input_reaches_the_program() {
        assert_eq!(Tool::new("cat").input("through").output().unwrap(), "through");
    }
}
