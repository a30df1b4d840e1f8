//! `doctor`'s self-test, with and without the privilege that it needs.
//!
//! Needs root and a binary built with the BPF program.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    unsafe_code,
    reason = "in a test a panic is a failure, and geteuid is not in std"
)]

#[path = "skipping/loadable_object.rs"]
mod loadable_object;
mod node;
mod skipping;

use std::os::unix::process::CommandExt as _;

use node::{Finished, Node};
use serde_json::Value;

/// What is found of the self-test.
fn self_test(finished: &Finished) -> Value {
    let report: Value = serde_json::from_str(&finished.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    findings.iter().find(|finding| finding["check"] == "self_test").unwrap().clone()
}

#[test]
fn one_datagram_goes_through_the_real_hook_and_comes_out_with_right_checksums() {
    let name = "one_datagram_goes_through_the_real_hook_and_comes_out_with_right_checksums";
    if let Err(why) = loadable_object::loadable_object() {
        return skipping::skip(name, why);
    }
    let interfaces = || std::fs::read_dir("/sys/class/net").unwrap().count();
    let (node, before) = (Node::relay(), interfaces());
    let found = self_test(&node.run("doctor --json"));
    assert_eq!(found["level"], "ok", "{found}");
    let said = found["found"].as_str().unwrap();
    assert!(
        said.contains("203.0.113.1:4433 > 192.0.2.2:40002") && said.contains("checksums right"),
        "{said}"
    );
    assert_eq!(interfaces(), before, "nothing is left of it");
}

#[test]
fn without_privilege_the_self_test_says_what_it_needs() {
    let name = "without_privilege_the_self_test_says_what_it_needs";
    if let Err(why) = loadable_object::loadable_object() {
        return skipping::skip(name, why);
    }
    let node = Node::relay();
    // Where an ordinary user can run it.
    let copy = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir()
        .unwrap();
    let program = copy.path().join("atlas-relay");
    std::fs::copy(node::BINARY, &program).unwrap();
    let mut command = std::process::Command::new(&program);
    command.args(["doctor", "--json"]).env("ATLAS_ROOT", node.path("")).uid(65_534).gid(65_534);
    let found = self_test(&Finished::of(command.output().unwrap()));
    assert_eq!(found["level"], "note", "{found}");
    assert!(found["found"].as_str().unwrap().contains("it needs root"), "{found}");
    assert!(found["mend"].as_str().unwrap().contains("sudo ATLAS_ROOT="), "{found}");
}
