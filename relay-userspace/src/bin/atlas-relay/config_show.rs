//! `config show`: every value that has an effect on this node, and where it comes from.

use std::path::PathBuf;

use relay_userspace::admin::{self, Request};
use relay_userspace::config::{AtlasRoot, Config, Setting, Value, keys};

use crate::args::Format;
use crate::{node, output};

pub fn run(path: Option<PathBuf>, running: bool, format: Format) -> anyhow::Result<()> {
    let settings: Vec<Setting> = if running {
        serde_json::from_value(admin::ask(&node::admin_socket()?, Request::Settings)?)?
    } else {
        let root = AtlasRoot::from_env()?;
        Config::load(&path.unwrap_or_else(|| root.config()), &root)?.settings()
    };
    if format.json {
        return output::json(&settings);
    }
    let row = |Setting { key, value, origin }| {
        let value = shown(&key, &value);
        [key, value, origin]
    };
    output::table(["KEY", "VALUE", "FROM"], settings.into_iter().map(row), "");
    Ok(())
}

/// A list's items stand below each other: node ids are long.
fn shown(key: &str, value: &Value) -> String {
    match value {
        Value::List(items) if items.is_empty() => match keys::named(key).and_then(|key| key.empty()) {
            Some(meaning) => format!("(none: {meaning})"),
            // Of a daemon of another version.
            None => "(none)".to_owned(),
        },
        Value::Text(text) if text.is_empty() => "(empty)".to_owned(),
        Value::List(items) => items.join("\n"),
        Value::Text(text) => text.clone(),
        Value::Integer(_) | Value::Boolean(_) => value.to_string(),
    }
}
