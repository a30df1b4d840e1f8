//! The agent's side of the bind exchange, as a pure state machine.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use relay_common::{BIND_LEN, Side};

use super::datagram::{BindDatagram, BindFault, BindKind, PairState, SessionId, UnverifiedBind};
use super::path_health::{PathHealth, PathWatch};
use super::secrets::{BindKey, BindMagic, Cookie};
use crate::clock::MonoTime;
use crate::protocol::flow_terms::{FlowTerms, LEASE};

/// Proves one side's data tuple, again and again, for as long as the session lives.
///
/// Driving it:
/// 1. After every input below, and when the deadline of the last [`BindOutput::Idle`] has come, call
///    [`poll`](Self::poll) until it returns `Idle`; send what it gives from the data socket to the relay.
/// 2. Give it every datagram from the relay's data address that has the relay's magic ([`handle`](Self::handle)).
/// 3. Tell it when data is sent and heard. These two need no `poll` after them if `poll` is called once a second anyway.
#[derive(Debug)]
pub struct BindClient {
    session: SessionId,
    side: Side,
    key: BindKey,
    magic: BindMagic,
    consent: Duration,
    keepalive: Duration,
    phase: Phase,
    /// The highest counter sent.
    counter: u64,
    /// The highest counter a Bound has accepted.
    proved_counter: u64,
    /// When that Bound came; before the first, when the client was made.
    proved_at: MonoTime,
    cookie: Cookie,
    reflexive: Option<SocketAddr>,
    proof: Option<BindDatagram>,
    /// A Bind has been sent and no Bound has come since.
    unanswered: bool,
    retry: Duration,
    bind_now: bool,
    bind_sent_at: Option<MonoTime>,
    data_sent_at: MonoTime,
    /// Since when data has been sent without any being heard.
    unheard_since: Option<MonoTime>,
    unheard_patience: Duration,
    heard_at: Option<MonoTime>,
    /// Of a paired session.
    path: PathWatch,
    events: VecDeque<BindEvent>,
}

/// What a [`BindClient`] wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindOutput {
    /// Send this to the relay's data address.
    Send([u8; BIND_LEN]),
    /// Tell the session.
    Event(BindEvent),
    /// Nothing before this time; never, if None.
    Idle(Option<MonoTime>),
}

/// What has happened to the binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindEvent {
    /// This side is bound, the other is not yet.
    Half {
        /// The agent's address as the relay sees it.
        reflexive: SocketAddr,
    },
    /// Both sides are bound: datagrams are forwarded from now on.
    Paired {
        /// The agent's address as the relay sees it.
        reflexive: SocketAddr,
    },
    /// The relay sees this side at another address than before, and has moved its flow there.
    Moved {
        /// The agent's address as the relay sees it.
        reflexive: SocketAddr,
    },
    /// The path of the paired session does better or worse than before.
    Path(PathHealth),
    /// No proof was accepted for as long as consent lasts, and data does not show that the relay forwards all the same. Final.
    Lost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Unbound,
    Half,
    Paired,
    Lost,
}

impl BindClient {
    /// An unpaired agent asks this often.
    pub const RETRY: Duration = Duration::from_millis(250);

    /// A paired agent that gets no answer asks less and less often, down to this.
    pub const MAX_RETRY: Duration = Duration::from_secs(2);

    /// A NAT keeps a mapping at least this long after a datagram was sent (RFC 4787, REQ-5 asks for 2 minutes; home
    /// routers are known to forget after 20 to 30 seconds).
    pub const NAT_KEEPALIVE: Duration = Duration::from_secs(15);

    /// Data sent for this long without any heard makes the agent bind anew.
    pub const UNHEARD: Duration = Duration::from_secs(1);

    /// Data heard so lately shows that the relay forwards, though nobody there takes proofs: longer than an idle connection of
    /// the agents waits with its sign of life, and once more for a lost one.
    pub const HEARD_LATELY: Duration = Duration::from_secs(20);

    /// A client for the session and side of `terms`.
    pub fn new(terms: &FlowTerms, now: MonoTime) -> Self {
        BindClient {
            session: terms.session,
            side: terms.side,
            key: terms.bind_key.clone(),
            magic: terms.bind_magic,
            consent: terms.consent,
            keepalive: terms.keepalive,
            phase: Phase::Unbound,
            counter: 0,
            proved_counter: 0,
            proved_at: now,
            cookie: Cookie::NONE,
            reflexive: None,
            proof: None,
            unanswered: false,
            retry: Self::RETRY,
            bind_now: false,
            bind_sent_at: None,
            data_sent_at: now,
            unheard_since: None,
            unheard_patience: Self::UNHEARD,
            heard_at: None,
            path: PathWatch::new(),
            events: VecDeque::new(),
        }
    }

    /// What is to be done next. `unix_us` is the agent's wall clock, in microseconds since the Unix epoch: the counter
    /// is taken from it, so that it rises over restarts of the agent too.
    pub fn poll(&mut self, now: MonoTime, unix_us: u64) -> BindOutput {
        if self.phase != Phase::Lost && now >= self.lost_at() {
            self.phase = Phase::Lost;
            self.proof = None;
            self.events.push_back(BindEvent::Lost);
        }
        if self.phase == Phase::Paired
            && let Some(health) = self.path.news(now)
        {
            self.events.push_back(BindEvent::Path(health));
        }
        if let Some(event) = self.events.pop_front() {
            return BindOutput::Event(event);
        }
        if self.phase == Phase::Lost {
            return BindOutput::Idle(None);
        }
        if let Some(proof) = self.proof.take() {
            self.bind_sent_at = Some(now);
            self.path.asked(now);
            return BindOutput::Send(proof.seal(&self.magic, &self.key));
        }
        let due = self.next_bind(now);
        if due > now {
            return BindOutput::Idle(Some(due.min(self.lost_at())));
        }
        if self.unheard_since.is_some_and(|since| now >= since + self.unheard_patience) {
            // Whoever streams to a silent peer need not bind every second.
            self.unheard_patience = (2 * self.unheard_patience).min(self.keepalive);
            self.unheard_since = None;
        }
        if self.unanswered && self.phase == Phase::Paired {
            self.retry = (2 * self.retry).min(Self::MAX_RETRY);
        }
        self.counter = unix_us.max(self.counter.saturating_add(1));
        self.bind_sent_at = Some(now);
        self.path.asked(now);
        self.unanswered = true;
        self.bind_now = false;
        BindOutput::Send(
            self.datagram(BindKind::Bind, self.counter, self.cookie).seal(&self.magic, &self.key),
        )
    }

    /// Takes a datagram that came from the relay's data address with the relay's magic.
    ///
    /// # Errors
    /// It is not a sound answer of this session's relay; nothing has changed.
    pub fn handle(&mut self, datagram: &[u8; BIND_LEN], now: MonoTime) -> Result<(), BindFault> {
        let unverified = UnverifiedBind::parse(datagram, &self.magic)?;
        let answer = unverified.verify(&self.key)?;
        if answer.session != self.session || answer.side != self.side {
            return Err(BindFault::Mac);
        }
        let asked = answer.counter <= self.counter && self.phase != Phase::Lost;
        match answer.kind {
            BindKind::Challenge if asked && answer.counter > self.proved_counter => {
                self.proof = Some(self.datagram(BindKind::Proof, answer.counter, answer.cookie));
            }
            BindKind::Bound { state, reflexive } if asked && answer.counter >= self.proved_counter => {
                self.bound(answer.counter, answer.cookie, state, reflexive, now);
            }
            // Late or repeated answers, and our own questions reflected.
            _ => {}
        }
        Ok(())
    }

    /// Data was sent from the data socket.
    pub fn note_sent(&mut self, now: MonoTime) {
        self.data_sent_at = now;
        self.path.sent(now);
        self.unheard_since.get_or_insert(now);
    }

    /// Data was heard on the data socket.
    pub fn note_heard(&mut self, now: MonoTime) {
        self.heard_at = Some(now);
        self.path.heard();
        self.unheard_since = None;
        self.unheard_patience = Self::UNHEARD;
    }

    /// The local address has changed, the data socket is another, or the relay asks for it: bind at once.
    pub fn bind_now(&mut self) {
        self.bind_now = true;
    }

    /// The relay has sent the session's terms again.
    pub fn set_terms(&mut self, terms: &FlowTerms) {
        self.consent = terms.consent;
        self.keepalive = terms.keepalive;
        if terms.bind_now {
            self.bind_now();
        }
    }

    /// Whether datagrams are forwarded, as far as this side knows.
    pub fn is_paired(&self) -> bool {
        self.phase == Phase::Paired
    }

    fn bound(
        &mut self,
        counter: u64,
        cookie: Cookie,
        state: PairState,
        reflexive: SocketAddr,
        now: MonoTime,
    ) {
        let fresh = counter > self.proved_counter;
        let paired_unasked = state == PairState::Paired && self.phase == Phase::Half;
        if !fresh && !paired_unasked {
            return;
        }
        if fresh {
            self.proved_counter = counter;
            self.proved_at = now;
            self.cookie = cookie;
            self.proof = None;
            self.unanswered = false;
            self.retry = Self::RETRY;
            self.unheard_since = None;
            self.path.answered();
        }
        let moved = self.reflexive.replace(reflexive).is_some_and(|before| before != reflexive);
        match (self.phase, state) {
            (Phase::Lost, _) => {}
            (Phase::Unbound | Phase::Paired, PairState::Half) => {
                self.phase = Phase::Half;
                self.events.push_back(BindEvent::Half { reflexive });
            }
            (Phase::Unbound | Phase::Half, PairState::Paired) => {
                self.phase = Phase::Paired;
                self.path = PathWatch::new();
                self.events.push_back(BindEvent::Paired { reflexive });
            }
            (Phase::Half, PairState::Half) | (Phase::Paired, PairState::Paired) => {
                if moved {
                    self.events.push_back(BindEvent::Moved { reflexive });
                }
            }
        }
    }

    /// When the session is given up, if nothing comes.
    ///
    /// A relay that runs has ended it when consent has run out. One without a daemon goes on, and what is heard shows that, but no
    /// longer than for a lease: so nobody can keep up with forged datagrams what is over.
    fn lost_at(&self) -> MonoTime {
        let consent = self.proved_at + self.consent;
        match self.heard_at {
            Some(heard_at) if self.phase == Phase::Paired => {
                consent.max((heard_at + Self::HEARD_LATELY).min(self.proved_at + LEASE))
            }
            _ => consent,
        }
    }

    fn next_bind(&self, now: MonoTime) -> MonoTime {
        let Some(bind_sent_at) = self.bind_sent_at else { return now };
        if self.bind_now {
            return now;
        }
        if self.unanswered || self.phase != Phase::Paired {
            return bind_sent_at + self.retry;
        }
        let for_consent = self.proved_at + self.keepalive;
        let for_nat = self.data_sent_at.max(bind_sent_at) + Self::NAT_KEEPALIVE;
        let due = for_consent.min(for_nat);
        match self.unheard_since {
            Some(since) => due.min(since + self.unheard_patience),
            None => due,
        }
    }

    fn datagram(&self, kind: BindKind, counter: u64, cookie: Cookie) -> BindDatagram {
        BindDatagram { kind, side: self.side, session: self.session, counter, cookie }
    }
}

#[cfg(test)]
mod tests {
    use super::super::secrets::{CookieCarrier, CookieSecrets, CookieSubject};
    use super::*;

    #[test]
    fn bind_is_challenged_proved_and_bound_and_pairing_comes_unasked() {
        let mut pair = Pair::new();
        assert_eq!(pair.run(), [BindEvent::Half { reflexive: pair.source }]);
        assert_eq!(pair.relay.received, [BindKind::Bind, BindKind::Proof]);
        pair.relay.peer_bound = true;
        let unasked = pair.relay.bound(pair.relay.highest, pair.source);
        pair.client.handle(&unasked, pair.now).unwrap();
        assert_eq!(pair.run(), [BindEvent::Paired { reflexive: pair.source }]);
        assert!(pair.client.is_paired());
    }

    #[test]
    fn a_half_bound_agent_repeats_its_bind_every_250_ms_without_being_challenged() {
        let mut pair = Pair::new();
        pair.run();
        pair.relay.received.clear();
        for _ in 0..4 {
            pair.pass(Duration::from_millis(249));
            assert_eq!(pair.relay.received, []);
            pair.pass(Duration::from_millis(1));
            assert_eq!(pair.relay.received, [BindKind::Bind]);
            pair.relay.received.clear();
        }
    }

    #[test]
    fn an_idle_pair_binds_every_15_s_and_a_busy_one_every_30() {
        let mut pair = Pair::paired();
        assert_eq!(pair.binds_within(Duration::from_secs(60)), 4);
        let mut busy = 0;
        for _ in 0..600 {
            pair.client.note_sent(pair.now);
            pair.client.note_heard(pair.now);
            busy += pair.binds_within(Duration::from_millis(100));
        }
        assert_eq!(busy, 2);
    }

    #[test]
    fn sending_for_a_second_without_hearing_binds_at_once_then_ever_less_often() {
        let mut pair = Pair::paired();
        let mut at = Vec::new();
        for tick in 0..310 {
            pair.client.note_sent(pair.now);
            if pair.binds_within(Duration::from_millis(100)) > 0 {
                at.push(tick / 10);
            }
        }
        assert_eq!(at, [0, 2, 6, 14, 30], "seconds after which a bind was sent");
        pair.client.note_heard(pair.now);
        pair.client.note_sent(pair.now);
        assert_eq!(pair.binds_within(Duration::from_secs(1)), 1);
    }

    #[test]
    fn a_new_tuple_is_challenged_and_reported_as_a_move() {
        let mut pair = Pair::paired();
        pair.source = "203.0.113.77:999".parse().unwrap();
        pair.client.bind_now();
        assert_eq!(pair.run(), [BindEvent::Moved { reflexive: pair.source }]);
        assert_eq!(pair.relay.received, [BindKind::Bind, BindKind::Proof]);
    }

    #[test]
    fn a_lost_bound_costs_one_challenge_more() {
        let mut pair = Pair::paired();
        pair.relay.deaf_answers = 1;
        pair.client.bind_now();
        pair.run();
        pair.pass(Duration::from_secs(1));
        assert_eq!(pair.relay.received, [BindKind::Bind, BindKind::Bind, BindKind::Proof]);
        assert!(pair.client.is_paired());
    }

    #[test]
    fn a_silent_relay_is_asked_ever_less_often_and_given_up_when_consent_ends() {
        let mut pair = Pair::paired();
        pair.relay.deaf_answers = usize::MAX;
        pair.client.bind_now();
        let mut events = pair.run();
        for _ in 0..740 {
            events.extend(pair.pass(Duration::from_millis(100)));
        }
        assert_eq!(events, [BindEvent::Path(PathHealth::Silent)], "it is told long before");
        events.clear();
        assert!(pair.relay.received.len() < 90, "{}", pair.relay.received.len());
        for _ in 0..10 {
            events.extend(pair.pass(Duration::from_millis(100)));
        }
        assert_eq!(events, [BindEvent::Lost]);
        assert_eq!(pair.client.poll(pair.now, 0), BindOutput::Idle(None));
    }

    #[test]
    fn a_session_whose_data_still_comes_without_a_daemon_is_held_until_it_stops_but_not_beyond_the_lease() {
        let lost_after = |heard_for: Duration| {
            let mut pair = Pair::paired();
            let paired_at = pair.now;
            pair.relay.deaf_answers = usize::MAX;
            loop {
                if pair.now < paired_at + heard_for {
                    pair.client.note_heard(pair.now);
                }
                if pair.pass(Duration::from_secs(1)).contains(&BindEvent::Lost) {
                    return pair.now.since(paired_at);
                }
            }
        };
        let seconds = Duration::from_secs;
        assert_eq!(lost_after(seconds(0)), terms().consent);
        assert_eq!(lost_after(terms().consent - BindClient::HEARD_LATELY), terms().consent);
        assert_eq!(lost_after(seconds(100)), seconds(99) + BindClient::HEARD_LATELY);
        assert_eq!(lost_after(10 * LEASE), LEASE);
    }

    #[test]
    fn answers_that_are_late_repeated_forged_or_meant_for_others_change_nothing() {
        let mut pair = Pair::paired();
        let old = pair.relay.bound(pair.relay.highest, "198.18.0.1:1".parse().unwrap());
        pair.pass(Duration::from_secs(15));
        let before = format!("{:?}", pair.client);
        let future = pair.relay.bound(pair.relay.highest + 1, "198.18.0.1:1".parse().unwrap());
        let repeated = pair.relay.bound(pair.relay.highest, "198.18.0.1:1".parse().unwrap());
        for datagram in [old, future, repeated] {
            pair.client.handle(&datagram, pair.now).unwrap();
        }
        let mut forged = pair.relay.bound(pair.relay.highest, pair.source);
        forged[95] ^= 1;
        assert_eq!(pair.client.handle(&forged, pair.now), Err(BindFault::Mac));
        assert_eq!(format!("{:?}", pair.client), before);
    }

    #[test]
    fn the_counter_rises_even_if_the_wall_clock_goes_back() {
        let mut client = BindClient::new(&terms(), MonoTime(0));
        let BindOutput::Send(first) = client.poll(MonoTime(0), 1_000) else { panic!("nothing sent") };
        client.bind_now();
        let BindOutput::Send(second) = client.poll(MonoTime(1), 500) else { panic!("nothing sent") };
        let counter = |datagram: [u8; BIND_LEN]| {
            UnverifiedBind::parse(&datagram, &terms().bind_magic)
                .unwrap()
                .verify(&terms().bind_key)
                .unwrap()
                .counter
        };
        assert_eq!((counter(first), counter(second)), (1_000, 1_001));
    }

    /// A client and a relay that answers as the documentation says, under simulated time.
    struct Pair {
        client: BindClient,
        relay: Relay,
        now: MonoTime,
        source: SocketAddr,
    }

    struct Relay {
        secrets: CookieSecrets,
        highest: u64,
        peer_bound: bool,
        /// So many accepted datagrams go unanswered.
        deaf_answers: usize,
        received: Vec<BindKind>,
    }

    impl Pair {
        fn new() -> Self {
            let now = MonoTime(1_000_000_000_000);
            Pair {
                client: BindClient::new(&terms(), now),
                relay: Relay {
                    secrets: CookieSecrets::new([1; 32], now),
                    highest: 0,
                    peer_bound: false,
                    deaf_answers: 0,
                    received: Vec::new(),
                },
                now,
                source: "203.0.113.5:40000".parse().unwrap(),
            }
        }

        fn paired() -> Self {
            let mut pair = Pair::new();
            pair.relay.peer_bound = true;
            pair.run();
            assert!(pair.client.is_paired());
            pair.relay.received.clear();
            pair
        }

        /// Polls until the client is idle, carrying datagrams both ways.
        fn run(&mut self) -> Vec<BindEvent> {
            let mut events = Vec::new();
            loop {
                match self.client.poll(self.now, self.now.0 / 1_000) {
                    BindOutput::Event(event) => events.push(event),
                    BindOutput::Idle(deadline) => {
                        assert!(deadline.is_none_or(|at| at > self.now));
                        return events;
                    }
                    BindOutput::Send(datagram) => {
                        if let Some(answer) = self.relay.answer(&datagram, self.source) {
                            self.client.handle(&answer, self.now).unwrap();
                        }
                    }
                }
            }
        }

        fn pass(&mut self, span: Duration) -> Vec<BindEvent> {
            self.now = self.now + span;
            self.relay.secrets.renew(self.now, || [2; 32]);
            self.run()
        }

        fn binds_within(&mut self, span: Duration) -> usize {
            let end = self.now + span;
            self.relay.received.clear();
            while self.now < end {
                self.pass(Duration::from_millis(50));
            }
            std::mem::take(&mut self.relay.received).len()
        }
    }

    impl Relay {
        fn answer(&mut self, datagram: &[u8; BIND_LEN], source: SocketAddr) -> Option<[u8; BIND_LEN]> {
            let question = UnverifiedBind::parse(datagram, &terms().bind_magic)
                .unwrap()
                .verify(&terms().bind_key)
                .unwrap();
            self.received.push(question.kind);
            assert!(question.counter > self.highest, "a counter was used twice");
            let cookie_counter = match question.kind {
                BindKind::Bind => self.highest,
                _ => question.counter,
            };
            if self.secrets.accepts(&subject(source, cookie_counter), &question.cookie) {
                self.highest = question.counter;
                if self.deaf_answers > 0 {
                    self.deaf_answers -= 1;
                    return None;
                }
                return Some(self.bound(question.counter, source));
            }
            let cookie = self.secrets.cookie(&subject(source, question.counter));
            Some(sealed(BindKind::Challenge, question.counter, cookie))
        }

        fn bound(&self, counter: u64, source: SocketAddr) -> [u8; BIND_LEN] {
            let state = if self.peer_bound { PairState::Paired } else { PairState::Half };
            let cookie = self.secrets.cookie(&subject(source, counter));
            sealed(BindKind::Bound { state, reflexive: source }, counter, cookie)
        }
    }

    fn sealed(kind: BindKind, counter: u64, cookie: Cookie) -> [u8; BIND_LEN] {
        let terms = terms();
        BindDatagram { kind, side: terms.side, session: terms.session, counter, cookie }
            .seal(&terms.bind_magic, &terms.bind_key)
    }

    fn subject(source: SocketAddr, counter: u64) -> CookieSubject {
        CookieSubject {
            carrier: CookieCarrier::Challenge,
            agent: source,
            relay: "198.51.100.1:4433".parse().unwrap(),
            session: terms().session,
            side: terms().side,
            counter,
        }
    }

    fn terms() -> FlowTerms {
        FlowTerms::example(Side::Connector)
    }
}
