//! What agents do.

use relay_common::Side;

use super::*;
use crate::protocol::bind::{BindClient, BindEvent, BindOutput};
use crate::protocol::flow_terms::{FLOW, RelayAnnounce, RelayConnect};
use crate::relay::datapath::Traffic;

#[derive(Default)]
pub struct SimulatedAgent {
    pub conn: Option<ConnId>,
    /// Streams that it has opened on its connection, the first apart.
    streams: u32,
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

/// A fifth of all, and one of those that everybody asks for, know only the documented messages.
pub const fn knows_only_documented(who: usize) -> bool {
    who % 5 == 3
}

/// What everybody asks for: of all agents the first so many, and for joined streams the one after them.
#[derive(Clone, Copy)]
pub struct PopularAgents {
    pub for_flows: usize,
}

impl PopularAgents {
    pub fn one(self, random: &mut Seeded) -> usize {
        random.below(self.for_flows as u64 + 1) as usize
    }

    pub fn for_flow(self, random: &mut Seeded) -> usize {
        random.below(self.for_flows as u64) as usize
    }

    pub fn to_join(self) -> usize {
        self.for_flows
    }
}

impl Simulation {
    pub fn connect(&mut self, who: usize) {
        let conn = ConnId(self.next_conn);
        self.next_conn += 1;
        self.open.insert(conn, who);
        // The one before, if any, lingers until it is replaced or found dead.
        self.agents[who].conn = Some(conn);
        self.agents[who].streams = 0;
        let (remote, name) = (control_address(who, conn.0), String::new());
        let agent = Authenticated { conn, node: node(who), name, remote, relay: None };
        self.touched.nodes.insert(who);
        self.rendezvous.connected(agent, self.now);
        self.after_input();
        let allow = (self.random.below(8) == 0).then(|| (0..50).map(|n| node(n).to_string()).collect());
        let flow = (!knows_only_documented(who)).then_some(FLOW);
        self.say(first_of(conn), RelayAnnounce { allow, ..announcement(who, flow) });
    }

    /// It waits on some streams more.
    pub fn wait_on_streams(&mut self, who: usize, streams: usize) {
        for _ in 0..streams {
            let Some(end) = self.open_stream(who) else { return };
            self.say(end, announcement(who, None));
        }
    }

    /// It finishes one of its streams, whatever that is used for.
    pub fn finish_a_stream(&mut self, who: usize) {
        let Some(conn) = self.agents[who].conn else { return };
        let stream = self.random.below(u64::from(self.agents[who].streams) + 1);
        self.touched.nodes.insert(who);
        self.rendezvous.stream_over(StreamEnd { conn, stream: StreamNumber(stream as u32) });
        self.after_input();
    }

    /// Joined streams come to their end: one of the sides has had enough, nothing has passed, or it was too late to join them.
    pub fn end_what_is_joined(&mut self) {
        let Some(session) = self.census.some_joined(&mut self.random) else { return };
        let [connector, target] = Side::BOTH.map(EndReason::Left);
        let ends = [connector, target, EndReason::Idle, EndReason::NotJoined];
        let reason = ends[self.random.below(4) as usize];
        self.rendezvous.spliced_over(session, reason, Traffic::default(), self.now);
        self.after_input();
    }

    fn open_stream(&mut self, who: usize) -> Option<StreamEnd> {
        let agent = &mut self.agents[who];
        let conn = agent.conn?;
        agent.streams += 1;
        Some(StreamEnd { conn, stream: StreamNumber(agent.streams) })
    }

    fn say(&mut self, end: StreamEnd, message: impl Into<Message>) {
        self.transmit(Transit::ToRelay(end, message.into()));
    }

    pub fn lose_connection(&mut self, who: usize) {
        if let Some(conn) = self.agents[who].conn.take() {
            self.connection_dies(conn);
        }
    }

    pub fn connection_dies(&mut self, conn: ConnId) {
        self.touched.nodes.extend(self.open.remove(&conn));
        self.census.given.remove(&conn);
        self.rendezvous.closed(conn, "lost");
        self.after_input();
    }

    pub fn ask_for_someone(&mut self, who: usize) {
        let to_join = knows_only_documented(who) || self.random.below(8) == 0;
        let whom = match self.random.below(4) {
            0 if to_join => self.popular.to_join(),
            0 => self.popular.for_flow(&mut self.random),
            // A neighbour, whom it has asked for before: of its own kind, if it is not of the most.
            1 if to_join => (who / 5 * 5 + 8) % AGENTS,
            1 => (who + 1) % AGENTS,
            _ => self.random.below(AGENTS as u64) as usize,
        };
        if who != whom {
            self.ask_for(who, whom, to_join);
        }
    }

    /// Some agents ask for one, each again and again.
    pub fn several_ask_for_one(&mut self, whom: usize) {
        for nth in 0..30 {
            let who = (whom + 1 + nth % 3) % AGENTS;
            self.ask_for(who, whom, knows_only_documented(who));
        }
    }

    fn ask_for(&mut self, who: usize, whom: usize, to_join: bool) {
        let Some(conn) = self.agents[who].conn else { return };
        let end = if to_join { self.open_stream(who) } else { Some(first_of(conn)) };
        let Some(end) = end else { return };
        let connect = RelayConnect {
            source_id: node(who).to_string(),
            target_id: node(whom).to_string(),
            timestamp: None,
            flow: (!to_join).then_some(FLOW),
        };
        self.say(end, connect);
    }

    /// One of a session's sides ends it: an offer as well as what is paired.
    pub fn end_a_session(&mut self) {
        let Some((session, who)) = self.some_side() else { return };
        let Some(conn) = self.agents[who].conn else { return };
        self.agents[who].sessions.remove(&session);
        let disconnect = super::super::disconnect(Some(session));
        self.say(first_of(conn), disconnect);
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

fn announcement(who: usize, flow: Option<u32>) -> RelayAnnounce {
    RelayAnnounce { node_id: node(who).to_string(), timestamp: 0, flow, allow: None }
}

fn first_of(conn: ConnId) -> StreamEnd {
    StreamEnd { conn, stream: StreamNumber::FIRST }
}
