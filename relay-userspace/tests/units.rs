//! The unit files start what the program takes, with no more than it needs.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is a failure")]

mod skipping;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const BINARY: &str = env!("CARGO_BIN_EXE_atlas-relay");

const UNITS: [&str; 2] = ["atlas-relay", "atlas-agent"];

fn unit(name: &str) -> String {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd");
    fs::read_to_string(directory.join(format!("{name}.service"))).unwrap()
}

/// The values of `key`, in the order they stand in.
fn values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    let lines = unit.lines().filter_map(|line| line.split_once('='));
    lines.filter(|(name, _)| *name == key).map(|(_, value)| value).collect()
}

/// What holds of a key that is given once or again.
fn last<'a>(unit: &'a str, key: &str) -> Option<&'a str> {
    values(unit, key).last().copied()
}

/// Whether the program has the command of a line such as ExecStart=.
fn is_a_command(line: &str) -> bool {
    let words = line.trim_start_matches(['-', '+']).strip_prefix("/usr/local/bin/atlas ").expect(line);
    // With nothing in the way it would be done: what follows --help is read, and nothing else.
    Command::new(BINARY).args(words.split(' ')).arg("--help").output().unwrap().status.success()
}

#[test]
fn the_units_start_a_command_that_the_program_has() {
    for name in UNITS {
        let unit = unit(name);
        let [start] = values(&unit, "ExecStart")[..] else { panic!("{unit}") };
        assert!(is_a_command(start), "{start}");
        let [reload] = values(&unit, "ExecReload")[..] else { panic!("{unit}") };
        assert!(is_a_command(reload), "{reload}");
    }
}

#[test]
fn upstreams_lines_of_the_relays_unit_are_there_as_they_are() {
    let unit = unit("atlas-relay");
    let (upstream, ours) = unit.split_once("\n\n# Up to here: upstream's").expect("says where they end");
    let expected = "\
[Unit]
Description=Atlas Relay Node
After=network-online.target
Wants=network-online.target

[Service]
Type=simple
User=atlas-relay
Group=atlas-relay
Environment=HOME=/var/lib/atlas-relay
Environment=ATLAS_ROOT=/var/lib/atlas-relay/.atlas
ExecStart=/usr/local/bin/atlas net listen --port 4433
Restart=always
RestartSec=5
LimitNOFILE=65536
NoNewPrivileges=true
ProtectSystem=strict
ProtectHome=true
ReadWritePaths=/var/lib/atlas-relay
PrivateTmp=true";
    assert_eq!(upstream, expected);
    let replaced: Vec<&str> = ours.lines().filter(|line| line.starts_with("Type=")).collect();
    assert_eq!(replaced, ["Type=notify"]);
}

#[test]
fn every_line_of_ours_in_the_relays_unit_has_its_reason_above() {
    let unit = unit("atlas-relay");
    let (_, ours) = unit.split_once("\n\n# Up to here: upstream's").unwrap();
    // The first paragraph goes on with that sentence, the last is where the unit is wanted.
    let (ours, _) = ours.split_once("\n\n[Install]").unwrap();
    for paragraph in ours.split("\n\n").skip(1) {
        assert!(paragraph.starts_with('#'), "{paragraph}");
    }
    // What it begins with, and what would take it all away.
    for (key, value) in [
        ("NotifyAccess", "main"),
        ("AmbientCapabilities", "CAP_BPF CAP_NET_ADMIN CAP_PERFMON"),
        ("CapabilityBoundingSet", "CAP_BPF CAP_NET_ADMIN CAP_PERFMON"),
        ("LimitMEMLOCK", "infinity"),
    ] {
        assert_eq!(last(&unit, key), Some(value), "{key}");
    }
    for key in ["WatchdogSec", "FileDescriptorStoreMax"] {
        assert!(
            last(&unit, key).is_some_and(|value| value.parse::<u32>().is_ok_and(|value| value > 0)),
            "{key}"
        );
    }
}

#[test]
fn the_units_let_the_daemons_write_where_their_root_is_and_nowhere_else() {
    for name in UNITS {
        let unit = unit(name);
        let environment = values(&unit, "Environment");
        let root = environment.iter().find_map(|set| set.strip_prefix("ATLAS_ROOT=")).expect("a root");
        assert_eq!(last(&unit, "ProtectSystem"), Some("strict"));
        let [writable] = values(&unit, "ReadWritePaths")[..] else { panic!("{unit}") };
        assert!(Path::new(root).starts_with(writable), "{root} is in {writable}");
        assert_eq!(last(&unit, "UMask"), Some("0077"));
    }
}

#[test]
fn the_units_give_each_daemon_a_user_and_the_agent_no_capability() {
    for name in UNITS {
        let unit = unit(name);
        assert_eq!([values(&unit, "User"), values(&unit, "Group")], [[name], [name]]);
        assert_eq!(last(&unit, "NoNewPrivileges"), Some("true"));
    }
    let agent = unit("atlas-agent");
    for none in ["CapabilityBoundingSet", "AmbientCapabilities"] {
        assert_eq!(values(&agent, none), [""], "{none}");
    }
    assert_eq!(values(&agent, "StateDirectory"), ["atlas-agent"]);
}

#[test]
fn systemd_understands_the_units() {
    let Some(analysis) = Analysis::or_skip("systemd_understands_the_units") else { return };
    for name in UNITS {
        let verified = analysis.of(name, &["verify", "--man=no"]);
        let said = String::from_utf8_lossy(&verified.stderr);
        let about_it: Vec<&str> = said.lines().filter(|line| line.contains(name)).collect();
        assert!(about_it.is_empty(), "{said}");
    }
}

#[test]
fn the_units_leave_as_little_exposed_as_when_they_were_written() {
    let name = "the_units_leave_as_little_exposed_as_when_they_were_written";
    let Some(analysis) = Analysis::or_skip(name) else { return };
    // In tenths, of systemd's scale from 0.0 (nothing) to 10.0. They are those of version 252, as deploy/README.md has them.
    for (name, most) in [("atlas-relay", 17), ("atlas-agent", 14)] {
        let threshold = format!("--threshold={most}");
        let judged = analysis.of(name, &["security", "--no-pager", "--offline=yes", &threshold]);
        assert!(judged.status.success(), "{}", String::from_utf8_lossy(&judged.stdout));
    }
}

/// Copies of the unit files, for `systemd-analyze` to look at.
struct Analysis(tempfile::TempDir);

impl Analysis {
    /// `None` after the test `name` said why it cannot run.
    fn or_skip(name: &str) -> Option<Analysis> {
        if Command::new("systemd-analyze").arg("--version").output().is_err() {
            skipping::skip(name, "systemd-analyze is not installed");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        for name in UNITS {
            // The program is not installed here.
            let copy = unit(name).replace("/usr/local/bin/atlas ", &format!("{BINARY} "));
            fs::write(directory.path().join(format!("{name}.service")), copy).unwrap();
        }
        Some(Analysis(directory))
    }

    fn of(&self, name: &str, words: &[&str]) -> Output {
        let path: PathBuf = self.0.path().join(format!("{name}.service"));
        Command::new("systemd-analyze").args(words).arg(path).output().unwrap()
    }
}
