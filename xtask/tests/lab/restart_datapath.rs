//! A restart with a datapath that is configured otherwise than the one before. Sessions go on; packets may be lost while one
//! takes the place of the other, and each is located.

use super::kept_relay::KeptRelay;
use super::located::{Course, Watch};
use super::other_program::hooks;
use super::restart_faults::carries_a_new_session;
use super::restart_stop::holds_files;
use super::steady::{PER_SIDE, Steady, under_steady_traffic};
use super::world::{GENERIC, NATIVE, NOTICED_WITHIN, USERSPACE, World};

#[test]
fn sessions_go_on_from_native_xdp_to_generic_and_back_under_a_supervisor() {
    const NAME: &str = "sessions_go_on_from_native_xdp_to_generic_and_back_under_a_supervisor";
    let Some(world) = World::new(NAME) else { return };
    go_on_with(&world, &mut KeptRelay::supervised(&world, NATIVE), &[GENERIC, NATIVE]);
}

#[test]
fn sessions_go_on_from_native_xdp_to_generic_and_back_with_pins() {
    const NAME: &str = "sessions_go_on_from_native_xdp_to_generic_and_back_with_pins";
    let Some(world) = World::new(NAME) else { return };
    go_on_with(&world, &mut KeptRelay::pinned(&world, NATIVE), &[GENERIC, NATIVE]);
}

#[test]
fn sessions_go_on_from_pins_to_userspace_which_leaves_nothing_attached_and_no_pin() {
    const NAME: &str = "sessions_go_on_from_pins_to_userspace_which_leaves_nothing_attached_and_no_pin";
    let Some(world) = World::new(NAME) else { return };
    let mut relay = KeptRelay::pinned(&world, NATIVE);
    let pins = relay.pins();
    assert!(holds_files(&pins), "there are pins while native XDP runs");
    go_on_with(&world, &mut relay, &[USERSPACE]);
    assert!(!holds_files(&pins), "pins stay in {}", pins.display());
}

#[test]
fn sessions_go_on_from_userspace_to_native_xdp_under_a_supervisor() {
    const NAME: &str = "sessions_go_on_from_userspace_to_native_xdp_under_a_supervisor";
    let Some(world) = World::new(NAME) else { return };
    go_on_with(&world, &mut KeptRelay::supervised(&world, USERSPACE), &[NATIVE]);
}

#[test]
fn sessions_go_on_with_another_number_of_readers_under_a_supervisor() {
    const NAME: &str = "sessions_go_on_with_another_number_of_readers_under_a_supervisor";
    let Some(world) = World::new(NAME) else { return };
    let mut relay = KeptRelay::supervised(&world, NATIVE);
    under_steady_traffic(&world, |steady| {
        let watch = Watch::new(&world, steady);
        for readers in [5, 1] {
            relay.configure(&format!("readers = {readers}"), "");
            let course = restart(&watch, &mut relay, steady);
            println!("{readers} readers: {course}");
            assert_sessions_go_on(&course, steady);
            assert_eq!(course.lost_by(0), 0, "the sockets are others, but nothing comes to them: {course}");
            let stored = relay.stored();
            let sockets = stored.iter().filter(|name| name.starts_with("udp4-")).count();
            assert_eq!(sockets, 1 + readers, "control's, and one each: {stored:?}");
        }
    });
}

#[test]
fn tables_keep_their_size_as_long_as_there_are_sessions_in_them() {
    const NAME: &str = "tables_keep_their_size_as_long_as_there_are_sessions_in_them";
    let Some(world) = World::new(NAME) else { return };
    let mut relay = KeptRelay::supervised(&world, NATIVE);
    let size = || world.status().table.max_sessions;
    let before = size();
    const WANTED: u32 = 1000;
    assert_ne!(before, WANTED);
    relay.configure(&format!("max_sessions = {WANTED}"), "");
    under_steady_traffic(&world, |steady| {
        let course = restart(&Watch::new(&world, steady), &mut relay, steady);
        println!("tables of another size: {course}");
        assert_sessions_go_on(&course, steady);
        assert_eq!(course.lost_by(0), 0, "the tables stay where they are: {course}");
        assert_eq!(size(), before, "with sessions");
    });
    world.wait_for_no_session(NOTICED_WITHIN);

    relay.restart();

    assert_eq!(size(), WANTED, "without sessions");
    carries_a_new_session(&world);
}

/// Restarts the relay under traffic with each of these options in turn, and its sessions go on as it says.
fn go_on_with(world: &World, relay: &mut KeptRelay<'_>, options_in_turn: &[&'static str]) {
    under_steady_traffic(world, |steady| {
        let watch = Watch::new(world, steady);
        for options in options_in_turn {
            relay.choose(options);
            let course = restart(&watch, relay, steady);
            println!("now {options}: {course}");
            assert_changed_over(&course, steady);
            let datapath = options.split_whitespace().nth(1).unwrap();
            assert_eq!(world.status().datapath, datapath);
            let in_kernel = *options != USERSPACE;
            assert_eq!(hooks(&world.lab.relay), [datapath][..usize::from(in_kernel)]);

            let ((), course) = watch.during(|| steady.wait_for_more(PER_SIDE / 2));
            println!("and then: {course}");
            assert_sessions_go_on(&course, steady);
            let [by_kernel, by_daemon] = carried(&course);
            let is_by_it = if in_kernel { by_kernel >= 99 * by_daemon } else { by_kernel == 0 };
            assert!(
                is_by_it && by_kernel + by_daemon > 0,
                "{datapath}: {by_kernel} by the kernel and {by_daemon} by the daemon"
            );
        }
    });
}

fn restart(watch: &Watch<'_>, relay: &mut KeptRelay<'_>, steady: &Steady) -> Course {
    let ((), course) = watch.during(|| {
        steady.wait_for_more(PER_SIDE / 2);
        relay.restart();
        relay.wait_for_agents(steady);
        steady.wait_for_more(PER_SIDE / 2);
    });
    course
}

/// The sessions are those that they were. Packets may be lost until the new datapath has them all; with a program that is
/// detached goes uncounted what its interface has in its ring.
fn assert_changed_over(course: &Course, steady: &Steady) {
    const RING: u64 = 256;
    course.assert_sound_but(RING);
    let [before, after] = course.sessions.each_ref().map(|sessions| {
        let sessions = sessions.as_ref().expect("the relay answers").iter();
        sessions.map(|session| session.session.as_str()).collect::<Vec<_>>()
    });
    assert_eq!(after, before, "{course}");
    assert_eq!(steady.ends(), [None, None]);
}

fn assert_sessions_go_on(course: &Course, steady: &Steady) {
    course.assert_sound();
    course.assert_sessions_kept(false);
    assert_eq!(steady.ends(), [None, None]);
}

/// The packets that the program has carried meanwhile, and the daemon.
fn carried(course: &Course) -> [u64; 2] {
    let [before, after] = course.sessions.each_ref().map(|sessions| {
        let sides = || sessions.iter().flatten().flat_map(|session| &session.sides);
        let by_kernel: u64 = sides().map(|side| side.packets_kernel).sum();
        let by_daemon: u64 = sides().map(|side| side.packets_userspace).sum();
        [by_kernel, by_daemon]
    });
    [after[0] - before[0], after[1] - before[1]]
}
