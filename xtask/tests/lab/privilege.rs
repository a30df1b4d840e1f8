//! With how little the relay runs: which capabilities it has left, which files it can open, and who may ask it.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::time::Duration;

use xtask::answers::{RelaySessions, Status};
use xtask::deployment::relay_configuration;
use xtask::lab::Process;
use xtask::tool::Tool;

use super::nobody::as_nobody_with;
use super::world::{NATIVE, RELAY, World, wait_until_said};

/// What the unit gives the relay at its start.
const OF_THE_UNIT: &str = "-all,+bpf,+net_admin,+perfmon";

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn a_relay_of_an_ordinary_user_relays_natively_and_has_no_capability_left() {
    let name = "a_relay_of_an_ordinary_user_relays_natively_and_has_no_capability_left";
    let Some(world) = World::new(name) else { return };

    let relay = start_as_nobody(&world, OF_THE_UNIT, NATIVE);

    assert_eq!(world.status().capabilities.as_deref(), Some(&[] as &[String]));
    let threads = threads(&relay);
    assert!(threads.iter().any(|thread| thread.name.starts_with("reader-")), "{threads:?}");
    for Thread { name, status } in &threads {
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(bits(status, set), 0, "{set} of {name}: {status}");
        }
        assert!(status.contains("NoNewPrivs:\t1"), "{name}: {status}");
    }
    assert!(relay.log().contains("capabilities=none"), "{}", relay.log());
    world.copy_a_file().assert_by_kernel();
}

#[test]
fn a_relay_of_root_has_no_capability_left_either_and_none_that_it_could_get_back() {
    let name = "a_relay_of_root_has_no_capability_left_either_and_none_that_it_could_get_back";
    let Some(world) = World::new(name) else { return };

    let relay = world.deployment.start_relay(None, NATIVE).unwrap();

    for Thread { name, status } in threads(&relay) {
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb", "CapBnd"] {
            assert_eq!(bits(&status, set), 0, "{set} of {name}: {status}");
        }
    }
    world.copy_a_file().assert_by_kernel();
}

#[test]
fn a_relay_without_any_privilege_relays_in_userspace_and_says_what_it_lacks() {
    let name = "a_relay_without_any_privilege_relays_in_userspace_and_says_what_it_lacks";
    let Some(world) = World::new(name) else { return };
    for options in ["--datapath auto --interface r0", "--datapath userspace"] {
        let relay = start_as_nobody(&world, "-all", options);
        let status = world.status();
        assert_eq!(status.datapath, "userspace");
        assert!(options.ends_with("userspace") || status.why.contains("CAP_BPF"), "{}", status.why);
        let copied = world.copy_a_file();
        assert!(copied.by_daemon() > 0 && copied.by_kernel() == 0);
        relay.stop().unwrap();
    }
}

#[test]
fn a_configuration_elsewhere_is_read_again_but_one_beyond_its_reach_is_not() {
    let name = "a_configuration_elsewhere_is_read_again_but_one_beyond_its_reach_is_not";
    let Some(world) = World::new(name) else { return };
    let node = &world.deployment.relay;
    let [elsewhere, beyond] = ["elsewhere", "beyond"].map(|place| world.lab.directory().join(place));
    for (place, limit) in [(&elsewhere, 1_000_000), (&beyond, 3_000_000)] {
        std::fs::create_dir(place).unwrap();
        std::fs::write(place.join("config.toml"), relay_configuration(limit)).unwrap();
    }
    let config = node.directory().join("state/config.toml");
    std::fs::create_dir_all(config.parent().unwrap()).unwrap();
    symlink(elsewhere.join("config.toml"), &config).unwrap();
    let mut relay = node.start("net listen --port 4433 --datapath userspace").unwrap();
    relay.wait_until("the start", PATIENCE, |_| node.json::<Status>("xdp status --json").ok()).unwrap();

    // Not written but replaced, as editors do.
    let new = elsewhere.join("new");
    std::fs::write(&new, relay_configuration(2_000_000)).unwrap();
    std::fs::rename(&new, elsewhere.join("config.toml")).unwrap();
    let applied = node.run("config reload").unwrap();
    assert!(applied.contains("relay_bandwidth_limit"), "{applied}");

    std::fs::remove_file(&config).unwrap();
    symlink(beyond.join("config.toml"), &config).unwrap();
    let error = node.run("config reload");
    if relay.log().contains("restricted=not") {
        return; // as on a kernel without Landlock
    }
    let error = error.unwrap_err().to_string();
    assert!(error.contains("config.toml") && error.contains("ermission denied"), "{error}");
}

#[test]
fn an_agent_that_can_open_few_files_still_remembers_relays_by_their_name() {
    let name = "an_agent_that_can_open_few_files_still_remembers_relays_by_their_name";
    let Some(world) = World::new(name) else { return };
    let _relay = world.deployment.start_relay(None, "--datapath userspace").unwrap();
    let target = &world.deployment.target;
    target
        .configure(&format!("[network]\nrelays = [\"{RELAY}\"]\n[transport]\nenable_relay = true\n"))
        .unwrap();

    let mut agent = world.deployment.start_target().unwrap();

    wait_until_said(&mut agent, "files that the daemon does not need are out of its reach", PATIENCE);
    let known = std::fs::read_to_string(target.directory().join("state/known_relays")).unwrap();
    assert_eq!(known, format!("{RELAY} {}\n", world.deployment.relay.id()));
}

#[test]
fn the_daemons_group_may_look_its_user_and_root_may_change_and_nobody_else_may_ask() {
    let name = "the_daemons_group_may_look_its_user_and_root_may_change_and_nobody_else_may_ask";
    let Some(world) = World::new(name) else { return };
    let _relay = start_as_nobody(&world, "-all", "--datapath userspace");
    let node = &world.deployment.relay;
    // Who comes as far as the socket is for the directories to say, and usually nobody does: here, all do.
    let state = node.directory().join("state");
    for (path, mode) in [(&state, 0o755), (&state.join("admin.sock"), 0o666)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let asked = |who: &str, words: &str| {
        let tool = Tool::new("setpriv").words(who).arg(node.directory().join("atlas-relay")).words(words);
        node.host().run(&tool.env("ATLAS_ROOT", node.directory())).map_err(|error| error.to_string())
    };
    let owner = "--reuid nobody --regid 5000 --clear-groups";
    let group = "--reuid 5000 --regid nogroup --clear-groups";
    let supplementary = "--reuid 5000 --regid 5000 --groups 5001,nogroup";
    let stranger = "--reuid 5000 --regid 5000 --groups 5001";

    for who in ["", owner, group, supplementary] {
        let sessions = match who {
            "" => node.run("net sessions --json").unwrap(),
            who => asked(who, "net sessions --json").unwrap(),
        };
        assert!(serde_json::from_str::<RelaySessions>(&sessions).unwrap().sessions.is_empty());
    }
    for who in [group, supplementary] {
        let error = asked(who, "bans add 192.0.2.1").unwrap_err();
        assert!(error.contains("user 5000 may look but not change anything"), "{error}");
    }
    asked(owner, "bans add 192.0.2.1").unwrap();
    node.run("bans lift 192.0.2.1").unwrap();
    let error = asked(stranger, "net sessions --json").unwrap_err();
    assert!(error.contains("user 5000 may not ask this daemon"), "{error}");
}

/// The relay, run by nobody with these capabilities, once it serves.
fn start_as_nobody(world: &World, capabilities: &str, options: &str) -> Process {
    let node = &world.deployment.relay;
    node.configure(&relay_configuration(0)).unwrap();
    let listen = as_nobody_with(capabilities, &world.binary, node.directory())
        .words(&format!("net listen --port {} {options}", RELAY.port()))
        .env("ATLAS_ROOT", node.directory());
    let mut relay = node.host().start(&listen, node.directory(), "relay-listen").unwrap();
    relay.wait_until("the start", PATIENCE, |_| node.json::<Status>("xdp status --json").ok()).unwrap();
    relay
}

#[derive(Debug)]
struct Thread {
    name: String,
    status: String,
}

/// The threads of a process, as the kernel sees them.
fn threads(process: &Process) -> Vec<Thread> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", process.id())).unwrap();
    let read = |path: &Path, name: &str| std::fs::read_to_string(path.join(name)).unwrap();
    let thread = |task: std::io::Result<std::fs::DirEntry>| {
        let path = task.unwrap().path();
        Thread { name: read(&path, "comm").trim().to_owned(), status: read(&path, "status") }
    };
    tasks.map(thread).collect()
}

/// One of the sets of a /proc/PID/status.
fn bits(status: &str, set: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(set)).unwrap();
    u64::from_str_radix(line.trim_start_matches(':').trim(), 16).unwrap()
}
