//! Tests: what pages and help show as command lines of this program is what it takes, and nothing it takes is shown nowhere.

use std::any::TypeId;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::builder::Command;
use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use crate::args::Args;

/// The names that the program is installed under, and those that it has in the run book while it is exchanged.
const NAMES: [&str; 4] = ["atlas", "atlas-relay", "atlas-relay.new", "atlas-relay.old"];

const NODE: &str = "atlas_70b499d01e2464e370b499d01e2464e370b499d01e2464e370b499d01e2464e3";

#[test]
fn every_command_line_that_the_pages_show_is_taken() {
    let mut lines = 0;
    for (page, text) in pages() {
        let shown = Shown::on(&text);
        for words in shown.in_blocks {
            lines += 1;
            taken(&words).unwrap_or_else(|error| panic!("{}: {words:?}: {error}", page.display()));
        }
        for words in shown.in_text {
            match taken(&words) {
                Ok(_) => {}
                // There a command may be named without what it needs.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::MissingRequiredArgument
                            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
                    ) => {}
                Err(error) => panic!("{}: {words:?}: {error}", page.display()),
            }
        }
    }
    assert!(lines > 50, "the command lines are found: {lines}");
}

#[test]
fn every_command_is_shown_on_a_page() {
    let shown: BTreeSet<String> = pages()
        .iter()
        .flat_map(|(_, text)| Shown::on(text).in_blocks)
        .filter_map(|words| run(&words))
        .collect();
    // What help does not list is not for people.
    let listed = commands().into_iter().filter(|command| !command.is_hide_set());
    let unshown: Vec<String> =
        listed.map(|command| name(&command)).filter(|name| !shown.contains(name)).collect();
    assert!(unshown.is_empty(), "no page has an example of: {}", unshown.join(", "));
}

#[test]
fn every_command_has_examples_in_its_help_that_it_takes_itself() {
    let commands = commands();
    assert!(commands.len() >= 20, "the commands are found: {}", commands.len());
    for mut command in commands {
        assert!(command.get_about().is_some(), "{}: no word about what it does", name(&command));
        let help = command.render_long_help().to_string();
        let examples = help.split_once("Example:\n").or_else(|| help.split_once("Examples:\n"));
        let examples = examples.unwrap_or_else(|| panic!("{}: no example\n{help}", name(&command))).1;
        let examples = examples.split("\n\n").next().unwrap_or_default();
        let lines = command_lines(&filled(examples));
        assert!(lines.iter().filter_map(|words| run(words)).any(|run| run == name(&command)), "{help}");
        for words in lines {
            taken(&words).unwrap_or_else(|error| panic!("{}: {words:?}: {error}", name(&command)));
        }
    }
}

#[test]
fn every_number_that_an_option_takes_has_a_unit_in_its_help() {
    let numbers = [TypeId::of::<u16>(), TypeId::of::<u32>(), TypeId::of::<u64>(), TypeId::of::<usize>()];
    let units = ["port", "how many", "milliseconds", "seconds", "bytes", "packets", "a second"];
    let mut checked = 0;
    for command in commands() {
        for option in command.get_arguments() {
            if !numbers.iter().any(|number| option.get_value_parser().type_id() == *number) {
                continue;
            }
            let help = option.get_help().map(ToString::to_string).unwrap_or_default().to_lowercase();
            let has_unit = units.iter().any(|unit| help.contains(unit));
            assert!(has_unit, "{} --{}: what does it count? {help}", name(&command), option.get_id());
            checked += 1;
        }
    }
    assert!(checked >= 5, "the numbers are found: {checked}");
}

#[test]
fn command_lines_are_found_wherever_they_stand() {
    let found = command_lines(
        "sudo -u x atlas-relay net peers   # atlas is no command here\n\
         install -m 0755 target/atlas-relay /usr/bin/atlas-relay\nsystemctl restart atlas-relay\n\
         for n in a b; do ATLAS_ROOT=/tmp/$n atlas id init; done; id() { atlas id show | grep -o 'atlas id'; }\n\
         ip netns exec x env A=b /usr/local/bin/atlas-relay.new bans add 1 \\\n  --for '30 m'\natlas nonsense\n",
    );
    let found: Vec<String> = found.iter().map(|words| words.join(" ")).collect();
    assert_eq!(
        found,
        [
            "atlas-relay net peers",
            "atlas id init",
            "atlas id show",
            "/usr/local/bin/atlas-relay.new bans add 1 --for 30 m",
            "atlas nonsense"
        ]
    );
}

/// The pages that show commands.
fn pages() -> Vec<(PathBuf, String)> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let in_directory = |name: &str| {
        let entries = std::fs::read_dir(project.join(name)).expect(name);
        let paths = entries.map(|entry| entry.expect(name).path());
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect::<Vec<_>>()
    };
    let paths = [vec![project.join("README.md")], in_directory("docs"), in_directory("deploy")].concat();
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).expect("a page that is listed can be read");
        (path, text)
    };
    paths.into_iter().map(read).collect()
}

/// The program's command lines on a page.
#[derive(Default)]
struct Shown {
    in_blocks: Vec<Vec<String>>,
    in_text: Vec<Vec<String>>,
}

impl Shown {
    fn on(text: &str) -> Shown {
        let mut shown = Shown::default();
        let mut block: Option<String> = None;
        for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
            match event {
                Event::Start(Tag::CodeBlock(_)) => block = Some(String::new()),
                Event::End(TagEnd::CodeBlock) => {
                    shown.in_blocks.extend(command_lines(&filled(&block.take().unwrap_or_default())));
                }
                Event::Text(text) => {
                    if let Some(block) = &mut block {
                        block.push_str(&text);
                    }
                }
                Event::Code(code) => shown.in_text.extend(command_lines(&filled(&code))),
                _ => {}
            }
        }
        // The name alone is the program's, and what keys are derived with (docs/wire.md) only begins like a command.
        shown.in_text.retain(|words| words.get(1).is_some_and(|word| word != "relay"));
        shown
    }
}

/// `text` with something definite in each place that is for the reader to fill.
fn filled(text: &str) -> String {
    let mut text = text.to_owned();
    let (node, relay) = (format!(" {NODE}"), format!("{NODE}@192.0.2.1:4433"));
    for (place, value) in [
        ("atlas_<id of a peer>", NODE),
        ("atlas_<id>", NODE),
        ("atlas_70b499d01e2464e3...", NODE),
        ("atlas_70b499d0...", NODE),
        ("atlas_70b4...", NODE),
        ("$(id a1)", NODE),
        ("<relay_ip>", "192.0.2.1"),
        ("<other_relay_ip>", "192.0.2.2"),
        ("NODE@HOST:PORT", relay.as_str()),
        (" NODE", node.as_str()),
        ("SECONDS", "60"),
        ("ADDRESS", "192.0.2.1"),
        ("[FILE]", "FILE"),
    ] {
        text = text.replace(place, value);
    }
    text
}

/// The command lines of this program in a piece of shell, without what stands before the program's name. They are found by
/// that name where a command begins, and by name and sub-command whatever precedes.
fn command_lines(shell: &str) -> Vec<Vec<String>> {
    let program = Args::command();
    let is_command = |word: &str| program.get_subcommands().any(|command| command.get_name() == word);
    let is_program = |word: &str| NAMES.contains(&word.rsplit('/').next().unwrap_or(word));
    let mut found = Vec::new();
    for words in simple_commands(shell) {
        let is_prefix =
            |word: &&String| word.contains('=') || ["do", "then", "env", "{"].contains(&word.as_str());
        let first = words.iter().take_while(is_prefix).count();
        let begins = |at: &usize| {
            let next = words.get(at + 1).map_or("", String::as_str);
            words.get(*at).is_some_and(|word| is_program(word)) && (*at == first || is_command(next))
        };
        if let Some(at) = (0..words.len()).find(begins) {
            found.push(words.into_iter().skip(at).collect());
        }
    }
    found
}

/// The words of each simple command: enough of the shell's grammar for what pages show.
fn simple_commands(shell: &str) -> Vec<Vec<String>> {
    let shell = shell.replace("\\\n", " ");
    let mut commands = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut characters = shell.chars();
    while let Some(c) = characters.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => {
                characters.by_ref().find(|c| *c == '\n');
                commands.push(Vec::new());
            }
            (None, c) if c.is_whitespace() || ";|&()".contains(c) => {
                commands.last_mut().expect("there is one").extend(word.take());
                if c == '\n' || !c.is_whitespace() {
                    commands.push(Vec::new());
                }
            }
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    commands.last_mut().expect("there is one").extend(word);
    commands.retain(|words| !words.is_empty());
    commands
}

/// Has the real parser look at a command line.
fn taken(words: &[String]) -> Result<Args, clap::Error> {
    match Args::try_parse_from(words) {
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            // It was asked for.
            Args::try_parse_from(["atlas-relay", "id", "show"])
        }
        parsed => parsed,
    }
}

/// Which command a command line runs, as [`name`] has it.
fn run(words: &[String]) -> Option<String> {
    let mut matches = Args::command().try_get_matches_from(words).ok()?;
    let mut names = vec!["atlas-relay".to_owned()];
    while let Some((name, inner)) = matches.remove_subcommand() {
        names.push(name);
        matches = inner;
    }
    Some(names.join(" "))
}

/// All commands that do something by themselves.
fn commands() -> Vec<Command> {
    let mut program = Args::command();
    program.build();
    let mut commands = Vec::new();
    let mut groups = vec![program];
    while let Some(group) = groups.pop() {
        for command in group.get_subcommands().filter(|command| command.get_name() != "help") {
            if command.has_subcommands() {
                groups.push(command.clone());
            }
            if !command.is_subcommand_required_set() {
                commands.push(command.clone());
            }
        }
    }
    commands
}

fn name(command: &Command) -> String {
    command.get_bin_name().unwrap_or_default().to_owned()
}
