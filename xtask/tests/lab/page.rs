//! A page of the documentation: its code blocks, by the heading that they stand under.

use xtask::workspace::Workspace;

/// A code block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The heading it stands under, without its signs.
    pub heading: String,
    /// Where on the page it begins.
    pub line: usize,
    /// What stands after the fence; `sh` for commands.
    pub language: String,
    /// Its lines.
    pub lines: Vec<String>,
}

impl Block {
    pub fn text(&self) -> String {
        self.lines.iter().flat_map(|line| [line, "\n"]).collect()
    }

    /// What is typed: its lines, those of a here-document with the command that they are for.
    pub fn commands(&self) -> Vec<String> {
        let mut commands: Vec<String> = Vec::new();
        let mut end = None;
        for line in &self.lines {
            match commands.last_mut().filter(|_| end.is_some()) {
                Some(command) => {
                    *command += &format!("\n{line}");
                    end = end.filter(|end| end != line);
                }
                None => {
                    let word = line.split_once("<<'").and_then(|(_, rest)| rest.split_once('\''));
                    end = word.map(|(word, _)| word.to_owned());
                    commands.push(line.clone());
                }
            }
        }
        commands
    }
}

/// The code blocks of a page in the checkout, in their order.
pub fn blocks_of(path: &str) -> Vec<Block> {
    blocks_in(&std::fs::read_to_string(Workspace::find().unwrap().root().join(path)).unwrap())
}

/// The code blocks of a page of that text.
pub fn blocks_in(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut heading = String::new();
    let mut open: Option<Block> = None;
    for (number, line) in (1..).zip(text.lines()) {
        match (line.strip_prefix("```"), &mut open) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(language), None) => {
                let (heading, language) = (heading.clone(), language.to_owned());
                open = Some(Block { heading, line: number, language, lines: Vec::new() });
            }
            (None, Some(block)) => block.lines.push(line.to_owned()),
            (None, None) if line.starts_with('#') => heading = line.trim_start_matches(['#', ' ']).to_owned(),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a code block has no end: {open:?}");
    blocks
}

#[test]
fn code_blocks_are_found_by_their_heading() {
    let block = |heading: &str, line: usize, language: &str, text: &str| Block {
        heading: heading.to_owned(),
        line,
        language: language.to_owned(),
        lines: vec![text.to_owned()],
    };
    assert_eq!(
        blocks_in("# One\n```\n# no heading\n```\ntext\n### Two three\n```toml\na = 1\n```\n"),
        [block("One", 2, "", "# no heading"), block("Two three", 7, "toml", "a = 1")]
    );
}

#[test]
fn the_lines_of_a_here_document_are_typed_with_their_command() {
    let [block] = blocks_in("```sh\na\ncat > b <<'END'\nc = \"d\"\nEND\ne\n```\n").try_into().unwrap();
    assert_eq!(block.commands(), ["a", "cat > b <<'END'\nc = \"d\"\nEND", "e"]);
}
