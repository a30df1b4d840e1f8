//! A few hundred agents that announce, pair, move, lose connections and leave, over a network that loses, delays,
//! repeats and reorders. After every step the invariants are checked.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use relay_common::{Reason, Side};

use super::super::session::{Session, SessionState};
use super::super::*;
use super::{Ledger, Seeded, seconds};
use crate::protocol::bind::{BindClient, BindOutput};
use crate::protocol::flow_terms::{FLOW, FlowTerms, RelayAnnounce, RelayConnect, RelayReady};
use crate::protocol::message::Pong;
use crate::relay::datapath::{
    Arrival, Debt, FlowTable, FlowTuple, InstallError, NoRoutes, PREVIOUS_TUPLE_KEPT, SlotId, TableSizes,
    Tables, Traffic, TupleFault,
};

const AGENTS: usize = 300;
const STEPS: u32 = 8_000;

#[test]
fn whatever_agents_and_network_do_the_invariants_hold_and_nothing_is_left_behind() {
    let mut simulation = Simulation::new(0x5eed);
    for step in 0..STEPS {
        simulation.step();
        // Every step is checked for what it may break at once; the whole state, which is larger, every few steps.
        simulation.check_outputs();
        if step % 8 == 0 {
            simulation.check_state();
        }
    }
    let seen = simulation.seen.clone();
    for event in ["offered", "paired", "moved", "tuple lost", "replaced", "limited"] {
        assert!(seen.contains_key(event), "the soak has seen no {event}: {seen:?}");
    }
    for reason in
        ["in time", "no room", "cannot be forwarded", "connector has fallen silent", "ended by", "idle"]
    {
        assert!(seen.keys().any(|event| event.contains(reason)), "nothing has ended as {reason}: {seen:?}");
    }
    assert!(seen["paired"] > 200, "{seen:?}");
    simulation.everyone_leaves();
}

struct Simulation {
    rendezvous: Rendezvous,
    flows: Books,
    random: Seeded,
    now: MonoTime,
    agents: Vec<SimulatedAgent>,
    next_conn: u64,
    /// What is on its way, by arrival time; the number keeps arrivals at one time apart.
    network: BTreeMap<(MonoTime, u64), Transit>,
    sent: u64,
    open: BTreeSet<ConnId>,
    /// The largest datagram of each session, as it was told last on a connection.
    told: BTreeMap<(ConnId, SessionId), u32>,
    /// Addresses that have sent a datagram.
    sources: BTreeSet<SocketAddr>,
    seen: BTreeMap<String, u32>,
}

#[derive(Default)]
struct SimulatedAgent {
    conn: Option<ConnId>,
    sessions: BTreeMap<SessionId, (BindClient, SocketAddr)>,
}

enum Transit {
    ToRelay(ConnId, Message),
    ToAgent(ConnId, Message),
    BindToRelay(SocketAddr, [u8; BIND_LEN]),
    BindToAgent(SocketAddr, [u8; BIND_LEN]),
}

impl Simulation {
    fn new(seed: u64) -> Simulation {
        let mut random = Seeded(seed);
        let settings = Settings {
            key: NodeKey::from_seed(&[0; 32]),
            limit: Limit::UNLIMITED,
            idle_timeout: seconds(60),
            advertise: Vec::new(),
        };
        let now = MonoTime(1_000_000_000_000);
        Simulation {
            rendezvous: Rendezvous::new(settings, &mut random, now),
            flows: Books::new(),
            random,
            now,
            agents: (0..AGENTS).map(|_| SimulatedAgent::default()).collect(),
            next_conn: 0,
            network: BTreeMap::new(),
            sent: 0,
            open: BTreeSet::new(),
            told: BTreeMap::new(),
            sources: BTreeSet::new(),
            seen: BTreeMap::new(),
        }
    }

    /// One thing happens; then up to 50 ms pass.
    fn step(&mut self) {
        let who = self.random.below(AGENTS as u64) as usize;
        match self.random.below(100) {
            0..15 => self.connect(who),
            15..18 => self.lose_connection(who),
            18..40 => self.ask_for_someone(who),
            40..44 => self.end_a_session(who),
            44..54 => self.change_address(who),
            54..84 => self.carry_a_packet(),
            84..86 => self.flows.ledger.refuse = Some(InstallError::TableFull),
            86..88 => self.flows.ledger.refuse = Some(InstallError::Tuple(TupleFault::Family)),
            88 => self.fall_silent(who),
            89 => self.migrate(who),
            _ => {}
        }
        let until = self.now + Duration::from_millis(self.random.below(50));
        self.run_until(until);
    }

    /// Lets everything arrive and expire that is due.
    fn run_until(&mut self, until: MonoTime) {
        self.poll_agents();
        loop {
            let arrival = self.network.first_key_value().map(|((at, _), _)| *at);
            let next = [arrival, self.rendezvous.next_deadline()].into_iter().flatten().min();
            let Some(at) = next.filter(|at| *at <= until) else { break };
            self.now = self.now.max(at);
            if arrival == Some(at) {
                if let Some((_, transit)) = self.network.pop_first() {
                    self.arrive(transit);
                }
            } else {
                self.rendezvous.expire(&mut self.flows, self.now);
            }
            self.check_outputs();
        }
        self.now = until;
    }

    fn connect(&mut self, who: usize) {
        let conn = ConnId(self.next_conn);
        self.next_conn += 1;
        self.open.insert(conn);
        // The one before, if any, lingers until it is replaced or found dead.
        self.agents[who].conn = Some(conn);
        let agent = Authenticated {
            conn,
            node: node(who),
            name: String::new(),
            remote: control_address(who, conn),
            relay: None,
        };
        self.rendezvous.connected(agent, self.now);
        let allow =
            (self.random.below(4) == 0).then(|| (0..AGENTS / 2).map(|n| node(n).to_string()).collect());
        let announce =
            RelayAnnounce { node_id: node(who).to_string(), timestamp: 0, flow: Some(FLOW), allow };
        self.transmit(Transit::ToRelay(conn, announce.into()));
    }

    fn lose_connection(&mut self, who: usize) {
        if let Some(conn) = self.agents[who].conn.take() {
            self.open.remove(&conn);
            self.rendezvous.closed(conn, "lost");
        }
    }

    fn ask_for_someone(&mut self, who: usize) {
        let Some(conn) = self.agents[who].conn else { return };
        // Some are more popular than others.
        let whom = match self.random.below(3) {
            0 => self.random.below(5),
            _ => self.random.below(AGENTS as u64),
        } as usize;
        if who == whom {
            return;
        }
        let connect = RelayConnect {
            source_id: node(who).to_string(),
            target_id: node(whom).to_string(),
            timestamp: None,
            flow: Some(FLOW),
        };
        self.transmit(Transit::ToRelay(conn, connect.into()));
    }

    fn end_a_session(&mut self, who: usize) {
        let (Some(conn), Some(session)) =
            (self.agents[who].conn, self.agents[who].sessions.keys().next().copied())
        else {
            return;
        };
        self.agents[who].sessions.remove(&session);
        self.transmit(Transit::ToRelay(conn, super::disconnect(Some(session)).into()));
    }

    /// The NAT gives an agent's data socket another port: a fresh one, or one that another agent had.
    fn change_address(&mut self, who: usize) {
        let (taken, fresh) = (self.random.below(AGENTS as u64) as usize, self.random.below(60_000));
        let taken = self.agents[taken].sessions.values().next().map(|(_, at)| *at);
        let at = taken.filter(|_| fresh % 3 == 0).unwrap_or(data_address(who, fresh));
        if let Some((client, data)) = self.agents[who].sessions.values_mut().next() {
            *data = at;
            client.bind_now();
        }
    }

    fn carry_a_packet(&mut self) {
        let nth = self.random.below(self.flows.ledger.slots.len().max(1) as u64) as usize;
        let limited = u64::from(self.random.below(10) == 0);
        if let Some(slot) = self.flows.ledger.slots.values_mut().nth(nth) {
            slot.traffic.sides[0].packets_kernel += 1;
            slot.traffic.limited_packets += limited;
        }
    }

    /// A data socket dies without a word.
    fn fall_silent(&mut self, who: usize) {
        self.agents[who].sessions.pop_first();
    }

    fn migrate(&mut self, who: usize) {
        if let Some(conn) = self.agents[who].conn {
            let port = self.random.below(1000);
            self.rendezvous.moved(conn, control_address(who, ConnId(port)));
        }
    }

    fn poll_agents(&mut self) {
        let unix_us = self.now.0 / 1000;
        let mut datagrams = Vec::new();
        for agent in &mut self.agents {
            for (client, at) in agent.sessions.values_mut() {
                loop {
                    match client.poll(self.now, unix_us) {
                        BindOutput::Send(bytes) => datagrams.push((*at, bytes)),
                        BindOutput::Event(_) => {}
                        BindOutput::Idle(_) => break,
                    }
                }
            }
        }
        for (at, bytes) in datagrams {
            self.transmit(Transit::BindToRelay(at, bytes));
        }
    }

    /// Puts something on its way: one in twelve is lost, one in twenty arrives twice, all at times of their own.
    fn transmit(&mut self, transit: Transit) {
        if self.random.below(12) == 0 {
            return;
        }
        if self.random.below(20) == 0 {
            let again = match &transit {
                Transit::BindToRelay(from, bytes) => Some(Transit::BindToRelay(*from, *bytes)),
                Transit::BindToAgent(to, bytes) => Some(Transit::BindToAgent(*to, *bytes)),
                _ => None,
            };
            self.schedule(again);
        }
        self.schedule(Some(transit));
    }

    fn schedule(&mut self, transit: Option<Transit>) {
        let Some(transit) = transit else { return };
        let at = self.now + Duration::from_millis(1 + self.random.below(120));
        self.sent += 1;
        self.network.insert((at, self.sent), transit);
    }

    fn arrive(&mut self, transit: Transit) {
        let now = self.now;
        match transit {
            Transit::ToRelay(conn, message) => {
                self.rendezvous.received(conn, message, &mut self.flows, &mut self.random, now);
            }
            Transit::ToAgent(conn, message) => self.tell_agent(conn, &message),
            Transit::BindToRelay(from, bytes) => {
                self.sources.insert(from);
                let (flows, random) = (&mut self.flows, &mut self.random);
                self.rendezvous.bind(from, super::relay_of(from), &bytes, flows, random, now);
            }
            Transit::BindToAgent(to, bytes) => {
                for (client, _) in self
                    .agents
                    .iter_mut()
                    .flat_map(|agent| agent.sessions.values_mut())
                    .filter(|(_, at)| *at == to)
                {
                    let _not_for_this_one = client.handle(&bytes, now);
                }
            }
        }
    }

    fn tell_agent(&mut self, conn: ConnId, message: &Message) {
        let fresh = self.random.below(60_000);
        let Some(who) = self.agents.iter().position(|agent| agent.conn == Some(conn)) else { return };
        let agent = &mut self.agents[who];
        match message {
            Message::RelayReady(ready) if ready.session.is_some() => {
                let terms: FlowTerms = ready.terms().unwrap();
                // An agent that no longer knows the session does not answer for it.
                let known = agent.sessions.contains_key(&terms.session);
                if !known && !terms.bind_now {
                    let client = BindClient::new(&terms, self.now);
                    agent.sessions.insert(terms.session, (client, data_address(who, fresh)));
                }
            }
            Message::Disconnect(disconnect) => match disconnect.session {
                Some(session) => drop(agent.sessions.remove(&session)),
                None => agent.conn = None,
            },
            Message::RelayError(error) => {
                if let Some(session) = error.session {
                    agent.sessions.remove(&session);
                }
            }
            Message::Ping(_) => self.transmit(Transit::ToRelay(conn, Pong { ts: 0, echo: 0 }.into())),
            _ => {}
        }
    }

    /// Carries the outputs out, and checks what must hold for each.
    fn check_outputs(&mut self) {
        while let Some(output) = self.rendezvous.next_output() {
            match output {
                Output::Send { conn, message } => {
                    assert!(self.open.contains(&conn), "nothing is sent on a connection that is over");
                    if let Message::RelayReady(RelayReady {
                        session: Some(session),
                        max_datagram: Some(largest),
                        ..
                    }) = &message
                    {
                        self.told.insert((conn, *session), *largest);
                    }
                    self.transmit(Transit::ToAgent(conn, message));
                }
                Output::Ping { conn } => {
                    assert!(self.open.contains(&conn));
                    let ping = crate::protocol::message::Ping { ts: 0 };
                    self.transmit(Transit::ToAgent(conn, ping.into()));
                }
                Output::Pong { .. } => {}
                Output::Close { conn, .. } => assert!(self.open.remove(&conn), "a connection is closed once"),
                Output::Bind { to, bytes, .. } => {
                    assert!(self.sources.contains(&to), "nothing is sent where no datagram came from");
                    self.transmit(Transit::BindToAgent(to, bytes));
                }
                Output::Event(event) => *self.seen.entry(event_name(&event)).or_default() += 1,
            }
        }
    }

    fn check_state(&self) {
        let Rendezvous { nodes, agents, sessions, pings, looks, .. } = &self.rendezvous;
        let next = self.rendezvous.next_deadline();
        assert!(next.is_none_or(|due| due > self.now), "nothing due is left undone");
        assert_eq!(agents.ids().into_iter().collect::<BTreeSet<_>>(), self.open);
        for node in nodes.iter() {
            if let Some(announcement) = &node.announcement {
                assert_eq!(agents.get(announcement.conn).map(|agent| agent.node), Some(node.id));
            }
        }
        self.check_nodes();
        let (mut bound, mut paired) = (0, 0);
        let mut offers = [BTreeMap::new(), BTreeMap::new()];
        for session in sessions.iter() {
            self.check_session(session);
            bound += session.parties.iter().filter(|party| party.bound.is_some()).count();
            paired += usize::from(session.slot.is_some());
            for (party, offers) in session.parties.iter().zip(&mut offers) {
                if session.is_offer() {
                    *offers.entry(nodes.get(party.node).unwrap().id).or_insert(0_u32) += 1;
                }
            }
        }
        assert_eq!(sessions.tuple_count(), bound, "every proved tuple has one owner");
        assert_eq!(self.flows.ledger.slots.len(), paired, "no flow without a session");
        assert_eq!(offer_counts(nodes), offers);
        let [by_source, by_target] = offers;
        assert!(by_source.values().all(|open| *open <= MAX_OFFERS_PER_SOURCE));
        assert!(by_target.values().all(|open| *open <= MAX_OFFERS_PER_TARGET));
        // Entries that do not count any more go when they come.
        assert!(pings.len() < 2 * AGENTS + self.open.len());
        assert!(looks.len() < 2 * AGENTS + 2 * sessions.total());
        let sample = (self.sent % 64) as u16;
        self.nobody_else_is_forwarded(|source| source.port() % 64 == sample);
    }

    /// Of the addresses that have ever sent something, only those of paired sessions are forwarded, and for a while those
    /// that their sides have just moved away from.
    fn nobody_else_is_forwarded(&self, chosen: impl Fn(&SocketAddr) -> bool) {
        for from in self.sources.iter().copied().filter(chosen) {
            let tuple = FlowTuple { agent: from, relay: super::relay_of(from) };
            if !self.flows.ledger.by_tuple.contains_key(&tuple) {
                let arrival = Arrival { from, to: tuple.relay, payload: b"x", tos: 0, ttl: 64 };
                assert_eq!(self.flows.tables.decide(&arrival, self.now), Err(Reason::NoFlow), "{from}");
                // Whoever has proved it since has it for itself, paired or not.
                let owner = self.rendezvous.sessions.owner(&tuple);
                let expected =
                    self.flows.destination_of_previous(&tuple, self.now).filter(|_| owner.is_none());
                let found = self.flows.tables.decide_previous(&arrival, self.now).map(|relayed| relayed.to);
                assert_eq!(found, expected.ok_or(Reason::NoFlow), "{from}");
            }
        }
    }

    fn check_session(&self, session: &Session) {
        let Rendezvous { nodes, agents, sessions, looks, settings, .. } = &self.rendezvous;
        let wakes_at = session.wakes_at.expect("a session is looked at");
        assert!(looks.has(sessions.number(session.id).unwrap(), wakes_at));
        assert!(wakes_at <= session.due(settings.idle_timeout), "and in time");
        let [connector, target] = &session.parties;
        assert_ne!(connector.node, target.node);
        for side in Side::BOTH {
            let party = session.party(side);
            let node = nodes.get(party.node).expect("a session's nodes are known").id;
            if let Some(conn) = party.conn {
                assert_eq!(agents.get(conn).map(|agent| agent.node), Some(node));
            } else {
                assert_eq!(nodes.newest(&node), None, "a side follows its node's connections");
            }
            if let Some(tuple) = party.tuple() {
                assert_eq!(sessions.owner(&tuple), Some((session.id, side)));
                assert!(party.counter > 0);
            }
            let of_node: Vec<_> = sessions.of_node(Some(party.node), nodes).collect();
            assert!(of_node.iter().any(|(of_node, as_side)| of_node.id == session.id && *as_side == side));
            assert!(session.is_offer() || party.proved + CONSENT > self.now, "consent is fresh");
        }
        assert!(session.offer_until().is_none_or(|until| until > self.now && session.slot.is_none()));
        for conn in session.parties.iter().filter_map(|party| party.conn) {
            assert_eq!(self.told.get(&(conn, session.id)), Some(&session.max_datagram_bytes()));
        }
        let bound = session.parties.each_ref().map(|party| party.tuple());
        if let [Some(connector), Some(target)] = bound {
            let both_v4 = connector.agent.is_ipv4() && target.agent.is_ipv4();
            assert_eq!(session.max_datagram_bytes(), if both_v4 { 1472 } else { 1452 });
        }
        if let Some(slot) = session.slot {
            assert_eq!(session.state(), SessionState::Paired);
            let installed = &self.flows.ledger.slots[&slot];
            assert_eq!(Some(installed.tuples), session.tuples(), "what is forwarded is what was proved");
            self.flows.forwards(slot, self.now);
            let leases = session.parties.each_ref().map(|party| party.proved + LEASE);
            assert_eq!(installed.deadlines, leases);
        }
    }

    /// Every node is known for its connections or sessions, and by its id.
    fn check_nodes(&self) {
        let Rendezvous { nodes, sessions, .. } = &self.rendezvous;
        for node in nodes.iter() {
            let number = nodes.number(&node.id);
            assert!(std::ptr::eq(nodes.get(number.unwrap()).unwrap(), node));
            let of_node = sessions.of_node(number, nodes).count();
            assert_eq!(of_node, node.sessions as usize);
            assert!(of_node > 0 || nodes.newest(&node.id).is_some(), "a node that has gone is forgotten");
        }
    }

    /// All connections and data sockets die: soon nothing of them is left.
    fn everyone_leaves(&mut self) {
        for who in 0..AGENTS {
            self.lose_connection(who);
            self.agents[who].sessions.clear();
        }
        self.network.clear();
        self.run_until(self.now + seconds(240));
        self.check_state();
        assert_eq!(self.rendezvous.sessions.total(), 0);
        assert_eq!(self.rendezvous.nodes.iter().count(), 0);
        assert!(self.flows.ledger.slots.is_empty());
        assert!(self.open.is_empty(), "connections that lingered are found dead by unanswered pings");
        assert_eq!(self.rendezvous.next_deadline(), None);
        self.nobody_else_is_forwarded(|_| true);
    }
}

/// The real tables, and an account of what should stand in them.
struct Books {
    ledger: Ledger,
    tables: Arc<Tables>,
    table: FlowTable<NoRoutes>,
    /// The table's slot of each of the ledger's.
    slots: BTreeMap<SlotId, SlotId>,
    /// What each side moved away from last, and when.
    left: BTreeMap<(SlotId, Side), (FlowTuple, MonoTime)>,
}

impl Books {
    fn new() -> Books {
        let tables = Arc::new(Tables::private(TableSizes::for_sessions(4096), [1, 2], super::magic().0));
        let table = FlowTable::new(Arc::clone(&tables), NoRoutes);
        Books { ledger: Ledger::default(), tables, table, slots: BTreeMap::new(), left: BTreeMap::new() }
    }

    /// What either side sends now arrives at the other.
    fn forwards(&self, slot: SlotId, now: MonoTime) {
        let [connector, target] = self.ledger.slots[&slot].tuples;
        for (from, to) in [(connector, target), (target, connector)] {
            let arrival = Arrival { from: from.agent, to: from.relay, payload: b"x", tos: 0, ttl: 64 };
            assert_eq!(self.tables.decide(&arrival, now).map(|relayed| relayed.to), Ok(to.agent));
        }
    }
}

impl Books {
    /// Where a datagram goes that a side sent just before it moved.
    fn destination_of_previous(&self, tuple: &FlowTuple, now: MonoTime) -> Option<SocketAddr> {
        let of_tuple = self.left.iter().find(|(_, (left, _))| left == tuple);
        let ((slot, side), _) = of_tuple.filter(|(_, (_, at))| now < *at + PREVIOUS_TUPLE_KEPT)?;
        Some(self.ledger.slots[slot].tuples[side.other().index()].agent)
    }

    /// Somebody has proved `tuple`.
    fn not_left(&mut self, tuple: FlowTuple) {
        self.left.retain(|_, (left, _)| *left != tuple);
    }
}

impl Flows for Books {
    fn install(
        &mut self,
        tuples: [FlowTuple; 2],
        limit: Limit,
        debt: Debt,
        deadlines: [MonoTime; 2],
        now: MonoTime,
    ) -> Result<SlotId, InstallError> {
        let slot = self.ledger.install(tuples, limit, debt, deadlines, now)?;
        let of_table = self.table.install(tuples, limit, debt, deadlines, now).expect("the tables have room");
        self.slots.insert(slot, of_table);
        tuples.into_iter().for_each(|tuple| self.not_left(tuple));
        Ok(slot)
    }

    fn extend(&mut self, slot: SlotId, side: Side, deadline: MonoTime) {
        self.ledger.extend(slot, side, deadline);
        self.table.extend(self.slots[&slot], side, deadline);
    }

    fn rebind(
        &mut self,
        slot: SlotId,
        side: Side,
        tuple: FlowTuple,
        now: MonoTime,
    ) -> Result<(), InstallError> {
        let before = self.ledger.slots[&slot].tuples[side.index()];
        self.ledger.rebind(slot, side, tuple, now)?;
        self.not_left(tuple);
        if before != tuple {
            self.left.insert((slot, side), (before, now));
        }
        self.table.rebind(self.slots[&slot], side, tuple, now).expect("the tables have room");
        Ok(())
    }

    fn set_limit(&mut self, slot: SlotId, limit: Limit, now: MonoTime) {
        self.ledger.set_limit(slot, limit, now);
        self.table.set_limit(self.slots[&slot], limit, now);
    }

    fn remove(&mut self, slot: SlotId, now: MonoTime) -> Debt {
        self.ledger.remove(slot, now);
        self.left.retain(|(of, _), _| *of != slot);
        let debt = self.table.remove(self.slots.remove(&slot).unwrap(), now);
        assert_eq!(self.table.installed() as usize, self.slots.len());
        debt
    }

    fn proved(&mut self, tuple: FlowTuple) {
        self.table.proved(tuple);
    }

    /// The ledger's: the simulation decides what is carried.
    fn traffic(&self, slot: SlotId) -> Traffic {
        self.ledger.traffic(slot)
    }

    fn egress_mtus(&self, slot: SlotId) -> [Option<u32>; 2] {
        self.ledger.egress_mtus(slot)
    }
}

/// Open offers by connector and by target.
fn offer_counts(nodes: &Nodes) -> [BTreeMap<NodeId, u32>; 2] {
    Side::BOTH.map(|side| {
        let counts = nodes.iter().map(|node| (node.id, node.open_offers(side)));
        counts.filter(|(_, open)| *open > 0).collect()
    })
}

fn node(who: usize) -> NodeId {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&(who as u64).to_be_bytes());
    NodeId::from_bytes(bytes)
}

fn control_address(who: usize, conn: ConnId) -> SocketAddr {
    SocketAddr::new(address(who, 192), 1 + (conn.0 % 1000) as u16)
}

fn data_address(who: usize, port: u64) -> SocketAddr {
    SocketAddr::new(address(who, 203), 2000 + port as u16)
}

/// Every third agent speaks IPv6.
fn address(who: usize, net: u8) -> IpAddr {
    match who % 3 {
        0 => Ipv6Addr::new(0x2001, 0xdb8, net.into(), 0, 0, 0, 0, who as u16).into(),
        _ => Ipv4Addr::new(net, 0, (who >> 8) as u8, who as u8).into(),
    }
}

fn event_name(event: &Event) -> String {
    match event {
        Event::Ended { reason, .. } => reason.to_string(),
        Event::Offered { .. } => "offered".to_owned(),
        Event::Paired { .. } => "paired".to_owned(),
        Event::Moved { .. } => "moved".to_owned(),
        Event::TupleLost { .. } => "tuple lost".to_owned(),
        Event::Replaced { .. } => "replaced".to_owned(),
        Event::Limited { .. } => "limited".to_owned(),
        _ => "other".to_owned(),
    }
}
