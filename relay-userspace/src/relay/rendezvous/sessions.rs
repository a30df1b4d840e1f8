//! All sessions, and the ways to find them.

use std::collections::{BTreeMap, BTreeSet};

use relay_common::Side;

use super::agents::ConnId;
use super::session::{Session, SessionStatus};
use crate::clock::MonoTime;
use crate::identity::NodeId;
use crate::protocol::SessionId;
use crate::relay::datapath::{FlowTuple, Flows};

/// All offers and sessions, by id, node and tuple.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    all: BTreeMap<SessionId, Session>,
    by_node: BTreeMap<NodeId, BTreeSet<SessionId>>,
    /// Every proved tuple belongs to one side of one session: whoever proved it last.
    by_tuple: BTreeMap<FlowTuple, (SessionId, Side)>,
    /// Open offers by connector and by target.
    offers: [BTreeMap<NodeId, u32>; 2],
}

impl Sessions {
    pub fn get(&self, id: SessionId) -> Option<&Session> {
        self.all.get(&id)
    }

    pub fn get_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        self.all.get_mut(&id)
    }

    /// How many there are.
    pub fn total(&self) -> usize {
        self.all.len()
    }

    pub fn ids(&self) -> Vec<SessionId> {
        self.all.keys().copied().collect()
    }

    pub fn of_node(&self, node: &NodeId) -> Vec<SessionId> {
        self.by_node.get(node).into_iter().flatten().copied().collect()
    }

    /// Who has proved `tuple`.
    pub fn owner(&self, tuple: &FlowTuple) -> Option<(SessionId, Side)> {
        self.by_tuple.get(tuple).copied()
    }

    /// Offers that `node` has open as `side`.
    pub fn open_offers(&self, node: &NodeId, side: Side) -> u32 {
        let [as_connector, as_target] = &self.offers;
        let counts = match side {
            Side::Connector => as_connector,
            Side::Target => as_target,
        };
        counts.get(node).copied().unwrap_or(0)
    }

    /// How many sessions and offers `node` has.
    pub fn count(&self, node: &NodeId) -> usize {
        self.by_node.get(node).map_or(0, BTreeSet::len)
    }

    /// All sessions and offers between this connector and this target.
    pub fn of_pair<'a>(
        &'a self,
        connector: &'a NodeId,
        target: &'a NodeId,
    ) -> impl Iterator<Item = &'a Session> {
        self.with_target(target).filter(move |session| session.party(Side::Connector).node == *connector)
    }

    /// All sessions and offers with this target.
    pub fn with_target<'a>(&'a self, target: &'a NodeId) -> impl Iterator<Item = &'a Session> {
        let sessions = self.by_node.get(target).into_iter().flatten().filter_map(|id| self.all.get(id));
        sessions.filter(move |session| session.party(Side::Target).node == *target)
    }

    pub fn insert(&mut self, session: Session) {
        for (party, offers) in session.parties.iter().zip(&mut self.offers) {
            self.by_node.entry(party.node).or_default().insert(session.id);
            *offers.entry(party.node).or_default() += 1;
        }
        self.all.insert(session.id, session);
    }

    /// An offer is none any more: it was paired, or is over.
    pub fn close_offer(&mut self, nodes: [NodeId; 2]) {
        for (node, offers) in nodes.iter().zip(&mut self.offers) {
            if let Some(count) = offers.get_mut(node) {
                *count -= 1;
                if *count == 0 {
                    offers.remove(node);
                }
            }
        }
    }

    pub fn remove(&mut self, id: SessionId) -> Option<Session> {
        let session = self.all.remove(&id)?;
        for party in &session.parties {
            if let Some(tuple) = party.bound {
                self.by_tuple.remove(&tuple);
            }
            if let Some(sessions) = self.by_node.get_mut(&party.node) {
                sessions.remove(&id);
                if sessions.is_empty() {
                    self.by_node.remove(&party.node);
                }
            }
        }
        if session.offer_until.is_some() {
            let [connector, target] = &session.parties;
            self.close_offer([connector.node, target.node]);
        }
        Some(session)
    }

    /// `side` of session `id` has proved `tuple`, which nobody else owns.
    pub fn own(&mut self, id: SessionId, side: Side, tuple: FlowTuple) {
        let Some(session) = self.all.get_mut(&id) else { return };
        if let Some(before) = session.party_mut(side).bound.replace(tuple) {
            self.by_tuple.remove(&before);
        }
        self.by_tuple.insert(tuple, (id, side));
    }

    /// `side` of session `id` has no tuple any more.
    pub fn disown(&mut self, id: SessionId, side: Side) {
        if let Some(tuple) = self.all.get_mut(&id).and_then(|session| session.party_mut(side).bound.take()) {
            self.by_tuple.remove(&tuple);
        }
    }

    /// Sides of `node` whose connection was `from` continue on `to`.
    pub fn attach(&mut self, node: &NodeId, from: Option<ConnId>, to: ConnId) -> Vec<(SessionId, Side)> {
        let mut attached = Vec::new();
        for id in self.by_node.get(node).into_iter().flatten() {
            let Some(session) = self.all.get_mut(id) else { continue };
            let Some(side) = session.side_of(node) else { continue };
            let party = session.party_mut(side);
            if party.conn == from {
                party.conn = Some(to);
                attached.push((*id, side));
            }
        }
        attached
    }

    /// Sides of `node` whose connection was `from` have none now.
    pub fn detach(&mut self, node: &NodeId, from: ConnId) {
        for id in self.by_node.get(node).into_iter().flatten() {
            let Some(session) = self.all.get_mut(id) else { continue };
            if let Some(side) = session.side_on(from) {
                session.party_mut(side).conn = None;
            }
        }
    }

    pub fn statuses(&self, flows: &impl Flows, now: MonoTime) -> Vec<SessionStatus> {
        self.all.values().map(|session| session.status(flows, now)).collect()
    }

    #[cfg(test)]
    pub fn iter(&self) -> impl Iterator<Item = &Session> {
        self.all.values()
    }

    #[cfg(test)]
    pub fn tuple_count(&self) -> usize {
        self.by_tuple.len()
    }

    #[cfg(test)]
    pub fn offer_counts(&self) -> &[BTreeMap<NodeId, u32>; 2] {
        &self.offers
    }
}
