//! A configuration file as text: TOML, with keys that exist, and values of their form and range.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::error::ConfigError;
use super::key::{AnyKey, Boolean, Derived, Integer, Key, List, Tables, Text};
use super::keys;

/// A file in which every key is known and has a value of its form.
pub(super) struct Document<'a> {
    text: &'a str,
    path: &'a Path,
    root: DeTable<'a>,
}

impl<'a> Document<'a> {
    /// Reads the text of the file called `path`.
    pub fn parse(text: &'a str, path: &'a Path) -> Result<Document<'a>, ConfigError> {
        let root = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
            path: path.to_owned(),
            line: line_of(text, error.span().unwrap_or_default().start),
            problem: problem(text, &error),
        })?;
        let document = Document { text, path, root: root.into_inner() };
        document.check(&document.root, "")?;
        Ok(document)
    }

    /// What of the text can be read. Nothing of it is checked.
    pub fn readable(text: &'a str, path: &'a Path) -> Document<'a> {
        Document { text, path, root: DeTable::parse_recoverable(text).0.into_inner() }
    }

    /// A number.
    pub fn integer<T: TryFrom<i64>>(&self, key: &'static Key<Integer>) -> Result<T, ConfigError> {
        self.number(key.name, AnyKey::Integer(key), key.form.default)
    }

    /// A number; `default` unless it is written.
    pub fn derived<T: TryFrom<i64>>(
        &self,
        key: &'static Key<Derived>,
        default: i64,
    ) -> Result<T, ConfigError> {
        self.number(key.name, AnyKey::Derived(key), default)
    }

    /// True or false.
    pub fn boolean(&self, key: &Key<Boolean>) -> bool {
        self.value(key.name).and_then(|value| value.get_ref().as_bool()).unwrap_or(key.form.default)
    }

    /// A text; None unless it is written.
    pub fn text(&self, key: &Key<Text>) -> Option<&str> {
        self.value(key.name)?.get_ref().as_str()
    }

    /// What a text names; None unless it is written.
    pub fn parsed<T: FromStr<Err: std::fmt::Display>>(
        &self,
        key: &Key<Text>,
    ) -> Result<Option<T>, ConfigError> {
        self.value(key.name).map(|value| self.parse_text(key.name, value)).transpose()
    }

    /// What the texts of a list name.
    pub fn list<T: FromStr<Err: std::fmt::Display>>(&self, key: &Key<List>) -> Result<Vec<T>, ConfigError> {
        let items = self.value(key.name).and_then(|value| value.get_ref().as_array());
        items.into_iter().flatten().map(|item| self.parse_text(key.name, item)).collect()
    }

    /// The tables under a name.
    pub fn tables(&self, key: &'static Key<Tables>) -> impl Iterator<Item = Table<'_>> {
        let items = self.value(key.name).and_then(|value| value.get_ref().as_array());
        items.into_iter().flatten().map(move |item| Table { document: self, key, item })
    }

    /// In which line each key stands that is written and says something: an empty list says nothing.
    pub fn lines(&self) -> BTreeMap<&'static str, usize> {
        let line = |key: &AnyKey| {
            let (at, value) = self.entry(key.name())?;
            let empty = value.get_ref().as_array().is_some_and(|items| items.is_empty());
            (!empty).then(|| (key.name(), line_of(self.text, at)))
        };
        keys::ALL.iter().filter_map(line).collect()
    }

    /// What is wrong with the value of a key that is written.
    pub fn wrong(&self, key: &str, problem: impl Into<String>) -> ConfigError {
        self.fault(key, self.value(key).map_or(0, |value| value.span().start), problem)
    }

    fn number<T: TryFrom<i64>>(&self, name: &str, key: AnyKey, default: i64) -> Result<T, ConfigError> {
        let written = self.value(name).and_then(|value| number(value.get_ref().as_integer()?));
        let value = written.unwrap_or(default);
        T::try_from(value).map_err(|_| self.wrong(name, expected(key, &value.to_string())))
    }

    /// Checks a table and what is in it, in the order of the text.
    fn check(&self, table: &DeTable<'_>, prefix: &str) -> Result<(), ConfigError> {
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            let known = keys::under(prefix);
            let word: &str = key.get_ref();
            let name = if prefix.is_empty() { word.to_owned() } else { format!("{prefix}.{word}") };
            if !known.contains(&word) {
                return Err(ConfigError::UnknownKey {
                    path: self.path.to_owned(),
                    line: line_of(self.text, key.span().start),
                    key: name,
                    hint: hint(word, &known),
                });
            }
            match (keys::named(&name), value.get_ref()) {
                (Some(key), _) => self.check_value(key, &name, value)?,
                (None, DeValue::Table(inner)) => self.check(inner, &name)?,
                (None, other) => {
                    let problem = format!("expected a table, [{name}], not {}", described(other));
                    return Err(self.fault(&name, value.span().start, problem));
                }
            }
        }
        Ok(())
    }

    fn check_value(&self, key: AnyKey, name: &str, value: &Spanned<DeValue<'_>>) -> Result<(), ConfigError> {
        let wrong = |value: &Spanned<DeValue<'_>>| {
            let found = described(value.get_ref());
            Err(self.fault(name, value.span().start, expected(key, &found)))
        };
        let in_range = |written: &DeInteger<'_>, min: i64, max: i64| {
            number(written).is_some_and(|number| (min..=max).contains(&number))
        };
        match (key, value.get_ref()) {
            (AnyKey::Integer(Key { form, .. }), DeValue::Integer(it)) if in_range(it, form.min, form.max) => {
            }
            (AnyKey::Derived(Key { form, .. }), DeValue::Integer(it)) if in_range(it, form.min, form.max) => {
            }
            (AnyKey::Boolean(_), DeValue::Boolean(_)) | (AnyKey::Text(_), DeValue::String(_)) => {}
            (AnyKey::List(_), DeValue::Array(items)) => {
                if let Some(other) = items.iter().find(|item| !item.get_ref().is_str()) {
                    return wrong(other);
                }
            }
            (AnyKey::Tables(_), DeValue::Array(items)) => {
                for item in items {
                    match item.get_ref() {
                        DeValue::Table(inner) => self.check(inner, name)?,
                        _ => return wrong(item),
                    }
                }
            }
            _ => return wrong(value),
        }
        Ok(())
    }

    fn parse_text<T: FromStr<Err: std::fmt::Display>>(
        &self,
        name: &str,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<T, ConfigError> {
        let text = value.get_ref().as_str().unwrap_or_default();
        text.parse().map_err(|problem: T::Err| self.fault(name, value.span().start, problem.to_string()))
    }

    fn fault(&self, key: &str, at: usize, problem: impl Into<String>) -> ConfigError {
        let line = line_of(self.text, at);
        ConfigError::Value { path: self.path.to_owned(), line, key: key.to_owned(), problem: problem.into() }
    }

    fn value(&self, name: &str) -> Option<&Spanned<DeValue<'a>>> {
        Some(self.entry(name)?.1)
    }

    /// Where a key stands in the text, and its value. Not of the keys of [`Tables`].
    fn entry(&self, name: &str) -> Option<(usize, &Spanned<DeValue<'a>>)> {
        let (table, word) = name.split_once('.')?;
        let (key, value) = self.root.get(table)?.get_ref().as_table()?.get_key_value(word)?;
        Some((key.span().start, value))
    }
}

/// One of the tables of a key.
pub(super) struct Table<'a> {
    document: &'a Document<'a>,
    key: &'static Key<Tables>,
    item: &'a Spanned<DeValue<'a>>,
}

impl Table<'_> {
    /// What a text in it names; None unless it is written.
    pub fn parsed<T: FromStr<Err: std::fmt::Display>>(
        &self,
        key: &Key<Text>,
    ) -> Result<Option<T>, ConfigError> {
        self.entry(key).map(|(_, value)| self.document.parse_text(key.name, value)).transpose()
    }

    /// As [`Table::parsed`], of a text that has to be there.
    pub fn required<T: FromStr<Err: std::fmt::Display>>(&self, key: &Key<Text>) -> Result<T, ConfigError> {
        self.parsed(key)?.ok_or_else(|| {
            let problem = format!("expected {}", self.key.form.with);
            self.document.fault(self.key.name, self.item.span().start, problem)
        })
    }

    /// In which line a text of it stands.
    pub fn line(&self, key: &Key<Text>) -> Option<usize> {
        self.entry(key).map(|(at, _)| line_of(self.document.text, at))
    }

    fn entry(&self, key: &Key<Text>) -> Option<(usize, &Spanned<DeValue<'_>>)> {
        let word = key.name.rsplit('.').next()?;
        let (key, value) = self.item.get_ref().as_table()?.get_key_value(word)?;
        Some((key.span().start, value))
    }
}

/// What the parser says. Of what stands there twice it does not say what that is.
fn problem(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().replace('\n', ", ");
    let twice = error.span().filter(|_| message == "duplicate key").and_then(|span| {
        let line = text.get(..span.start)?.rsplit('\n').next()?;
        Some((text.get(span)?, line.trim_start().starts_with('[')))
    });
    match twice {
        Some((table, true)) => {
            format!("duplicate key {table}: put its keys into the table that is there already")
        }
        Some((key, false)) => format!("duplicate key {key}: remove one of the two"),
        None => message,
    }
}

fn expected(key: AnyKey, found: &str) -> String {
    format!("expected {}, not {found}", key.takes())
}

/// None: more than 64 bits.
fn number(written: &DeInteger<'_>) -> Option<i64> {
    i64::from_str_radix(written.as_str(), written.radix()).ok()
}

/// A value as an error calls it.
fn described(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the text {text:?}"),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(time) => format!("the time {time}"),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// The line, counted from 1, in which a byte of the text stands.
fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
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
