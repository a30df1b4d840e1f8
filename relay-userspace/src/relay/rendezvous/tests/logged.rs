//! What the log and the metrics have of a session's life.

use std::collections::BTreeSet;

use serde_json::Value;

use super::*;
use crate::relay::event_log::EventLog;
use crate::relay::rendezvous::{Counts, Restrained};
use crate::relay::written::Written;

#[test]
fn every_line_of_a_sessions_life_has_its_id_and_says_one_thing() {
    let mut world = World::new();
    let source = world.connect(1);
    world.reachable(2);
    let terms = world.offer(source, 1, 2);
    let session = terms[0].session;
    for (terms, at) in terms.iter().zip([A, B]) {
        world.bind(terms, at, 1);
    }
    world.pass(seconds(2));
    world.bind(&terms[0], "203.0.113.77:9", 2);
    let slot = world.slot();
    for dropped in [10, 25] {
        let traffic = &mut world.flows.slots.get_mut(&slot).unwrap().traffic;
        (traffic.limited_packets, traffic.limited_bytes) = (dropped, dropped * 1_200);
        world.pass(seconds(3));
    }
    world.message(source, disconnect(Some(session)));

    let lines = logged(&world.events, world.now);
    let of_session: Vec<&Value> =
        lines.iter().filter(|line| line["session"] == session.to_string()).collect();
    let said: Vec<&str> = of_session.iter().map(|line| line["message"].as_str().unwrap()).collect();
    assert_eq!(
        said,
        [
            "session offered",
            "side bound",
            "side bound",
            "session paired",
            "side moved",
            "the limit drops packets of the session",
            "session ended",
        ]
    );
    let with_session: BTreeSet<&str> = said.iter().copied().collect();
    for line in &lines {
        let message = line["message"].as_str().unwrap();
        assert!(!message.contains("session") || with_session.contains(message), "{line}");
    }
    let last = of_session.last().unwrap();
    assert_eq!((&last["target"], &last["reason"]), (&node(2).to_string().into(), &"connector_left".into()));
    assert_eq!((&last["limited_packets"], &last["limited_bytes"]), (&25.into(), &30_000.into()));
}

#[test]
fn what_limits_do_to_all_sessions_is_counted_once_whatever_becomes_of_them() {
    let mut world = World::new();
    let (source, _, terms) = world.paired();
    let slot = world.slot();
    let restrained = |world: &World| world.rendezvous.counts().restrained;
    let restrained_by = |packets| Restrained { limited_packets: packets, limited_bytes: packets * 100 };
    let drop_so_far = |world: &mut World, packets| {
        let traffic = &mut world.flows.slots.get_mut(&slot).unwrap().traffic;
        (traffic.limited_packets, traffic.limited_bytes) = (packets, packets * 100);
    };
    for limited in [0, 10, 25] {
        drop_so_far(&mut world, limited);
        world.pass(seconds(3));
        assert_eq!(restrained(&world), restrained_by(limited));
    }
    // What comes between the last look and the end.
    drop_so_far(&mut world, 27);
    world.message(source, disconnect(Some(terms[0].session)));
    let expected = restrained_by(27);
    let counts =
        Counts { connections: 2, announced: 1, sessions_and_offers: 0, spliced: 0, restrained: expected };
    assert_eq!(world.rendezvous.counts(), counts);
}

/// The lines of events as JSON.
fn logged(events: &[Event], now: MonoTime) -> Vec<Value> {
    let written = Written::default();
    let to = written.clone();
    let log = tracing_subscriber::fmt().json().flatten_event(true).with_target(false);
    let log = log.with_writer(move || to.clone()).finish();
    tracing::subscriber::with_default(log, || {
        let mut log = EventLog::default();
        events.iter().for_each(|event| log.log(event, now));
    });
    written.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
