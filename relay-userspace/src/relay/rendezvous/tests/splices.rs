use std::collections::BTreeSet;

use super::super::splices::MAX_WAITING_STREAMS;
use super::super::*;
use super::*;
use crate::protocol::flow_terms::ReadyStatus;

/// As an agent says it that knows only the documented messages.
fn waiting(seed: u8) -> RelayAnnounce {
    RelayAnnounce { flow: None, ..announce(seed) }
}

pub(super) fn asking(source: u8, target: u8) -> RelayConnect {
    RelayConnect { flow: None, ..connect(source, target) }
}

pub(super) fn end(conn: ConnId, stream: u32) -> StreamEnd {
    StreamEnd { conn, stream: StreamNumber(stream) }
}

impl World {
    pub(super) fn message_on(&mut self, end: StreamEnd, message: impl Into<Message>) {
        self.rendezvous.received_on(end, message.into(), &mut self.flows, &mut self.randomness, self.now);
        self.drain();
    }

    fn stream_over(&mut self, end: StreamEnd) {
        self.rendezvous.stream_over(end);
        self.drain();
    }

    /// Connects node `seed`, which waits on its first stream.
    pub(super) fn waits(&mut self, seed: u8) -> ConnId {
        let conn = self.connect(seed);
        self.message(conn, waiting(seed));
        self.messages.clear();
        conn
    }

    fn is_announced(&self, seed: u8) -> bool {
        self.rendezvous.peers(self.now).iter().any(|peer| peer.node == node(seed) && peer.announced)
    }

    /// The only pairing of streams.
    fn spliced(&self) -> SessionId {
        let [splice] = &self.rendezvous.splices(self.now)[..] else { panic!("one pairing") };
        splice.session
    }
}

#[test]
fn a_stream_that_waits_is_joined_to_the_one_that_asks_and_only_the_asking_agent_is_told() {
    let mut world = World::new();
    let target = world.waits(2);
    let source = world.connect(1);
    world.message_on(end(source, 3), asking(1, 2));
    let ready = RelayReady::documented(ReadyStatus::Ready, Some(node(2)));
    assert_eq!((&world.ready[..], world.messages.len()), (&[ready][..], 0));
    let session = world.spliced();
    assert_eq!(world.splices, [(session, [end(source, 3), end(target, 0)])]);
    let told = world.events.iter().filter(|event| matches!(event, Event::Spliced { .. })).count();
    assert_eq!(told, 1, "the log says so once");
    let [splice] = &world.rendezvous.splices(world.now)[..] else { panic!() };
    assert_eq!((splice.connector, splice.target, splice.limit), (node(1), node(2), LIMIT));
    assert_eq!(splice.addresses, [Some(addr("203.0.113.1:1000")), Some(addr("203.0.113.2:1000"))]);
    assert!(world.flows.slots.is_empty(), "no datagrams are forwarded for it");
}

#[test]
fn one_pairing_takes_one_waiting_stream_the_oldest_first() {
    let mut world = World::new();
    let target = world.waits(2);
    world.message_on(end(target, 5), waiting(2));
    let source = world.connect(1);
    for stream in 1..=3 {
        world.message_on(end(source, stream), asking(1, 2));
    }
    let taken: Vec<StreamEnd> = world.splices.iter().map(|(_, [_, taken])| *taken).collect();
    assert_eq!(taken, [end(target, 0), end(target, 5)]);
    // To the third it is as absent as one that never announced itself.
    assert_eq!(world.relay_error_codes(source), [3001]);
    assert!(!world.is_announced(2));
    world.message_on(end(target, 6), waiting(2));
    assert!(world.is_announced(2));
    world.message_on(end(source, 3), asking(1, 2));
    assert_eq!(world.splices[2].1, [end(source, 3), end(target, 6)]);
}

#[test]
fn a_stream_announced_twice_waits_once() {
    let mut world = World::new();
    let target = world.waits(2);
    world.message(target, waiting(2));
    let source = world.connect(1);
    world.message_on(end(source, 1), asking(1, 2));
    world.message_on(end(source, 2), asking(1, 2));
    assert_eq!((world.splices.len(), world.relay_error_codes(source)), (1, vec![3001]));
}

#[test]
fn a_stream_that_has_ended_waits_no_more() {
    let mut world = World::new();
    let target = world.waits(2);
    world.stream_over(end(target, 0));
    assert!(!world.is_announced(2));
    let source = world.connect(1);
    world.message_on(end(source, 1), asking(1, 2));
    assert_eq!((world.splices.len(), world.relay_error_codes(source)), (0, vec![3001]));
}

#[test]
fn an_agent_that_speaks_flows_may_wait_on_streams_of_its_own_as_well() {
    let mut world = World::new();
    let target = world.connect(2);
    world.message(target, RelayAnnounce { allow: Some(vec![node(1).to_string()]), ..announce(2) });
    world.message_on(end(target, 1), waiting(2));
    let source = world.connect(1);
    world.offer(source, 1, 2);
    world.message_on(end(source, 1), asking(1, 2));
    assert_eq!(world.splices.len(), 1);
    assert!(world.is_announced(2), "it still takes flows");
    // Its allow list holds for streams too.
    world.message_on(end(target, 2), waiting(2));
    let other = world.connect(3);
    world.message_on(end(other, 1), asking(3, 2));
    assert_eq!((world.relay_error_codes(other), world.refusals(Refusal::TargetDenies)), (vec![3001], 1));
}

#[test]
fn what_was_read_of_a_stream_before_it_was_joined_is_not_answered() {
    let mut world = World::new();
    let target = world.waits(2);
    let other = world.waits(3);
    let source = world.connect(1);
    world.message_on(end(source, 1), asking(1, 2));
    world.clear();
    // Both have asked at the same time: the target's question comes a moment later.
    world.message_on(end(target, 0), asking(2, 3));
    world.message_on(end(target, 0), waiting(2));
    assert!(world.messages.is_empty() && world.splices.is_empty());
    // On another stream it is heard.
    world.message_on(end(target, 1), asking(2, 3));
    assert_eq!(world.splices[0].1, [end(target, 1), end(other, 0)]);
}

#[test]
fn nothing_unasked_is_sent_on_a_first_stream_that_waits_or_was_joined() {
    let mut world = World::new();
    world.waits(2);
    let source = world.connect(1);
    world.message_on(end(source, 1), asking(1, 2));
    world.clear();
    for _ in 0..5 {
        world.pass(seconds(60));
    }
    let asked: BTreeSet<ConnId> = world.pings.iter().copied().collect();
    assert_eq!(asked, BTreeSet::from([source]), "the target is not asked for a sign of life, nor given up");
    assert!(world.closed.iter().all(|(conn, _)| *conn == source));
}

#[test]
fn a_pairing_of_streams_counts_as_a_session_of_both_nodes_until_it_is_over() {
    let mut world = World::new();
    let target = world.waits(2);
    let source = world.connect(1);
    for stream in 1..=5 {
        world.message_on(end(target, stream), waiting(2));
        world.message_on(end(source, stream), asking(1, 2));
    }
    assert_eq!(world.splices.len(), 4);
    assert_eq!((world.relay_error_codes(source), world.refusals(Refusal::PairSessions)), (vec![3005], 1));
    // Nor is there room for one by datagrams.
    world.message(target, announce(2));
    world.message(source, connect(1, 2));
    assert_eq!(world.refusals(Refusal::PairSessions), 2);
    let traffic = Traffic { limited_packets: 7, ..Traffic::default() };
    let (session, _) = world.splices[0];
    world.pass(seconds(3));
    world.rendezvous.spliced_over(session, EndReason::Left(Side::Target), traffic, world.now);
    world.drain();
    let ended = Event::Ended {
        session,
        connector: node(1),
        target: node(2),
        reason: EndReason::Left(Side::Target),
        age: seconds(3),
        traffic,
    };
    assert!(world.events.contains(&ended), "{:?}", world.events);
    world.message_on(end(source, 9), asking(1, 2));
    assert_eq!(world.splices.len(), 5);
}

#[test]
fn a_node_has_as_many_pairings_of_streams_as_sessions_and_no_more() {
    let mut world = World::new();
    let target = world.waits(200);
    for number in 0..65_u8 {
        let source = world.connect(1 + number);
        world.message_on(end(target, 1 + u32::from(number)), waiting(200));
        world.message_on(end(source, 0), asking(1 + number, 200));
    }
    assert_eq!((world.splices.len(), world.refusals(Refusal::TargetSessions)), (64, 1));
}

#[test]
fn a_connection_has_a_bounded_number_of_waiting_streams() {
    let mut world = World::new();
    let target = world.connect(2);
    for stream in 0..=MAX_WAITING_STREAMS as u32 {
        world.message_on(end(target, stream), waiting(2));
    }
    assert_eq!((world.relay_error_codes(target), world.refusals(Refusal::WaitingStreams)), (vec![3005], 1));
    assert!(world.closed.is_empty());
}

#[test]
fn a_lost_connection_ends_its_pairings_and_forgets_its_waiting_streams() {
    let mut world = World::new();
    let target = world.waits(2);
    world.message_on(end(target, 1), waiting(2));
    let source = world.connect(1);
    world.message_on(end(source, 1), asking(1, 2));
    world.lose(target);
    assert_eq!(world.ended(), [EndReason::Left(Side::Target)]);
    assert!(world.rendezvous.splices(world.now).is_empty());
    world.message_on(end(source, 2), asking(1, 2));
    assert_eq!(world.relay_error_codes(source), [3001]);
    world.lose(source);
    assert_eq!(world.rendezvous.nodes.iter().count(), 0, "nobody is remembered");
}

#[test]
fn a_relay_that_stops_ends_all_pairings() {
    let mut world = World::new();
    world.waits(2);
    let source = world.connect(1);
    world.message_on(end(source, 1), asking(1, 2));
    world.rendezvous.shut_down(&mut world.flows, world.now);
    world.drain();
    assert_eq!(world.ended(), [EndReason::Shutdown]);
}

#[test]
fn an_absent_target_and_one_that_denies_the_source_answer_alike_to_streams_too() {
    let mut world = World::new();
    let source = world.connect(1);
    world.message_on(end(source, 1), asking(1, 2));
    let target = world.connect(2);
    world.message(target, RelayAnnounce { allow: Some(vec![]), ..waiting(2) });
    world.message_on(end(source, 1), asking(1, 2));
    world.message(target, RelayAnnounce { allow: Some(vec![]), ..announce(2) });
    world.message_on(end(source, 1), asking(1, 2));
    let answers = world.relay_errors(source);
    assert_eq!(answers.len(), 3);
    assert!(answers.iter().all(|answer| *answer == answers[0] && answer.code == 3001), "{answers:?}");
}

#[test]
fn pairings_of_streams_count_for_the_prefix_and_are_refused_when_the_relay_drains() {
    let mut world = World::new();
    world.policy(|policy| policy.sessions_per_prefix = 1);
    for target in [2, 3] {
        world.waits(target);
    }
    let source = world.connect(1);
    world.message_on(end(source, 1), asking(1, 2));
    let session = world.spliced();
    world.message_on(end(source, 2), asking(1, 3));
    assert_eq!((world.relay_error_codes(source), world.refusals(Refusal::PrefixSessions)), (vec![3005], 1));
    world.rendezvous.spliced_over(session, EndReason::Idle, Traffic::default(), world.now);
    world.rendezvous.drain(Drain::default(), world.now);
    world.message_on(end(source, 3), asking(1, 3));
    assert_eq!((world.relay_error_codes(source), world.refusals(Refusal::Draining)), (vec![3005, 3006], 1));
    assert_eq!(world.rendezvous.sessions.prefixes().iter().count(), 0);
}

#[test]
fn the_operator_ends_pairings_of_streams_as_he_does_sessions() {
    let mut world = World::new();
    world.waits(2);
    world.waits(3);
    let source = world.connect(1);
    world.message_on(end(source, 1), asking(1, 2));
    let session = world.spliced();
    world.message_on(end(source, 2), asking(1, 3));
    assert!(world.rendezvous.end_by_operator(session, &mut world.flows, world.now));
    world.drain();
    assert_eq!(world.ended(), [EndReason::Operator]);
    assert_eq!(world.rendezvous.end_all_by_operator(&node(1), &mut world.flows, world.now), 1);
    world.drain();
    assert_eq!(world.ended(), [EndReason::Operator; 2]);
    assert!(world.rendezvous.splices(world.now).is_empty());
}

#[test]
fn what_joined_streams_carry_counts_towards_the_limit_of_all_sessions() {
    const MB: u64 = 1_000_000;
    let mut world = World::new();
    world.policy(|policy| policy.relay_total_limit = MB);
    let target = world.waits(2);
    world.message_on(end(target, 1), waiting(2));
    let source = world.connect(1);
    world.message_on(end(source, 1), asking(1, 2));
    for _ in 0..6 {
        world.pass(seconds(1));
        world.rendezvous.spliced_bytes(2 * MB, world.now);
    }
    world.message_on(end(source, 2), asking(1, 2));
    assert_eq!((world.relay_error_codes(source), world.refusals(Refusal::TotalLimit)), (vec![3005], 1));
    world.pass(seconds(10));
    world.message_on(end(source, 2), asking(1, 2));
    assert_eq!(world.splices.len(), 2);
}
