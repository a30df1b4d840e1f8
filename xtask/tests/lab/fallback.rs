//! What the daemon does where it does not get what it would like: one line that says what to do, or the next best
//! datapath and why.

use std::time::Duration;

use xtask::answers::Status;
use xtask::deployment::Node;
use xtask::interrupt;
use xtask::lab::Process;
use xtask::load;
use xtask::tool::Tool;

use super::nobody::as_nobody;
use super::world::{NATIVE, World, wait_for};

#[test]
fn an_interface_whose_hook_is_taken_gives_userspace_and_the_reason() {
    let Some(world) = World::new("an_interface_whose_hook_is_taken_gives_userspace_and_the_reason") else {
        return;
    };
    let _first = world.deployment.start_relay(None, NATIVE).unwrap();

    let (second, _process, status) =
        second_relay(&world, "net listen --port 4434 --datapath auto --interface r0");

    assert_eq!(status.datapath, "userspace");
    assert!(status.why.contains("r0"), "names the interface: {}", status.why);
    assert!(status.why.contains("`relay`, program "), "names who holds the hook: {}", status.why);
    // Asked for by name, it is an error.
    drop(_process);
    let error =
        second.run("net listen --port 4434 --datapath xdp-native --interface r0").unwrap_err().to_string();
    assert!(error.contains("r0"), "names the interface: {error}");
    assert!(error.contains("`relay`, program "), "names who holds the hook: {error}");
}

#[test]
fn an_interface_without_native_xdp_gives_generic_and_the_reason() {
    let Some(world) = World::new("an_interface_without_native_xdp_gives_generic_and_the_reason") else {
        return;
    };

    world.lab.relay.ip("link add d0 type bridge\nlink set d0 up\n").unwrap();

    let (_second, _process, status) =
        second_relay(&world, "net listen --port 4434 --datapath auto --interface d0");

    assert_eq!(status.datapath, "xdp-generic");
    assert!(status.why.contains("d0"), "names the interface: {}", status.why);
}

#[test]
fn the_program_is_loaded_and_unloaded_by_hand() {
    let Some(world) = World::new("the_program_is_loaded_and_unloaded_by_hand") else { return };
    load::mount_bpffs().unwrap();
    let relay = &world.deployment.relay;
    let attached = || world.lab.relay.run(&Tool::new("ip").words("link show dev r0")).unwrap();

    relay.run("xdp load --interface r0").unwrap();
    let twice = relay.run("xdp load --interface r0").unwrap_err().to_string();
    let loaded = attached();
    relay.run("xdp unload --interface r0").unwrap();
    let again = relay.run("xdp unload --interface r0").unwrap_err().to_string();

    assert!(loaded.contains("prog/xdp"), "{loaded}");
    assert!(twice.contains("xdp unload"), "says what to do: {twice}");
    assert!(again.contains("r0"), "names the interface: {again}");
    wait_for("the program's end", Duration::from_secs(2), || {
        (!attached().contains("prog/xdp")).then_some(())
    });
}

#[test]
fn a_port_in_use_is_named() {
    let Some(world) = World::new("a_port_in_use_is_named") else { return };
    let _first = world.deployment.start_relay(None, NATIVE).unwrap();
    let second = relay_beside(&world);

    let error = second.run("net listen --port 4433 --datapath userspace").unwrap_err().to_string();

    assert!(error.contains("4433") && error.contains("in use"), "{error}");
    assert_one_line(&error);
}

#[test]
fn a_missing_permission_is_named() {
    let Some(world) = World::new("a_missing_permission_is_named") else { return };
    let second = relay_beside(&world);
    let listen = as_nobody(&world.binary, second.directory())
        .words("net listen --port 4434 --datapath xdp-native --interface r0")
        .env("ATLAS_ROOT", second.directory());

    let error = second.host().run(&listen).unwrap_err().to_string();

    assert!(error.contains("CAP_") || error.contains("root"), "says what is missing: {error}");
    assert_one_line(&error);
}

#[test]
fn a_missing_identity_is_named() {
    let Some(world) = World::new("a_missing_identity_is_named") else { return };
    let root = world.lab.directory().join("nobody");
    std::fs::create_dir(&root).unwrap();

    let listen = Tool::new(&world.binary).words("net listen").env("ATLAS_ROOT", &root);
    let error = world.lab.relay.run(&listen).unwrap_err().to_string();

    assert!(error.contains("id init"), "says what to do: {error}");
    assert_one_line(&error);
}

#[test]
fn a_malformed_configuration_is_named_by_file_line_and_key() {
    let Some(world) = World::new("a_malformed_configuration_is_named_by_file_line_and_key") else { return };
    let second = relay_beside(&world);
    second
        .configure("[transport]\nenable_relay = true\noffer_relay = true\nrelay_bandwith_limit = 5\n")
        .unwrap();

    let error = second.run("net listen --port 4434").unwrap_err().to_string();

    for part in ["config.toml", "4", "relay_bandwith_limit", "relay_bandwidth_limit"] {
        assert!(error.contains(part), "names {part}: {error}");
    }
}

/// An identity of its own for a second relay on the relay's host.
fn relay_beside(world: &World) -> Node {
    let second = Node::init(world.lab.relay.host(), &world.binary, world.lab.directory(), "second").unwrap();
    second.configure("[transport]\nenable_relay = true\noffer_relay = true\n").unwrap();
    second
}

fn second_relay(world: &World, words: &str) -> (Node, Process, Status) {
    let second = relay_beside(world);
    let process = second.start(words).unwrap();
    let status = interrupt::wait_for("the second relay", Duration::from_secs(10), || {
        Ok(second.json::<Status>("xdp status --json").ok())
    });
    let status = status.unwrap_or_else(|error| panic!("{error}: {}", process.log()));
    (second, process, status)
}

/// `error` is ours around what the program said; that is one line besides its log.
fn assert_one_line(error: &str) {
    let said = error.split_once("): ").unwrap().1;
    let lines: Vec<&str> =
        said.lines().filter(|line| !line.contains(" INFO ") && !line.contains(" WARN ")).collect();
    assert_eq!(lines.len(), 1, "{said}");
}
