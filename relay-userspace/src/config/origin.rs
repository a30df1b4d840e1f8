//! Where a value in effect comes from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// Where the values of a configuration come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins {
    path: PathBuf,
    /// Those that are not defaults.
    told: BTreeMap<&'static str, Told>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// In a line of the file, counted from 1.
    Line(usize),
    OnCommandLine,
}

/// Where one value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin<'a> {
    /// Nobody has said anything else.
    Default,
    /// The file.
    File {
        /// Its name.
        path: &'a Path,
        /// Counted from 1.
        line: usize,
    },
    /// The daemon's command line.
    CommandLine,
}

impl Origins {
    /// The file at `path`, with the lines of its keys.
    pub(super) fn of_file(path: &Path, lines: &BTreeMap<&'static str, usize>) -> Origins {
        let told = lines.iter().map(|(key, line)| (*key, Told::Line(*line))).collect();
        Origins { path: path.to_owned(), told }
    }

    /// The command line has the last word on `key`.
    pub(super) fn set_on_command_line(&mut self, key: &'static str) {
        self.told.insert(key, Told::OnCommandLine);
    }

    /// The value of `key` is taken from where `other` has it from.
    pub(super) fn follow(&mut self, key: &'static str, other: &Origins) {
        match other.told.get(key) {
            Some(told) => self.told.insert(key, *told),
            None => self.told.remove(key),
        };
    }

    /// Where the value of `key` comes from.
    pub fn of(&self, key: &str) -> Origin<'_> {
        match self.told.get(key) {
            Some(Told::Line(line)) => Origin::File { path: &self.path, line: *line },
            Some(Told::OnCommandLine) => Origin::CommandLine,
            None => Origin::Default,
        }
    }
}

impl fmt::Display for Origin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::CommandLine => f.write_str("command line"),
        }
    }
}
