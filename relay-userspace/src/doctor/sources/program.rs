//! What other programs say.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// One that takes longer says nothing.
const PATIENCE: Duration = Duration::from_secs(10);

/// What `command` writes to stdout; none if it cannot be run, fails, or takes too long.
pub fn said(command: &mut Command) -> Option<String> {
    said_within(command, PATIENCE)
}

fn said_within(command: &mut Command, patience: Duration) -> Option<String> {
    let quiet = command.stdin(Stdio::null()).stderr(Stdio::null()).stdout(Stdio::piped());
    let mut child = quiet.spawn().ok()?;
    let mut stdout = child.stdout.take()?;
    let (told, telling) = mpsc::channel();
    // It ends with the program's last word; if that never comes, with this process.
    thread::spawn(move || {
        let mut text = Vec::new();
        let read = stdout.read_to_end(&mut text);
        let _nobody_waits = told.send(read.map(|_| text));
    });
    let Ok(Ok(text)) = telling.recv_timeout(patience) else {
        let _gone = child.kill();
        let _reaped = child.wait();
        return None;
    };
    let is_done = child.wait().is_ok_and(|status| status.success());
    is_done.then(|| String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(line: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        command
    }

    #[test]
    fn a_program_is_heard_if_it_succeeds() {
        assert_eq!(said(&mut shell("echo here; echo not here >&2")), Some("here\n".to_owned()));
        assert_eq!(said(&mut shell("echo here; exit 1")), None);
        assert_eq!(said(&mut Command::new("/nonexistent")), None);
    }

    #[test]
    fn a_program_that_does_not_end_is_not_waited_for() {
        let endless = said_within(&mut shell("exec sleep 600"), Duration::from_millis(100));
        assert_eq!(endless, None, "after ten minutes it would have succeeded");
    }
}
