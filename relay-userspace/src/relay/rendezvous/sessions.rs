//! All sessions, and the ways to find them.

use hashbrown::HashTable;
use relay_common::Side;
use relay_common::siphash::SipKey;

use super::agents::ConnId;
use super::nodes::{NodeNumber, Nodes};
use super::prefixes::{PrefixNumber, Prefixes};
use super::proved_tuple::ProvedTuple;
use super::session::{Party, Session};
use super::slab::Slab;
use crate::protocol::SessionId;
use crate::relay::datapath::{FlowTuple, Identity, Origin};
use crate::relay::prefix::Prefix;

/// All offers and sessions, by id, node and tuple.
///
/// There may be a million: each is one record, and the ways to it are numbers.
#[derive(Debug)]
pub(super) struct Sessions {
    all: Slab<Session>,
    by_id: HashTable<u32>,
    /// Every proved tuple belongs to one side of one session: whoever proved it last.
    by_tuple: HashTable<Owner>,
    /// Agents choose their tuples; ids are random as they are.
    hash_key: SipKey,
    /// Who has asked for them.
    prefixes: Prefixes,
}

/// A side of a session, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owner(u32);

impl Owner {
    fn new(number: u32, side: Side) -> Owner {
        Owner(number << 1 | side.index() as u32)
    }

    fn number(self) -> u32 {
        self.0 >> 1
    }

    fn side(self) -> Side {
        if self.0 & 1 == 0 { Side::Connector } else { Side::Target }
    }
}

impl Sessions {
    /// None yet. `hash_key` is nobody else's.
    pub fn new(hash_key: SipKey) -> Sessions {
        Sessions {
            all: Slab::default(),
            by_id: HashTable::new(),
            by_tuple: HashTable::new(),
            hash_key,
            prefixes: Prefixes::default(),
        }
    }

    pub fn get(&self, id: SessionId) -> Option<&Session> {
        self.all.get(self.number(id)?)
    }

    pub fn get_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        self.all.get_mut(self.number(id)?)
    }

    /// The number of a session, its own as long as it lives.
    pub fn number(&self, id: SessionId) -> Option<u32> {
        let is_it = |number: &u32| self.all.get(*number).is_some_and(|session| session.id == id);
        self.by_id.find(hash(id), is_it).copied()
    }

    pub fn numbered(&mut self, number: u32) -> Option<&mut Session> {
        self.all.get_mut(number)
    }

    /// How many there are.
    pub fn total(&self) -> usize {
        self.all.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Session> {
        self.all.iter()
    }

    pub fn ids(&self) -> Vec<SessionId> {
        self.iter().map(|session| session.id).collect()
    }

    /// All sessions and offers of a node, each with the side that the node is. None: of nobody.
    pub fn of_node(&self, node: Option<NodeNumber>, nodes: &Nodes) -> impl Iterator<Item = (&Session, Side)> {
        let mut next = node.and_then(|node| nodes.get(node)?.first_session);
        std::iter::from_fn(move || {
            let session = self.all.get(next?)?;
            let side = session.side_of(node?)?;
            next = session.party(side).next_of_node;
            Some((session, side))
        })
    }

    /// All sessions and offers between this connector and this target.
    pub fn of_pair(
        &self,
        connector: Option<NodeNumber>,
        target: Option<NodeNumber>,
        nodes: &Nodes,
    ) -> impl Iterator<Item = &Session> {
        self.with_target(target, nodes)
            .filter(move |session| Some(session.party(Side::Connector).node) == connector)
    }

    /// All sessions and offers with this target.
    pub fn with_target(&self, target: Option<NodeNumber>, nodes: &Nodes) -> impl Iterator<Item = &Session> {
        let as_target = self.of_node(target, nodes).filter(|(_, side)| *side == Side::Target);
        as_target.map(|(session, _)| session)
    }

    /// What the next slot of a session is told of it.
    pub fn origin(&self, id: SessionId, nodes: &Nodes) -> Option<Origin> {
        let session = self.get(id)?;
        let identity = Identity {
            session: id,
            nodes: nodes.ids(session.nodes())?,
            counters: session.parties.each_ref().map(|party| party.counter),
            prefix: self.prefixes.get(session.prefix),
            since: session.since,
        };
        Some(Origin { identity, debt: session.debt(), carried: session.carried_before() })
    }

    /// Who has proved `tuple`.
    pub fn owner(&self, tuple: &FlowTuple) -> Option<(SessionId, Side)> {
        let tuple = ProvedTuple::from(*tuple);
        let is_it = |owner: &Owner| owned(&self.all, *owner) == Some(tuple);
        let owner = self.by_tuple.find(tuple.hash(self.hash_key), is_it)?;
        Some((self.all.get(owner.number())?.id, owner.side()))
    }

    /// How many sessions and offers the nodes of each prefix have asked for.
    pub fn prefixes(&self) -> &Prefixes {
        &self.prefixes
    }

    /// To count what is no session of these.
    pub fn prefixes_mut(&mut self) -> &mut Prefixes {
        &mut self.prefixes
    }

    /// Puts in an offer that a node of `prefix` has asked for.
    pub fn insert(&mut self, offer: impl FnOnce(PrefixNumber) -> Session, prefix: Prefix, nodes: &mut Nodes) {
        let session = offer(self.prefixes.add(prefix));
        let (id, of) = (session.id, session.nodes());
        let number = self.all.insert(session);
        for (node, side) in of.into_iter().zip(Side::BOTH) {
            let (Some(node), Some(session)) = (nodes.get_mut(node), self.all.get_mut(number)) else {
                continue;
            };
            session.party_mut(side).next_of_node = node.first_session.replace(number);
            node.sessions += 1;
            if let Some(offers) = node.offers.get_mut(side.index()) {
                *offers += 1;
            }
        }
        let Sessions { all, by_id, .. } = self;
        let rehash = |other: &u32| all.get(*other).map_or(0, |session| hash(session.id));
        by_id.insert_unique(hash(id), number, rehash);
    }

    /// An offer between these nodes is none any more: it was paired, or is over.
    pub fn close_offer(&self, of: [NodeNumber; 2], nodes: &mut Nodes) {
        for (node, side) in of.into_iter().zip(Side::BOTH) {
            if let Some(offers) = nodes.get_mut(node).and_then(|node| node.offers.get_mut(side.index())) {
                *offers = offers.saturating_sub(1);
            }
        }
    }

    pub fn remove(&mut self, id: SessionId, nodes: &mut Nodes) -> Option<Session> {
        let number = self.number(id)?;
        Side::BOTH.into_iter().for_each(|side| self.disown(id, side));
        if let Ok(entry) = self.by_id.find_entry(hash(id), |other| *other == number) {
            entry.remove();
        }
        let of = self.all.get(number)?.nodes();
        for node in of {
            self.unlink(number, node, nodes);
        }
        let session = self.all.remove(number)?;
        if session.is_offer() {
            self.close_offer(of, nodes);
        }
        self.prefixes.remove(session.prefix);
        of.into_iter().for_each(|node| nodes.forget_if_gone(node));
        Some(session)
    }

    /// `side` of session `id` has proved `tuple`, which nobody else owns.
    pub fn own(&mut self, id: SessionId, side: Side, tuple: FlowTuple) {
        self.disown(id, side);
        let Some(number) = self.number(id) else { return };
        let Some(session) = self.all.get_mut(number) else { return };
        let tuple = ProvedTuple::from(tuple);
        session.party_mut(side).bound = Some(tuple);
        let Sessions { all, by_tuple, hash_key, .. } = self;
        let rehash = |other: &Owner| owned(all, *other).map_or(0, |tuple| tuple.hash(*hash_key));
        by_tuple.insert_unique(tuple.hash(*hash_key), Owner::new(number, side), rehash);
    }

    /// `side` of session `id` has no tuple any more.
    pub fn disown(&mut self, id: SessionId, side: Side) {
        let Some(number) = self.number(id) else { return };
        let Some(session) = self.all.get_mut(number) else { return };
        let Some(tuple) = session.party_mut(side).bound.take() else { return };
        let is_it = |owner: &Owner| *owner == Owner::new(number, side);
        if let Ok(entry) = self.by_tuple.find_entry(tuple.hash(self.hash_key), is_it) {
            entry.remove();
        }
    }

    /// Sides of `node` whose connection was `from` continue on `to`; none: on no connection.
    pub fn attach(
        &mut self,
        node: Option<NodeNumber>,
        nodes: &Nodes,
        from: Option<ConnId>,
        to: Option<ConnId>,
    ) -> Vec<(SessionId, Side)> {
        let on_it = |(session, side): &(&Session, Side)| session.party(*side).conn == from;
        let sides = self.of_node(node, nodes).filter(on_it);
        let sides: Vec<_> = sides.map(|(session, side)| (session.id, side)).collect();
        for (id, side) in &sides {
            if let Some(session) = self.get_mut(*id) {
                session.party_mut(*side).conn = to;
            }
        }
        sides
    }

    /// Takes a session out of the list of one of its nodes.
    fn unlink(&mut self, number: u32, of: NodeNumber, nodes: &mut Nodes) {
        let Some(node) = nodes.get_mut(of) else { return };
        node.sessions = node.sessions.saturating_sub(1);
        let Some(next) = self.party_mut(number, of).map(|party| party.next_of_node) else { return };
        if node.first_session == Some(number) {
            node.first_session = next;
            return;
        }
        let mut before = node.first_session;
        while let Some(party) = before.and_then(|before| self.party_mut(before, of)) {
            if party.next_of_node == Some(number) {
                party.next_of_node = next;
                return;
            }
            before = party.next_of_node;
        }
    }

    fn party_mut(&mut self, number: u32, node: NodeNumber) -> Option<&mut Party> {
        let session = self.all.get_mut(number)?;
        let side = session.side_of(node)?;
        Some(session.party_mut(side))
    }

    #[cfg(test)]
    pub fn tuple_count(&self) -> usize {
        self.by_tuple.len()
    }
}

/// The tuple of a side.
fn owned(all: &Slab<Session>, owner: Owner) -> Option<ProvedTuple> {
    all.get(owner.number())?.party(owner.side()).bound
}

/// Ids are random, and the relay's own choice.
fn hash(SessionId(id): SessionId) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = id;
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}
