//! What documents and deployment files show is what the code takes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is a failure")]

use std::path::{Path, PathBuf};

use relay_userspace::config::{AtlasRoot, Config, Role};

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

#[test]
fn the_configurations_in_the_documents_are_understood() {
    let id = "atlas_70b499d01e2464e370b499d01e2464e370b499d01e2464e370b499d01e2464e3";
    for document in ["README.md", "deploy/README.md"] {
        let text = text(document);
        let blocks: Vec<&str> =
            text.split("```toml").skip(1).filter_map(|rest| rest.split("```").next()).collect();
        assert!(!blocks.is_empty(), "{document} shows a configuration");
        for block in blocks {
            let filled = block
                .replace("atlas_<id of a peer>", id)
                .replace("<relay_ip>", "192.0.2.1")
                .replace("atlas_<id>", id);
            assert_eq!(parse(&filled, document).role(), Role::Agent);
        }
    }
}

#[test]
fn no_document_has_a_gap_left_to_fill() {
    for document in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "deploy/README.md"] {
        for line in text(document).lines() {
            let gap = line.starts_with('@') && line.ends_with('@');
            assert!(!gap, "{document}: {line}");
        }
    }
}
