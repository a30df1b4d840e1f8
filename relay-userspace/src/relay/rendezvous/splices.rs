//! Agents that know only the documented messages: which of their streams wait, and which are joined.
//!
//! Such an agent waits on a stream, the one on which it has announced itself without `flow`. Whoever asks for it without
//! `flow` gets the oldest of its waiting streams joined to the stream it asked on. This decides; the bytes are carried
//! elsewhere ([`Output::Splice`]), where the relay can read them.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use relay_common::Side;

use super::agents::ConnId;
use super::event::{EndReason, Event};
use super::nodes::NodeNumber;
use super::prefixes::PrefixNumber;
use super::refusal::Refusal;
use super::{MAX_SESSIONS_PER_PAIR, Output, Randomness, Rendezvous};
use crate::clock::MonoTime;
use crate::identity::NodeId;
use crate::protocol::flow_terms::{ReadyStatus, RelayConnect, RelayError, RelayReady};
use crate::protocol::{ErrorCode, Message, SessionId};
use crate::relay::datapath::{Flows, Limit, Traffic};
use crate::relay::prefix::Prefix;

/// A stream of one connection, in the order the agent opened them. 0 is the handshake's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamNumber(pub u32);

impl StreamNumber {
    /// The stream of the handshake. What answers nothing is sent there.
    pub const FIRST: StreamNumber = StreamNumber(0);
}

/// A stream of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamEnd {
    /// Its connection.
    pub conn: ConnId,
    /// Which of its streams.
    pub stream: StreamNumber,
}

/// Streams of one connection that may wait: many more than are asked for at once. A connection has no more streams open
/// than `transport.max_streams_per_conn` either.
pub const MAX_WAITING_STREAMS: usize = 64;

/// All waiting and joined streams.
#[derive(Debug, Default)]
pub(super) struct Splices {
    /// Of each connection, the oldest first.
    waiting: BTreeMap<ConnId, VecDeque<StreamNumber>>,
    joined: BTreeMap<SessionId, Splice>,
    /// Which streams are joined: the pairing and the side of each.
    ends: BTreeMap<StreamEnd, (SessionId, Side)>,
    /// How many pairings there are between a connector and a target, in this order.
    pairs: BTreeMap<[NodeNumber; 2], usize>,
    /// The pairings of each node.
    of_nodes: BTreeSet<(NodeNumber, SessionId)>,
}

/// Two joined streams.
#[derive(Debug)]
struct Splice {
    /// Indexed by [`Side`], as are the ends.
    nodes: [NodeNumber; 2],
    ends: [StreamEnd; 2],
    /// The prefix that it was asked for from.
    prefix: PrefixNumber,
    since: MonoTime,
}

/// A pairing of two streams, for listings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpliceStatus {
    /// The session.
    pub session: SessionId,
    /// Who asked.
    pub connector: NodeId,
    /// Who was asked for.
    pub target: NodeId,
    /// Where the control connections come from, indexed by [`Side`].
    pub addresses: [Option<SocketAddr>; 2],
    /// Its limit.
    pub limit: Limit,
    /// Time since it was made.
    pub age: Duration,
}

impl Splices {
    /// Whether a stream is joined to another.
    fn is_joined(&self, end: StreamEnd) -> bool {
        self.ends.contains_key(&end)
    }

    /// The stream of a connection that has waited longest.
    fn first_waiting(&self, conn: ConnId) -> Option<StreamNumber> {
        self.waiting.get(&conn)?.front().copied()
    }

    /// A stream waits from now on, if there is room for it.
    fn wait(&mut self, StreamEnd { conn, stream }: StreamEnd) -> bool {
        let waiting = self.waiting.entry(conn).or_default();
        if !waiting.contains(&stream) {
            if waiting.len() >= MAX_WAITING_STREAMS {
                return false;
            }
            waiting.push_back(stream);
        }
        true
    }

    /// A stream does not wait any more. True if it was the last of its connection.
    fn wait_no_more(&mut self, StreamEnd { conn, stream }: StreamEnd) -> bool {
        let Some(waiting) = self.waiting.get_mut(&conn) else { return false };
        waiting.retain(|other| *other != stream);
        let was_last = waiting.is_empty();
        if was_last {
            self.waiting.remove(&conn);
        }
        was_last
    }

    /// How many pairings there are.
    pub fn total(&self) -> usize {
        self.joined.len()
    }

    #[cfg(test)]
    pub fn waits(&self, conn: ConnId) -> bool {
        self.waiting.contains_key(&conn)
    }

    #[cfg(test)]
    pub fn waiting(&self) -> impl Iterator<Item = (ConnId, &VecDeque<StreamNumber>)> {
        self.waiting.iter().map(|(conn, streams)| (*conn, streams))
    }

    /// How many pairings there are, and how many streams are joined.
    #[cfg(test)]
    pub fn counts(&self) -> [usize; 2] {
        [self.joined.len(), self.ends.len()]
    }

    /// The ends of all pairings, of all pairs and of all nodes are those that are found by walking over all pairings.
    #[cfg(test)]
    pub fn check(&self) {
        let (mut ends, mut pairs, mut of_nodes) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        for (session, splice) in &self.joined {
            ends.extend(splice.ends.into_iter().zip(Side::BOTH.map(|side| (*session, side))));
            *pairs.entry(splice.nodes).or_default() += 1;
            of_nodes.extend(splice.nodes.map(|node| (node, *session)));
        }
        assert!(ends == self.ends && pairs == self.pairs && of_nodes == self.of_nodes, "{self:?}");
    }

    /// How many pairings there are between this connector and this target.
    pub fn between(&self, connector: Option<NodeNumber>, target: Option<NodeNumber>) -> usize {
        let pair = connector.zip(target).map(<[NodeNumber; 2]>::from);
        pair.and_then(|pair| self.pairs.get(&pair)).copied().unwrap_or(0)
    }

    /// The pairings with a stream on `conn`, each with the side that has it.
    fn on(&self, conn: ConnId) -> impl Iterator<Item = (SessionId, Side)> {
        let stream = |number| StreamEnd { conn, stream: StreamNumber(number) };
        self.ends.range(stream(u32::MIN)..=stream(u32::MAX)).map(|(_, pairing)| *pairing)
    }

    /// The pairings of a node.
    fn of(&self, node: NodeNumber) -> impl Iterator<Item = SessionId> {
        let all = (node, SessionId([u8::MIN; 16]))..=(node, SessionId([u8::MAX; 16]));
        self.of_nodes.range(all).map(|(_, session)| *session)
    }

    fn join(&mut self, session: SessionId, splice: Splice) {
        for ((side, end), node) in Side::BOTH.into_iter().zip(splice.ends).zip(splice.nodes) {
            self.ends.insert(end, (session, side));
            self.of_nodes.insert((node, session));
        }
        *self.pairs.entry(splice.nodes).or_default() += 1;
        self.joined.insert(session, splice);
    }

    fn part(&mut self, session: SessionId) -> Option<Splice> {
        let splice = self.joined.remove(&session)?;
        for (end, node) in splice.ends.iter().zip(splice.nodes) {
            self.ends.remove(end);
            self.of_nodes.remove(&(node, session));
        }
        if let Entry::Occupied(mut pair) = self.pairs.entry(splice.nodes) {
            *pair.get_mut() -= 1;
            if *pair.get() == 0 {
                pair.remove();
            }
        }
        Some(splice)
    }
}

impl Rendezvous {
    /// A message has come from an agent on one of its streams: [`received`](Self::received), where it matters on which.
    ///
    /// What was read of a stream before that was joined to another is ignored: nothing of the relay's may follow on it.
    pub fn received_on(
        &mut self,
        end: StreamEnd,
        message: Message,
        flows: &mut impl Flows,
        randomness: &mut impl Randomness,
        now: MonoTime,
    ) {
        if self.hears(end) {
            self.received(end.conn, message, flows, randomness, now);
        }
    }

    /// As [`received_on`](Self::received_on), for a RelayConnect whose target is banned at present: it is answered as if the
    /// target were absent. What the target has goes on.
    pub fn asked_for_banned(
        &mut self,
        end: StreamEnd,
        connect: &RelayConnect,
        flows: &mut impl Flows,
        randomness: &mut impl Randomness,
        now: MonoTime,
    ) {
        if self.hears(end) {
            self.connect(end.conn, connect, true, flows, randomness, now);
        }
    }

    /// Whether what has come on a stream is the relay's to answer; if so, that is where answers go.
    fn hears(&mut self, end: StreamEnd) -> bool {
        let Some(agent) = self.agents.get_mut(end.conn) else { return false };
        agent.speaks_on = end.stream;
        !self.splices.is_joined(end)
    }

    /// An agent has finished or reset one of its streams: nobody can be joined to it any more.
    pub fn stream_over(&mut self, end: StreamEnd) {
        self.wait_no_more(end);
    }

    /// The bytes of a pairing are no longer carried: on their own account, or because of [`Output::Unsplice`].
    pub fn spliced_over(&mut self, session: SessionId, reason: EndReason, traffic: Traffic, now: MonoTime) {
        let Some(splice) = self.splices.part(session) else { return };
        self.sessions.prefixes_mut().remove(splice.prefix);
        let nodes = self.nodes.ids(splice.nodes);
        for number in splice.nodes {
            if let Some(node) = self.nodes.get_mut(number) {
                node.sessions = node.sessions.saturating_sub(1);
            }
            self.nodes.forget_if_gone(number);
        }
        let Some([connector, target]) = nodes else { return };
        self.event(Event::Ended {
            session,
            connector,
            target,
            reason,
            age: now.since(splice.since),
            traffic,
        });
    }

    /// So many bytes have been carried by all pairings of two streams since that was last said.
    pub fn spliced_bytes(&mut self, bytes: u64, now: MonoTime) {
        self.throughput.add(bytes, now);
    }

    /// All pairings of two streams.
    pub fn splices(&self, now: MonoTime) -> Vec<SpliceStatus> {
        let status = |(session, splice): (&SessionId, &Splice)| {
            let [connector, target] = self.nodes.ids(splice.nodes)?;
            Some(SpliceStatus {
                session: *session,
                connector,
                target,
                addresses: splice.ends.map(|end| self.agents.get(end.conn).map(|agent| agent.remote)),
                limit: self.settings.limit,
                age: now.since(splice.since),
            })
        };
        self.splices.joined.iter().filter_map(status).collect()
    }

    /// RelayAnnounce without `flow`: the stream it came on waits. False: it may not, and the agent has been told.
    pub(super) fn wait_on_stream(&mut self, conn: ConnId, now: MonoTime) -> bool {
        let Some(end) = self.speaks_on(conn) else { return false };
        if self.splices.wait(end) {
            self.give_away(end);
            return true;
        }
        self.refuse(conn, Refusal::WaitingStreams, now);
        let message = format!("{MAX_WAITING_STREAMS} streams of this agent wait already: use those first");
        let code = ErrorCode::Limited.number();
        self.send(conn, RelayError { code, message, target_id: None, session: None });
        false
    }

    /// RelayConnect without `flow`: joins the stream it came on to one on which the target waits.
    pub(super) fn splice(
        &mut self,
        conn: ConnId,
        [source, target]: [NodeId; 2],
        is_banned: bool,
        prefix: Prefix,
        randomness: &mut impl Randomness,
        now: MonoTime,
    ) {
        let Some(asking) = self.speaks_on(conn) else { return };
        let waiting = self.waiting_stream(&source, &target, is_banned);
        let room =
            waiting.and_then(|waiting| Ok((waiting, self.room_for_splice(&source, &target, prefix, now)?)));
        let (waiting, nodes) = match room {
            Ok(room) => room,
            Err(refusal) => return self.decline(conn, &target, refusal, now),
        };
        let (session, ends) = (SessionId(randomness.array()), [asking, waiting]);
        for (end, number) in ends.into_iter().zip(nodes) {
            if let Some(node) = self.nodes.get_mut(number) {
                node.sessions += 1;
            }
            self.wait_no_more(end);
            self.give_away(end);
        }
        let prefix = self.sessions.prefixes_mut().add(prefix);
        self.splices.join(session, Splice { nodes, ends, prefix, since: now });
        let (limit, idle_timeout) = (self.settings.limit, self.settings.idle_timeout);
        self.event(Event::Spliced { session, connector: source, target, limit });
        let ready = RelayReady::documented(ReadyStatus::Ready, Some(target));
        self.outputs.push_back(Output::Splice { session, ends, ready, limit, idle_timeout });
    }

    /// A connection is forgotten: nothing waits on it any more, and its pairings end.
    pub(super) fn unsplice_on(&mut self, conn: ConnId) {
        self.splices.waiting.remove(&conn);
        for (session, side) in self.splices.on(conn) {
            self.outputs.push_back(Output::Unsplice { session, reason: EndReason::Left(side) });
        }
    }

    /// Ends the pairings of a node. How many there were.
    pub(super) fn unsplice_node(&mut self, node: Option<NodeNumber>, reason: EndReason) -> usize {
        let mut count = 0;
        for session in node.into_iter().flat_map(|node| self.splices.of(node)) {
            self.outputs.push_back(Output::Unsplice { session, reason });
            count += 1;
        }
        count
    }

    /// Ends a pairing. False: there is none of that id.
    pub(super) fn unsplice(&mut self, session: SessionId, reason: EndReason) -> bool {
        let is_there = self.splices.joined.contains_key(&session);
        if is_there {
            self.outputs.push_back(Output::Unsplice { session, reason });
        }
        is_there
    }

    /// All pairings of two streams end.
    pub(super) fn unsplice_all(&mut self, reason: EndReason) {
        for session in self.splices.joined.keys() {
            self.outputs.push_back(Output::Unsplice { session: *session, reason });
        }
    }

    /// The stream on which an agent's present message has come.
    fn speaks_on(&self, conn: ConnId) -> Option<StreamEnd> {
        self.agents.get(conn).map(|agent| StreamEnd { conn, stream: agent.speaks_on })
    }

    /// The stream on which `target` waits for `source`.
    fn waiting_stream(
        &self,
        source: &NodeId,
        target: &NodeId,
        is_banned: bool,
    ) -> Result<StreamEnd, Refusal> {
        let conn = self.announced(source, target, is_banned)?.conn;
        let stream = self.splices.first_waiting(conn).ok_or(Refusal::FlowOnly)?;
        Ok(StreamEnd { conn, stream })
    }

    /// Whether `source`, which is of `prefix`, and `target` may have one more session; if so, their numbers.
    fn room_for_splice(
        &mut self,
        source: &NodeId,
        target: &NodeId,
        prefix: Prefix,
        now: MonoTime,
    ) -> Result<[NodeNumber; 2], Refusal> {
        if self.carries_too_much(now) {
            return Err(Refusal::TotalLimit);
        }
        let policy = &self.settings.policy;
        let [from, to] = [source, target].map(|id| self.nodes.number(id));
        let (Some(from), Some(to)) = (from, to) else { return Err(Refusal::TargetAbsent) };
        let sessions = |number| self.nodes.get(number).map_or(0, |node| node.sessions);
        let of_pair = self.sessions.of_pair(Some(from), Some(to), &self.nodes).count();
        if of_pair + self.splices.between(Some(from), Some(to)) >= MAX_SESSIONS_PER_PAIR {
            return Err(Refusal::PairSessions);
        }
        if sessions(from) >= policy.sessions_per_node {
            return Err(Refusal::SourceSessions);
        }
        if self.sessions.prefixes().sessions_of(prefix) >= policy.sessions_per_prefix {
            return Err(Refusal::PrefixSessions);
        }
        if sessions(to) >= policy.sessions_per_node {
            return Err(Refusal::TargetSessions);
        }
        Ok([from, to])
    }

    /// A stream is, or may at any time be, the peer's: nothing unasked is sent on it any more.
    fn give_away(&mut self, StreamEnd { conn, stream }: StreamEnd) {
        if let Some(agent) = self.agents.get_mut(conn).filter(|_| stream == StreamNumber::FIRST) {
            agent.gave_first_stream = true;
        }
    }

    /// A stream does not wait any more. An agent that waits on no other and takes no flows cannot be reached then.
    fn wait_no_more(&mut self, end: StreamEnd) {
        let Some(node) = self.agents.get(end.conn).map(|agent| agent.node) else { return };
        if self.splices.wait_no_more(end) {
            self.nodes
                .withdraw(&node, |announcement| announcement.conn == end.conn && !announcement.speaks_flow);
        }
    }
}
