//! What can be wrong with a configuration file, and where.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::file_owner::refusal_hint;

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is no file.
    #[error(
        "{}: no such file. Create it: an agent needs at least [network] relays and [transport] enable_relay = true, \
         a relay [transport] enable_relay = true and offer_relay = true",
        path.display()
    )]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file is there but cannot be read.
    #[error("{}: cannot be read: {source}{}", path.display(), refusal_hint(path, source))]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The text is not TOML.
    #[error("{}:{line}: not TOML: {problem}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// What the parser expected.
        problem: String,
    },
    /// A key nobody knows.
    #[error("{}:{line}: {key}: unknown key; {hint}", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// The key with its table: `transport.idle_timout`.
        key: String,
        /// The nearest known key.
        hint: String,
    },
    /// A value that cannot be.
    #[error("{}:{line}: {key}: {problem}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// The key with its table.
        key: String,
        /// What was expected, and what was found.
        problem: String,
    },
}

/// Something the file says that has no effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Line, counted from 1.
    pub line: usize,
    /// The key with its table.
    pub key: String,
    /// What is the matter.
    pub text: String,
}

/// What follows the file's name and a colon.
impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.line, self.key, self.text)
    }
}
