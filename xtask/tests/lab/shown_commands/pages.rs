//! What the pages show as commands, and which of it has been run.

use std::collections::BTreeSet;
use std::path::Path;

use pulldown_cmark::{Event, Options, Parser, Tag};
use xtask::tool::Tool;

use super::super::page::blocks_in;
use super::super::walk;

/// What a command in the text of a page begins with. In a block that is marked `sh` everything is one.
const PROGRAMS: [&str; 18] = [
    "apt-get",
    "atlas",
    "atlas-relay",
    "cargo",
    "date",
    "curl",
    "date",
    "ethtool",
    "ip",
    "journalctl",
    "mount",
    "nsenter",
    "sudo",
    "sysctl",
    "systemctl",
    "systemd-analyze",
    "ufw",
    "uname",
];

/// What may stand after `atlas` or, in text, without it.
const GROUPS: [&str; 9] = ["id", "net", "xdp", "config", "bans", "drain", "doctor", "explain", "stop"];

/// A command as a page shows it.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    page: String,
    line: usize,
    /// Which of the page's blocks it stands in; in text: none.
    block: Option<usize>,
    /// Without the comment behind it.
    command: String,
    is_run: bool,
}

impl Shown {
    fn new(page: &str, line: usize, block: Option<usize>, command: &str) -> Shown {
        Shown { page: page.to_owned(), line, block, command: command.to_owned(), is_run: false }
    }
}

/// All commands that the pages show.
pub struct Pages {
    shown: Vec<Shown>,
}

impl Pages {
    /// Those of README.md, docs and deploy/README.md; what is typed in the blocks of the last is run, as a test of `walk.rs` says.
    pub fn read(root: &Path) -> Pages {
        let names =
            |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let docs: BTreeSet<String> = std::fs::read_dir(root.join("docs")).unwrap().map(names).collect();
        let docs = docs.iter().filter(|name| name.ends_with(".md")).map(|name| format!("docs/{name}"));
        let mut pages = Pages { shown: Vec::new() };
        for page in ["README.md", walk::PAGE].map(str::to_owned).into_iter().chain(docs) {
            let text = std::fs::read_to_string(root.join(&page)).unwrap();
            pages.shown.extend(shown_on(&page, &text).unwrap_or_else(|error| panic!("{error}")));
        }
        for shown in pages.shown.iter_mut().filter(|shown| shown.page == walk::PAGE) {
            shown.is_run = shown.block.is_some();
        }
        pages
    }

    /// Adds the examples in the help of every command of `program`: on the page `atlas-relay COMMAND --help`, in one block.
    pub fn add_helps(&mut self, program: &Path) {
        let mut commands = vec![String::new()];
        while let Some(command) = commands.pop() {
            let help = Tool::new(program).words(&command).arg("--help").output().unwrap();
            let of = |title: &str| help.split_once(title).map(|(_, rest)| rest.split("\n\n").next().unwrap());
            let inner = of("\nCommands:\n").into_iter().flat_map(str::lines);
            let names =
                inner.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
            commands.extend(names.map(|name| format!("{command} {name}")));
            let examples = ["\nExample:\n", "\nExamples:\n", "\nA first relay:\n"].into_iter().find_map(of);
            let page = format!("atlas-relay{command} --help");
            for (line, example) in command_lines(examples.unwrap_or_default()) {
                self.shown.push(Shown::new(&page, line, Some(1), &example));
            }
        }
    }

    /// Notes that `command` of `page` is run now, and gives what is to be typed: in text the program's name may be left out.
    ///
    /// # Panics
    /// The page does not show it, or shows in the same block others before it that were not run.
    pub fn take(&mut self, page: &str, command: &str) -> String {
        let find = |in_block: bool| {
            self.shown.iter().position(|shown| {
                shown.page == page
                    && shown.command == command
                    && !shown.is_run
                    && shown.block.is_some() == in_block
            })
        };
        let Some(at) = find(true).or_else(|| find(false)) else {
            panic!("{page} does not show `{command}` any more, or not so often: then nothing is to run it");
        };
        let before = self.shown.get(..at).unwrap();
        let block = self.shown[at].block;
        let left_out = before
            .iter()
            .find(|shown| block.is_some() && shown.page == page && shown.block == block && !shown.is_run);
        if let Some(left_out) = left_out {
            let Shown { line, command: of, .. } = left_out;
            panic!("{page} line {line}: nothing has run `{of}`, which comes before `{command}`");
        }
        self.shown[at].is_run = true;
        let first = command.split_whitespace().next().unwrap();
        if GROUPS.contains(&first) { format!("atlas-relay {command}") } else { command.to_owned() }
    }

    /// Notes that `command`, on whichever pages it is shown, is run elsewhere.
    ///
    /// # Panics
    /// No page shows it.
    pub fn is_run_elsewhere(&mut self, command: &str) {
        let mut shown = false;
        for shown_here in self.shown.iter_mut().filter(|shown| shown.command == command) {
            shown_here.is_run = true;
            shown = true;
        }
        assert!(shown, "no page shows `{command}` any more: take it from the list of what is run elsewhere");
    }

    /// What nothing has run, a line for each. In text a command may also be named in part, without what it needs.
    pub fn not_run(&self) -> Vec<String> {
        let run: Vec<Vec<&str>> =
            self.shown.iter().filter(|shown| shown.is_run).map(|shown| plain(&shown.command)).collect();
        let is_part = |shown: &Shown| {
            let words = plain(&shown.command);
            shown.block.is_none() && run.iter().any(|run| run.starts_with(&words))
        };
        let left = self.shown.iter().filter(|shown| !shown.is_run && !is_part(shown));
        left.map(|shown| {
            format!("{} line {}: `{}` is shown and nothing runs it", shown.page, shown.line, shown.command)
        })
        .collect()
    }
}

/// The commands on a page, in its order.
fn shown_on(page: &str, text: &str) -> Result<Vec<Shown>, String> {
    let mut shown = Vec::new();
    let blocks = blocks_in(text);
    for (number, block) in (1..).zip(&blocks) {
        let first = block.line;
        if block.language.is_empty() {
            return Err(format!(
                "{page} line {first}: mark the block: `sh` if it has commands, `text` if what is printed"
            ));
        }
        let commands = if block.language == "sh" { command_lines(&block.text()) } else { Vec::new() };
        shown.extend(commands.iter().map(|(line, of)| Shown::new(page, first + line, Some(number), of)));
    }
    for (event, range) in Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter() {
        let line = text.get(..range.start).unwrap().matches('\n').count() + 1;
        match event {
            Event::Start(Tag::CodeBlock(_)) if !blocks.iter().any(|block| block.line == line) => {
                return Err(format!(
                    "{page} line {line}: a block in a list, or without a fence: `sh`, `text`?"
                ));
            }
            Event::Code(code) if is_command(&code) => {
                let words: Vec<&str> = code.split_whitespace().collect();
                shown.push(Shown::new(page, line, None, &words.join(" ")));
            }
            _ => {}
        }
    }
    shown.sort_by_key(|shown| shown.line);
    Ok(shown)
}

/// The commands in a piece of shell, each with the number of the line that it ends on.
fn command_lines(shell: &str) -> Vec<(usize, String)> {
    let mut commands = Vec::new();
    let mut whole = String::new();
    for (number, line) in (1..).zip(shell.lines()) {
        whole += without_comment(line.trim_start());
        if whole.ends_with('\\') {
            whole.pop();
        } else if !whole.trim().is_empty() {
            commands.push((number, std::mem::take(&mut whole).trim().to_owned()));
        }
    }
    commands
}

/// A line of shell without the comment at its end.
fn without_comment(line: &str) -> &str {
    let mut quote = None;
    let mut before = ' ';
    for (at, c) in line.char_indices() {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '\'' || c == '"' => quote = Some(c),
            None if c == '#' && before.is_whitespace() => return line.get(..at).unwrap().trim_end(),
            None => {}
        }
        before = c;
    }
    line.trim_end()
}

/// Whether a piece of text in the type of code is a command, and not only the name of a program or of something else.
fn is_command(code: &str) -> bool {
    let words: Vec<&str> = code.split_whitespace().skip_while(|word| word.contains('=')).collect();
    match words[..] {
        ["atlas" | "atlas-relay", group, ..] => GROUPS.contains(&group) || group.starts_with('-'),
        [first, _, ..] => PROGRAMS.contains(&first) || GROUPS.contains(&first),
        _ => false,
    }
}

/// The words of a command of ours by which it is compared: whoever runs it, and by whichever of its names.
fn plain(command: &str) -> Vec<&str> {
    let mut words = command.split_whitespace().peekable();
    if words.next_if_eq(&"sudo").is_some() && words.next_if_eq(&"-u").is_some() {
        words.next();
    }
    while words.next_if(|word| word.contains('=') && !word.starts_with('-')).is_some() {}
    let is_ours = words.next_if(|word| ["atlas", "atlas-relay"].contains(word)).is_some()
        || words.peek().is_some_and(|word| GROUPS.contains(word));
    let rest = words.filter(|word| *word != "..." && !(word.starts_with('[') && word.ends_with(']')));
    is_ours.then_some("atlas-relay").into_iter().chain(rest).collect()
}

#[test]
fn a_command_is_found_in_blocks_and_by_its_program_in_text() {
    let page = "Do `atlas bans\nlift` and `net peers`, `limited`, `A=b atlas bans` or `atlas relay bind`, for `atlas`.\n\n\
                ```sh\natlas id init   # `a key`\n\nprintf '# %s' \\\n  b # c\n```\n\n```text\natlas id show\n```\n\n\
                | a |\n|---|\n| `ethtool -i IF` |\n";
    let shown = shown_on("a.md", page).unwrap();
    let shown: Vec<_> = shown.iter().map(|shown| (shown.line, shown.block, shown.command.as_str())).collect();
    assert_eq!(
        shown,
        [
            (1, None, "atlas bans lift"),
            (2, None, "net peers"),
            (2, None, "A=b atlas bans"),
            (5, Some(1), "atlas id init"),
            (8, Some(1), "printf '# %s' b"),
            (17, None, "ethtool -i IF"),
        ]
    );
    assert!(shown_on("a.md", "```\natlas id init\n```\n").unwrap_err().starts_with("a.md line 1: mark"));
}

#[test]
fn what_nothing_runs_is_told_with_its_place() {
    let text = "`atlas net top` and `bans lift`, by `sudo -u atlas-relay atlas ...`, `xdp status`.\n\n\
                ```sh\natlas-relay net top --once\natlas-relay stop\n```\n";
    let mut pages = Pages { shown: shown_on("a.md", text).unwrap() };
    assert_eq!(pages.not_run().len(), 6);
    assert_eq!(pages.take("a.md", "xdp status"), "atlas-relay xdp status");
    assert_eq!(pages.take("a.md", "atlas-relay net top --once"), "atlas-relay net top --once");
    assert_eq!(
        pages.not_run(),
        [
            "a.md line 1: `bans lift` is shown and nothing runs it",
            "a.md line 5: `atlas-relay stop` is shown and nothing runs it"
        ]
    );
    pages.is_run_elsewhere("bans lift");
    let _typed = pages.take("a.md", "atlas-relay stop");
    assert_eq!(pages.not_run(), Vec::<String>::new());
}

#[test]
#[should_panic(expected = "comes before `atlas-relay stop`")]
fn a_block_is_run_in_its_order() {
    let text = "```sh\natlas-relay drain\natlas-relay stop\n```\n";
    let _typed = Pages { shown: shown_on("a.md", text).unwrap() }.take("a.md", "atlas-relay stop");
}

#[test]
#[should_panic(expected = "does not show `atlas-relay halt` any more")]
fn what_no_page_shows_cannot_be_run() {
    let mut pages = Pages { shown: shown_on("a.md", "`atlas-relay stop`\n").unwrap() };
    let _typed = pages.take("a.md", "atlas-relay halt");
}
