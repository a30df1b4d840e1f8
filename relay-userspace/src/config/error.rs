//! What can be wrong with a configuration file, and where.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::identity::permission_hint;

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
    #[error("{}: cannot be read: {source}{}", path.display(), permission_hint(source))]
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

/// Turns a complaint of the TOML reader into ours.
pub(super) fn from_toml(error: &toml::de::Error, text: &str, path: &Path) -> ConfigError {
    let span = error.span().unwrap_or_default();
    let line = line_of(text, span.start);
    let path = path.to_owned();
    let Ok(document) = toml::de::DeTable::parse(text) else {
        return ConfigError::Syntax { path, line, problem: error.message().replace('\n', ", ") };
    };
    let mut key = Vec::new();
    descend(document.get_ref(), &span, &mut key);
    let key = if key.is_empty() { "the file".to_owned() } else { key.join(".") };
    match unknown_field(error.message()) {
        Some((unknown, known)) => ConfigError::UnknownKey { path, line, key, hint: hint(unknown, &known) },
        None => {
            let fault = error.message().replace('\n', ", ").replace("a sequence", "a list");
            let problem = format!("{fault}{}", example(&key));
            ConfigError::Value { path, line, key, problem }
        }
    }
}

/// How the values are written that people write in another way.
fn example(key: &str) -> &'static str {
    match key {
        "transport.relay_bandwidth_limit" => ": bytes per second, such as 1048576 for 1 MiB/s",
        "transport.idle_timeout" | "security.max_clock_drift_secs" => ": seconds, such as 300",
        "network.relays" => ", such as [\"192.0.2.1:4433\"]",
        "network.advertise" => ", such as [\"198.51.100.7:4433\"]",
        "agent.accept" => ", such as [\"atlas_...\"]",
        "datapath.interfaces" => ", such as [\"eth0\"]",
        _ => "",
    }
}

/// The line, counted from 1, in which a byte of the text stands.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

/// Appends the path of the keys that lead to `span`.
fn descend(table: &toml::de::DeTable<'_>, span: &Range<usize>, path: &mut Vec<String>) {
    let within = |outer: Range<usize>| outer.start <= span.start && span.end <= outer.end;
    for (key, value) in table {
        if within(key.span()) {
            path.push(key.get_ref().to_string());
            return;
        }
        let depth = path.len();
        path.push(key.get_ref().to_string());
        match value.get_ref() {
            // A table's span need not cover its keys (dotted keys, headers apart): look inside all of them.
            toml::de::DeValue::Table(inner) => descend(inner, span, path),
            toml::de::DeValue::Array(items) => {
                for item in items {
                    if let toml::de::DeValue::Table(inner) = item.get_ref() {
                        descend(inner, span, path);
                    }
                }
            }
            _ => {}
        }
        if path.len() > depth + 1 || within(value.span()) {
            return;
        }
        path.truncate(depth);
    }
}

/// Splits serde's "unknown field `a`, expected one of `b`, `c`" into the unknown and the known names.
fn unknown_field(message: &str) -> Option<(&str, Vec<&str>)> {
    let rest = message.strip_prefix("unknown field ")?;
    let mut quoted = rest.split('`').skip(1).step_by(2);
    Some((quoted.next()?, quoted.collect()))
}

fn hint(unknown: &str, known: &[&str]) -> String {
    let nearest = known.iter().map(|name| (edits(unknown, name), *name)).min();
    match nearest {
        Some((distance, name)) if distance <= name.len().max(unknown.len()) / 2 => {
            format!("did you mean {name}?")
        }
        _ => format!("known here: {}", known.join(", ")),
    }
}

/// Insertions, deletions and replacements that lead from one word to the other (Levenshtein 1966).
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (cell, to) in row.iter_mut().skip(1).zip(b.chars()) {
            let replaced = diagonal + usize::from(from != to);
            diagonal = *cell;
            left = replaced.min(*cell + 1).min(left + 1);
            *cell = left;
        }
    }
    row.last().copied().unwrap_or_default()
}
