//! The userspace datapath across a restart: what arrives meanwhile waits in the sockets, and what does not fit is counted.

use super::kept_relay::KeptRelay;
use super::located::{Stretch, Watch};
use super::steady::{PER_SIDE, under_steady_traffic};
use super::world::{USERSPACE, World};

#[test]
fn a_restart_of_the_userspace_datapath_keeps_every_session_and_counts_every_packet_that_it_loses() {
    const NAME: &str =
        "a_restart_of_the_userspace_datapath_keeps_every_session_and_counts_every_packet_that_it_loses";
    let Some(world) = World::new(NAME) else { return };
    let mut relay = KeptRelay::supervised(&world, USERSPACE);
    under_steady_traffic(&world, |steady| {
        let watch = Watch::new(&world, steady);
        for (what, killed) in [("a restart", false), ("a kill and a start", true)] {
            let ((), course) = watch.during(|| {
                steady.wait_for_more(PER_SIDE);
                if killed {
                    relay.kill();
                    steady.wait_for_more(PER_SIDE);
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
        }
    });
}
