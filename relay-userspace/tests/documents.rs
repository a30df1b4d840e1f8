//! What documents and deployment files show is what the code takes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is a failure")]

#[path = "documents/fields.rs"]
mod fields;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use relay_userspace::config::key::Of;
use relay_userspace::config::{AtlasRoot, Config, Role, keys};
use relay_userspace::refusals::RefusalReason;
use relay_userspace::relay::metrics::names::{self, Family};
use relay_userspace::{agent, relay};

const NODE: &str = "atlas_70b499d01e2464e370b499d01e2464e370b499d01e2464e370b499d01e2464e3";

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn text(path: &str) -> String {
    std::fs::read_to_string(project(path)).expect(path)
}

fn parse(text: &str, path: &str) -> Config {
    let root = AtlasRoot::at("/var/lib/atlas-relay/.atlas");
    Config::parse(text, Path::new(path), &root).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn the_example_configuration_is_a_relays_without_warnings() {
    let path = "deploy/config.example.toml";
    let config = parse(&text(path), path);
    assert_eq!(config.role(), Role::Relay);
    assert_eq!(config.warnings, []);
}

/// The configurations that a page shows. What the reader has to fill in is.
fn shown_on(page: &str) -> Vec<Config> {
    let text = text(page)
        .replace("atlas_<id of a peer>", NODE)
        .replace("<relay_ip>", "192.0.2.1")
        .replace("atlas_<id>", NODE);
    let blocks = text.split("```toml").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.map(|block| parse(block, page)).collect()
}

#[test]
fn the_configurations_on_the_first_page_are_agents() {
    let roles: Vec<Role> = shown_on("README.md").iter().map(Config::role).collect();
    assert!(!roles.is_empty() && roles.iter().all(|role| *role == Role::Agent), "{roles:?}");
}

#[test]
fn the_configurations_in_the_reference_page_are_sound_and_say_nothing_in_vain() {
    let shown = shown_on("docs/configuration.md");
    assert!(shown.iter().all(|config| config.warnings.is_empty()));
    let roles: Vec<Role> = shown.iter().map(Config::role).collect();
    assert_eq!(roles, [Role::Relay, Role::Agent]);
}

#[test]
fn the_reference_page_has_every_key_as_the_program_knows_it_and_names_tests_that_exist() {
    let page = text("docs/configuration.md");
    let rows: Vec<Vec<&str>> = page
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let known: Vec<String> =
        rows.iter().map(|row| row.iter().take(5).copied().collect::<Vec<_>>().join(" | ")).collect();
    let expected: Vec<String> = keys::ALL
        .iter()
        .map(|key| {
            let change = match key.of() {
                Of::Nothing(_) => "-".to_owned(),
                _ => key.when().to_string(),
            };
            let (name, takes, default) = (key.name(), key.takes(), key.default_text());
            format!("`{name}` | {takes} | {default} | {} | {change}", key.of())
        })
        .collect();
    assert_eq!(known, expected, "docs/configuration.md is not what relay-userspace/src/config/keys.rs says");
    let sources = rust_sources(&project(""));
    for row in rows {
        let [effect, tests] = row[5..] else {
            panic!("{row:?}: expected an effect and the tests that show it")
        };
        assert!(effect.ends_with('.'), "{}: its effect is a sentence", row[0]);
        assert!(!quoted(tests).is_empty(), "{}: no test", row[0]);
        for test in quoted(tests) {
            assert!(is_test(test, &sources), "{}: there is no test {test}", row[0]);
        }
    }
}

#[test]
fn no_document_has_a_gap_left_to_fill() {
    for document in [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "deploy/README.md",
        "docs/abuse.md",
        "docs/accounting.md",
        "docs/agent.md",
        "docs/configuration.md",
        "docs/fields.md",
        "docs/logs.md",
        "docs/metrics.md",
        "docs/not-protected.md",
        "docs/operate.md",
        "docs/splice.md",
        "docs/top.md",
        "docs/troubleshoot.md",
        "docs/wire.md",
    ] {
        for line in text(document).lines() {
            let gap = line.starts_with('@') && line.ends_with('@');
            assert!(!gap, "{document}: {line}");
        }
    }
}

#[test]
fn the_tables_of_refusals_are_the_lists_in_the_code() {
    table_is_list::<relay::rendezvous::Refusal>("## What a relay's control side refuses");
    table_is_list::<agent::Refusal>("## What an agent refuses");
}

#[test]
fn what_to_do_is_said_of_every_reason_every_refusal_and_every_end() {
    let page = text("docs/troubleshoot.md");
    let rows = |heading: &str| {
        let section = page.split_once(&format!("## {heading}\n")).expect(heading).1;
        let section = section.split("\n## ").next().unwrap();
        let rows = section.lines().filter(|line| line.starts_with("| `"));
        rows.map(|row| row.trim_matches('|').split(" | ").map(str::trim).collect())
            .collect::<Vec<Vec<&str>>>()
    };
    let of_packets = relay_common::Reason::ALL.iter().map(|reason| reason.name()).collect();
    let of_control = relay::rendezvous::Refusal::ALL.iter().map(|refusal| refusal.name()).collect();
    let of_sessions = relay::rendezvous::EndReason::ALL.iter().map(|reason| reason.word()).collect();
    let lists: [(&str, Vec<&str>); 3] = [
        ("What became of a packet", of_packets),
        ("What control has refused", of_control),
        ("Why a session ended", of_sessions),
    ];
    for (heading, expected) in lists {
        let rows = rows(heading);
        let named: Vec<&str> = rows.iter().flat_map(|row| quoted(row[0])).collect();
        assert_eq!(named, expected, "docs/troubleshoot.md, {heading}");
        for row in rows {
            let whole = row.len() == 4 && row.iter().all(|cell| !cell.is_empty());
            assert!(whole, "{row:?}: expected what is seen, what it comes from and what to do");
        }
    }
}

#[test]
fn the_page_of_metrics_has_every_one_as_it_is_exposed() {
    let document = text("docs/metrics.md");
    let rows: Vec<&str> =
        document.lines().filter(|line| line.starts_with("| `") && !line.starts_with("| `/")).collect();
    let row = |family: &&Family| {
        let labels: Vec<String> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        let labels = if labels.is_empty() { "-".to_owned() } else { labels.join(", ") };
        format!("| `{}` | {} | {labels} | {} |", family.name, family.kind.name(), family.help)
    };
    let expected: Vec<String> = names::ALL.iter().map(row).collect();
    assert_eq!(rows, expected, "put this into docs/metrics.md:\n{}\n", expected.join("\n"));
    assert!(shown_on("docs/metrics.md")[0].metrics.listen.is_some());
}

#[test]
fn the_page_for_who_writes_an_agent_names_what_the_library_has() {
    let page = text("docs/agent.md");
    let sources = rust_sources(&project("relay-userspace/src/agent")).concat();
    let is_name = |word: &&str| {
        word.starts_with(|c: char| c.is_ascii_uppercase())
            && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
    };
    let is_type = |name: &str| {
        let declared = |what: &str| {
            [" ", "<", "("].iter().any(|end| sources.contains(&format!("pub {what} {name}{end}")))
        };
        declared("struct") || declared("enum")
    };
    let is_member = |name: &str| {
        let forms = ["fn {}(", "pub {}:", "const {}:", "    {},", "    {} {", "    {}("];
        forms.iter().any(|form| sources.contains(&form.replacen("{}", name, 1)))
    };
    let names: BTreeSet<&str> = quoted(&page).into_iter().filter(is_name).collect();
    assert!(names.len() > 30, "{names:?}");
    for name in names {
        let (owner, member) =
            name.split_once("::").map_or((name, None), |(owner, member)| (owner, Some(member)));
        assert!(is_type(owner) && member.is_none_or(is_member), "there is no {name}");
    }
}

#[test]
fn every_alert_goes_by_metrics_and_reasons_that_exist_and_says_what_to_do() {
    let rules = text("deploy/prometheus/alerts.yml");
    let is_metric = |name: &str| {
        let name = name.strip_suffix("_bucket").unwrap_or(name);
        names::ALL.iter().any(|family| family.name == name)
    };
    let words = rules.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let metrics: BTreeSet<&str> = words.filter(|word| word.starts_with("atlas_relay_")).collect();
    assert!(metrics.len() > 10, "{metrics:?}");
    for metric in metrics {
        assert!(is_metric(metric), "there is no metric {metric}");
    }
    let of_packets = relay_common::Reason::ALL.iter().map(|reason| reason.name());
    let of_control = relay::rendezvous::Refusal::ALL.iter().map(|refusal| refusal.name());
    let reasons: BTreeSet<&str> = of_packets.chain(of_control).collect();
    let named = rules.split("reason=").skip(1).filter_map(|rest| rest.split('"').nth(1));
    let named: Vec<&str> = named.flat_map(|names| names.split('|')).collect();
    assert!(named.len() > 10, "{named:?}");
    for reason in named {
        assert!(reasons.contains(reason), "there is no reason {reason}");
    }
    let count = |what: &str| rules.matches(what).count();
    assert_eq!(count("- alert: AtlasRelay"), count("          runbook: \""));
}

#[test]
fn every_abuse_has_a_test_and_the_keys_and_reasons_it_names_exist() {
    let sources = rust_sources(&project(""));
    let is_reason = |name: &str| relay::rendezvous::Refusal::ALL.iter().any(|reason| reason.name() == name);
    let document = text("docs/abuse.md");
    let is_row = |line: &&str| line.starts_with("| ") && !line.contains("shown by");
    let mut abuses = 0;
    for row in document.lines().filter(is_row) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let (keys, reasons, tests) = match cells[..] {
            [_abuse, _bound, keys, reasons, tests] => (keys, reasons, tests),
            [_about, tests] => ("", "", tests),
            _ => panic!("{row}: five or two columns"),
        };
        abuses += 1;
        assert!(!quoted(tests).is_empty(), "{row}: no test");
        for test in quoted(tests) {
            assert!(is_test(test, &sources), "{row}: there is no test {test}");
        }
        for reason in quoted(reasons) {
            assert!(is_reason(reason), "{row}: there is no reason {reason}");
        }
        for key in quoted(keys) {
            assert!(keys::named(key).is_some(), "{row}: there is no key {key}");
        }
    }
    assert!(abuses > 20, "the tables are read: {abuses}");
}

/// What stands between backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// Whether the sources have a test of that name which is run.
fn is_test(name: &str, sources: &[String]) -> bool {
    let head = format!("fn {name}(");
    let is_run = |attributes: &[&str]| {
        let has = |begin: &str| attributes.iter().any(|attribute| attribute.starts_with(begin));
        (has("#[test]") || has("#[tokio::test]") || has("#[tokio::test(")) && !has("#[ignore")
    };
    sources.iter().any(|source| {
        source.match_indices(&head).any(|(at, _)| is_run(&attributes_before(source.get(..at).unwrap())))
    })
}

/// The attributes that stand right before the end of `source`, which is where a function begins.
fn attributes_before(source: &str) -> Vec<&str> {
    let (above, visibility) = source.rsplit_once('\n').unwrap_or(("", source));
    if !visibility.split_whitespace().all(|word| ["pub", "async", "const"].contains(&word)) {
        return Vec::new();
    }
    let lines = above.lines().rev().map(str::trim);
    let attached = lines.take_while(|line| line.starts_with("#[") || line.starts_with("//"));
    attached.filter(|line| line.starts_with("#[")).collect()
}

#[test]
fn a_function_that_is_no_test_or_is_ignored_does_not_pass_for_one() {
    let sources = [
        "#[test]\nfn plain() {\n    fn inner() {}\n}\n\n#[tokio::test(flavor = \"multi_thread\")]\n// Why.\n\
         #[cfg(unix)]\nasync fn asynchronous() {}\n\nproptest! {\n    #[test]\n    fn any(x: u8) {}\n}\n",
        "/// Not #[test].\npub fn shared() {}\n#[test]\n#[ignore = \"long\"]\nfn ignored() {}\n",
        "// fn commented() {}\n#[test]\n// fn in_a_comment() {}\nfn test() {}\n#[tokio::test_with]\nfn other() {}\n",
    ]
    .map(str::to_owned);
    for name in ["plain", "asynchronous", "any", "test"] {
        assert!(is_test(name, &sources), "{name}");
    }
    for name in ["inner", "shared", "ignored", "commented", "in_a_comment", "other", "absent", "plai"] {
        assert!(!is_test(name, &sources), "{name}");
    }
}

/// The text of all sources below `directory`, without what was built.
fn rust_sources(directory: &Path) -> Vec<String> {
    let mut sources = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources.extend(rust_sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push(std::fs::read_to_string(&path).unwrap());
        }
    }
    sources
}

/// The table under `heading` in ARCHITECTURE.md is the list `R`.
fn table_is_list<R: RefusalReason>(heading: &str) {
    let document = text("ARCHITECTURE.md");
    let section = document.split_once(&format!("{heading}\n")).expect(heading).1;
    let section = section.split("\n## ").next().unwrap();
    let rows: Vec<&str> = section.lines().filter(|line| line.starts_with("| `")).collect();
    let row = |refusal: &R| format!("| `{}` | {} |", refusal.name(), refusal.meaning());
    let expected: Vec<String> = R::ALL.iter().map(row).collect();
    assert_eq!(rows, expected, "put this under {heading:?} in ARCHITECTURE.md:\n{}\n", expected.join("\n"));
}

#[test]
fn every_refusal_has_a_name_that_metrics_can_use_and_a_meaning_of_its_own() {
    names_are_fit_and_places_right::<relay::rendezvous::Refusal>();
    names_are_fit_and_places_right::<agent::Refusal>();
}

fn names_are_fit_and_places_right<R: RefusalReason>() {
    let names: BTreeSet<&str> = R::ALL.iter().map(|reason| reason.name()).collect();
    let meanings: BTreeSet<&str> = R::ALL.iter().map(|reason| reason.meaning()).collect();
    assert_eq!((names.len(), meanings.len()), (R::ALL.len(), R::ALL.len()), "each has its own");
    for (place, reason) in R::ALL.iter().enumerate() {
        assert_eq!(reason.place(), place);
        assert!(reason.name().chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{}", reason.name());
    }
}
