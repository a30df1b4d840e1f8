//! What the pages point to is there, and what they show as configuration is one.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is a failure")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};
use relay_userspace::config::{AtlasRoot, Config};

/// What is looked at of a page.
#[derive(Debug, Default)]
struct Page {
    links: Vec<String>,
    /// What can be linked to within it, as GitHub names it.
    anchors: BTreeSet<String>,
    /// What is said of a block, and the block.
    blocks: Vec<(String, String)>,
}

impl Page {
    fn read(text: &str) -> Page {
        let mut page = Page::default();
        let mut heading: Option<String> = None;
        let mut block: Option<(String, String)> = None;
        for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
            match event {
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    page.links.push(dest_url.into_string());
                }
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    let name = anchor(&heading.take().unwrap_or_default());
                    let again = (1..).map(|time| format!("{name}-{time}"));
                    let free =
                        [name.clone()].into_iter().chain(again).find(|name| !page.anchors.contains(name));
                    page.anchors.extend(free);
                }
                Event::Start(Tag::CodeBlock(kind)) => {
                    let language = match kind {
                        CodeBlockKind::Fenced(language) => language.into_string(),
                        CodeBlockKind::Indented => String::new(),
                    };
                    block = Some((language, String::new()));
                }
                Event::End(TagEnd::CodeBlock) => page.blocks.extend(block.take()),
                Event::Text(text) | Event::Code(text) => {
                    if let Some((_, block)) = &mut block {
                        block.push_str(&text);
                    } else if let Some(heading) = &mut heading {
                        heading.push_str(&text);
                    }
                }
                _ => {}
            }
        }
        page
    }
}

/// The name by which GitHub lets a heading be linked to.
fn anchor(heading: &str) -> String {
    let lower = heading.trim().to_lowercase();
    let kept = lower.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// All pages of the project, by their paths in it.
fn pages() -> BTreeMap<PathBuf, Page> {
    let mut pages = BTreeMap::new();
    let mut directories = vec![project()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                let text = std::fs::read_to_string(&path).unwrap();
                pages.insert(path.strip_prefix(project()).unwrap().to_owned(), Page::read(&text));
            }
        }
    }
    pages
}

/// Where a link on `page` leads to: a path in the project, and an anchor there. None: out of the project.
fn destination<'link>(page: &Path, link: &'link str) -> Option<(PathBuf, Option<&'link str>)> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = match link.split_once('#') {
        Some((path, anchor)) => (path, Some(anchor)),
        None => (link, None),
    };
    if path.is_empty() {
        return Some((page.to_owned(), anchor));
    }
    let mut to = PathBuf::new();
    for part in page.parent().unwrap().join(path).components() {
        match part {
            Component::ParentDir => assert!(to.pop(), "{}: {link} leads out of the project", page.display()),
            Component::Normal(name) => to.push(name),
            _ => {}
        }
    }
    Some((to, anchor))
}

#[test]
fn every_link_within_the_project_leads_somewhere() {
    let pages = pages();
    let mut followed = 0;
    let mut broken = Vec::new();
    for (from, page) in &pages {
        for link in &page.links {
            let Some((to, anchor)) = destination(from, link) else { continue };
            let has_anchor = |anchor: &str| pages.get(&to).is_some_and(|page| page.anchors.contains(anchor));
            if !project().join(&to).exists() {
                broken.push(format!("{}: {link}: there is no {}", from.display(), to.display()));
            } else if anchor.is_some_and(|anchor| !has_anchor(anchor)) {
                broken.push(format!("{}: {link}: {} has no such heading", from.display(), to.display()));
            }
            followed += 1;
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert!(followed > 50, "the links are read: {followed}");
}

#[test]
fn every_page_for_operators_and_developers_can_be_reached_from_the_first_one() {
    let pages = pages();
    let mut reached = BTreeSet::from([PathBuf::from("README.md")]);
    let mut to_read = vec![PathBuf::from("README.md")];
    while let Some(from) = to_read.pop() {
        let Some(page) = pages.get(&from) else { continue };
        for (to, _) in page.links.iter().filter_map(|link| destination(&from, link)) {
            if reached.insert(to.clone()) {
                to_read.push(to);
            }
        }
    }
    let docs = pages.keys().filter(|page| page.starts_with("docs") || page.starts_with("deploy"));
    let lost: Vec<&PathBuf> = docs.filter(|page| !reached.contains(*page)).collect();
    assert!(lost.is_empty(), "nothing links to {lost:?}");
}

#[test]
fn every_block_that_shows_a_configuration_is_marked_as_one_and_understood() {
    let id = "atlas_70b499d01e2464e370b499d01e2464e370b499d01e2464e370b499d01e2464e3";
    let root = AtlasRoot::at("/var/lib/atlas-relay/.atlas");
    let mut understood = 0;
    for (path, page) in pages() {
        for (language, block) in page.blocks {
            let table = block.lines().find(|line| line.starts_with('[') && line.trim_end().ends_with(']'));
            // A block of its own, or what a command writes.
            let typed =
                || block.split_once("config.toml <<'END'\n")?.1.split_once("\nEND").map(|(text, _)| text);
            let shown = if language == "toml" { Some(&*block) } else { typed() };
            if let Some(shown) = shown {
                let filled = shown
                    .replace("atlas_<id of a peer>", id)
                    .replace("atlas_<id>", id)
                    .replace("<relay_ip>", "192.0.2.1");
                Config::parse(&filled, &path, &root).unwrap_or_else(|error| panic!("{error}\n{shown}"));
                understood += 1;
            } else if let Some(table) = table.filter(|_| language.is_empty()) {
                panic!("{}: the block with {table} is not marked as toml", path.display());
            }
        }
    }
    assert!(understood >= 7, "the blocks are read: {understood}");
}

#[test]
fn a_page_is_read_as_it_is_shown() {
    let page = Page::read(
        "# `net top`, and more\n\n## Twice\n\n## Twice\n\nA [link\nover lines](docs/a.md#b), `[none](c.md)`.\n\n\
         | a |\n|---|\n| [in a table](d.md) |\n\n```\n# no heading\n[none](e.md)\n```\n\n```toml\n[network]\n```\n",
    );
    assert_eq!(page.links, ["docs/a.md#b", "d.md"]);
    assert_eq!(page.anchors, BTreeSet::from(["net-top-and-more", "twice", "twice-1"].map(str::to_owned)));
    let languages: Vec<&str> = page.blocks.iter().map(|(language, _)| language.as_str()).collect();
    assert_eq!(languages, ["", "toml"]);
}

#[test]
fn a_link_is_followed_from_where_it_stands() {
    let from = Path::new("docs/a.md");
    assert_eq!(destination(from, "../deploy/README.md#x"), Some(("deploy/README.md".into(), Some("x"))));
    assert_eq!(destination(from, "#y"), Some(("docs/a.md".into(), Some("y"))));
    assert_eq!(destination(from, "b.md"), Some(("docs/b.md".into(), None)));
    assert_eq!(destination(from, "https://example.net/b.md"), None);
}
