//! The table of events that lose nothing, for native XDP: the relay's daemon is restarted, killed and replaced under steady
//! traffic. A supervisor keeps what it leaves, as systemd does; without one pins do.

use super::kept_relay::KeptRelay;
use super::located::{Course, Watch};
use super::other_program::{attached, with_other_program};
use super::steady::{PER_SIDE, under_steady_traffic};
use super::world::{NATIVE, World};

#[test]
fn a_restart_under_a_supervisor_loses_no_packet_and_no_session() {
    let Some(world) = World::new("a_restart_under_a_supervisor_loses_no_packet_and_no_session") else {
        return;
    };
    assert_nothing_lost(&restart(&world, KeptRelay::supervised(&world, NATIVE)));
}

#[test]
fn a_restart_with_pins_loses_no_packet_and_no_session() {
    let Some(world) = World::new("a_restart_with_pins_loses_no_packet_and_no_session") else { return };
    assert_nothing_lost(&restart(&world, KeptRelay::pinned(&world, NATIVE)));
}

#[test]
fn a_kill_and_a_start_after_ten_seconds_under_a_supervisor_lose_no_packet_and_no_session() {
    const NAME: &str =
        "a_kill_and_a_start_after_ten_seconds_under_a_supervisor_lose_no_packet_and_no_session";
    let Some(world) = World::new(NAME) else { return };
    assert_nothing_lost(&kill_and_start(&world, KeptRelay::supervised(&world, NATIVE), 10));
}

#[test]
fn a_kill_and_a_start_after_ten_seconds_with_pins_lose_no_packet_and_no_session() {
    const NAME: &str = "a_kill_and_a_start_after_ten_seconds_with_pins_lose_no_packet_and_no_session";
    let Some(world) = World::new(NAME) else { return };
    assert_nothing_lost(&kill_and_start(&world, KeptRelay::pinned(&world, NATIVE), 10));
}

/// Longer than a proof is good for: what they hear shows the agents that the kernel goes on.
#[test]
#[ignore = "long: two minutes without a daemon"]
fn a_kill_and_a_start_after_two_minutes_lose_no_packet_and_no_session() {
    const NAME: &str = "a_kill_and_a_start_after_two_minutes_lose_no_packet_and_no_session";
    let Some(world) = World::new(NAME) else { return };
    assert_nothing_lost(&kill_and_start(&world, KeptRelay::supervised(&world, NATIVE), 120));
}

#[test]
fn an_upgrade_to_another_program_and_back_loses_no_packet_and_no_session() {
    const NAME: &str = "an_upgrade_to_another_program_and_back_loses_no_packet_and_no_session";
    let Some(world) = World::new(NAME) else { return };
    let mut relay = KeptRelay::supervised(&world, NATIVE);
    let other = with_other_program(&world.binary, world.lab.directory());
    let tag = || attached(&world.lab.relay).expect("a program is attached").0;
    let ours = tag();
    under_steady_traffic(&world, |steady| {
        let watch = Watch::new(&world, steady);
        for (binary, what) in [(&other, "upgrade"), (&world.binary, "and back")] {
            let ((), course) = watch.during(|| {
                steady.wait_for_more(PER_SIDE);
                relay.restart_as(binary);
                relay.wait_for_agents(steady);
                steady.wait_for_more(PER_SIDE);
            });
            println!("{what}: {course}");
            assert_nothing_lost(&course);
            assert_eq!(tag() == ours, binary == &world.binary, "the program is that of the binary");
        }
    });
}

#[test]
fn twenty_restarts_in_a_row_lose_no_packet_and_no_session() {
    restarts_in_a_row("twenty_restarts_in_a_row_lose_no_packet_and_no_session", 20);
}

#[test]
#[ignore = "long: the same with more restarts"]
fn a_hundred_restarts_in_a_row_lose_no_packet_and_no_session() {
    restarts_in_a_row("a_hundred_restarts_in_a_row_lose_no_packet_and_no_session", 100);
}

fn restart(world: &World, mut relay: KeptRelay<'_>) -> Course {
    under_steady_traffic(world, |steady| {
        let watch = Watch::new(world, steady);
        let ((), course) = watch.during(|| {
            steady.wait_for_more(PER_SIDE);
            relay.restart();
            relay.wait_for_agents(steady);
            steady.wait_for_more(PER_SIDE);
        });
        let ((), without) = watch.during(|| steady.wait_for_more(course.sent.into_iter().max().unwrap()));
        println!("a restart: {course}\nas long without: {without}");
        without.assert_sound();
        let [with_it, without_it] = [&course, &without].map(Course::lost_on_links);
        assert!(with_it <= without_it, "on the links {with_it} were lost, without a restart {without_it}");
        course
    })
}

fn kill_and_start(world: &World, mut relay: KeptRelay<'_>, after_seconds: u64) -> Course {
    under_steady_traffic(world, |steady| {
        let watch = Watch::new(world, steady);
        let ((), course) = watch.during(|| {
            steady.wait_for_more(PER_SIDE);
            relay.kill();
            for _ in 0..after_seconds {
                steady.wait_for_more(PER_SIDE);
            }
            relay.start();
            relay.wait_for_agents(steady);
            steady.wait_for_more(PER_SIDE);
        });
        println!("a kill, and a start after {after_seconds} s: {course}");
        course
    })
}

fn restarts_in_a_row(name: &str, count: u32) {
    let Some(world) = World::new(name) else { return };
    let mut relay = KeptRelay::supervised(&world, NATIVE);
    under_steady_traffic(&world, |steady| {
        let watch = Watch::new(&world, steady);
        let ((), course) = watch.during(|| {
            for _ in 0..count {
                relay.restart();
            }
            relay.wait_for_agents(steady);
            steady.wait_for_more(PER_SIDE);
        });
        println!("{count} restarts: {course}");
        assert_nothing_lost(&course);
    });
}

/// Each packet is accounted for, and the relay has lost none and no session.
fn assert_nothing_lost(course: &Course) {
    course.assert_sound();
    course.assert_sessions_kept(false);
    assert_eq!(course.lost_by(0), 0, "the relay has lost packets: {course}");
}
