//! The agent's unit file starts what the program takes, with no more than an agent needs.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is a failure")]

mod skipping;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const BINARY: &str = env!("CARGO_BIN_EXE_atlas-relay");

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd/atlas-agent.service")
}

fn unit() -> String {
    fs::read_to_string(path()).unwrap()
}

/// The values of `key`, in the order they stand in.
fn values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    let lines = unit.lines().filter_map(|line| line.split_once('='));
    lines.filter(|(name, _)| *name == key).map(|(_, value)| value).collect()
}

#[test]
fn the_unit_starts_a_command_that_the_program_has() {
    let unit = unit();
    let [start] = values(&unit, "ExecStart")[..] else { panic!("{unit}") };
    let words = start.strip_prefix("/usr/local/bin/atlas ").expect(start);
    // With nothing in the way it would be a daemon: what follows --help is read, and nothing else done.
    let help = Command::new(BINARY).args(words.split(' ')).arg("--help").output().unwrap();
    assert!(help.status.success(), "{start}: {help:?}");
    assert_eq!(values(&unit, "ExecReload"), ["/bin/kill -HUP $MAINPID"], "it reads its configuration again");
}

#[test]
fn the_unit_lets_the_agent_write_where_its_root_is_and_nowhere_else() {
    let unit = unit();
    let environment = values(&unit, "Environment");
    let root = environment.iter().find_map(|set| set.strip_prefix("ATLAS_ROOT=")).expect("a root");
    assert_eq!(values(&unit, "ProtectSystem"), ["strict"]);
    let [writable] = values(&unit, "ReadWritePaths")[..] else { panic!("{unit}") };
    assert!(Path::new(root).starts_with(writable), "{root} is in {writable}");
    assert_eq!(values(&unit, "StateDirectory"), [writable.strip_prefix("/var/lib/").expect(writable)]);
}

#[test]
fn the_unit_gives_the_agent_a_user_and_no_capability() {
    let unit = unit();
    assert_eq!([values(&unit, "User"), values(&unit, "Group")], [["atlas-agent"], ["atlas-agent"]]);
    for none in ["CapabilityBoundingSet", "AmbientCapabilities"] {
        assert_eq!(values(&unit, none), [""], "{none}");
    }
    assert_eq!(values(&unit, "NoNewPrivileges"), ["true"]);
}

#[test]
fn systemd_understands_the_unit() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        return skipping::skip("systemd_understands_the_unit", "systemd-analyze is not installed");
    }
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("atlas-agent.service");
    // The program is not installed here.
    fs::write(&copy, unit().replace("/usr/local/bin/atlas ", &format!("{BINARY} "))).unwrap();
    let verified = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&copy).output().unwrap();
    let said = String::from_utf8_lossy(&verified.stderr);
    let about_it: Vec<&str> = said.lines().filter(|line| line.contains("atlas-agent")).collect();
    assert!(about_it.is_empty(), "{said}");
}
