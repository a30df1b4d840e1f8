//! Who is connected, and who can be reached.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use relay_common::Side;

use super::nodes::{Announcement, Nodes};
use super::policy::NOT_PERMITTED;
use super::refusal::Refusal;
use super::splices::StreamNumber;
use super::{EndReason, Event, Output, PeerStatus, Rendezvous};
use crate::clock::MonoTime;
use crate::identity::NodeId;
use crate::protocol::flow_terms::{
    Disconnect, ErrorMessage, FLOW, ReadyStatus, RelayAnnounce, RelayReady, disconnect_reason,
};
use crate::protocol::{ErrorCode, SessionId};
use crate::refusals::Tally;
use crate::relay::datapath::{FlowTuple, Flows};
use crate::relay::prefix::Prefix;

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
    /// Where it has shaken hands from, which proves that address.
    pub remote: SocketAddr,
    /// The relay's address that it goes to, where that is known.
    pub relay: Option<IpAddr>,
}

/// A connection on which an agent is to be asked something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskedOn {
    /// Which.
    pub conn: ConnId,
    /// Where it comes from.
    pub remote: SocketAddr,
    /// Whether more than the documented messages may be sent on it.
    pub speaks_flow: bool,
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
    /// Where its control connection comes from now.
    pub remote: SocketAddr,
    /// What its sessions are charged to: where it has shaken hands from, however it moves. An agent can make it seem to be
    /// elsewhere by packets that it forges, and would use up the sessions of others.
    pub prefix: Prefix,
    /// The relay's address that it goes to, where that is known.
    pub relay: Option<IpAddr>,
    pub since: MonoTime,
    pub unanswered_pings: u8,
    /// The stream that its present message has come on.
    pub speaks_on: StreamNumber,
    /// It has said that it knows what is beyond the documented messages.
    pub speaks_flow: bool,
    /// Its first stream waits for a peer, or was given to one: no Ping can be sent on it any more.
    pub gave_first_stream: bool,
    /// Errors it has reported.
    pub reports: Tally,
    /// Its announcements that changed something.
    announcements: Tally,
    /// When its connects would have come, had it sent them evenly.
    connects_until: MonoTime,
    /// When it is to be asked for a sign of life.
    ping_at: MonoTime,
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

/// All connections.
#[derive(Debug, Default)]
pub(super) struct Agents {
    connected: BTreeMap<ConnId, Agent>,
    /// The control connections from an address and port. Several if they go to different addresses of the relay, or while
    /// a dead one has not been noticed.
    by_remote: BTreeSet<(SocketAddr, ConnId)>,
}

impl Agents {
    pub fn get(&self, conn: ConnId) -> Option<&Agent> {
        self.connected.get(&conn)
    }

    pub fn get_mut(&mut self, conn: ConnId) -> Option<&mut Agent> {
        self.connected.get_mut(&conn)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.connected.len()
    }

    pub fn ids(&self) -> Vec<ConnId> {
        self.connected.keys().copied().collect()
    }

    /// Whether this tuple is a control connection's.
    pub fn is_control(&self, tuple: FlowTuple) -> bool {
        let from = (tuple.agent, ConnId(u64::MIN))..=(tuple.agent, ConnId(u64::MAX));
        let mut agents = self.by_remote.range(from).filter_map(|(_, conn)| self.get(*conn));
        let here = tuple.relay.ip().to_canonical();
        agents.any(|agent| agent.relay.is_none_or(|relay| relay.to_canonical() == here))
    }

    pub fn statuses(&self, nodes: &Nodes, now: MonoTime) -> Vec<PeerStatus> {
        let status = |(conn, agent): (&ConnId, &Agent)| PeerStatus {
            node: agent.node,
            name: agent.name.clone(),
            address: agent.remote,
            announced: nodes
                .by_id(&agent.node)
                .and_then(|node| node.announcement.as_ref())
                .is_some_and(|announcement| announcement.conn == *conn),
            connected: now.since(agent.since),
        };
        self.connected.iter().map(status).collect()
    }

    fn insert(&mut self, conn: ConnId, agent: Agent) {
        self.by_remote.insert((agent.remote, conn));
        self.connected.insert(conn, agent);
    }

    fn remove(&mut self, conn: ConnId) -> Option<Agent> {
        let agent = self.connected.remove(&conn)?;
        self.by_remote.remove(&(agent.remote, conn));
        Some(agent)
    }
}

impl Rendezvous {
    /// An agent has finished the handshake. If it is a side of sessions that lost their connection, it is told of them.
    pub fn connected(&mut self, agent: Authenticated, now: MonoTime) {
        let Authenticated { conn, node, name, remote, relay } = agent;
        // The policy may have changed while it shook hands.
        if !self.settings.policy.access.permits(&node) {
            self.refused(Refusal::AccessDenied, Some(node), remote, now);
            self.send(
                conn,
                Disconnect::new(disconnect_reason::OPERATOR, Some(NOT_PERMITTED.to_owned()), None),
            );
            let (code, reason, blamed) = (0, NOT_PERMITTED, None);
            return self.outputs.push_back(Output::Close { conn, code, reason, blamed });
        }
        self.event(Event::Connected { node, name: name.clone(), remote });
        self.agents.insert(
            conn,
            Agent {
                node,
                name,
                remote,
                prefix: Prefix::of(remote.ip()),
                relay,
                since: now,
                unanswered_pings: 0,
                speaks_on: StreamNumber::FIRST,
                speaks_flow: false,
                gave_first_stream: false,
                reports: Tally::default(),
                announcements: Tally::default(),
                connects_until: now,
                ping_at: now + PING_EVERY,
            },
        );
        self.nodes.connected(node, conn);
        self.pings.add(conn, now + PING_EVERY);
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
        self.agents.by_remote.remove(&(before, conn));
        self.agents.by_remote.insert((remote, conn));
        self.event(Event::Migrated { node, remote });
        for (session, side) in self.sides_on(node, conn) {
            self.send_terms_to(session, side, true);
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

    /// Where a node is to be asked something: on the connection that others reach it by, else on its newest.
    pub fn asked_on(&self, node: &NodeId) -> Option<AskedOn> {
        let announced = self.nodes.by_id(node)?.announcement.as_ref().map(|announcement| announcement.conn);
        let conn = announced.or_else(|| self.nodes.newest(node))?;
        let agent = self.agents.get(conn)?;
        Some(AskedOn {
            conn,
            remote: agent.remote,
            speaks_flow: agent.speaks_flow && !agent.gave_first_stream,
        })
    }

    /// RelayAnnounce: the agent can be reached. The newest connection of an identity wins, unless that has happened too
    /// often of late: then the one that is announced stays, until it is gone by itself.
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
        let present = self.nodes.by_id(&node).and_then(|node| node.announcement.as_ref());
        let announcement = match present.filter(|present| !flow && present.conn == conn) {
            // A stream that waits adds to what was announced on the connection.
            Some(Announcement { speaks_flow, allow: before, .. }) => {
                Announcement { conn, speaks_flow: *speaks_flow, allow: allow.or_else(|| before.clone()) }
            }
            None => Announcement { conn, speaks_flow: flow, allow },
        };
        let allowed = announcement.allow.as_ref().map(BTreeSet::len);
        let is_new = present != Some(&announcement);
        let older = match present.map(|present| present.conn) {
            None if self.nodes.announced() >= self.settings.policy.announced_agents => {
                self.refuse(conn, Refusal::AnnouncedFull, now);
                let text = "as many agents are announced here as may be: announce again later";
                return self.send(conn, ErrorMessage::new(ErrorCode::Limited, text));
            }
            older => older.filter(|older| *older != conn),
        };
        if older.is_some() && !self.nodes.may_be_replaced(&node, now) {
            let text = "this node was replaced 6 times within the hour: does another host use its identity?";
            self.refuse(conn, Refusal::ReplacedTooOften, now);
            self.send(conn, ErrorMessage::new(ErrorCode::RateLimited, text));
            return self.close(conn, ErrorCode::RateLimited.number(), text);
        }
        if !flow && !self.wait_on_stream(conn, now) {
            return;
        }
        self.nodes.announce(&node, announcement);
        // An agent may announce itself all the time, and change its mind as often: that must not fill the log.
        if is_new
            && let Some(times) = self.agents.get_mut(conn).and_then(|agent| agent.announcements.count(now))
        {
            self.event(Event::Announced { node, flow, allowed, times });
        }
        if let Some(older) = older {
            self.replace(older, conn);
        }
        self.send(conn, RelayReady::documented(ReadyStatus::Waiting, None));
        if flow {
            self.speaks_flow(conn, now);
        }
    }

    /// Disconnect: the agent leaves on purpose, so the sessions on this connection are over.
    pub(super) fn depart(&mut self, conn: ConnId, flows: &mut impl Flows, now: MonoTime) {
        let Some(agent) = self.agents.get(conn) else { return };
        let node = agent.node;
        for (session, side) in self.sides_on(node, conn) {
            self.end(session, EndReason::Left(side), flows, now);
        }
        self.event(Event::Closed { node, reason: "the agent disconnected".to_owned() });
        self.close(conn, 0, "goodbye");
    }

    /// Asks for a sign of life if it is time, or gives up after three questions without an answer.
    pub(super) fn ping_or_give_up(&mut self, conn: ConnId, now: MonoTime) {
        let Some(agent) = self.agents.get_mut(conn).filter(|agent| agent.ping_at <= now) else { return };
        if agent.gave_first_stream {
            // QUIC tells whether it is still there.
            agent.ping_at = now + PING_EVERY;
            return self.pings.add(conn, now + PING_EVERY);
        }
        if agent.unanswered_pings >= MAX_UNANSWERED_PINGS {
            let node = agent.node;
            self.refuse(conn, Refusal::PingUnanswered, now);
            self.event(Event::Closed { node, reason: "three pings without a pong".to_owned() });
            self.send(
                conn,
                Disconnect::new(disconnect_reason::IDLE, Some("three pings without a pong".to_owned()), None),
            );
            return self.close(conn, 0, "idle");
        }
        agent.unanswered_pings += 1;
        agent.ping_at = now + PING_EVERY;
        self.outputs.push_back(Output::Ping { conn });
        self.pings.add(conn, now + PING_EVERY);
    }

    /// Has a connection closed, and forgets it.
    pub(super) fn close(&mut self, conn: ConnId, code: u32, reason: &'static str) {
        self.close_blaming(conn, code, reason, None);
    }

    /// As [`close`](Self::close), for what the agent is `blamed` for, if for something.
    pub(super) fn close_blaming(
        &mut self,
        conn: ConnId,
        code: u32,
        reason: &'static str,
        blamed: Option<Refusal>,
    ) {
        if self.agents.get(conn).is_some() {
            self.outputs.push_back(Output::Close { conn, code, reason, blamed });
            self.forget(conn);
        }
    }

    /// The older connection of an identity gives way to the newer one, which inherits its sessions.
    fn replace(&mut self, older: ConnId, newer: ConnId) {
        let Some(agent) = self.agents.get(older) else { return };
        let (node, remote) = (agent.node, agent.remote);
        self.event(Event::Replaced { node, remote });
        let note = format!("{} announced itself on a newer connection", node.short());
        self.send(older, Disconnect::new(disconnect_reason::REPLACED, Some(note), None));
        self.attach_sessions(node, Some(older), newer);
        self.close(older, 0, "replaced");
    }

    /// Forgets a connection; its sessions go to the newest other connection of the node, if there is one.
    fn forget(&mut self, conn: ConnId) {
        let Some(agent) = self.agents.remove(conn) else { return };
        self.unsplice_on(conn);
        self.nodes.disconnected(&agent.node, conn);
        let other = self.nodes.newest(&agent.node);
        let number = self.nodes.number(&agent.node);
        let sides = self.sessions.attach(number, &self.nodes, Some(conn), other);
        if other.is_some() {
            sides.into_iter().for_each(|(session, side)| self.send_terms_to(session, side, false));
        }
    }

    /// Sessions of `node` whose connection is `from` (none: lost) continue on `to`, which is told their terms.
    fn attach_sessions(&mut self, node: NodeId, from: Option<ConnId>, to: ConnId) {
        let number = self.nodes.number(&node);
        for (session, side) in self.sessions.attach(number, &self.nodes, from, Some(to)) {
            self.send_terms_to(session, side, false);
        }
    }

    /// The sides of `node` whose connection is `conn`.
    fn sides_on(&self, node: NodeId, conn: ConnId) -> Vec<(SessionId, Side)> {
        let of_node = self.sessions.of_node(self.nodes.number(&node), &self.nodes);
        let on_it = of_node.filter(|(session, side)| session.party(*side).conn == Some(conn));
        on_it.map(|(session, side)| (session.id, side)).collect()
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
