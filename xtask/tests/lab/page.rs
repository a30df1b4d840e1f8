//! A page of the documentation: its code blocks, by the heading that they stand under.

use xtask::workspace::Workspace;

/// A code block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The heading it stands under, without its signs.
    pub heading: String,
    /// What stands after the fence; `sh` for commands.
    pub language: String,
    /// Its lines.
    pub lines: Vec<String>,
}

impl Block {
    pub fn text(&self) -> String {
        self.lines.iter().flat_map(|line| [line, "\n"]).collect()
    }
}

/// The code blocks of a page in the checkout, in their order.
pub fn blocks_of(path: &str) -> Vec<Block> {
    blocks_in(&std::fs::read_to_string(Workspace::find().unwrap().root().join(path)).unwrap())
}

fn blocks_in(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut heading = String::new();
    let mut open: Option<Block> = None;
    for line in text.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(language), None) => {
                let (heading, language) = (heading.clone(), language.to_owned());
                open = Some(Block { heading, language, lines: Vec::new() });
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
    let block = |heading: &str, language: &str, line: &str| Block {
        heading: heading.to_owned(),
        language: language.to_owned(),
        lines: vec![line.to_owned()],
    };
    assert_eq!(
        blocks_in("# One\n```\n# no heading\n```\ntext\n### Two three\n```toml\na = 1\n```\n"),
        [block("One", "", "# no heading"), block("Two three", "toml", "a = 1")]
    );
}
