//! Tests under simulated time.

mod drains;
mod moves;
mod two_agents;

use relay_common::Side;

use super::moves::MOVE_WITHIN;
use super::sessions::Part;
use super::*;
use crate::protocol::bind::{BindEvent, PathHealth};
use crate::protocol::flow_terms::{RelayConnect, RelayError, RelayReady};

#[test]
fn an_announcing_agent_announces_its_accept_list_and_takes_a_session_from_it() {
    let mut agent = agent(true, 1);
    agent.state.relay_up(RelayIndex(0), NOW);
    let [Output::Send(RelayIndex(0), Message::RelayAnnounce(announce))] = &agent.outputs()[..] else {
        panic!()
    };
    assert_eq!(announce.flow, Some(1));
    assert_eq!(announce.allow, Some(vec![peer().to_string()]));
    agent.ready(Side::Target, peer());
    let [Output::Start { terms, .. }] = &agent.outputs()[..] else { panic!() };
    assert_eq!(terms.session, SESSION);
}

#[test]
fn a_peer_that_is_not_accepted_is_refused_and_the_relay_told() {
    let mut agent = agent(true, 1);
    agent.up(0);
    let stranger = NodeId::from_bytes([66; 32]);
    agent.ready(Side::Target, stranger);
    let outputs = agent.outputs();
    let [
        Output::Refused { refusal: Refusal::PeerNotAccepted, whom, why },
        Output::Send(_, Message::Disconnect(refusal)),
    ] = &outputs[..]
    else {
        panic!("{outputs:?}")
    };
    assert_eq!(refusal.session, Some(SESSION));
    assert_eq!(*whom, stranger.to_string());
    assert!(why.ends_with(&format!("[agent] accept = [\"{stranger}\"]")), "{why}");
}

#[test]
fn another_accept_list_is_announced_and_ends_the_sessions_of_whom_it_leaves_out() {
    let mut agent = agent(true, 2);
    agent.up(0);
    assert!(agent.takes(RelayIndex(0), 1, peer()));
    let newcomer = NodeId::from_bytes([66; 32]);
    agent.state.set_accept([newcomer].into(), NOW);
    let outputs = agent.outputs();
    let [
        Output::Send(RelayIndex(0), Message::RelayAnnounce(announce)),
        Output::Send(RelayIndex(0), Message::Disconnect(told)),
        Output::End(ended, SessionEnd::NoLongerAccepted),
    ] = &outputs[..]
    else {
        panic!("{outputs:?}")
    };
    assert_eq!(announce.allow, Some(vec![newcomer.to_string()]));
    assert_eq!((told.session, *ended), (Some(SessionId([1; 16])), SessionId([1; 16])));
    assert!(agent.takes(RelayIndex(0), 2, newcomer));
    assert!(!agent.takes(RelayIndex(0), 3, peer()));
    agent.state.set_accept([newcomer].into(), NOW);
    assert!(agent.outputs().is_empty(), "nothing has changed");
}

#[test]
fn a_dialing_process_leaves_sessions_it_did_not_ask_for_alone() {
    let mut agent = agent(false, 1);
    agent.up(0);
    agent.ready(Side::Target, peer());
    agent.ready(Side::Connector, peer());
    assert!(agent.outputs().is_empty());
}

#[test]
fn connect_asks_binds_and_is_connected_when_paired() {
    let mut agent = agent(false, 1);
    agent.state.connect(RequestId(1), peer(), Use::EndToEnd, NOW);
    assert!(agent.outputs().is_empty(), "no relay is up yet");
    agent.state.relay_up(RelayIndex(0), NOW);
    let [Output::Send(_, Message::RelayConnect(connect))] = &agent.outputs()[..] else { panic!() };
    assert_eq!((connect.target_id.as_str(), connect.flow), (peer().to_string().as_str(), Some(1)));
    agent.ready(Side::Connector, peer());
    assert!(matches!(agent.outputs()[..], [Output::Start { .. }]));
    agent.paired();
    assert!(matches!(agent.outputs()[..], [Output::Paired(_), Output::Connected(RequestId(1), SESSION)]));

    agent.state.connect(RequestId(2), peer(), Use::EndToEnd, NOW);
    assert!(
        matches!(agent.outputs()[..], [Output::Connected(RequestId(2), SESSION)]),
        "the session is shared"
    );
    agent.state.user_gone(SESSION, NOW);
    assert!(agent.outputs().is_empty());
    agent.state.user_gone(SESSION, NOW);
    let [Output::Send(_, Message::Disconnect(told)), Output::End(SESSION, SessionEnd::Closed)] =
        &agent.outputs()[..]
    else {
        panic!()
    };
    assert_eq!(told.session, Some(SESSION));
}

#[test]
fn a_refusal_moves_on_to_the_next_relay_and_the_first_one_is_told_in_the_end() {
    let mut agent = agent(false, 2);
    agent.up(0);
    agent.up(1);
    agent.state.connect(RequestId(1), peer(), Use::EndToEnd, NOW);
    assert!(matches!(agent.outputs()[..], [Output::Send(RelayIndex(0), Message::RelayConnect(_))]));
    agent.refuse(0, 3001);
    assert!(matches!(agent.outputs()[..], [Output::Send(RelayIndex(1), Message::RelayConnect(_))]));
    agent.refuse(1, 3002);
    let [Output::Failed(RequestId(1), ConnectError::Refused { relay, code: 3001, .. })] =
        &agent.outputs()[..]
    else {
        panic!()
    };
    assert_eq!(relay, "relay0:4433");
}

#[test]
fn a_request_fails_at_once_when_every_relay_has_failed_and_says_why() {
    let mut agent = agent(false, 2);
    agent.state.connect(RequestId(1), peer(), Use::EndToEnd, NOW);
    agent.state.relay_down(RelayIndex(0), "no route".into(), NOW);
    assert!(agent.outputs().is_empty(), "the second relay may still come");
    agent.state.relay_down(RelayIndex(1), "no answer".into(), NOW);
    let [Output::Failed(_, error)] = &agent.outputs()[..] else { panic!() };
    assert_eq!(error.to_string(), "no relay can be reached: relay0:4433: no route; relay1:4433: no answer");
}

#[test]
fn a_request_is_given_up_after_ten_seconds_with_the_stage_it_had_reached() {
    let mut agent = agent(false, 1);
    agent.up(0);
    agent.state.connect(RequestId(1), peer(), Use::EndToEnd, NOW);
    agent.outputs();
    assert_eq!(agent.state.deadline(), Some(NOW.mono + PAIRING_TIMEOUT));
    agent.state.tick(later(PAIRING_TIMEOUT));
    assert!(matches!(agent.outputs()[..], [Output::Failed(_, ConnectError::RelaySilent { .. })]));

    agent.state.connect(RequestId(2), peer(), Use::EndToEnd, NOW);
    agent.ready(Side::Connector, peer());
    agent.outputs();
    agent.state.tick(later(PAIRING_TIMEOUT));
    let outputs = agent.outputs();
    assert!(
        matches!(outputs[0], Output::Failed(RequestId(2), ConnectError::NotPaired { .. })),
        "{outputs:?}"
    );
    assert!(matches!(outputs[2], Output::End(SESSION, SessionEnd::NotPaired)), "{outputs:?}");
}

#[test]
fn requests_for_one_peer_share_one_question_and_its_answer() {
    let mut agent = agent(false, 1);
    agent.up(0);
    for id in [1, 2] {
        agent.state.connect(RequestId(id), peer(), Use::EndToEnd, NOW);
    }
    assert!(matches!(agent.outputs()[..], [Output::Send(_, Message::RelayConnect(_))]));
    agent.ready(Side::Connector, peer());
    agent.paired();
    let outputs = agent.outputs();
    assert!(
        matches!(outputs[2..], [Output::Connected(RequestId(1), _), Output::Connected(RequestId(2), _)]),
        "{outputs:?}"
    );
}

#[test]
fn a_session_that_is_paired_after_everybody_gave_up_is_ended() {
    let mut agent = agent(false, 1);
    agent.up(0);
    agent.state.connect(RequestId(1), peer(), Use::EndToEnd, NOW);
    agent.state.message(RelayIndex(0), ready_at_the_last_moment(), later(PAIRING_TIMEOUT / 2));
    agent.state.tick(later(PAIRING_TIMEOUT));
    agent.outputs();
    agent.paired();
    assert!(matches!(agent.outputs()[..], [Output::Send(..), Output::End(SESSION, SessionEnd::Closed)]));
}

#[test]
fn each_raw_request_has_a_session_of_its_own() {
    let mut agent = agent(false, 1);
    agent.up(0);
    for id in [1, 2] {
        agent.state.connect(RequestId(id), peer(), Use::Raw, NOW);
    }
    assert_eq!(agent.outputs().len(), 2);
    agent.ready(Side::Connector, peer());
    agent.paired();
    let outputs = agent.outputs();
    assert!(matches!(outputs[..], [_, _, Output::Connected(RequestId(1), SESSION)]), "{outputs:?}");
}

#[test]
fn terms_sent_again_change_the_session_and_nobody_elses() {
    let mut agent = connected();
    agent.ready(Side::Connector, peer());
    assert!(matches!(agent.outputs()[..], [Output::Update(_)]));
    agent.ready(Side::Connector, NodeId::from_bytes([66; 32]));
    assert!(agent.outputs().is_empty());
}

#[test]
fn a_session_outlives_its_relay_connection_and_ends_when_consent_does() {
    let mut agent = connected();
    agent.state.relay_down(RelayIndex(0), "idle".into(), NOW);
    assert!(agent.outputs().is_empty());
    agent.state.bind_event(SESSION, BindEvent::Path(PathHealth::Silent), NOW);
    agent.state.bind_event(SESSION, BindEvent::Lost, later(MOVE_WITHIN));
    let outputs = agent.outputs();
    assert!(
        matches!(&outputs[1], Output::End(SESSION, SessionEnd::ConsentLost { relay }) if relay == "relay0:4433")
    );
}

#[test]
fn a_restart_of_the_relay_ends_and_moves_nothing_and_what_is_asked_for_meanwhile_waits() {
    let mut agent = connected_through_the_first_of(2);
    agent.state.relay_restarts(RelayIndex(0), NOW);
    agent.state.relay_restarts(RelayIndex(1), NOW);
    agent.state.connect(RequestId(2), NodeId::from_bytes([7; 32]), Use::Raw, NOW);
    assert!(agent.outputs().is_empty());
    agent.state.relay_up(RelayIndex(0), later(Duration::from_secs(1)));
    assert!(matches!(agent.outputs()[..], [Output::Send(RelayIndex(0), Message::RelayConnect(_))]));
    agent.ready(Side::Connector, peer());
    assert!(matches!(agent.outputs()[..], [Output::Update(_)]), "the session is the one it was");
}

#[test]
fn disconnect_with_a_session_ends_that_one_and_says_why() {
    for (reason, end) in [
        (disconnect_reason::IDLE, SessionEnd::Idle),
        (disconnect_reason::SHUTDOWN, SessionEnd::RelayStops),
        (disconnect_reason::PEER_GONE, SessionEnd::PeerGone { note: Some("n".into()) }),
        (disconnect_reason::CONSENT_LOST, SessionEnd::SideSilent { note: Some("n".into()) }),
        ("OTHER\x07", SessionEnd::ByRelay { reason: "OTHER".into(), note: Some("n".into()) }),
    ] {
        let mut agent = connected();
        let told = Disconnect::new(reason, Some("n".into()), Some(SESSION));
        agent.state.message(RelayIndex(0), told.into(), NOW);
        // A relay that stops may be back in a moment.
        agent.state.tick(later(MOVE_WITHIN));
        let [Output::End(SESSION, ended)] = &agent.outputs()[..] else { panic!() };
        assert_eq!(*ended, end);
    }
}

#[test]
fn a_relay_has_no_say_in_another_relays_sessions() {
    let said: [Message; 4] = [
        Disconnect::new(disconnect_reason::IDLE, None, Some(SESSION)).into(),
        ErrorMessage {
            session: Some(SESSION),
            packets: Some(1),
            bytes: Some(1),
            ..ErrorMessage::new(ErrorCode::RateLimited, "m")
        }
        .into(),
        RelayError { code: 3007, message: "m".into(), target_id: None, session: Some(SESSION) }.into(),
        RelayReady::with_terms(&terms(Side::Connector, peer())).into(),
    ];
    for message in said {
        let mut agent = connected_through_the_first_of(2);
        agent.state.message(RelayIndex(1), message.clone(), NOW);
        let outputs = agent.outputs();
        assert!(outputs.is_empty(), "{message:?} led to {outputs:?}");
        agent.state.message(RelayIndex(0), message.clone(), NOW);
        assert!(!agent.outputs().is_empty(), "{message:?} counts from its own relay");
    }
}

#[test]
fn a_target_drops_a_session_that_nobody_uses() {
    let mut agent = agent(true, 1);
    agent.up(0);
    agent.outputs();
    agent.ready(Side::Target, peer());
    agent.paired();
    agent.outputs();
    agent.state.user_came(SESSION);
    assert!(agent.state.deadline().unwrap() > NOW.mono + UNUSED_TARGET);
    agent.state.user_gone(SESSION, NOW);
    agent.state.tick(later(UNUSED_TARGET));
    assert!(matches!(agent.outputs()[1], Output::End(SESSION, SessionEnd::Closed)));
}

#[test]
fn a_raw_session_that_the_application_does_not_take_is_dropped_too() {
    let mut agent = agent_that_takes(Use::Raw, true, 1);
    agent.up(0);
    agent.ready(Side::Target, peer());
    agent.paired();
    agent.outputs();
    assert!(agent.state.deadline() <= Some(NOW.mono + UNUSED_TARGET));
    agent.state.tick(later(UNUSED_TARGET));
    assert!(matches!(agent.outputs()[1], Output::End(SESSION, SessionEnd::Closed)));
}

#[test]
fn a_peer_has_a_few_sessions_at_a_time_and_further_ones_are_refused() {
    let mut agent = agent(true, 2);
    agent.up(0);
    agent.up(1);
    for number in 0..4 {
        assert!(agent.takes(RelayIndex(usize::from(number) % 2), number, peer()));
    }
    for relay in [0, 1] {
        assert!(!agent.takes(RelayIndex(relay), 4, peer()), "whichever relay offers it");
    }
    let ended = Disconnect::new("", None, Some(SessionId([0; 16])));
    agent.state.message(RelayIndex(0), ended.into(), NOW);
    agent.outputs();
    assert!(agent.takes(RelayIndex(0), 5, peer()), "there is room again");
}

#[test]
fn all_peers_together_have_no_more_sessions_than_the_agent_takes() {
    let peers: Vec<NodeId> = (2..=100).map(|byte| NodeId::from_bytes([byte; 32])).collect();
    let mut agent = agent(true, 1);
    agent.state.accept = peers.iter().copied().collect();
    agent.up(0);
    let taken = (0..).zip(&peers).filter(|(number, peer)| agent.takes(RelayIndex(0), *number, **peer));
    assert_eq!(taken.count(), MAX_TARGET_SESSIONS);
}

#[test]
fn pings_go_out_every_minute_and_three_unanswered_ones_end_the_connection() {
    let mut agent = agent(false, 1);
    agent.up(0);
    for minute in 1..=3 {
        agent.state.tick(later(minute * PING_INTERVAL));
        assert!(matches!(agent.outputs()[..], [Output::Send(_, Message::Ping(_))]));
    }
    agent.state.tick(later(4 * PING_INTERVAL));
    assert!(matches!(agent.outputs()[..], [Output::Send(_, Message::Disconnect(_)), Output::Reconnect(_)]));

    agent.up(0);
    for minute in 1..=9 {
        agent.state.tick(later(minute * PING_INTERVAL));
        agent.state.message(RelayIndex(0), Pong::new(0, 0).into(), NOW);
        assert!(matches!(agent.outputs()[..], [Output::Send(_, Message::Ping(_))]));
    }
}

#[test]
fn pings_are_answered_and_messages_for_relays_refused() {
    let mut agent = agent(false, 1);
    agent.up(0);
    agent.state.message(RelayIndex(0), Ping::new(7).into(), NOW);
    let connect =
        RelayConnect { source_id: String::new(), target_id: String::new(), timestamp: None, flow: None };
    agent.state.message(RelayIndex(0), connect.into(), NOW);
    let [
        Output::Send(_, Message::Pong(pong)),
        Output::Send(_, Message::Error(error)),
        Output::Refused { refusal: Refusal::UnexpectedMessage, .. },
    ] = &agent.outputs()[..]
    else {
        panic!()
    };
    assert_eq!((pong.echo, error.code), (7, 2003));
}

#[test]
fn stopping_ends_everything_and_says_goodbye() {
    let mut agent = connected();
    agent.state.connect(RequestId(9), NodeId::from_bytes([7; 32]), Use::Raw, NOW);
    agent.outputs();
    agent.state.stop(NOW);
    let outputs = agent.outputs();
    assert!(
        matches!(&outputs[0], Output::Send(_, Message::Disconnect(told)) if told.session == Some(SESSION))
    );
    assert!(matches!(outputs[1], Output::End(SESSION, SessionEnd::Stopped)));
    assert!(matches!(outputs[2], Output::Failed(RequestId(9), ConnectError::Stopped)));
    assert!(matches!(&outputs[3], Output::Send(_, Message::Disconnect(told)) if told.session.is_none()));
}

const NOW: Now = Now { mono: MonoTime(1_000_000_000), unix_s: 1_712_150_400 };
const SESSION: SessionId = SessionId([5; 16]);

struct Agent {
    state: State,
}

impl Agent {
    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.state.next_output()).collect()
    }

    fn up(&mut self, relay: usize) {
        self.state.relay_up(RelayIndex(relay), NOW);
        self.outputs();
    }

    fn ready(&mut self, side: Side, peer: NodeId) {
        let ready = RelayReady::with_terms(&terms(side, peer));
        self.state.message(RelayIndex(0), ready.into(), NOW);
    }

    /// Whether a session that a peer asks for is begun; otherwise the relay is told that it is not.
    fn takes(&mut self, relay: RelayIndex, number: u8, peer: NodeId) -> bool {
        let terms = FlowTerms { session: SessionId([number; 16]), ..terms(Side::Target, peer) };
        self.state.message(relay, RelayReady::with_terms(&terms).into(), NOW);
        match &self.outputs()[..] {
            [Output::Start { .. }] => true,
            [Output::Refused { .. }, Output::Send(to, Message::Disconnect(refusal))] => {
                assert_eq!((*to, refusal.session), (relay, Some(terms.session)));
                false
            }
            other => panic!("{other:?}"),
        }
    }

    fn paired(&mut self) {
        let reflexive = "192.0.2.1:1".parse().unwrap();
        self.state.bind_event(SESSION, BindEvent::Paired { reflexive }, NOW);
    }

    fn refuse(&mut self, relay: usize, code: u32) {
        let error =
            RelayError { code, message: "m".into(), target_id: Some(peer().to_string()), session: None };
        self.state.message(RelayIndex(relay), error.into(), NOW);
    }
}

fn agent(announce: bool, relays: usize) -> Agent {
    agent_that_takes(Use::EndToEnd, announce, relays)
}

fn agent_that_takes(carries: Use, announce: bool, relays: usize) -> Agent {
    let incoming = IncomingSessions { carries, per_peer: 4 };
    let names = (0..relays).map(|at| format!("relay{at}:4433")).collect();
    Agent { state: State::new(NodeId::from_bytes([1; 32]), announce, [peer()], incoming, names) }
}

fn connected() -> Agent {
    connected_through_the_first_of(1)
}

fn connected_through_the_first_of(relays: usize) -> Agent {
    let mut agent = agent(false, relays);
    for relay in 0..relays {
        agent.up(relay);
    }
    agent.state.connect(RequestId(1), peer(), Use::EndToEnd, NOW);
    agent.ready(Side::Connector, peer());
    agent.paired();
    agent.outputs();
    agent
}

fn later(span: Duration) -> Now {
    Now { mono: NOW.mono + span, ..NOW }
}

fn ready_at_the_last_moment() -> Message {
    RelayReady::with_terms(&terms(Side::Connector, peer())).into()
}

fn peer() -> NodeId {
    NodeId::from_bytes([2; 32])
}

fn terms(side: Side, peer: NodeId) -> FlowTerms {
    FlowTerms { session: SESSION, peer, ..FlowTerms::example(side) }
}
