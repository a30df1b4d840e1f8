//! What is lost under steady traffic is found: the measure of every test that says nothing is.

use xtask::deployment::relay_configuration;
use xtask::tool::Tool;

use super::located::{Stretch, Watch};
use super::steady::{PER_SIDE, under_steady_traffic};
use super::world::{NATIVE, World};

/// More than the traffic, and less than none: the buckets are charged.
const LIMIT: u64 = 100_000_000;

#[test]
fn what_is_lost_under_steady_traffic_is_found_where_it_was_lost() {
    const NAME: &str = "what_is_lost_under_steady_traffic_is_found_where_it_was_lost";
    let Some(world) = World::new(NAME) else { return };
    let _relay = world.deployment.start_relay(Some(LIMIT), NATIVE).unwrap();
    under_steady_traffic(&world, |steady| {
        let watch = Watch::new(&world, steady);

        let ((), course) = watch.during(|| steady.wait_for_more(PER_SIDE));
        println!("nothing happens: {course}");
        course.assert_sound();
        assert_eq!(course.lost_by(0), 0);

        // One in a thousand, and nobody counts them.
        let ((), course) = watch.during(|| {
            let chain = "add chain inet steady lossy { type filter hook forward priority 0; }\n\
                         add rule inet steady lossy meta l4proto udp numgen inc mod 1000 0 drop\n";
            world.lab.nats[1].run(&Tool::new("nft").words("-f -").input(chain)).unwrap();
            steady.wait_for_more(PER_SIDE);
            world.lab.nats[1].run(&Tool::new("nft").words("delete chain inet steady lossy")).unwrap();
        });
        println!("a NAT drops packets: {course}");
        let lost = course.all_lost();
        assert!(
            lost > 0 && course.lost[&Stretch::Nat(1)] == lost && course.unlocated() as i64 == lost,
            "{course}"
        );
        let holes: u64 = course.missing.iter().flatten().map(|missing| missing.count).sum();
        assert_eq!(holes as i64, lost, "{course}");

        // Half of what comes.
        let limit = 64 * PER_SIDE;
        world.deployment.relay.configure(&relay_configuration(limit)).unwrap();
        let ((), course) = watch.during(|| {
            world.deployment.relay.run("config reload").unwrap();
            steady.wait_for_more(2 * PER_SIDE);
        });
        println!("the relay drops packets: {course}");
        course.assert_sound();
        let lost = course.all_lost();
        assert!(lost > 0 && course.lost_by(0) == lost, "{course}");
    });
}
