//! The completions of zsh and fish, as these shells make use of them. Those of bash come with the package: [`super::packages`].

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;
use xtask::test::privileged_or_skip;
use xtask::tool::Tool;

use super::terminal::Terminal;

/// The program's names.
const NAMES: [&str; 2] = ["atlas", "atlas-relay"];

/// The folder with what `manual` writes, or `None` after the test `name` said why it cannot run.
fn manual_or_skip(name: &str) -> Option<TempDir> {
    let binary = privileged_or_skip(name)?.relay_binary;
    let folder = tempfile::tempdir().unwrap();
    Tool::new(binary).arg("manual").arg(folder.path()).output().unwrap();
    Some(folder)
}

#[test]
fn zsh_loads_its_completions_and_completes_a_command_and_an_option() {
    let Some(folder) = manual_or_skip("zsh_loads_its_completions_and_completes_a_command_and_an_option")
    else {
        return;
    };
    for name in NAMES {
        assert!(folder.path().join(format!("_{name}")).is_file());
        let mut zsh = zsh(folder.path());
        zsh.type_keys(&format!("{name} net li\t"));
        zsh.until_seen("the whole word", |text| text.contains(&format!("ready> {name} net listen")));
        zsh.type_keys("--data\t");
        zsh.until_seen("the whole option", |text| text.contains("net listen --datapath"));
    }
}

/// An interactive zsh with nothing but the completions in `folder`.
fn zsh(folder: &Path) -> Terminal {
    let mut command = Command::new("zsh");
    command.arg("-f").env("HOME", folder);
    let mut zsh = Terminal::start(&command, [80, 24]);
    let load = "autoload -Uz compinit && compinit -D -u && PROMPT='ready> '";
    zsh.type_keys(&format!("fpath=({} $fpath)\r{load}\r", folder.display()));
    // Not the echo of what was typed, in which it stands behind other words.
    zsh.until_seen("the prompt", |text| text.lines().any(|line| line.starts_with("ready>")));
    zsh
}

#[test]
fn fish_loads_its_completions_and_completes_a_command_and_an_option() {
    let Some(folder) = manual_or_skip("fish_loads_its_completions_and_completes_a_command_and_an_option")
    else {
        return;
    };
    for name in NAMES {
        let completions = folder.path().join(format!("{name}.fish"));
        let completed = |line: &str| -> Vec<String> {
            let ask = format!("source {}; complete -C '{line}'", completions.display());
            let fish =
                Tool::new("fish").words("--no-config --private -c").arg(ask).env("HOME", folder.path());
            let listed = fish.output().unwrap();
            listed.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect()
        };
        assert_eq!(completed(&format!("{name} net li")), ["listen"]);
        assert_eq!(completed(&format!("{name} net listen --data")), ["--datapath"]);
        assert_eq!(completed(&format!("{name} frob")), [""; 0]);
    }
}
