//! Rules of the code's order that no compiler checks.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::tool::Tool;
use crate::workspace::Workspace;

/// All that may lie at the top, besides licences.
const TOP_LEVEL: &[&str] = &[
    ".cargo",
    ".ci",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "README.md",
    "SECURITY.md",
    "clippy.toml",
    "deny.toml",
    "deploy",
    "docs",
    "fuzz",
    "relay-common",
    "relay-ebpf",
    "relay-userspace",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "xtask",
];

/// Which top modules of relay-userspace must not know which others.
const FORBIDDEN_IMPORTS: &[(&str, &[&str])] = &[
    ("protocol", &["agent", "relay", "config", "admin"]),
    ("refusals", &["agent", "relay"]),
    ("probe", &["agent", "relay"]),
    ("agent", &["relay"]),
    ("relay", &["agent"]),
];

/// Names that say nothing about what is inside.
const DRAWERS: &[&str] = &["util", "utils", "helper", "helpers", "common", "misc"];

/// Checks all rules.
///
/// # Errors
/// Some are broken: one line for each place.
pub fn check(workspace: &Workspace) -> anyhow::Result<()> {
    let mut faults = top_level_faults(workspace.root())?;
    for package in ["relay-common", "relay-ebpf", "relay-userspace", "xtask"] {
        for file in rust_files(&workspace.root().join(package))? {
            faults.extend(name_faults(&file));
        }
    }
    let source = workspace.root().join("relay-userspace/src");
    for (module, forbidden) in FORBIDDEN_IMPORTS {
        for file in module_files(&source, module)? {
            let text =
                std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            faults.extend(import_faults(&file, &text, forbidden));
        }
    }
    if !faults.is_empty() {
        bail!("the code is out of order:\n{}", faults.join("\n"));
    }
    Ok(())
}

fn top_level_faults(root: &Path) -> anyhow::Result<Vec<String>> {
    if !root.join(".git").exists() {
        return Ok(Vec::new()); // an unpacked archive: what is tracked cannot be told from what lies about
    }
    let tracked = Tool::new("git").words("ls-files -z").in_directory(root).output()?;
    let mut top: Vec<&str> =
        tracked.split_terminator('\0').filter_map(|path| path.split('/').next()).collect();
    top.dedup();
    let allowed = |name: &str| TOP_LEVEL.contains(&name) || name.starts_with("LICENSE");
    Ok(top
        .into_iter()
        .filter(|name| !allowed(name))
        .map(|name| format!("{name}: not among the workspace's top-level parts (xtask/src/tidy.rs)"))
        .collect())
}

fn name_faults(file: &Path) -> Option<String> {
    let parts = file.iter().rev().take_while(|part| *part != "src" && *part != "tests");
    let drawer =
        parts.filter_map(|part| Path::new(part).file_stem()?.to_str()).find(|name| DRAWERS.contains(name))?;
    Some(format!("{}: `{drawer}` says nothing; name the file after its concept", file.display()))
}

fn import_faults(file: &Path, text: &str, forbidden: &[&str]) -> Vec<String> {
    let mut faults = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        for module in forbidden {
            let path = format!("crate::{module}");
            let is_used = code.match_indices(&path).any(|(at, _)| {
                let next = code.get(at + path.len()..).and_then(|rest| rest.chars().next());
                !next.is_some_and(|c| c.is_alphanumeric() || c == '_')
            });
            if is_used {
                faults.push(format!("{}:{}: must not know `{path}`", file.display(), number + 1));
            }
        }
    }
    faults
}

/// `module.rs` and all files of the folder `module`.
fn module_files(source: &Path, module: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    if source.join(module).is_dir() {
        files = rust_files(&source.join(module))?;
    }
    let file = source.join(module).with_extension("rs");
    files.extend(file.is_file().then_some(file));
    Ok(files)
}

fn rust_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(files) };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arrow_that_points_back_is_found() {
        let text = "use crate::relayed::X; // crate::relay\nuse crate::relay::Driver;\nlet x = crate::agent;";
        let faults = import_faults(Path::new("f.rs"), text, &["relay", "agent"]);
        assert_eq!(faults, ["f.rs:2: must not know `crate::relay`", "f.rs:3: must not know `crate::agent`"]);
    }

    #[test]
    fn a_drawer_is_found_by_file_and_by_folder() {
        assert!(name_faults(Path::new("x/relay-common/src/util.rs")).is_some());
        assert!(name_faults(Path::new("x/relay-userspace/src/helpers/mod.rs")).is_some());
        assert!(name_faults(Path::new("x/relay-common/src/bucket.rs")).is_none());
    }
}
