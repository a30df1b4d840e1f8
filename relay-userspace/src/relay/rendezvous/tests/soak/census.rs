//! What there should be, kept from what the rendezvous says of it, to be compared with what it has.

use super::*;
use crate::protocol::bind::UnverifiedBind;
use crate::relay::datapath::{FlowTuple, SlotId};
use crate::relay::prefix::Prefix;

#[derive(Default)]
pub struct Census {
    pub sessions: BTreeMap<SessionId, Known>,
    pub by_slot: BTreeMap<SlotId, SessionId>,
    /// Streams that are joined, by session, and all of them.
    pub joined: BTreeMap<SessionId, Joined>,
    pub ends: BTreeSet<StreamEnd>,
    /// Connections whose first stream was joined once: the relay says nothing unasked there any more.
    pub given: BTreeSet<ConnId>,
    nodes: BTreeMap<usize, Counts>,
    pub prefixes: BTreeMap<Prefix, u32>,
    /// Sides that have proved a tuple which is still theirs.
    pub bound: usize,
    pub announced: BTreeSet<usize>,
}

/// What is known of a session.
pub struct Known {
    pub nodes: [usize; 2],
    prefix: Prefix,
    is_offer: bool,
    pub tuples: [Option<FlowTuple>; 2],
    pub slot: Option<SlotId>,
}

/// What is known of two joined streams.
pub struct Joined {
    pub nodes: [usize; 2],
    prefix: Prefix,
    pub ends: [StreamEnd; 2],
}

/// Of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Offers and sessions by datagrams.
    pub sessions: u32,
    /// Sessions by joined streams.
    pub joined: u32,
    /// As connector and as target.
    pub offers: [u32; 2],
}

impl Counts {
    pub fn all(self) -> u32 {
        self.sessions + self.joined
    }
}

/// What an input may have changed.
#[derive(Default)]
pub struct Touched {
    pub sessions: BTreeSet<SessionId>,
    pub nodes: BTreeSet<usize>,
    pub tuples: BTreeSet<FlowTuple>,
    pub prefixes: BTreeSet<Prefix>,
}

impl Touched {
    pub fn of_message(&mut self, from: Option<usize>, message: &Message) {
        self.nodes.extend(from);
        if let Message::Disconnect(disconnect) = message {
            self.sessions.extend(disconnect.session);
        }
    }

    pub fn of_bind(&mut self, bytes: &[u8; BIND_LEN], magic: &BindMagic) {
        self.sessions.insert(UnverifiedBind::parse(bytes, magic).unwrap().session());
    }
}

impl Census {
    pub fn counts(&self, who: usize) -> Counts {
        self.nodes.get(&who).copied().unwrap_or_default()
    }

    pub fn sessions_of(&self, who: usize) -> usize {
        self.counts(who).all() as usize
    }

    pub fn nodes_of(&self, session: SessionId) -> [usize; 2] {
        self.sessions[&session].nodes
    }

    /// Any session. Ids are random.
    pub fn some_session(&self, random: &mut Seeded) -> Option<SessionId> {
        let from = SessionId(random.array());
        self.sessions.range(from..).next().map(|(session, _)| *session)
    }

    /// Any two joined streams.
    pub fn some_joined(&self, random: &mut Seeded) -> Option<SessionId> {
        let from = SessionId(random.array());
        self.joined.range(from..).next().map(|(session, _)| *session)
    }

    pub fn join(&mut self, session: SessionId, nodes: [usize; 2], prefix: Prefix, ends: [StreamEnd; 2]) {
        *self.prefixes.entry(prefix).or_default() += 1;
        for (who, end) in nodes.into_iter().zip(ends) {
            self.nodes.entry(who).or_default().joined += 1;
            assert!(self.ends.insert(end), "a stream is joined to one other");
            if end.stream == StreamNumber::FIRST {
                self.given.insert(end.conn);
            }
        }
        assert!(
            self.joined.insert(session, Joined { nodes, prefix, ends }).is_none(),
            "an id is one session's"
        );
    }

    /// Whether it was two joined streams that have ended. What they were part of has to be looked at.
    pub fn part(&mut self, session: SessionId, nodes: [usize; 2], touched: &mut Touched) -> bool {
        let Some(joined) = self.joined.remove(&session) else { return false };
        assert_eq!(nodes, joined.nodes);
        for (who, end) in nodes.into_iter().zip(joined.ends) {
            self.forget(who, |counts| counts.joined -= 1);
            self.ends.remove(&end);
        }
        self.forget_asked(joined.prefix);
        touched.nodes.extend(nodes);
        touched.prefixes.insert(joined.prefix);
        true
    }

    pub fn offered(&mut self, session: SessionId, nodes: [usize; 2], prefix: Prefix) {
        *self.prefixes.entry(prefix).or_default() += 1;
        for (side, who) in nodes.into_iter().enumerate() {
            let counts = self.nodes.entry(who).or_default();
            counts.sessions += 1;
            counts.offers[side] += 1;
        }
        let known = Known { nodes, prefix, is_offer: true, tuples: [None; 2], slot: None };
        assert!(self.sessions.insert(session, known).is_none(), "an id is one session's");
    }

    /// It may have been paired before, and lost a tuple.
    pub fn paired(&mut self, session: SessionId) {
        let known = self.sessions.get_mut(&session).expect("what is paired was offered");
        if std::mem::take(&mut known.is_offer) {
            Self::close_offer(&mut self.nodes, known.nodes);
        }
    }

    /// What it was part of has to be looked at.
    pub fn ended(&mut self, session: SessionId, touched: &mut Touched) {
        let known = self.sessions.remove(&session).expect("what ends was offered, and ends once");
        if known.is_offer {
            Self::close_offer(&mut self.nodes, known.nodes);
        }
        for who in known.nodes {
            self.forget(who, |counts| counts.sessions -= 1);
        }
        self.forget_asked(known.prefix);
        if let Some(slot) = known.slot {
            self.by_slot.remove(&slot);
        }
        self.bound -= known.tuples.iter().flatten().count();
        touched.sessions.insert(session);
        touched.nodes.extend(known.nodes);
        touched.tuples.extend(known.tuples.iter().flatten());
        touched.prefixes.insert(known.prefix);
    }

    /// How a session stands now. Returns the tuples that it had and has, if that has changed.
    pub fn update(
        &mut self,
        session: SessionId,
        tuples: [Option<FlowTuple>; 2],
        slot: Option<SlotId>,
    ) -> Vec<FlowTuple> {
        let known = self.sessions.get_mut(&session).expect("what is there was offered");
        let before = std::mem::replace(&mut known.tuples, tuples);
        self.bound += tuples.iter().flatten().count();
        self.bound -= before.iter().flatten().count();
        if let Some(old) = std::mem::replace(&mut known.slot, slot) {
            self.by_slot.remove(&old);
        }
        self.by_slot.extend(slot.map(|slot| (slot, session)));
        if before == tuples { Vec::new() } else { before.into_iter().chain(tuples).flatten().collect() }
    }

    fn forget(&mut self, who: usize, one: impl FnOnce(&mut Counts)) {
        let counts = self.nodes.get_mut(&who).unwrap();
        one(counts);
        if *counts == Counts::default() {
            self.nodes.remove(&who);
        }
    }

    fn forget_asked(&mut self, prefix: Prefix) {
        let asked = self.prefixes.get_mut(&prefix).unwrap();
        *asked -= 1;
        if *asked == 0 {
            self.prefixes.remove(&prefix);
        }
    }

    fn close_offer(nodes: &mut BTreeMap<usize, Counts>, of: [usize; 2]) {
        for (side, who) in of.into_iter().enumerate() {
            nodes.get_mut(&who).unwrap().offers[side] -= 1;
        }
    }
}
