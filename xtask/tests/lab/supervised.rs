//! The daemon under a supervisor: what it says of itself, and what it leaves there; and what it leaves without one.

use std::collections::BTreeSet;
use std::time::Duration;

use xtask::deployment::{Node, relay_configuration};
use xtask::supervisor::Supervisor;
use xtask::tool::Tool;

use super::kept_relay::KeptRelay;
use super::world::{NATIVE, USERSPACE, World, wait_for};

const PATIENCE: Duration = Duration::from_secs(20);

/// The supervisor of `node` with these options of `net listen`.
fn supervisor_of(node: &Node, options: &str) -> Supervisor {
    let tool = node.tool(&format!("net listen {options}"));
    Supervisor::of(node.host().clone(), tool, node.directory(), "supervised").unwrap()
}

/// The states without signs of life, lines for people, and what is stored.
fn milestones(supervisor: &Supervisor) -> Vec<String> {
    let kept = |state: &String| {
        let name = state.split('=').next().unwrap();
        ["READY", "RELOADING", "STOPPING", "BARRIER"].contains(&name)
    };
    supervisor.states().into_iter().filter(kept).collect()
}

fn wait_for_milestones(supervisor: &Supervisor, expected: &[&str]) {
    wait_for(&format!("{expected:?}"), PATIENCE, || (milestones(supervisor) == expected).then_some(()));
}

#[test]
fn a_relay_says_when_it_is_ready_when_it_reads_its_configuration_how_it_is_and_when_it_stops() {
    const NAME: &str =
        "a_relay_says_when_it_is_ready_when_it_reads_its_configuration_how_it_is_and_when_it_stops";
    let Some(world) = World::new(NAME) else { return };
    let relay = &world.deployment.relay;
    relay.configure(&relay_configuration(0)).unwrap();
    let mut supervisor = supervisor_of(relay, &format!("--port 4433 {USERSPACE}"));
    supervisor.watchdog(Duration::from_millis(100));
    supervisor.start_ready(PATIENCE).unwrap();
    assert_eq!(milestones(&supervisor), ["READY=1"]);
    // It does what it is ready for.
    assert_eq!(world.status().datapath, "userspace");
    let said = |state: &str| supervisor.states().iter().filter(|said| *said == state).count();
    wait_for("signs of life", PATIENCE, || (said("WATCHDOG=1") >= 3).then_some(()));
    assert_eq!(said("STATUS=userspace, 0 sessions, 0 agents"), 1);

    supervisor.process().unwrap().signal(libc::SIGHUP);
    wait_for_milestones(&supervisor, &["READY=1", "RELOADING=1", "READY=1"]);
    relay.run("config reload").unwrap();
    wait_for_milestones(&supervisor, &["READY=1", "RELOADING=1", "READY=1", "RELOADING=1", "READY=1"]);

    supervisor.stop().unwrap();
    assert_eq!(milestones(&supervisor)[5..], ["STOPPING=1", "BARRIER=1"]);
    assert_eq!(supervisor.states().last().unwrap(), "BARRIER=1");
}

#[test]
fn an_agent_says_when_it_is_ready_when_it_reads_its_configuration_how_it_is_and_when_it_stops() {
    const NAME: &str =
        "an_agent_says_when_it_is_ready_when_it_reads_its_configuration_how_it_is_and_when_it_stops";
    let Some(world) = World::new(NAME) else { return };
    let _relay = world.deployment.start_relay(None, USERSPACE).unwrap();
    let target = &world.deployment.target;
    let mut supervisor = supervisor_of(target, "--port 0");
    supervisor.watchdog(Duration::from_millis(100));
    supervisor.start_ready(PATIENCE).unwrap();
    let said = |state: &str| supervisor.states().iter().filter(|said| *said == state).count();
    wait_for("signs of life", PATIENCE, || (said("WATCHDOG=1") >= 3).then_some(()));
    // The line is renewed once it has stood for ten seconds.
    let connected = "STATUS=connected to 1 relays, 0 sessions";
    wait_for(connected, PATIENCE, || (said(connected) == 1).then_some(()));

    supervisor.process().unwrap().signal(libc::SIGHUP);
    wait_for_milestones(&supervisor, &["READY=1", "RELOADING=1", "READY=1"]);
    supervisor.stop().unwrap();
    assert_eq!(milestones(&supervisor)[3..], ["STOPPING=1", "BARRIER=1"]);
}

#[test]
fn what_a_relay_stores_is_handed_over_and_stays_there_once_however_often_it_starts() {
    const NAME: &str = "what_a_relay_stores_is_handed_over_and_stays_there_once_however_often_it_starts";
    let Some(world) = World::new(NAME) else { return };
    let relay = &world.deployment.relay;
    relay.configure(&relay_configuration(0)).unwrap();
    for options in [USERSPACE, NATIVE] {
        let mut supervisor = supervisor_of(relay, &format!("--port 4433 {options}"));
        supervisor.start_ready(PATIENCE).unwrap();
        let stored = supervisor.stored();
        let names: BTreeSet<&String> = stored.iter().collect();
        assert_eq!(names.len(), stored.len(), "{stored:?}");
        let expected = ["META", "SLOTS"].map(str::to_owned);
        assert!(expected.iter().all(|name| names.contains(name)), "{stored:?}");
        // What chooses among the sockets is in their names as well.
        let controls = names.iter().filter(|name| name.starts_with("udp4-0-")).count();
        assert_eq!(controls, 1, "{stored:?}");
        assert_eq!(names.iter().any(|name| name.starts_with("link-")), options == NATIVE, "{stored:?}");
        let stores = |supervisor: &Supervisor| {
            supervisor.states().iter().filter(|state| *state == "FDSTORE=1").count()
        };
        let first = stores(&supervisor);
        supervisor.kill().unwrap();
        supervisor.start_ready(PATIENCE).unwrap();
        assert_eq!(supervisor.stored(), stored, "after SIGKILL");
        assert_eq!(stores(&supervisor), first, "what is there already is not stored again");
        supervisor.stop().unwrap();
        assert_eq!(supervisor.stored(), [""; 0]);
    }
}

#[test]
fn what_a_relay_that_was_killed_has_pinned_goes_with_xdp_unload_but_not_while_it_runs() {
    const NAME: &str = "what_a_relay_that_was_killed_has_pinned_goes_with_xdp_unload_but_not_while_it_runs";
    let Some(world) = World::new(NAME) else { return };
    let relay = &world.deployment.relay;
    let attached = || {
        let shown = world.lab.relay.run(&Tool::new("ip").words("link show dev r0")).unwrap();
        shown.contains("prog/xdp")
    };
    let mut running = KeptRelay::pinned(&world, NATIVE);
    let place = running.pins().ancestors().nth(2).unwrap().display().to_string();
    let refused = relay.run("xdp unload").unwrap_err().to_string();
    assert!(
        refused.contains("a daemon is running here") && refused.contains("atlas-relay stop"),
        "{refused}"
    );
    running.kill();
    assert!(attached());

    let removed = relay.run("xdp unload").unwrap();
    assert!(removed.contains(&format!("Removed what the relay has left in {place}")), "{removed}");
    wait_for("the program's end", PATIENCE, || (!attached()).then_some(()));
    let nothing = relay.run("xdp unload").unwrap();
    assert!(nothing.contains("The relay has left nothing"), "{nothing}");
}
