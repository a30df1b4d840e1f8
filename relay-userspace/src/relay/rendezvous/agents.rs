//! Who is connected, and who can be reached.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::refusal::Refusal;
use super::timers::Timer;
use super::{EndReason, Event, Output, PeerStatus, Rendezvous, goodbye};
use crate::clock::MonoTime;
use crate::identity::NodeId;
use crate::protocol::ErrorCode;
use crate::protocol::flow_terms::{FLOW, ReadyStatus, RelayAnnounce, RelayReady, disconnect_reason};
use crate::refusals::Tally;
use crate::relay::datapath::{FlowTuple, Flows};

/// A control connection. The driver chooses numbers and never uses one twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// An agent whose certificate and handshake have been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authenticated {
    /// Its connection.
    pub conn: ConnId,
    /// The id it has proved.
    pub node: NodeId,
    /// What it calls itself; not proved.
    pub name: String,
    /// Where its control connection comes from.
    pub remote: SocketAddr,
    /// The relay's address that it goes to, where that is known.
    pub relay: Option<IpAddr>,
}

/// An agent is asked for a sign of life this often.
const PING_EVERY: Duration = Duration::from_secs(60);

/// So many Pings in a row may stay without a Pong.
const MAX_UNANSWERED_PINGS: u8 = 3;

/// A connection may ask for a session this often in the long run.
const CONNECT_EVERY: Duration = Duration::from_millis(250);

/// So many it may ask for at once.
const CONNECT_BURST: u32 = 16;

/// An agent with a control connection.
#[derive(Debug)]
pub(super) struct Agent {
    pub node: NodeId,
    pub name: String,
    pub remote: SocketAddr,
    /// The relay's address that it goes to, where that is known.
    pub relay: Option<IpAddr>,
    pub since: MonoTime,
    pub unanswered_pings: u8,
    /// Errors it has reported.
    pub reports: Tally,
    /// Its announcements that changed something.
    announcements: Tally,
    /// When its connects would have come, had it sent them evenly.
    connects_until: MonoTime,
}

impl Agent {
    /// Whether it may send one more RelayConnect now; if so, that is counted.
    pub fn may_connect(&mut self, now: MonoTime) -> bool {
        let until = self.connects_until.max(now) + CONNECT_EVERY;
        let may = until.since(now) <= CONNECT_BURST * CONNECT_EVERY;
        if may {
            self.connects_until = until;
        }
        may
    }
}

/// An agent that can be reached.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Announcement {
    pub conn: ConnId,
    pub speaks_flow: bool,
    /// None: anyone may connect.
    pub allow: Option<BTreeSet<NodeId>>,
}

/// All connections, and what was announced on them.
#[derive(Debug, Default)]
pub(super) struct Agents {
    connected: BTreeMap<ConnId, Agent>,
    by_node: BTreeMap<NodeId, BTreeSet<ConnId>>,
    /// The control connections from an address and port. Several if they go to different addresses of the relay, or while
    /// a dead one has not been noticed.
    by_remote: BTreeMap<SocketAddr, BTreeSet<ConnId>>,
    announced: BTreeMap<NodeId, Announcement>,
}

impl Agents {
    pub fn get(&self, conn: ConnId) -> Option<&Agent> {
        self.connected.get(&conn)
    }

    pub fn get_mut(&mut self, conn: ConnId) -> Option<&mut Agent> {
        self.connected.get_mut(&conn)
    }

    pub fn ids(&self) -> Vec<ConnId> {
        self.connected.keys().copied().collect()
    }

    pub fn announcement(&self, node: &NodeId) -> Option<&Announcement> {
        self.announced.get(node)
    }

    /// The newest connection of a node.
    pub fn newest(&self, node: &NodeId) -> Option<ConnId> {
        self.by_node.get(node)?.last().copied()
    }

    /// Whether this tuple is a control connection's.
    pub fn is_control(&self, tuple: FlowTuple) -> bool {
        let mut agents =
            self.by_remote.get(&tuple.agent).into_iter().flatten().filter_map(|conn| self.get(*conn));
        let here = tuple.relay.ip().to_canonical();
        agents.any(|agent| agent.relay.is_none_or(|relay| relay.to_canonical() == here))
    }

    pub fn statuses(&self, now: MonoTime) -> Vec<PeerStatus> {
        let status = |(conn, agent): (&ConnId, &Agent)| PeerStatus {
            node: agent.node,
            name: agent.name.clone(),
            address: agent.remote,
            announced: self.announced.get(&agent.node).is_some_and(|announcement| announcement.conn == *conn),
            connected: now.since(agent.since),
        };
        self.connected.iter().map(status).collect()
    }

    fn insert(&mut self, conn: ConnId, agent: Agent) {
        self.by_node.entry(agent.node).or_default().insert(conn);
        self.by_remote.entry(agent.remote).or_default().insert(conn);
        self.connected.insert(conn, agent);
    }

    fn remove(&mut self, conn: ConnId) -> Option<Agent> {
        let agent = self.connected.remove(&conn)?;
        if let Some(conns) = self.by_node.get_mut(&agent.node) {
            conns.remove(&conn);
            if conns.is_empty() {
                self.by_node.remove(&agent.node);
            }
        }
        self.forget_remote(conn, agent.remote);
        if self.announced.get(&agent.node).is_some_and(|announcement| announcement.conn == conn) {
            self.announced.remove(&agent.node);
        }
        Some(agent)
    }

    fn forget_remote(&mut self, conn: ConnId, remote: SocketAddr) {
        if let Some(conns) = self.by_remote.get_mut(&remote) {
            conns.remove(&conn);
            if conns.is_empty() {
                self.by_remote.remove(&remote);
            }
        }
    }

    #[cfg(test)]
    pub fn announced(&self) -> impl Iterator<Item = (&NodeId, &Announcement)> {
        self.announced.iter()
    }
}

impl Rendezvous {
    /// An agent has finished the handshake. If it is a side of sessions that lost their connection, it is told of them.
    pub fn connected(&mut self, agent: Authenticated, now: MonoTime) {
        let Authenticated { conn, node, name, remote, relay } = agent;
        self.event(Event::Connected { node, name: name.clone(), remote });
        self.agents.insert(
            conn,
            Agent {
                node,
                name,
                remote,
                relay,
                since: now,
                unanswered_pings: 0,
                reports: Tally::default(),
                announcements: Tally::default(),
                connects_until: now,
            },
        );
        self.timers.set(Timer::Agent(conn), now + PING_EVERY);
        self.attach_sessions(node, None, conn);
    }

    /// An agent's control connection has migrated to another address: its data tuples may have changed as well, so it
    /// is told to bind at once.
    pub fn moved(&mut self, conn: ConnId, remote: SocketAddr) {
        let Some(agent) = self.agents.get_mut(conn) else { return };
        let (node, before) = (agent.node, std::mem::replace(&mut agent.remote, remote));
        if before == remote {
            return;
        }
        self.agents.forget_remote(conn, before);
        self.agents.by_remote.entry(remote).or_default().insert(conn);
        self.event(Event::Migrated { node, remote });
        for session in self.sessions.of_node(&node) {
            if let Some(side) = self.sessions.get(session).and_then(|session| session.side_on(conn)) {
                self.send_terms_to(session, side, true);
            }
        }
    }

    /// A control connection is gone. Sessions go on: the agent may come back.
    pub fn closed(&mut self, conn: ConnId, reason: &str) {
        if let Some(agent) = self.agents.get(conn) {
            let node = agent.node;
            self.event(Event::Closed { node, reason: reason.to_owned() });
            self.forget(conn);
        }
    }

    /// RelayAnnounce: the agent can be reached. The newest connection of an identity wins.
    pub(super) fn announce(&mut self, conn: ConnId, announce: &RelayAnnounce, now: MonoTime) {
        let Some(agent) = self.agents.get(conn) else { return };
        let node = agent.node;
        if let Err(fault) = own_id(&announce.node_id, &node) {
            return self.expel(conn, ErrorCode::InvalidIdentity, fault.refusal(), fault.text(), now);
        }
        let allow = match &announce.allow {
            None => None,
            Some(ids) => match ids.iter().map(|id| id.parse()).collect::<Result<BTreeSet<NodeId>, _>>() {
                Ok(ids) => Some(ids),
                Err(_) => {
                    let fault = IdFault::Malformed;
                    return self.expel(conn, ErrorCode::InvalidIdentity, fault.refusal(), fault.text(), now);
                }
            },
        };
        let flow = announce.flow == Some(FLOW);
        let allowed = allow.as_ref().map(BTreeSet::len);
        let announcement = Announcement { conn, speaks_flow: flow, allow };
        // An agent may announce itself all the time, and change its mind as often: that must not fill the log.
        if self.agents.announcement(&node) != Some(&announcement)
            && let Some(times) = self.agents.get_mut(conn).and_then(|agent| agent.announcements.count(now))
        {
            self.event(Event::Announced { node, flow, allowed, times });
        }
        let before = self.agents.announced.insert(node, announcement);
        if let Some(older) = before.map(|before| before.conn).filter(|older| *older != conn) {
            self.replace(older, conn);
        }
        self.send(conn, RelayReady::documented(ReadyStatus::Waiting, None));
    }

    /// Disconnect: the agent leaves on purpose, so the sessions on this connection are over.
    pub(super) fn depart(&mut self, conn: ConnId, flows: &mut impl Flows, now: MonoTime) {
        let Some(agent) = self.agents.get(conn) else { return };
        let node = agent.node;
        for session in self.sessions.of_node(&node) {
            if let Some(side) = self.sessions.get(session).and_then(|session| session.side_on(conn)) {
                self.end(session, EndReason::Left(side), flows, now);
            }
        }
        self.event(Event::Closed { node, reason: "the agent disconnected".to_owned() });
        self.close(conn, 0, "goodbye");
    }

    /// Asks for a sign of life, or gives up after three questions without an answer.
    pub(super) fn ping_or_give_up(&mut self, conn: ConnId, now: MonoTime) {
        let Some(agent) = self.agents.get_mut(conn) else { return };
        if agent.unanswered_pings >= MAX_UNANSWERED_PINGS {
            let node = agent.node;
            self.refuse(conn, Refusal::PingUnanswered, now);
            self.event(Event::Closed { node, reason: "three pings without a pong".to_owned() });
            self.send(
                conn,
                goodbye(disconnect_reason::IDLE, Some("three pings without a pong".to_owned()), None),
            );
            return self.close(conn, 0, "idle");
        }
        agent.unanswered_pings += 1;
        self.outputs.push_back(Output::Ping { conn });
        self.timers.set(Timer::Agent(conn), now + PING_EVERY);
    }

    /// Has a connection closed, and forgets it.
    pub(super) fn close(&mut self, conn: ConnId, code: u32, reason: &'static str) {
        if self.agents.get(conn).is_some() {
            self.outputs.push_back(Output::Close { conn, code, reason });
            self.forget(conn);
        }
    }

    /// The older connection of an identity gives way to the newer one, which inherits its sessions.
    fn replace(&mut self, older: ConnId, newer: ConnId) {
        let Some(agent) = self.agents.get(older) else { return };
        let (node, remote) = (agent.node, agent.remote);
        self.event(Event::Replaced { node, remote });
        let note = format!("{} announced itself on a newer connection", node.short());
        self.send(older, goodbye(disconnect_reason::REPLACED, Some(note), None));
        self.attach_sessions(node, Some(older), newer);
        self.close(older, 0, "replaced");
    }

    /// Forgets a connection; its sessions go to the newest other connection of the node, if there is one.
    fn forget(&mut self, conn: ConnId) {
        let Some(agent) = self.agents.remove(conn) else { return };
        self.timers.clear(Timer::Agent(conn));
        match self.agents.newest(&agent.node) {
            Some(other) => self.attach_sessions(agent.node, Some(conn), other),
            None => self.sessions.detach(&agent.node, conn),
        }
    }

    /// Sessions of `node` whose connection is `from` (none: lost) continue on `to`, which is told their terms.
    fn attach_sessions(&mut self, node: NodeId, from: Option<ConnId>, to: ConnId) {
        for (session, side) in self.sessions.attach(&node, from, to) {
            self.send_terms_to(session, side, false);
        }
    }
}

/// What is wrong with the id an agent says is its own.
#[derive(Clone, Copy, Debug)]
pub(super) enum IdFault {
    Malformed,
    Foreign,
}

impl IdFault {
    pub fn refusal(self) -> Refusal {
        match self {
            IdFault::Malformed => Refusal::MalformedNodeId,
            IdFault::Foreign => Refusal::ForeignIdentity,
        }
    }

    pub fn text(self) -> &'static str {
        match self {
            IdFault::Malformed => "malformed node id: expected atlas_ and 64 hexadecimal digits",
            IdFault::Foreign => "the node id is not the one of the certificate",
        }
    }
}

/// Checks that `text` is `node`'s id.
pub(super) fn own_id(text: &str, node: &NodeId) -> Result<(), IdFault> {
    match text.parse::<NodeId>() {
        Err(_) => Err(IdFault::Malformed),
        Ok(id) if id != *node => Err(IdFault::Foreign),
        Ok(_) => Ok(()),
    }
}
