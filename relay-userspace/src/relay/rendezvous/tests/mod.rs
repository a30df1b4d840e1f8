//! Tests under simulated time. Each is a sentence about what the rendezvous does.

mod adopt;
mod agents;
mod binds;
mod draining;
mod escapes;
mod logged;
mod offers;
mod operator;
mod policy;
mod popularity;
mod replacement;
mod sessions;
mod soak;
mod splices;
mod times;
mod total_limit;
mod unreachable;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use relay_common::{BIND_LEN, Side};

use super::{
    Authenticated, ConnId, EndReason, Event, KEEPALIVE, Output, Policy, Randomness, Refusal, Rendezvous,
    SessionState, Settings, StreamEnd,
};
use crate::clock::MonoTime;
use crate::identity::{NodeId, NodeKey};
use crate::protocol::bind::{BindDatagram, BindKind, BindMagic, Cookie, PairState, UnverifiedBind};
use crate::protocol::flow_terms::{
    Disconnect, ErrorMessage, FLOW, FlowTerms, RelayAnnounce, RelayConnect, RelayError, RelayReady,
};
use crate::protocol::message::Pong;
use crate::protocol::{Message, SessionId};
use crate::relay::datapath::{Debt, FlowTuple, Flows, InstallError, Limit, Origin, SlotId, Traffic};

const LIMIT: Limit = Limit { bytes_per_s: 1_048_576, burst_bytes: 262_144 };
const IDLE: Duration = Duration::from_secs(300);

fn relay() -> SocketAddr {
    addr("198.51.100.1:4433")
}

/// The relay's address in the family of `agent`'s.
fn relay_of(agent: SocketAddr) -> SocketAddr {
    if agent.is_ipv4() { relay() } else { addr("[2001:db8:ffff::1]:4433") }
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn node(seed: u8) -> NodeId {
    NodeKey::from_seed(&[seed; 32]).node_id()
}

fn magic() -> BindMagic {
    BindMagic::of_relay(&NodeKey::from_seed(&[0; 32]).public())
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// xorshift64 (Marsaglia 2003): the same bytes in every run.
struct Seeded(u64);

impl Seeded {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 16) % bound
    }
}

impl Randomness for Seeded {
    fn fill(&mut self, bytes: &mut [u8]) {
        bytes.fill_with(|| (self.next() >> 32) as u8);
    }
}

/// A packet path that keeps account, and fails the test if it is asked for nonsense.
#[derive(Default)]
struct Ledger {
    slots: BTreeMap<SlotId, Installed>,
    by_tuple: BTreeMap<FlowTuple, SlotId>,
    next_slot: u32,
    /// What the next install or rebind is refused with.
    refuse: Option<InstallError>,
    /// What the interfaces towards connectors and targets take.
    mtus: [Option<u32>; 2],
}

struct Installed {
    tuples: [FlowTuple; 2],
    limit: Limit,
    deadlines: [MonoTime; 2],
    traffic: Traffic,
    counters: [u64; 2],
}

impl Ledger {
    /// As if `packets` had been relayed from the connector.
    fn carry(&mut self, slot: SlotId, packets: u64) {
        self.slots.get_mut(&slot).unwrap().traffic.sides[0].packets_kernel += packets;
    }

    fn take(&mut self, tuple: FlowTuple, slot: SlotId) {
        let before = self.by_tuple.insert(tuple, slot);
        assert_eq!(before, None, "a tuple belongs to one session at a time");
    }
}

impl Flows for Ledger {
    fn install(
        &mut self,
        tuples: [FlowTuple; 2],
        limit: Limit,
        origin: &Origin,
        deadlines: [MonoTime; 2],
        _now: MonoTime,
    ) -> Result<SlotId, InstallError> {
        if let Some(error) = self.refuse.take() {
            return Err(error);
        }
        let slot = SlotId(self.next_slot);
        self.next_slot += 1;
        tuples.into_iter().for_each(|tuple| self.take(tuple, slot));
        self.slots.insert(
            slot,
            Installed {
                tuples,
                limit,
                deadlines,
                traffic: origin.carried,
                counters: origin.identity.counters,
            },
        );
        Ok(slot)
    }

    fn accepted(&mut self, slot: SlotId, side: Side, counter: u64) {
        let highest =
            &mut self.slots.get_mut(&slot).expect("only installed flows count").counters[side.index()];
        assert!(counter > *highest, "counters go up");
        *highest = counter;
    }

    fn extend(&mut self, slot: SlotId, side: Side, deadline: MonoTime) {
        self.slots.get_mut(&slot).expect("only installed flows are extended").deadlines[side.index()] =
            deadline;
    }

    fn rebind(
        &mut self,
        slot: SlotId,
        side: Side,
        tuple: FlowTuple,
        _now: MonoTime,
    ) -> Result<(), InstallError> {
        if let Some(error) = self.refuse.take() {
            return Err(error);
        }
        self.take(tuple, slot);
        let installed = self.slots.get_mut(&slot).expect("only installed flows move");
        let before = std::mem::replace(&mut installed.tuples[side.index()], tuple);
        self.by_tuple.remove(&before);
        Ok(())
    }

    fn set_limit(&mut self, slot: SlotId, limit: Limit, _now: MonoTime) {
        self.slots.get_mut(&slot).expect("only installed flows have a limit").limit = limit;
    }

    fn proved(&mut self, _tuple: FlowTuple) {}

    fn remove(&mut self, slot: SlotId, _now: MonoTime) -> Debt {
        let removed = self.slots.remove(&slot).expect("only installed flows are removed");
        for tuple in removed.tuples {
            self.by_tuple.remove(&tuple);
        }
        Debt::NONE
    }

    fn traffic(&self, slot: SlotId) -> Traffic {
        self.slots.get(&slot).expect("only installed flows are asked").traffic
    }

    fn egress_mtus(&self, slot: SlotId) -> [Option<u32>; 2] {
        assert!(self.slots.contains_key(&slot), "only installed flows leave");
        self.mtus
    }
}

/// The rendezvous with everything around it, at a time the test chooses.
struct World {
    rendezvous: Rendezvous,
    flows: Ledger,
    randomness: Seeded,
    now: MonoTime,
    next_conn: u64,
    /// What was sent since it was last cleared.
    messages: Vec<(ConnId, Message)>,
    binds: Vec<(SocketAddr, [u8; BIND_LEN])>,
    pings: Vec<ConnId>,
    pongs: Vec<(ConnId, i64)>,
    closed: Vec<(ConnId, u32)>,
    /// How many sessions were left when the relay was drained.
    drained: Vec<usize>,
    events: Vec<Event>,
    /// Streams that were joined, in pairs of connector and target.
    splices: Vec<(SessionId, [StreamEnd; 2])>,
    /// What their connectors are told.
    ready: Vec<RelayReady>,
}

impl World {
    fn new() -> World {
        let mut randomness = Seeded(0x9e37_79b9_7f4a_7c15);
        let settings = Settings {
            key: NodeKey::from_seed(&[0; 32]),
            limit: LIMIT,
            policy: Policy::default(),
            idle_timeout: IDLE,
            advertise: Vec::new(),
        };
        let now = MonoTime(1_000_000_000_000);
        World {
            rendezvous: Rendezvous::new(settings, &mut randomness, now),
            flows: Ledger::default(),
            randomness,
            now,
            next_conn: 1,
            messages: Vec::new(),
            binds: Vec::new(),
            pings: Vec::new(),
            pongs: Vec::new(),
            closed: Vec::new(),
            drained: Vec::new(),
            events: Vec::new(),
            splices: Vec::new(),
            ready: Vec::new(),
        }
    }

    /// Does what the driver does after each input.
    fn drain(&mut self) {
        while let Some(output) = self.rendezvous.next_output() {
            match output {
                Output::Send { conn, message } => {
                    message.encode().unwrap();
                    self.messages.push((conn, message));
                }
                Output::Ping { conn } => self.pings.push(conn),
                Output::Pong { conn, echo } => self.pongs.push((conn, echo)),
                Output::Close { conn, code, .. } => self.closed.push((conn, code)),
                Output::Bind { from, to, bytes } => {
                    assert_eq!(from, relay_of(to));
                    self.binds.push((to, bytes));
                }
                Output::Splice { session, ends, ready, .. } => {
                    self.splices.push((session, ends));
                    self.ready.push(ready);
                }
                Output::Unsplice { session, reason } => {
                    self.rendezvous.spliced_over(session, reason, Traffic::default(), self.now);
                }
                Output::Drained { left } => self.drained.push(left),
                Output::Event(event) => self.events.push(event),
            }
        }
    }

    fn clear(&mut self) {
        self.messages.clear();
        self.binds.clear();
        self.events.clear();
        self.pings.clear();
        self.pongs.clear();
        self.closed.clear();
        self.splices.clear();
        self.ready.clear();
    }

    /// The operator changes the policy.
    fn policy(&mut self, change: impl FnOnce(&mut Policy)) {
        let mut policy = self.rendezvous.settings.policy.clone();
        change(&mut policy);
        self.rendezvous.set_policy(policy, &mut self.flows, self.now);
        self.drain();
    }

    /// Node number `seed` connects from its own address.
    fn connect(&mut self, seed: u8) -> ConnId {
        self.connect_from(seed, addr(&format!("203.0.113.{seed}:1000")))
    }

    fn connect_from(&mut self, seed: u8, remote: SocketAddr) -> ConnId {
        let conn = ConnId(self.next_conn);
        self.next_conn += 1;
        let name = format!("agent-{seed}");
        let agent =
            Authenticated { conn, node: node(seed), name, remote, relay: Some(relay_of(remote).ip()) };
        self.rendezvous.connected(agent, self.now);
        self.drain();
        conn
    }

    /// The connection is lost.
    fn lose(&mut self, conn: ConnId) {
        self.rendezvous.closed(conn, "lost");
        self.drain();
    }

    fn message(&mut self, conn: ConnId, message: impl Into<Message>) {
        self.rendezvous.received(conn, message.into(), &mut self.flows, &mut self.randomness, self.now);
        self.drain();
    }

    /// Connects node `seed` and announces it.
    fn reachable(&mut self, seed: u8) -> ConnId {
        let conn = self.connect(seed);
        self.message(conn, announce(seed));
        self.messages.clear();
        conn
    }

    /// `source` on `conn` asks for `target`; the terms both got.
    fn offer(&mut self, conn: ConnId, source: u8, target: u8) -> [FlowTerms; 2] {
        self.messages.clear();
        self.message(conn, connect(source, target));
        let terms: Vec<FlowTerms> = self.terms().into_iter().map(|(_, terms)| terms).collect();
        terms.try_into().expect("both sides get terms")
    }

    /// The terms among the messages.
    fn terms(&self) -> Vec<(ConnId, FlowTerms)> {
        let terms = |(conn, message): &(ConnId, Message)| match message {
            Message::RelayReady(ready) if ready.session.is_some() => Some((*conn, ready.terms().unwrap())),
            _ => None,
        };
        self.messages.iter().filter_map(terms).collect()
    }

    fn bind_bytes(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8; BIND_LEN]) {
        self.rendezvous.bind(from, to, bytes, &mut self.flows, &mut self.randomness, self.now);
        self.drain();
    }

    /// Sends one bind datagram of `terms`' side, and takes the answers that this side gets at `from`.
    fn send_bind(
        &mut self,
        terms: &FlowTerms,
        from: SocketAddr,
        kind: BindKind,
        counter: u64,
        cookie: Cookie,
    ) -> Vec<BindDatagram> {
        self.binds.clear();
        let FlowTerms { session, side, .. } = *terms;
        let datagram = BindDatagram { kind, side, session, counter, cookie };
        self.bind_bytes(from, relay_of(from), &datagram.seal(&terms.bind_magic, &terms.bind_key));
        self.answers(terms, from)
    }

    fn ask(&mut self, terms: &FlowTerms, from: &str, counter: u64, cookie: Cookie) -> Vec<BindDatagram> {
        self.send_bind(terms, addr(from), BindKind::Bind, counter, cookie)
    }

    fn prove(&mut self, terms: &FlowTerms, from: &str, counter: u64, cookie: Cookie) -> Vec<BindDatagram> {
        self.send_bind(terms, addr(from), BindKind::Proof, counter, cookie)
    }

    /// The datagrams sent to `at` that `terms`' side can read.
    fn answers(&self, terms: &FlowTerms, at: SocketAddr) -> Vec<BindDatagram> {
        let read = |(to, bytes): &(SocketAddr, [u8; BIND_LEN])| {
            let claim = UnverifiedBind::parse(bytes, &terms.bind_magic).unwrap();
            claim.verify(&terms.bind_key).ok().filter(|_| *to == at)
        };
        self.binds.iter().filter_map(read).collect()
    }

    /// The whole exchange from an unproved tuple: what the Bound says, and its cookie.
    fn bind(&mut self, terms: &FlowTerms, from: &str, counter: u64) -> (PairState, Cookie) {
        let challenge = self.ask(terms, from, counter, Cookie::NONE);
        assert_eq!(challenge.len(), 1);
        assert_eq!((challenge[0].kind, challenge[0].counter), (BindKind::Challenge, counter));
        let answers = self.prove(terms, from, counter, challenge[0].cookie);
        bound(&answers)
    }

    /// Two connected agents with a paired session, at [`A`] and [`B`].
    fn paired(&mut self) -> (ConnId, ConnId, [FlowTerms; 2]) {
        let source = self.connect(1);
        let target = self.reachable(2);
        let terms = self.offer(source, 1, 2);
        self.bind(&terms[0], A, 1);
        self.bind(&terms[1], B, 1);
        assert_eq!(self.state(&terms), Some(SessionState::Paired));
        self.clear();
        (source, target, terms)
    }

    /// Another pair of agents, 3 and 4, offered to each other.
    fn second_offer(&mut self) -> [FlowTerms; 2] {
        self.reachable(4);
        let source = self.connect(3);
        let terms = self.offer(source, 3, 4);
        self.clear();
        terms
    }

    /// Lets time pass, stopping at every deadline on the way.
    fn pass(&mut self, span: Duration) {
        let until = self.now + span;
        while let Some(due) = self.rendezvous.next_deadline().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            self.rendezvous.expire(&mut self.flows, self.now);
            self.drain();
        }
        self.now = until;
    }

    /// Lets time pass while both agents answer pings and go on proving their tuples, with counters above `counter`.
    fn pass_with_keepalives(&mut self, span: Duration, terms: &[FlowTerms; 2], counter: &mut u64) {
        let until = self.now + span;
        while self.now < until {
            self.pass(KEEPALIVE.min(until.since(self.now)));
            for conn in std::mem::take(&mut self.pings) {
                self.message(conn, Pong::new(0, 0));
            }
            for (terms, at) in terms.iter().zip([A, B]) {
                if self.rendezvous.sessions.get(terms.session).is_some() {
                    *counter += 1;
                    self.bind(terms, at, *counter);
                }
            }
        }
    }

    fn state(&self, terms: &[FlowTerms; 2]) -> Option<SessionState> {
        self.rendezvous.sessions.get(terms[0].session).map(super::session::Session::state)
    }

    /// The slot of the only paired session.
    fn slot(&self) -> SlotId {
        let [slot] = self.flows.slots.keys().copied().collect::<Vec<_>>()[..] else {
            panic!("one session is paired")
        };
        slot
    }

    fn installed(&self) -> &Installed {
        &self.flows.slots[&self.slot()]
    }

    fn refusals(&self, refusal: Refusal) -> u64 {
        self.rendezvous.refusals().of(refusal)
    }

    fn relay_errors(&self, conn: ConnId) -> Vec<RelayError> {
        let error = |(to, message): &(ConnId, Message)| match message {
            Message::RelayError(error) if *to == conn => Some(error.clone()),
            _ => None,
        };
        self.messages.iter().filter_map(error).collect()
    }

    /// The codes of relay errors sent to `conn`.
    fn relay_error_codes(&self, conn: ConnId) -> Vec<u32> {
        self.relay_errors(conn).iter().map(|error| error.code).collect()
    }

    /// The codes of error messages sent to `conn`.
    fn error_codes(&self, conn: ConnId) -> Vec<u32> {
        let code = |(to, message): &(ConnId, Message)| match message {
            Message::Error(error) if *to == conn => Some(error.code),
            _ => None,
        };
        self.messages.iter().filter_map(code).collect()
    }

    /// What `conn` was told that the limit has dropped.
    fn notices(&self, conn: ConnId) -> Vec<&ErrorMessage> {
        let to_conn = self.messages.iter().filter(|(to, _)| *to == conn);
        to_conn
            .filter_map(|(_, message)| if let Message::Error(error) = message { Some(error) } else { None })
            .collect()
    }

    /// Disconnects sent to `conn`: reason and session.
    fn disconnects(&self, conn: ConnId) -> Vec<(&str, Option<SessionId>)> {
        let disconnects = self.messages.iter().filter_map(|(to, message)| match message {
            Message::Disconnect(disconnect) if *to == conn => {
                Some((disconnect.reason.as_str(), disconnect.session))
            }
            _ => None,
        });
        disconnects.collect()
    }

    fn ended(&self) -> Vec<EndReason> {
        let reason = |event: &Event| match event {
            Event::Ended { reason, .. } => Some(*reason),
            _ => None,
        };
        self.events.iter().filter_map(reason).collect()
    }
}

/// Where the connector of [`World::paired`] binds.
const A: &str = "203.0.113.1:2000";

/// Where its target binds.
const B: &str = "203.0.113.2:2000";

fn announce(seed: u8) -> RelayAnnounce {
    RelayAnnounce { node_id: node(seed).to_string(), timestamp: 0, flow: Some(FLOW), allow: None }
}

fn connect(source: u8, target: u8) -> RelayConnect {
    RelayConnect {
        source_id: node(source).to_string(),
        target_id: node(target).to_string(),
        timestamp: None,
        flow: Some(FLOW),
    }
}

fn disconnect(session: Option<SessionId>) -> Disconnect {
    Disconnect::new("DISCONNECT_SHUTDOWN", None, session)
}

/// The one Bound among `answers`.
fn bound(answers: &[BindDatagram]) -> (PairState, Cookie) {
    let bound = |answer: &BindDatagram| match answer.kind {
        BindKind::Bound { state, .. } => Some((state, answer.cookie)),
        _ => None,
    };
    let [bound] = answers.iter().filter_map(bound).collect::<Vec<_>>()[..] else {
        panic!("one Bound for one proof: {answers:?}")
    };
    bound
}
