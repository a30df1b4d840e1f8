//! Everything that is printed: results on stdout, errors on stderr.

use std::collections::BTreeMap;
use std::io::{self, Write};

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde::Serialize;

/// Prints a line. Whoever reads may have gone (`| head`): that is no failure of ours.
pub fn line(text: impl std::fmt::Display) {
    let _reader_gone = writeln!(io::stdout().lock(), "{text}");
}

/// Prints a value as JSON, for programs; indented, since people look too.
///
/// # Errors
/// It cannot be written as JSON.
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    line(serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Prints a value as one line of JSON: one event.
///
/// # Errors
/// It cannot be written as JSON.
pub fn json_line(value: &impl Serialize) -> anyhow::Result<()> {
    line(serde_json::to_string(value)?);
    Ok(())
}

/// Prints rows under titles; without rows, `empty`.
pub fn table<const N: usize>(titles: [&str; N], rows: impl IntoIterator<Item = [String; N]>, empty: &str) {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(titles);
    rows.into_iter().for_each(|row| {
        table.add_row(row);
    });
    if table.is_empty() {
        line(empty);
    } else {
        line(table.trim_fmt());
    }
}

/// Prints, after an empty line, what was counted; if nothing was, nothing.
pub fn counts(titles: [&str; 2], counts: &BTreeMap<String, u64>) {
    let mut rows = counts.iter().filter(|(_, count)| **count > 0).peekable();
    if rows.peek().is_some() {
        line("");
        table(titles, rows.map(|(name, count)| [name.clone(), count.to_string()]), "");
    }
}

/// Prints why the command has failed: one line, with what to do.
pub fn failure(error: &anyhow::Error) {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Some errors tell their cause themselves.
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    let _nobody_reads = writeln!(io::stderr().lock(), "error: {}", text.replace('\n', " "));
}

/// Prints what is wrong, though the command goes on: one line.
pub fn warning(text: impl std::fmt::Display) {
    let _nobody_reads = writeln!(io::stderr().lock(), "warning: {}", text.to_string().replace('\n', " "));
}

/// Whole seconds as people read them: `42 s`, `3 min`, `5 h`.
pub fn seconds(count: u64) -> String {
    match count {
        0..120 => format!("{count} s"),
        120..7200 => format!("{} min", count / 60),
        _ => format!("{} h", count / 3600),
    }
}

/// A round trip in milliseconds, once it was measured.
pub fn round_trip(us: Option<u64>) -> String {
    us.map_or_else(|| "-".to_owned(), |us| format!("{}.{:03} ms", us / 1000, us % 1000))
}

/// A node id's beginning, as upstream shows it.
pub fn short_id(id: &str) -> String {
    match id.get(..22) {
        Some(start) if id.len() > 22 => format!("{start}..."),
        _ => id.to_owned(),
    }
}
