//! Who may not use the relay any more when it starts again loses its sessions, and nobody else does.

use std::collections::BTreeMap;

use relay_userspace::identity::NodeId;

use super::hand_agent::{carries, paired};
use super::kept_relay::KeptRelay;
use super::located::Watch;
use super::raw_agents::run_inside;
use super::steady::{PER_SIDE, Steady, under_steady_traffic};
use super::world::{NATIVE, World};

#[test]
fn a_node_that_is_denied_at_a_restart_loses_its_session_and_no_other_does() {
    const NAME: &str = "a_node_that_is_denied_at_a_restart_loses_its_session_and_no_other_does";
    let Some(world) = World::new(NAME) else { return };
    let mut relay = KeptRelay::supervised(&world, NATIVE);
    under_steady_traffic(&world, |steady| {
        restart_refusing(&world, &mut relay, steady, "access_denied", |relay, node| {
            relay.configure("", &format!("[access]\ndeny = [\"{node}\"]\n"));
        });
    });
}

#[test]
fn a_node_that_was_banned_before_a_restart_stays_so_and_loses_its_session() {
    const NAME: &str = "a_node_that_was_banned_before_a_restart_stays_so_and_loses_its_session";
    let Some(world) = World::new(NAME) else { return };
    let mut relay = KeptRelay::supervised(&world, NATIVE);
    let node = &world.deployment.relay;
    under_steady_traffic(&world, |steady| {
        let banned = restart_refusing(&world, &mut relay, steady, "banned", |_, banned| {
            node.run(&format!("bans add {banned} --for 1h")).unwrap();
        });
        let bans = node.run("bans").unwrap();
        assert!(bans.contains(&banned.to_string()), "{bans}");
    });
}

/// Restarts the relay after `refuse` was called with one of the nodes of a session beside the steady traffic's: that session
/// ends for this reason and is forwarded no more. Gives the node.
fn restart_refusing(
    world: &World,
    relay: &mut KeptRelay<'_>,
    steady: &Steady,
    reason: &str,
    refuse: impl FnOnce(&KeptRelay<'_>, NodeId),
) -> NodeId {
    let watch = Watch::new(world, steady);
    let [others] = world.sessions().try_into().unwrap();
    // Its agents say no goodbye: to the relay they are there until long after the restart.
    let ([near, far], node) = run_inside(&world.lab.agents[0], async || {
        let [(_connector, near), (target, far)] = paired().await;
        ([near, far], target.key.node_id())
    });
    let said = relay.log().len();

    let ((), course) = watch.during(|| {
        refuse(relay, node);
        assert!(carries(&near, &far) && carries(&far, &near), "until the restart it goes on");
        relay.restart();
        relay.wait_for_agents(steady);
        steady.wait_for_more(PER_SIDE / 2);
    });

    println!("{reason} at a restart: {course}");
    let expected = [("adopted", 1), (reason, 1)].map(|(word, count)| (word.to_owned(), count));
    assert_eq!(world.status().adopted, BTreeMap::from(expected));
    let said = relay.log().split_off(said);
    let (session, reason) = (near.session(), format!("reason={reason}"));
    assert!(said.lines().any(|line| line.contains(&session) && line.contains(&reason)), "{said}");
    assert!(!carries(&near, &far) && !carries(&far, &near), "it is still forwarded");
    let [left] = world.sessions().try_into().unwrap();
    assert_eq!(left.session, others.session);
    course.assert_sound();
    assert_eq!(course.lost_by(0), 0, "the others have lost packets: {course}");
    assert_eq!(steady.ends(), [None, None]);
    node
}
