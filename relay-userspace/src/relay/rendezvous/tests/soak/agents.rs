//! What agents do.

use super::*;
use crate::protocol::bind::{BindClient, BindEvent, BindOutput};
use crate::protocol::flow_terms::{FLOW, RelayAnnounce, RelayConnect};

#[derive(Default)]
pub struct SimulatedAgent {
    pub conn: Option<ConnId>,
    pub sessions: BTreeMap<SessionId, SimulatedFlow>,
}

/// An agent's side of a session, and its data socket.
pub struct SimulatedFlow {
    pub client: BindClient,
    /// Where the relay sees the socket.
    pub address: SocketAddr,
    /// When the agent looks at it next.
    pub looks_at: Option<MonoTime>,
}

impl SimulatedAgent {
    pub fn forget_sessions(&mut self) {
        self.sessions.clear();
    }
}

/// So many, the first of all, are what everybody asks for.
#[derive(Clone, Copy)]
pub struct PopularAgents(pub usize);

impl PopularAgents {
    pub fn one(self, random: &mut Seeded) -> usize {
        random.below(self.0 as u64) as usize
    }
}

impl Simulation {
    pub fn connect(&mut self, who: usize) {
        let conn = ConnId(self.next_conn);
        self.next_conn += 1;
        self.open.insert(conn, who);
        // The one before, if any, lingers until it is replaced or found dead.
        self.agents[who].conn = Some(conn);
        let (remote, name) = (control_address(who, conn.0), String::new());
        let agent = Authenticated { conn, node: node(who), name, remote, relay: None };
        self.touched.nodes.insert(who);
        self.rendezvous.connected(agent, self.now);
        self.after_input();
        let allow = (self.random.below(8) == 0).then(|| (0..50).map(|n| node(n).to_string()).collect());
        let node_id = node(who).to_string();
        let announce = RelayAnnounce { node_id, timestamp: 0, flow: Some(FLOW), allow };
        self.transmit(Transit::ToRelay(conn, announce.into()));
    }

    pub fn lose_connection(&mut self, who: usize) {
        if let Some(conn) = self.agents[who].conn.take() {
            self.open.remove(&conn);
            self.touched.nodes.insert(who);
            self.rendezvous.closed(conn, "lost");
            self.after_input();
        }
    }

    pub fn ask_for_someone(&mut self, who: usize) {
        let Some(conn) = self.agents[who].conn else { return };
        let whom = match self.random.below(4) {
            0 => self.popular.one(&mut self.random),
            // A neighbour, whom it has asked for before.
            1 => (who + 1) % AGENTS,
            _ => self.random.below(AGENTS as u64) as usize,
        };
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

    /// One of a session's sides ends it: an offer as well as what is paired.
    pub fn end_a_session(&mut self) {
        let Some((session, who)) = self.some_side() else { return };
        let Some(conn) = self.agents[who].conn else { return };
        self.agents[who].sessions.remove(&session);
        let disconnect = super::super::disconnect(Some(session));
        self.transmit(Transit::ToRelay(conn, disconnect.into()));
    }

    /// The NAT gives a data socket another port: a fresh one, or one that another session had.
    pub fn change_address(&mut self) {
        let (Some((session, who)), Some((other, whose))) = (self.some_side(), self.some_side()) else {
            return;
        };
        let fresh = self.random.below(60_000);
        let taken = self.agents[whose].sessions.get(&other).map(|flow| flow.address);
        let at = taken.filter(|_| fresh.is_multiple_of(3)).unwrap_or(data_address(who, fresh));
        let Some(flow) = self.agents[who].sessions.get_mut(&session) else { return };
        flow.address = at;
        flow.client.bind_now();
        self.flows_at_mut(at).push((who, session));
        self.poll(who, session);
    }

    /// A data socket dies without a word.
    pub fn fall_silent(&mut self) {
        if let Some((session, who)) = self.some_side() {
            self.agents[who].sessions.remove(&session);
        }
    }

    pub fn migrate(&mut self, who: usize) {
        if let Some(conn) = self.agents[who].conn {
            let port = self.random.below(1000);
            self.touched.nodes.insert(who);
            self.rendezvous.moved(conn, control_address(who, port));
            self.after_input();
        }
    }

    pub fn carry_a_packet(&mut self) {
        let limited = u64::from(self.random.below(10) == 0);
        if let Some(slot) = self.flows.some_slot(&mut self.random) {
            let traffic = &mut self.flows.ledger.slots.get_mut(&slot).unwrap().traffic;
            traffic.sides[0].packets_kernel += 1;
            traffic.sides[0].bytes += 1000;
            traffic.limited_packets += limited;
        }
    }

    /// A session that the relay knows, and the agent that is one of its sides.
    fn some_side(&mut self) -> Option<(SessionId, usize)> {
        let session = self.census.some_session(&mut self.random)?;
        let nodes = self.census.nodes_of(session);
        Some((session, nodes[self.random.below(2) as usize]))
    }

    /// An agent has been told of a session that is new to it.
    pub fn begin(&mut self, who: usize, session: SessionId, client: BindClient) {
        let address = data_address(who, self.random.below(60_000));
        self.agents[who].sessions.insert(session, SimulatedFlow { client, address, looks_at: None });
        self.flows_at_mut(address).push((who, session));
        self.poll(who, session);
    }

    /// Does what the agent's side of a session wants done.
    pub fn poll(&mut self, who: usize, session: SessionId) {
        let unix_us = self.now.0 / 1000;
        loop {
            let Some(flow) = self.agents[who].sessions.get_mut(&session) else { return };
            match flow.client.poll(self.now, unix_us) {
                BindOutput::Send(bytes) => {
                    let from = flow.address;
                    self.transmit(Transit::BindToRelay(from, bytes));
                }
                BindOutput::Event(BindEvent::Lost) => drop(self.agents[who].sessions.remove(&session)),
                BindOutput::Event(_) => {}
                BindOutput::Idle(until) => {
                    if let Some(at) = until.filter(|at| flow.looks_at.is_none_or(|before| *at < before)) {
                        flow.looks_at = Some(at);
                        self.network.at(at, Transit::Look(who, session, at));
                    }
                    return;
                }
            }
        }
    }

    /// Sides whose data socket is seen at `address`.
    pub fn flows_at(&mut self, address: SocketAddr) -> Vec<(usize, SessionId)> {
        let Simulation { agents, receivers, .. } = self;
        let Some(at) = receivers.get_mut(&address) else { return Vec::new() };
        at.retain(|(who, session)| {
            agents[*who].sessions.get(session).is_some_and(|flow| flow.address == address)
        });
        at.clone()
    }

    fn flows_at_mut(&mut self, address: SocketAddr) -> &mut Vec<(usize, SessionId)> {
        self.receivers.entry(address).or_default()
    }
}
