//! Draining: a relay's sessions move to another relay that the agents have not heard of before.

use xtask::answers::RelaySessions;
use xtask::lab::{LabPlan, OTHER_RELAY_GATEWAY_DEVICE, RELAY_GATEWAY_DEVICE};

use super::kept_relay::KeptRelay;
use super::located::{Watch, WatchedRelay};
use super::other_relay::{OTHER, other_relay, relay_at, start_other};
use super::steady::{PER_SIDE, under_steady_traffic};
use super::world::{NATIVE, RELAY, World};

#[test]
fn a_drain_with_a_hint_to_a_second_relay_loses_no_packet_and_no_session() {
    const NAME: &str = "a_drain_with_a_hint_to_a_second_relay_loses_no_packet_and_no_session";
    let plan = LabPlan { other_relay: true, ..LabPlan::default() };
    let Some(world) = World::planned(NAME, &plan, RELAY) else { return };
    let other = other_relay(&world);
    let _other = start_other(&other);
    let mut relay = KeptRelay::supervised(&world, NATIVE);
    under_steady_traffic(&world, |steady| {
        let relays = vec![
            WatchedRelay {
                node: &world.deployment.relay,
                host: &world.lab.relay,
                gateway_device: RELAY_GATEWAY_DEVICE,
            },
            WatchedRelay {
                node: &other,
                host: world.lab.other_relay.as_ref().unwrap(),
                gateway_device: OTHER_RELAY_GATEWAY_DEVICE,
            },
        ];
        let watch = Watch::over(&world, steady, relays);
        let (drained, course) = watch.during(|| {
            steady.wait_for_more(PER_SIDE);
            let hint = relay_at(&other, OTHER);
            let drained = world.deployment.relay.run(&format!("drain --deadline 60s --hint {hint}")).unwrap();
            steady.wait_for_more(PER_SIDE);
            drained
        });
        println!("drained, which said {drained:?}: {course}");
        course.assert_sound();
        assert_eq!(
            [0, 1].map(|number| course.lost_by(number)),
            [0; 2],
            "the relays have lost packets: {course}"
        );
        assert_eq!(course.all_lost(), 0, "{course}");
        assert!(relay.process().ended().unwrap().unwrap().success(), "it has stopped by itself");
        assert_eq!(steady.ends(), [None, None]);
        assert_eq!(steady.sessions().map(|session| session.moves()), [1, 1]);
        let at_other = other.json::<RelaySessions>("net sessions --json").unwrap().sessions;
        let [session] = at_other.try_into().unwrap();
        assert_eq!(session.session, steady.sessions()[0].id().to_string());
    });
}
