//! The nodes that are connected or have sessions, by id and by number.
//!
//! A session names its nodes by number: their ids are longer than all that it knows of a tuple.

use std::collections::BTreeSet;

use hashbrown::HashTable;
use relay_common::Side;
use relay_common::siphash::{SipKey, siphash13};

use super::agents::ConnId;
use super::slab::Slab;
use crate::identity::NodeId;

/// A node's number while it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NodeNumber(u32);

/// A node.
#[derive(Debug)]
pub(super) struct Node {
    pub id: NodeId,
    /// Its connections, the newest last. There is more than one while a dead one has not been noticed.
    conns: Vec<ConnId>,
    pub announcement: Option<Announcement>,
    /// The first of its sessions and offers: each names the next.
    pub first_session: Option<u32>,
    /// How many sessions and offers it has.
    pub sessions: u32,
    /// Its open offers as connector and as target.
    pub offers: [u16; 2],
}

/// How a node can be reached.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Announcement {
    pub conn: ConnId,
    pub speaks_flow: bool,
    /// None: anyone may connect.
    pub allow: Option<BTreeSet<NodeId>>,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Nodes {
    all: Slab<Node>,
    by_id: HashTable<u32>,
    /// Whoever makes many keys can choose among their hashes.
    hash_key: SipKey,
}

impl Nodes {
    /// None yet. `hash_key` is nobody else's.
    pub fn new(hash_key: SipKey) -> Nodes {
        Nodes { all: Slab::default(), by_id: HashTable::new(), hash_key }
    }

    pub fn number(&self, id: &NodeId) -> Option<NodeNumber> {
        let is_it = |number: &u32| self.all.get(*number).is_some_and(|node| node.id == *id);
        self.by_id.find(hash(self.hash_key, id), is_it).copied().map(NodeNumber)
    }

    pub fn get(&self, number: NodeNumber) -> Option<&Node> {
        self.all.get(number.0)
    }

    pub fn get_mut(&mut self, number: NodeNumber) -> Option<&mut Node> {
        self.all.get_mut(number.0)
    }

    pub fn by_id(&self, id: &NodeId) -> Option<&Node> {
        self.get(self.number(id)?)
    }

    /// Where a node's announcement stands, if the node is known.
    pub fn announcement_mut(&mut self, id: &NodeId) -> Option<&mut Option<Announcement>> {
        let number = self.number(id)?;
        Some(&mut self.get_mut(number)?.announcement)
    }

    /// The ids of two nodes.
    pub fn ids(&self, [first, second]: [NodeNumber; 2]) -> Option<[NodeId; 2]> {
        Some([self.get(first)?.id, self.get(second)?.id])
    }

    /// The newest connection of a node.
    pub fn newest(&self, id: &NodeId) -> Option<ConnId> {
        self.by_id(id)?.conns.last().copied()
    }

    /// A node has one more connection.
    pub fn connected(&mut self, id: NodeId, conn: ConnId) {
        let number = self.number(&id).unwrap_or_else(|| self.insert(id));
        if let Some(node) = self.get_mut(number) {
            node.conns.reserve_exact(1);
            node.conns.push(conn);
        }
    }

    /// A connection of a node is over, and with it what was announced on it.
    pub fn disconnected(&mut self, id: &NodeId, conn: ConnId) {
        let Some(number) = self.number(id) else { return };
        let Some(node) = self.get_mut(number) else { return };
        node.conns.retain(|other| *other != conn);
        node.announcement.take_if(|announcement| announcement.conn == conn);
        self.forget_if_gone(number);
    }

    /// Forgets a node that has neither connections nor sessions.
    pub fn forget_if_gone(&mut self, number: NodeNumber) {
        let Some(node) = self.get(number).filter(|node| node.conns.is_empty() && node.sessions == 0) else {
            return;
        };
        let hash = hash(self.hash_key, &node.id);
        if let Ok(entry) = self.by_id.find_entry(hash, |other| *other == number.0) {
            entry.remove();
        }
        self.all.remove(number.0);
    }

    fn insert(&mut self, id: NodeId) -> NodeNumber {
        let (conns, offers) = (Vec::new(), [0; 2]);
        let node = Node { id, conns, announcement: None, first_session: None, sessions: 0, offers };
        let number = self.all.insert(node);
        let Nodes { all, by_id, hash_key } = self;
        let rehash = |other: &u32| all.get(*other).map_or(0, |node| hash(*hash_key, &node.id));
        by_id.insert_unique(hash(*hash_key, &id), number, rehash);
        NodeNumber(number)
    }

    #[cfg(test)]
    pub fn iter(&self) -> impl Iterator<Item = &Node> {
        self.all.iter()
    }
}

impl Node {
    /// Its open offers as `side`.
    pub fn open_offers(&self, side: Side) -> u32 {
        let [as_connector, as_target] = self.offers;
        match side {
            Side::Connector => as_connector.into(),
            Side::Target => as_target.into(),
        }
    }
}

fn hash(key: SipKey, id: &NodeId) -> u64 {
    let (words, _) = id.as_bytes().as_chunks::<8>();
    let mut four = [0; 4];
    for (word, bytes) in four.iter_mut().zip(words) {
        *word = u64::from_ne_bytes(*bytes);
    }
    siphash13(key, four)
}
