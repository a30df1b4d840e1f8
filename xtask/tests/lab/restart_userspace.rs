//! The userspace datapath across a restart: what arrives meanwhile waits in the sockets, and what does not fit is counted.

use super::kept_relay::KeptRelay;
use super::located::{Stretch, Watch};
use super::steady::{PER_SIDE, under_steady_traffic};
use super::world::{USERSPACE, World};

/// What each side sends while no daemon runs: the queue of one socket, 8 MiB at 768 bytes and more a datagram, would not hold
/// half of it.
const MEANWHILE: u64 = 3 * PER_SIDE;

#[test]
fn a_restart_of_the_userspace_datapath_keeps_every_session_and_counts_every_packet_that_it_loses() {
    const NAME: &str =
        "a_restart_of_the_userspace_datapath_keeps_every_session_and_counts_every_packet_that_it_loses";
    let Some(world) = World::new(NAME) else { return };
    let mut relay = KeptRelay::supervised(&world, USERSPACE);
    under_steady_traffic(&world, |steady| {
        let watch = Watch::new(&world, steady);
        for (what, killed) in [("a restart", false), ("a kill and a start later", true)] {
            let ((), course) = watch.during(|| {
                steady.wait_for_more(PER_SIDE);
                if killed {
                    // What a daemon that is killed has in its hands nobody can count.
                    steady.pause();
                    relay.kill();
                    steady.go_on();
                    steady.wait_for_more(MEANWHILE);
                    relay.start();
                } else {
                    relay.restart();
                }
                relay.wait_for_agents(steady);
                steady.wait_for_more(PER_SIDE);
            });
            println!("{what}: {course}");
            course.assert_sound();
            course.assert_sessions_kept(killed);
            let reported = world.status().userspace["socket_queue_full"] as i64;
            let lost = course.lost[&Stretch::Relay(0)];
            assert!(reported >= lost, "of {lost} packets {reported} are reported: {course}");
            assert!(!killed || lost > 0, "nothing has overflown: {course}");
        }
    });
}
