//! What a relay finds when it starts is not what it should be. It serves in the best way left, or says in one error why
//! not; and it never forwards what is not to be forwarded.

use std::path::Path;

use aya::maps::{Array, Map, MapData};
use xtask::answers::Status;
use xtask::lab::Mount;
use xtask::tool::Tool;

use super::hand_agent::{carries, paired};
use super::kept_relay::{KeptRelay, Started};
use super::located::Watch;
use super::raw_agents::run_inside;
use super::steady::{PER_SIDE, under_steady_traffic};
use super::strangers_datagrams::Strangers;
use super::world::{NATIVE, World};

#[test]
fn a_relay_without_a_bpffs_starts_and_says_that_nothing_is_kept() {
    const NAME: &str = "a_relay_without_a_bpffs_starts_and_says_that_nothing_is_kept";
    let Some(world) = World::new(NAME) else { return };
    let mut relay = KeptRelay::pinned_nowhere(&world, NATIVE, world.lab.directory().join("no-bpffs"));
    let status = world.status();
    println!("{} because {}; said: {}", status.datapath, status.why, relay.log());
    assert_eq!(status.datapath, "xdp-native");
    assert!(relay.log().contains("no-bpffs"), "{}", relay.log());
    carries_a_new_session(&world);
}

#[test]
fn pins_of_another_version_are_not_gone_on_with_and_the_relay_starts_anew() {
    const NAME: &str = "pins_of_another_version_are_not_gone_on_with_and_the_relay_starts_anew";
    spoil_pins(NAME, |pins| {
        // The version is the record's first word.
        let map = Map::Array(MapData::from_pin(pins.join("META")).unwrap());
        let mut meta: Array<_, [u64; 8]> = map.try_into().unwrap();
        let mut words = meta.get(&0, 0).unwrap();
        words[0] = words[0] & !0xffff_ffff | 0xffff;
        meta.set(0, words, 0).unwrap();
    });
}

#[test]
fn pins_of_tampered_sizes_are_not_gone_on_with_and_the_relay_starts_anew() {
    const NAME: &str = "pins_of_tampered_sizes_are_not_gone_on_with_and_the_relay_starts_anew";
    spoil_pins(NAME, |pins| {
        // Each has records of another size than the other.
        let [slots, index, aside] = ["SLOTS", "INDEX", "ASIDE"].map(|name| pins.join(name));
        for (from, to) in [(&slots, &aside), (&index, &slots), (&aside, &index)] {
            std::fs::rename(from, to).unwrap();
        }
    });
}

#[test]
fn a_relay_that_may_make_no_maps_starts_in_the_best_mode_left_or_says_why_not() {
    const NAME: &str = "a_relay_that_may_make_no_maps_starts_in_the_best_mode_left_or_says_why_not";
    let Some(world) = World::new(NAME) else { return };
    for options in ["--interface r0", NATIVE] {
        let mut relay = KeptRelay::pinned(&world, options);
        under_steady_traffic(&world, |steady| {
            let strangers = Strangers::start(&world);
            relay.kill();
            steady.wait_for_more(PER_SIDE);
            let started = relay.start_through(
                Tool::new("setpriv").words("--bounding-set -bpf,-sys_admin --inh-caps -bpf,-sys_admin"),
            );
            strangers.stop();
            match started {
                Started::Serves(Status { datapath, why, adopted, .. }) => {
                    println!("{options}, no maps: {datapath} because {why}; sessions: {adopted:?}");
                    assert!(options != NATIVE || datapath == "xdp-native", "{datapath}");
                    // To a relay that does not know their session they are a flood.
                    steady.pause();
                    carries_a_new_session(&world);
                }
                Started::Ended(said) => {
                    println!("{options}, no maps: ended, saying {said}");
                    assert_one_error(&said);
                }
            }
        });
    }
}

#[test]
fn a_relay_whose_disk_is_full_starts_and_loses_nothing() {
    const NAME: &str = "a_relay_whose_disk_is_full_starts_and_loses_nothing";
    let Some(world) = World::new(NAME) else { return };
    let directory = world.deployment.relay.directory();
    let saved = world.lab.directory().join("saved");
    std::fs::rename(directory, &saved).unwrap();
    let disk = Mount::new("tmpfs", "size=256k,mode=700", directory).unwrap();
    Tool::new("cp").words("-a").arg(saved.join(".")).arg(directory).output().unwrap();
    let mut relay = KeptRelay::supervised(&world, NATIVE);
    under_steady_traffic(&world, |steady| {
        let watch = Watch::new(&world, steady);
        let ((), course) = watch.during(|| {
            fill(disk.path());
            relay.restart();
            relay.wait_for_agents(steady);
            steady.wait_for_more(PER_SIDE);
        });
        println!("a restart with a full disk: {course}");
        course.assert_sound();
        course.assert_sessions_kept(false);
        assert_eq!(course.lost_by(0), 0, "{course}");
    });
}

/// A relay finds pins that `spoil` has changed while it was dead: it goes on with none of them and serves all the same.
fn spoil_pins(name: &str, spoil: impl FnOnce(&Path)) {
    let Some(world) = World::new(name) else { return };
    let mut relay = KeptRelay::pinned(&world, NATIVE);
    under_steady_traffic(&world, |steady| {
        let [session] = world.sessions().try_into().unwrap();
        let strangers = Strangers::start(&world);
        relay.kill();
        spoil(&relay.pins());
        steady.wait_for_more(PER_SIDE / 2);
        relay.start();
        let status = world.status();
        println!("{} because {}; said: {}", status.datapath, status.why, relay.log());
        assert_eq!(status.datapath, "xdp-native");
        assert!(!world.sessions().iter().any(|it| it.session == session.session), "the session is gone");
        strangers.stop();
        steady.pause();
        carries_a_new_session(&world);
    });
}

/// Two new agents are paired, and their datagrams arrive.
pub fn carries_a_new_session(world: &World) {
    run_inside(&world.lab.agents[0], async || {
        let [(_connector, near), (_target, far)] = paired().await;
        assert!(carries(&near, &far) && carries(&far, &near));
    });
}

/// One line is the error.
fn assert_one_error(said: &str) {
    let errors = said.lines().filter(|line| line.contains("ERROR") || line.starts_with("error:")).count();
    assert_eq!(errors, 1, "{said}");
}

/// Writes until there is no room.
fn fill(directory: &Path) {
    let mut file = std::fs::File::create(directory.join("filler")).unwrap();
    let error = std::io::copy(&mut std::io::repeat(7), &mut file).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
}
