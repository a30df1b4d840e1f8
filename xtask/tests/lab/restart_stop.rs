//! A stop ends everything: nothing stays attached, no map stays loaded, and agents are told.

use std::time::Duration;

use relay_userspace::agent::SessionEnd;

use super::kept_maps::{exists, maps_of};
use super::kept_relay::KeptRelay;
use super::other_program::attached;
use super::steady::under_steady_traffic;
use super::world::{NATIVE, World, wait_for};

/// An agent that is told has 20 s to find another relay.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_stop_under_a_supervisor_leaves_nothing_attached_and_no_map_and_tells_the_agents() {
    const NAME: &str = "a_stop_under_a_supervisor_leaves_nothing_attached_and_no_map_and_tells_the_agents";
    let Some(world) = World::new(NAME) else { return };
    let mut relay = KeptRelay::supervised(&world, NATIVE);
    under_steady_traffic(&world, |steady| {
        let maps = maps_of(relay.process());
        assert!(!maps.is_empty() && attached(&world.lab.relay).is_some());

        world.deployment.relay.run("stop").unwrap();

        assert_nothing_left(&world, &mut relay, &maps);
        assert_eq!(relay.stored(), [""; 0], "the supervisor still keeps something");
        wait_for("the agents to be told", PATIENCE, || {
            steady.ends().iter().all(Option::is_some).then_some(())
        });
        assert_eq!(steady.ends(), [Some(SessionEnd::RelayStops), Some(SessionEnd::RelayStops)]);
    });
}

#[test]
fn a_stop_with_pins_leaves_nothing_attached_no_map_and_no_pin() {
    const NAME: &str = "a_stop_with_pins_leaves_nothing_attached_no_map_and_no_pin";
    let Some(world) = World::new(NAME) else { return };
    let mut relay = KeptRelay::pinned(&world, NATIVE);
    let (pins, maps) = (relay.pins(), maps_of(relay.process()));
    assert!(holds_files(&pins), "there are pins while it runs");
    under_steady_traffic(&world, |_| {
        world.deployment.relay.run("stop").unwrap();

        assert_nothing_left(&world, &mut relay, &maps);
        assert!(!holds_files(&pins), "pins stay in {}", pins.display());
    });
}

#[test]
fn a_stop_after_a_kill_with_pins_leaves_nothing_attached_no_map_and_no_pin_and_says_so() {
    const NAME: &str = "a_stop_after_a_kill_with_pins_leaves_nothing_attached_no_map_and_no_pin_and_says_so";
    let Some(world) = World::new(NAME) else { return };
    let mut relay = KeptRelay::pinned(&world, NATIVE);
    let (pins, maps) = (relay.pins(), maps_of(relay.process()));
    relay.kill();
    assert!(attached(&world.lab.relay).is_some() && holds_files(&pins), "it goes on without a daemon");

    let said = world.deployment.relay.run("stop").unwrap();

    assert!(said.contains("removed what the one before had left"), "{said}");
    assert!(!holds_files(&pins), "pins stay in {}", pins.display());
    wait_for("the program's end", PATIENCE, || attached(&world.lab.relay).is_none().then_some(()));
    wait_for_no(&maps);
}

#[test]
fn a_supervisor_that_stops_a_relay_by_a_signal_and_closes_its_store_leaves_nothing_attached_and_no_map() {
    const NAME: &str =
        "a_supervisor_that_stops_a_relay_by_a_signal_and_closes_its_store_leaves_nothing_attached_and_no_map";
    let Some(world) = World::new(NAME) else { return };
    let mut relay = KeptRelay::supervised(&world, NATIVE);
    let maps = maps_of(relay.process());

    relay.process().signal(libc::SIGTERM);
    wait_for("the end of the daemon", PATIENCE, || relay.process().ended().unwrap());
    assert!(attached(&world.lab.relay).is_some(), "as long as the store is there, all goes on");
    drop(relay);

    assert_eq!(attached(&world.lab.relay), None, "a program is still attached");
    wait_for_no(&maps);
}

/// The daemon has ended; nothing is attached to its interface, and of its maps there is none.
fn assert_nothing_left(world: &World, relay: &mut KeptRelay<'_>, maps: &[u32]) {
    wait_for("the end of the daemon", PATIENCE, || relay.process().ended().unwrap());
    assert_eq!(attached(&world.lab.relay), None, "a program is still attached");
    wait_for_no(maps);
}

/// The kernel frees a map a moment after its last user has gone.
fn wait_for_no(maps: &[u32]) {
    wait_for("the end of all maps", PATIENCE, || (!maps.iter().any(|map| exists(*map))).then_some(()));
}

/// Whether there is a file in it, however deep.
pub fn holds_files(directory: &std::path::Path) -> bool {
    let Ok(entries) = std::fs::read_dir(directory) else { return false };
    entries.flatten().any(|entry| entry.path().is_file() || holds_files(&entry.path()))
}
