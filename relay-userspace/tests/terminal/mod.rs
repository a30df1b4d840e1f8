//! A program in a terminal of its own, and what is to be seen there.

#![allow(dead_code, reason = "each test program uses its part")]

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

const PATIENCE: Duration = Duration::from_secs(20);

pub struct Terminal {
    pub program: Child,
    keyboard: File,
    /// The program's end. It is held open so that the terminal outlives the program.
    line: File,
    modes: Termios,
    screen: Arc<Mutex<vt100::Parser>>,
}

impl Terminal {
    /// Starts `command` in a terminal of so many columns and rows, which is its controlling one.
    pub fn start(command: &Command, [columns, rows]: [u16; 2]) -> Terminal {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let line = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(OsStr::from_bytes(name.as_bytes()))
            .unwrap();
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&line, size).unwrap();
        let modes = tcgetattr(&line).unwrap();
        let end = || Stdio::from(line.try_clone().unwrap());
        let mut within = Command::new("setsid");
        within.arg("-c").arg(command.get_program()).args(command.get_args()).env("TERM", "xterm");
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => within.env(name, value),
                None => within.env_remove(name),
            };
        }
        let program = within.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let screen = Arc::new(Mutex::new(vt100::Parser::new(
            rows.try_into().unwrap(),
            columns.try_into().unwrap(),
            0,
        )));
        let keyboard = File::from(master);
        let (mut shown, drawn) = (keyboard.try_clone().unwrap(), Arc::clone(&screen));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = shown.read(&mut bytes) {
                drawn.lock().unwrap().process(bytes.get(..count).unwrap());
            }
        });
        Terminal { program, keyboard, line, modes, screen }
    }

    pub fn type_keys(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// What is to be seen.
    pub fn text(&self) -> String {
        self.screen.lock().unwrap().screen().contents()
    }

    /// Waits until the screen has what `is_it` looks for.
    pub fn until_seen(&self, what: &str, is_it: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = self.text();
            if is_it(&text) {
                return text;
            }
            assert!(Instant::now() < deadline, "{what} is not to be seen:\n{text}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until a whole program has the screen for itself.
    pub fn until_taken(&self) {
        self.until("the screen is taken", vt100::Screen::alternate_screen);
    }

    /// Waits until the terminal is as it was before the program: lines are read and echoed, the cursor is there, and so is what
    /// was on the screen.
    pub fn until_given_back(&self) {
        self.until("the screen is given back, with a cursor", |screen| {
            !screen.alternate_screen() && !screen.hide_cursor()
        });
        let now = tcgetattr(&self.line).unwrap();
        let of =
            |modes: &Termios| (modes.input_modes, modes.output_modes, modes.control_modes, modes.local_modes);
        assert_eq!(of(&now), of(&self.modes));
    }

    /// The exit code, once the program has ended.
    pub fn ended(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.program.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it has not ended:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn until(&self, what: &str, is_it: impl Fn(&vt100::Screen) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_it(self.screen.lock().unwrap().screen()) {
            assert!(Instant::now() < deadline, "not yet: {what}:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ended = self.program.kill();
        let _ended = self.program.wait();
    }
}
