//! The nodes that are connected or have sessions, by id and by number.
//!
//! A session names its nodes by number: their ids are longer than all that it knows of a tuple.

use std::collections::BTreeSet;
use std::time::Duration;

use hashbrown::HashTable;
use relay_common::Side;
use relay_common::siphash::{SipKey, siphash13};

use super::agents::ConnId;
use super::pace::Pace;
use super::policy::Access;
use super::slab::Slab;
use crate::clock::MonoTime;
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
    /// When its offers as target would have come, had they come evenly.
    offered_until: MonoTime,
    /// When newer connections of it have taken the place of older ones, if any have.
    replaced: Option<Box<Replacements>>,
}

/// A node that is replaced more often has an identity that several hosts use, or a host that cannot keep a connection.
type Replacements = Pace<6, 3600>;

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
    /// How many are announced.
    announced: u32,
}

impl Nodes {
    /// None yet. `hash_key` is nobody else's.
    pub fn new(hash_key: SipKey) -> Nodes {
        Nodes { all: Slab::default(), by_id: HashTable::new(), hash_key, announced: 0 }
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

    /// How many are announced.
    pub fn announced(&self) -> u32 {
        self.announced
    }

    /// A node can be reached in this way from now on; how it could before. Nothing happens if it is not known.
    pub fn announce(&mut self, id: &NodeId, announcement: Announcement) -> Option<Announcement> {
        let number = self.number(id)?;
        let before = self.get_mut(number)?.announcement.replace(announcement);
        self.announced += u32::from(before.is_none());
        before
    }

    /// Whether a newer connection of a node may take the place of its older one now; if so, that is counted.
    pub fn may_be_replaced(&mut self, id: &NodeId, now: MonoTime) -> bool {
        let Some(node) = self.number(id).and_then(|number| self.get_mut(number)) else { return false };
        let replaced = node.replaced.get_or_insert_default();
        let may = replaced.permits(now);
        if may {
            replaced.record(now);
        }
        may
    }

    /// The nodes that `access` does not permit.
    pub fn not_permitted(&self, access: &Access) -> Vec<NodeNumber> {
        let barred = self.all.iter().filter(|node| !access.permits(&node.id));
        barred.filter_map(|node| self.number(&node.id)).collect()
    }

    /// The ids of two nodes.
    pub fn ids(&self, [first, second]: [NodeNumber; 2]) -> Option<[NodeId; 2]> {
        Some([self.get(first)?.id, self.get(second)?.id])
    }

    /// The newest connection of a node.
    pub fn newest(&self, id: &NodeId) -> Option<ConnId> {
        self.by_id(id)?.conns.last().copied()
    }

    /// All connections of a node.
    pub fn connections(&self, id: &NodeId) -> Vec<ConnId> {
        self.by_id(id).map_or_else(Vec::new, |node| node.conns.clone())
    }

    /// A node's number, which it has from now on if it was not known. To be forgotten again if it gets neither connection
    /// nor session.
    pub fn known(&mut self, id: NodeId) -> NodeNumber {
        self.number(&id).unwrap_or_else(|| self.insert(id))
    }

    /// A node has one more connection.
    pub fn connected(&mut self, id: NodeId, conn: ConnId) {
        let number = self.known(id);
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
        self.withdraw(id, |announcement| announcement.conn == conn);
        self.forget_if_gone(number);
    }

    /// A node cannot be reached any more in the way it has announced, if it is this one.
    pub fn withdraw(&mut self, id: &NodeId, it: impl FnOnce(&Announcement) -> bool) {
        let Some(node) = self.number(id).and_then(|number| self.get_mut(number)) else { return };
        let is_withdrawn = node.announcement.take_if(|announcement| it(announcement)).is_some();
        self.announced -= u32::from(is_withdrawn);
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
        let number = self.all.insert(Node {
            id,
            conns: Vec::new(),
            announcement: None,
            first_session: None,
            sessions: 0,
            offers: [0; 2],
            offered_until: MonoTime::default(),
            replaced: None,
        });
        let Nodes { all, by_id, hash_key, .. } = self;
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

    /// Whether it may be told of one more offer now: of `most` in a second, and as many again at once.
    pub fn may_be_offered(&self, most: u32, now: MonoTime) -> bool {
        self.after_one_more_offer(most, now) <= now + 2 * SECOND
    }

    /// It is told of one more.
    pub fn offered(&mut self, most: u32, now: MonoTime) {
        self.offered_until = self.after_one_more_offer(most, now);
    }

    fn after_one_more_offer(&self, most: u32, now: MonoTime) -> MonoTime {
        self.offered_until.max(now) + SECOND / most.max(1)
    }
}

const SECOND: Duration = Duration::from_secs(1);

fn hash(key: SipKey, id: &NodeId) -> u64 {
    let (words, _) = id.as_bytes().as_chunks::<8>();
    let mut four = [0; 4];
    for (word, bytes) in four.iter_mut().zip(words) {
        *word = u64::from_ne_bytes(*bytes);
    }
    siphash13(key, four)
}
