//! A relay that is drained, and one that makes way for a successor.

use super::super::*;
use super::splices::{asking, end};
use super::*;
use crate::config::RelayHint;
use crate::protocol::message::Ping;

#[test]
fn every_agent_that_speaks_flow_is_told_once_where_to_move_and_until_when() {
    let mut world = World::new();
    let agents = [1, 2].map(|seed| world.reachable(seed));
    let silent = world.connect(3);
    world.waits(4);
    let order = Drain { within: Some(Duration::from_millis(59_500)), hint: Some(hint(7)) };
    let _session = world.offer(agents[0], 1, 2);
    world.clear();
    world.told_to_drain(order);
    for conn in agents {
        let [told] = &world.drains(conn)[..] else { panic!("{:?}", world.messages) };
        assert_eq!((told.relay.clone(), told.after_s), (Some(hint(7).to_string()), Some(60)));
        assert_eq!(told.session, None);
    }
    assert_eq!(
        world.messages.len(),
        2,
        "who knows the documented messages alone, or has said nothing yet, is not told"
    );
    assert!(world.closed.is_empty() && world.drained.is_empty(), "nothing ends");

    world.message(agents[0], announce(1));
    assert_eq!(world.drains(agents[0]).len(), 1, "it knows");
    world.pass(Duration::from_secs(9));
    world.message(silent, connect(3, 2));
    let [told] = &world.drains(silent)[..] else { panic!("{:?}", world.messages) };
    assert_eq!(told.after_s, Some(51), "what is left of it");
    assert_eq!(world.relay_error_codes(silent), [ErrorCode::Draining.number()]);
    let newcomer = world.connect(5);
    assert_eq!(world.drains(newcomer).len(), 0);
    world.message(newcomer, announce(5));
    assert_eq!(world.drains(newcomer).len(), 1);
}

#[test]
fn a_relay_without_sessions_is_drained_at_once_and_says_so_once() {
    let mut world = World::new();
    let agent = world.reachable(1);
    world.told_to_drain(Drain::default());
    assert_eq!(world.drained, [0]);
    assert_eq!(world.drains(agent).len(), 1, "it hears before");
    world.message(agent, Ping::new(0));
    assert_eq!(world.drained, [0]);
}

#[test]
fn a_relay_is_drained_when_its_last_session_offer_or_pairing_of_streams_is_over() {
    let mut world = World::new();
    let (source, target, session) = world.paired();
    let offer = world.offer(source, 1, 2);
    let waiting = world.waits(3);
    world.message_on(end(source, 1), asking(1, 3));
    assert_eq!(world.splices.len(), 1);
    world.told_to_drain(Drain::default());
    let left = |world: &World| world.rendezvous.drain_status(world.now).unwrap().sessions;
    assert_eq!((left(&world), &world.drained[..]), (3, &[][..]));

    world.message(target, disconnect(Some(offer[1].session)));
    world.lose(waiting);
    assert_eq!((left(&world), &world.drained[..]), (1, &[][..]));
    world.message(source, disconnect(Some(session[0].session)));
    assert_eq!((left(&world), &world.drained[..]), (0, &[0][..]));
}

#[test]
fn at_its_deadline_a_relay_is_drained_whoever_still_uses_it() {
    let mut world = World::new();
    world.paired();
    world.told_to_drain(Drain { within: Some(Duration::from_secs(5)), hint: None });
    let due = world.rendezvous.next_deadline().unwrap();
    assert!(due <= world.now + Duration::from_secs(5));
    world.pass(Duration::from_millis(4_900));
    assert!(world.drained.is_empty());
    world.pass(Duration::from_millis(200));
    assert_eq!(world.drained, [1]);
    assert!(world.rendezvous.next_deadline().is_none_or(|next| next > world.now), "no busy loop");
}

#[test]
fn a_second_drain_replaces_the_values_and_those_told_before_are_told_again() {
    let mut world = World::new();
    let (source, ..) = world.paired();
    world.told_to_drain(Drain { within: Some(Duration::from_secs(5)), hint: Some(hint(7)) });
    world.told_to_drain(Drain { within: None, hint: Some(hint(8)) });
    world.told_to_drain(Drain { within: None, hint: Some(hint(8)) });
    let told: Vec<_> =
        world.drains(source).into_iter().map(|told| (told.relay.clone(), told.after_s)).collect();
    assert_eq!(told, [(Some(hint(7).to_string()), Some(5)), (Some(hint(8).to_string()), None)]);
    world.pass(Duration::from_secs(10));
    assert!(world.drained.is_empty(), "the first deadline counts no more");
    let status = world.rendezvous.drain_status(world.now).unwrap();
    assert_eq!(status, DrainStatus { sessions: 1, left: None, hint: Some(hint(8)) });
}

#[test]
fn a_relay_that_makes_way_tells_every_agent_to_come_back_and_leaves_sessions_and_flows() {
    let mut world = World::new();
    let (source, target, terms) = world.paired();
    let waiting = world.waits(3);
    world.message_on(end(source, 1), asking(1, 3));
    let installed = world.flows.slots.len();
    world.clear();
    world.rendezvous.make_way();
    world.drain();
    assert_eq!(world.ended().len(), 1, "streams are part of a connection");
    for conn in [source, target, waiting] {
        assert_eq!(world.disconnects(conn), [("DISCONNECT_RESTART", None)]);
    }
    assert_eq!(world.closed, [source, target, waiting].map(|conn| (conn, 0)));
    assert_eq!(world.state(&terms), Some(SessionState::Paired));
    assert_eq!(world.flows.slots.len(), installed);
}

impl World {
    fn told_to_drain(&mut self, order: Drain) {
        self.rendezvous.drain(order, self.now);
        self.drain();
    }

    /// What a connection was told of a drain.
    fn drains(&self, conn: ConnId) -> Vec<&Disconnect> {
        let told = self.messages.iter().filter_map(|(to, message)| match message {
            Message::Disconnect(told) if *to == conn && told.reason == disconnect_reason::DRAIN => Some(told),
            _ => None,
        });
        told.collect()
    }
}

fn hint(seed: u8) -> RelayHint {
    format!("{}@198.51.100.{seed}:4433", node(seed)).parse().unwrap()
}
