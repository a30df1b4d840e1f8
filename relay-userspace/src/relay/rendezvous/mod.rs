//! The rendezvous: who is here, who is offered to whom, which tuples are proved, and which flows follow from it.
//!
//! A pure state machine. It has no socket, no clock and no randomness of its own: time, random bytes and the packet path
//! are parameters, and what it wants done waits in a queue. The driver's contract:
//!
//! 1. give it an input: [`connected`](Rendezvous::connected), [`received`](Rendezvous::received),
//!    [`moved`](Rendezvous::moved), [`closed`](Rendezvous::closed), [`bind`](Rendezvous::bind) or, once
//!    [`next_deadline`](Rendezvous::next_deadline) has come, [`expire`](Rendezvous::expire);
//! 2. do everything [`next_output`](Rendezvous::next_output) says, in order;
//! 3. ask for the next deadline again.
//!
//! A pairing is an *offer* until both sides have proved a tuple; only then are flows installed. A session lives as long
//! as both sides go on proving their tuples and packets are relayed.

mod adopt;
mod agents;
mod binds;
mod counts;
mod draining;
mod event;
mod lifecycle;
mod nodes;
mod offers;
mod pace;
mod policy;
mod prefixes;
mod proved_tuple;
mod refusal;
mod session;
mod sessions;
mod slab;
mod splices;
mod throughput;
mod timers;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use relay_common::BIND_LEN;
use relay_common::siphash::SipKey;

pub use crate::protocol::flow_terms::LEASE;
pub use agents::{AskedOn, Authenticated, ConnId};
pub use counts::{Counts, Restrained};
pub use draining::{Drain, DrainStatus};
pub use event::{EndReason, Event};
pub use policy::{Access, MOST_SESSIONS_PER_NODE, Policy};
pub use refusal::Refusal;
pub use session::{SessionState, SessionStatus, SideStatus};
pub use splices::{SpliceStatus, StreamEnd, StreamNumber};

use self::agents::Agents;
use self::draining::Draining;
use self::nodes::Nodes;
use self::session::Session;
use self::sessions::Sessions;
use self::splices::Splices;
use self::throughput::Throughput;
use self::timers::Timers;
use crate::clock::MonoTime;
use crate::identity::{NodeId, NodeKey};
use crate::protocol::bind::{BindKeys, BindMagic, CookieSecrets};
use crate::protocol::flow_terms::{Disconnect, ErrorMessage, RelayReady, disconnect_reason};
use crate::protocol::handshake::printable;
use crate::protocol::message::NotTaken;
use crate::protocol::{ErrorCode, Message, SessionId};
use crate::refusals::Refusals;
use crate::relay::datapath::{Flows, Limit};
use crate::relay::stopping::Stopping;

/// An offer that is not bound by both sides dies after this.
pub const OFFER_LIFETIME: Duration = Duration::from_secs(10);

/// A side's proof of its tuple is good for this long; then the session ends.
///
/// A silent side's session has to be closed within 75 s. The rest is for what lies between this deadline and whoever
/// looks: a coarse clock, a late timer, a loaded host. Agents are told this number. From [`KEEPALIVE`] on they ask until
/// they are answered, at least every 2 s, so some twenty attempts have to fail before a session ends.
pub const CONSENT: Duration = Duration::from_secs(73);

/// Agents prove their tuples again after this.
pub const KEEPALIVE: Duration = Duration::from_secs(30);

/// Offers a node may have open to one target. One more takes the place of the older of them.
pub const MAX_OFFERS_PER_PAIR: usize = 2;

/// Sessions and offers that a node may have with one target.
pub const MAX_SESSIONS_PER_PAIR: usize = 4;

/// So many characters of an agent's own words go to the log.
const MAX_REPORT_CHARS: usize = 200;

/// Bytes nobody can guess, for session ids and cookie secrets.
pub trait Randomness {
    /// Fills `bytes`.
    fn fill(&mut self, bytes: &mut [u8]);

    /// `N` of them.
    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.fill(&mut bytes);
        bytes
    }

    /// A key for a table of what others choose.
    fn hash_key(&mut self) -> SipKey {
        [u64::from_ne_bytes(self.array()), u64::from_ne_bytes(self.array())]
    }
}

/// What the operator decides.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The relay's identity: bind keys and the bind magic derive from it.
    pub key: NodeKey,
    /// The limit of each session.
    pub limit: Limit,
    /// Who may use the relay, and how much of it.
    pub policy: Policy,
    /// A session without a relayed packet ends after this.
    pub idle_timeout: Duration,
    /// Where agents are told to send data; empty: where they reached the relay.
    pub advertise: Vec<SocketAddr>,
}

/// What the rendezvous wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Send `message` to an agent.
    Send {
        /// Its connection.
        conn: ConnId,
        /// The message.
        message: Message,
    },
    /// Ask an agent whether it is still there. The driver puts its clock in.
    Ping {
        /// Its connection.
        conn: ConnId,
    },
    /// Answer an agent's Ping. The driver puts its clock in.
    Pong {
        /// Its connection.
        conn: ConnId,
        /// The Ping's `ts`.
        echo: i64,
    },
    /// Close a connection once what was sent on it has arrived. It is forgotten here already.
    Close {
        /// The connection.
        conn: ConnId,
        /// QUIC application close code; 0 is an orderly end.
        code: u32,
        /// QUIC close reason.
        reason: &'static str,
        /// What the agent has done that no sound agent does, if that is why: it counts towards a ban.
        blamed: Option<Refusal>,
    },
    /// Send a bind datagram.
    Bind {
        /// The relay address to send it from.
        from: SocketAddr,
        /// The agent's tuple.
        to: SocketAddr,
        /// The whole datagram.
        bytes: [u8; BIND_LEN],
    },
    /// Join two streams, byte for byte. Nothing of the relay's may follow on them. Once that is over:
    /// [`Rendezvous::spliced_over`].
    Splice {
        /// The session.
        session: SessionId,
        /// The streams, indexed by [`Side`](relay_common::Side).
        ends: [StreamEnd; 2],
        /// What the connector is told on its stream once nothing more is read of either.
        ready: RelayReady,
        /// The limit of both directions together.
        limit: Limit,
        /// It ends once nothing has passed for so long.
        idle_timeout: Duration,
    },
    /// End such a pairing, and tell [`Rendezvous::spliced_over`] so with the same reason.
    Unsplice {
        /// The session.
        session: SessionId,
        /// Why.
        reason: EndReason,
    },
    /// The relay was to be drained, and now it is: have it stop.
    Drained {
        /// Sessions that are left since there was no more time.
        left: usize,
    },
    /// Something happened that belongs in the log.
    Event(Event),
}

/// An agent with a control connection, for listings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Who.
    pub node: NodeId,
    /// What it calls itself.
    pub name: String,
    /// Where its control connection comes from.
    pub address: SocketAddr,
    /// Whether others can reach it through this relay.
    pub announced: bool,
    /// How long it has been connected.
    pub connected: Duration,
}

/// The state machine. See the [module](self) for how to drive it.
#[derive(Debug)]
pub struct Rendezvous {
    settings: Settings,
    magic: BindMagic,
    bind_keys: BindKeys,
    secrets: CookieSecrets,
    nodes: Nodes,
    agents: Agents,
    sessions: Sessions,
    splices: Splices,
    /// When connections are to be asked for a sign of life.
    pings: Timers<ConnId>,
    /// When sessions, by number, are to be looked at.
    looks: Timers<u32>,
    refusals: Refusals<Refusal>,
    /// What all sessions carry.
    throughput: Throughput,
    /// What the limits have done to it.
    restrained: Restrained,
    /// The most that a policy has permitted a node so far.
    most_sessions_per_node: u32,
    /// No new sessions: it is about to stop.
    draining: Option<Draining>,
    outputs: VecDeque<Output>,
}

impl Rendezvous {
    /// A rendezvous without agents.
    pub fn new(settings: Settings, randomness: &mut impl Randomness, now: MonoTime) -> Rendezvous {
        Rendezvous {
            magic: BindMagic::of_relay(&settings.key.public()),
            bind_keys: BindKeys::of_relay(&settings.key),
            most_sessions_per_node: settings.policy.sessions_per_node,
            settings,
            secrets: CookieSecrets::new(randomness.array(), now),
            nodes: Nodes::new(randomness.hash_key()),
            agents: Agents::default(),
            sessions: Sessions::new(randomness.hash_key()),
            splices: Splices::default(),
            pings: Timers::default(),
            looks: Timers::default(),
            refusals: Refusals::default(),
            throughput: Throughput::default(),
            restrained: Restrained::default(),
            draining: None,
            outputs: VecDeque::new(),
        }
    }

    /// A message has come from an agent. Messages from connections already given up are ignored.
    pub fn received(
        &mut self,
        conn: ConnId,
        message: Message,
        flows: &mut impl Flows,
        randomness: &mut impl Randomness,
        now: MonoTime,
    ) {
        let Some(agent) = self.agents.get_mut(conn) else { return };
        match message {
            Message::RelayAnnounce(announce) => self.announce(conn, &announce, now),
            Message::RelayConnect(connect) => self.connect(conn, &connect, false, flows, randomness, now),
            Message::Ping(ping) => self.outputs.push_back(Output::Pong { conn, echo: ping.ts }),
            Message::Pong(_) => agent.unanswered_pings = 0,
            Message::Disconnect(Disconnect { session: Some(session), .. }) => {
                self.leave(conn, session, flows, now);
            }
            Message::Disconnect(_) => self.depart(conn, flows, now),
            Message::Error(error) => {
                let node = agent.node;
                if let Some(times) = agent.reports.count(now) {
                    let message = printable(&error.message, MAX_REPORT_CHARS);
                    self.event(Event::AgentReports { node, code: error.code, message, times });
                }
            }
            other => self.not_taken(conn, NotTaken::from(&other), now),
        }
    }

    /// Whether [`received`](Self::received) takes messages of this type; of others [`NotTaken`] is enough.
    pub const fn takes(type_byte: u8) -> bool {
        // RelayAnnounce, RelayConnect, Error, Ping, Pong, Disconnect.
        matches!(type_byte, 0x30 | 0x31 | 0xe0 | 0xf0 | 0xf1 | 0xff)
    }

    /// A message has come that agents do not send to relays.
    pub fn not_taken(&mut self, conn: ConnId, message: NotTaken, now: MonoTime) {
        if self.agents.get(conn).is_none() {
            return;
        }
        self.refuse(conn, Refusal::UnexpectedMessage, now);
        let text = format!("a relay takes no {}", message.name);
        let error = ErrorMessage::new(ErrorCode::MessageRejected, text);
        self.send(conn, ErrorMessage { ref_msg_id: message.id, ..error });
    }

    /// Does what is due. To be called once [`next_deadline`](Self::next_deadline) has come; calling it early does no
    /// harm.
    pub fn expire(&mut self, flows: &mut impl Flows, now: MonoTime) {
        while let Some((conn, _)) = self.pings.take_due(now) {
            self.ping_or_give_up(conn, now);
        }
        while let Some((session, at)) = self.looks.take_due(now) {
            self.wake(session, at, flows, now);
        }
        self.expire_drain(now);
    }

    /// When [`expire`](Self::expire) may have something to do next.
    pub fn next_deadline(&self) -> Option<MonoTime> {
        [self.pings.first(), self.looks.first(), self.drain_deadline()].into_iter().flatten().min()
    }

    /// What is to be done next.
    pub fn next_output(&mut self) -> Option<Output> {
        self.outputs.pop_front().or_else(|| self.drained())
    }

    /// Every session gets another limit, and both its sides are told.
    pub fn set_limit(&mut self, limit: Limit, flows: &mut impl Flows, now: MonoTime) {
        self.settings.limit = limit;
        for session in self.sessions.ids() {
            if let Some(slot) = self.sessions.get(session).and_then(|session| session.slot) {
                flows.set_limit(slot, limit, now);
            }
            self.send_terms(session, false);
        }
    }

    /// The operator ends a session. False: there is none of that id.
    pub fn end_by_operator(&mut self, session: SessionId, flows: &mut impl Flows, now: MonoTime) -> bool {
        let is_there = self.sessions.get(session).is_some();
        self.end(session, EndReason::Operator, flows, now);
        is_there || self.unsplice(session, EndReason::Operator)
    }

    /// The operator ends all sessions and offers of a node. How many there were.
    pub fn end_all_by_operator(&mut self, node: &NodeId, flows: &mut impl Flows, now: MonoTime) -> usize {
        self.end_all(self.nodes.number(node), EndReason::Operator, flows, now)
    }

    /// UDP payload bytes per second that all sessions carried together of late: an average over five seconds, which are
    /// up to six seconds old.
    pub fn relayed_bytes_per_s(&mut self, now: MonoTime) -> u64 {
        self.throughput.bytes_per_s(now)
    }

    /// The relay stops: every agent is told, every flow removed.
    pub fn shut_down(&mut self, flows: &mut impl Flows, now: MonoTime) {
        for session in self.sessions.ids() {
            self.end(session, EndReason::Shutdown, flows, now);
        }
        self.unsplice_all(EndReason::Shutdown);
        for conn in self.agents.ids() {
            self.send(conn, Disconnect::new(disconnect_reason::SHUTDOWN, None, None));
            self.close(conn, 0, Stopping::End.to_agents());
        }
        self.pings = Timers::default();
        self.looks = Timers::default();
    }

    /// The relay makes way for a successor, which goes on with flows and sessions: every agent is told to connect again.
    /// Streams that are joined end, with the connections that they are part of.
    pub fn make_way(&mut self) {
        for conn in self.agents.ids() {
            self.send(conn, Disconnect::new(disconnect_reason::RESTART, None, None));
            self.close(conn, 0, Stopping::Leave.to_agents());
        }
        self.pings = Timers::default();
        self.looks = Timers::default();
    }

    /// A refusal made outside: counted, and logged if none like it was in the last second.
    pub fn refused(&mut self, refusal: Refusal, node: Option<NodeId>, from: SocketAddr, now: MonoTime) {
        if let Some(times) = self.refusals.count(refusal, now) {
            self.event(Event::Refused { refusal, times, node, from: Some(from) });
        }
    }

    /// An agent does not read what it is sent: the driver has given its connection up.
    pub fn slow_reader(&mut self, conn: ConnId, now: MonoTime) {
        self.refuse(conn, Refusal::SlowReader, now);
        self.closed(conn, "it does not read what it is sent");
    }

    /// How often each refusal has happened.
    pub fn refusals(&self) -> &Refusals<Refusal> {
        &self.refusals
    }

    /// All agents with a control connection.
    pub fn peers(&self, now: MonoTime) -> Vec<PeerStatus> {
        self.agents.statuses(&self.nodes, now)
    }

    /// All sessions and offers.
    pub fn sessions(&self, flows: &impl Flows, now: MonoTime) -> Vec<SessionStatus> {
        let status = |session: &Session| {
            Some(session.status(self.nodes.ids(session.nodes())?, self.settings.limit, flows, now))
        };
        self.sessions.iter().filter_map(status).collect()
    }

    /// Answers a message that no sound agent sends with an error, and ends the connection.
    fn expel(&mut self, conn: ConnId, code: ErrorCode, refusal: Refusal, text: &'static str, now: MonoTime) {
        self.refuse(conn, refusal, now);
        self.send(conn, ErrorMessage::new(code, text));
        self.close_blaming(conn, code.number(), text, Some(refusal));
    }

    /// Counts what an agent is refused, and logs it if none like it was in the last second.
    fn refuse(&mut self, conn: ConnId, refusal: Refusal, now: MonoTime) {
        let Some(times) = self.refusals.count(refusal, now) else { return };
        let agent = self.agents.get(conn);
        let (node, from) = (agent.map(|agent| agent.node), agent.map(|agent| agent.remote));
        self.event(Event::Refused { refusal, times, node, from });
    }

    fn send(&mut self, conn: ConnId, message: impl Into<Message>) {
        self.outputs.push_back(Output::Send { conn, message: message.into() });
    }

    fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }
}
