//! A daemon that does not come back: its sessions end by themselves.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::kept_maps::{maps_of, set_deadlines};
use super::kept_relay::KeptRelay;
use super::steady::{PER_SIDE, under_steady_traffic};
use super::world::{NATIVE, World, wait_for};

/// The lease is five minutes; so much of it is left here.
const LEFT: Duration = Duration::from_secs(3);

#[test]
fn forwarding_stops_within_a_second_of_a_dead_daemons_deadline_and_the_next_start_logs_the_lost_sessions() {
    const NAME: &str = "forwarding_stops_within_a_second_of_a_dead_daemons_deadline_and_the_next_start_logs_the_lost_sessions";
    let Some(world) = World::new(NAME) else { return };
    let mut relay = KeptRelay::supervised(&world, NATIVE);
    under_steady_traffic(&world, |steady| {
        let [session] = world.sessions().try_into().unwrap();
        let maps = maps_of(relay.process());
        relay.kill();
        steady.pause();
        let deadline = set_deadlines(&maps, LEFT);
        let arrived = || steady.arrivals().map(|arrivals| arrivals.datagrams);
        let before = arrived();
        steady.go_on();

        wait_for("the deadline", LEFT * 2, || (Instant::now() > deadline + LEFT).then_some(()));

        let arrived = [0, 1].map(|side| arrived()[side] - before[side]);
        let after_deadline = steady.last_arrivals().map(|last| {
            let last = last.expect("something has arrived");
            last.saturating_duration_since(deadline).as_secs_f64()
                - deadline.saturating_duration_since(last).as_secs_f64()
        });
        println!("arrived after the kill: {arrived:?}, the last one {after_deadline:?} s after the deadline");
        // It was forwarded until then.
        let until_then = LEFT.as_secs() * PER_SIDE / 2;
        assert!(arrived.iter().all(|arrived| *arrived > until_then), "{arrived:?}");
        assert!(after_deadline.iter().all(|after| (-0.5..=1.0).contains(after)), "{after_deadline:?}");

        let said = relay.log().len();
        relay.start();
        let said = relay.log().split_off(said);
        let of_session = said.lines().filter(|line| line.contains(&session.session)).collect::<Vec<_>>();
        println!("the next start says: {of_session:#?}");
        assert!(of_session.iter().any(|line| line.contains("reason=lease_over")), "{said}");
        assert_eq!(world.status().adopted, BTreeMap::from([("lease_over".to_owned(), 1)]));
        assert!(!world.sessions().iter().any(|it| it.session == session.session), "the session is gone");
    });
}
