//! `manual`: man pages and shell completions, made from the command line's own help for whoever packages the program.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Command, CommandFactory as _};
use clap_complete::Shell;

use crate::args::Args;
use crate::output;

/// The program's names.
const NAMES: [&str; 2] = ["atlas-relay", "atlas"];

pub fn run(directory: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let written = |path: PathBuf| output::line(path.display());
    let cannot_write = || format!("cannot write to {}", directory.display());
    for name in NAMES {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let completion = clap_complete::generate_to(shell, &mut command(name), name, directory);
            written(completion.with_context(cannot_write)?);
        }
    }
    let [name, other_name] = NAMES;
    clap_mangen::generate_to(command(name), directory).with_context(cannot_write)?;
    // The same page by the other name.
    let other_page = directory.join(format!("{other_name}.1"));
    std::fs::write(&other_page, format!(".so man1/{name}.1\n"))
        .with_context(|| format!("cannot write {}", other_page.display()))?;
    written(directory.join(format!("{name}.1")));
    written(other_page);
    Ok(())
}

fn command(name: &'static str) -> Command {
    Args::command().name(name)
}
