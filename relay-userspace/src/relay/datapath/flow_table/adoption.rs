//! Going on with the tables of a predecessor that may have died at any moment.
//!
//! Slots are the truth: a slot with both deadlines and a record of its generation is a session. What else stands in the
//! tables (half installed, half removed, half moved) is put in order by what the slots say, while the program goes on
//! forwarding.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use relay_common::Side;
use relay_common::bucket::Allowance;
use relay_common::index::SlotSide;
use relay_common::slot::{SideLine, Slot};
use relay_common::tables::Tables as _;
use relay_common::tuple::AnyTuple;

use super::{FlowTable, Line, Rerouting, Routes, check_addresses};
use crate::clock::MonoTime;
use crate::relay::datapath::flows::{Debt, FlowTuple, Limit, SlotId, Traffic};
use crate::relay::datapath::record::{Identity, Record};
use crate::relay::datapath::slot_pool::SlotPool;
use crate::relay::datapath::tables::Tables;

/// What a predecessor has left in tables.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Inheritance {
    /// Its sessions.
    pub sessions: Vec<Left>,
    /// Slots that were forwarded and that are no session's: nobody knows whose.
    pub unreadable: u64,
}

/// A session that a predecessor has left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Whose it is.
    pub identity: Identity,
    /// Both tuples, indexed by [`Side`]; none if they could not be read, and its sides have to prove theirs anew.
    pub tuples: Option<[FlowTuple; 2]>,
    /// Its slot; none if the tables are others now, or its tuples could not be read.
    pub slot: Option<SlotId>,
    /// Until when its sides have consented, indexed by [`Side`].
    pub deadlines: [MonoTime; 2],
    /// What its bucket owes.
    pub debt: Debt,
    /// What it has carried.
    pub carried: Traffic,
    allowance: Allowance,
}

impl Left {
    /// One without a slot, under `limit`, that owes nothing.
    pub fn of(
        identity: Identity,
        tuples: Option<[FlowTuple; 2]>,
        deadlines: [MonoTime; 2],
        carried: Traffic,
        limit: Limit,
    ) -> Left {
        let allowance = Allowance::new(limit.bytes_per_s, limit.burst_bytes);
        Left { identity, tuples, slot: None, deadlines, debt: Debt::NONE, carried, allowance }
    }

    /// Whether its limit is `limit` already.
    pub fn has_limit(&self, limit: Limit) -> bool {
        self.allowance == Allowance::new(limit.bytes_per_s, limit.burst_bytes)
    }

    /// Whether nothing of it is forwarded any more.
    pub fn is_over(&self, now: MonoTime) -> bool {
        self.deadlines.iter().any(|deadline| *deadline <= now)
    }
}

impl<R: Routes> FlowTable<R> {
    /// A writer of tables that a predecessor has written, and the sessions in them. They are forwarded as before, with the
    /// next hops that they have; new ones are to be asked for, see [`FlowTable::reroute_some`].
    pub fn adopt(tables: Arc<Tables>, mut routes: R, now: MonoTime) -> (FlowTable<R>, Inheritance) {
        let (sessions, unreadable) = sessions(&tables);
        let live: BTreeMap<u32, &Found> =
            sessions.iter().filter_map(|found| Some((found.left.slot?.0, found))).collect();
        clear_all_but(&tables, &live);
        let mut hops = BTreeMap::new();
        for (number, found) in &live {
            for hop in found.repair(&tables, *number) {
                *hops.entry(hop).or_insert(0) += 1;
            }
        }
        put_index_in_order(&tables, &live);
        routes.hold(&hops);
        let touched = live.keys().next_back().map_or(0, |last| last + 1);
        let resting = (0..touched).filter(|number| !live.contains_key(number));
        let pool = SlotPool::of(tables.sizes().slots, touched, resting, now);
        let installed = live.len() as u32;
        let rerouting = Rerouting::From { slot: 0, again: false };
        let table = FlowTable { tables: Arc::clone(&tables), routes, pool, installed, rerouting };
        let sessions = sessions.into_iter().map(|found| found.left).collect();
        (table, Inheritance { sessions, unreadable })
    }
}

/// The sessions in tables that are not gone on with, to be installed in others.
pub fn sessions_of(tables: &Tables) -> Inheritance {
    let elsewhere = |found: Found| Left { slot: None, ..found.left };
    let (sessions, unreadable) = sessions(tables);
    Inheritance { sessions: sessions.into_iter().map(elsewhere).collect(), unreadable }
}

struct Found {
    left: Left,
    /// The words of its tuples, if they could be read.
    words: Option<[AnyTuple; 2]>,
}

impl Found {
    /// Writes its lines anew where they do not follow from its tuples. The next hops it has.
    fn repair(&self, tables: &Tables, number: u32) -> Vec<u16> {
        let (Some(slot), Some(words)) = (tables.slot(number), self.words) else { return Vec::new() };
        let hop_count = tables.next_hops().len();
        let present = Side::BOTH.map(|side| slot.side(side).hop());
        let [connector, target] = present.map(|hop| if usize::from(hop) < hop_count { hop } else { 0 });
        // Each line names the hop towards the other side, which is asked for in the order of the lines.
        let mut same = Present(vec![target, connector]);
        let Ok(lines) = Line::of_session(words, tables, &mut same) else { return Vec::new() };
        for (line, side) in lines.iter().zip(Side::BOTH) {
            if slot.side(side).describes(&line.tuple, tables) != Some(line.route) {
                line.write(slot, side);
            }
        }
        vec![connector, target]
    }
}

/// The hops that a session's lines have.
struct Present(Vec<u16>);

impl Routes for Present {
    fn hop_for(&mut self, _agent: std::net::IpAddr, _relay: std::net::IpAddr) -> u16 {
        self.0.pop().unwrap_or_default()
    }

    fn release(&mut self, _hop: u16) {}
}

/// Every slot that is a session's. Of two sessions with one id or one tuple, which no writer makes, the second has none.
fn sessions(tables: &Tables) -> (Vec<Found>, u64) {
    let (mut ids, mut taken) = (HashSet::new(), HashSet::new());
    let (mut found, mut unreadable) = (Vec::new(), 0);
    for (number, (slot, record)) in (0..).zip(tables.slots.iter().zip(tables.records.iter())) {
        if slot.deadline.iter().any(|deadline| deadline.load() == 0) {
            continue;
        }
        let read = session(tables, number, slot, record);
        let Some(mut session) = read.filter(|read| ids.insert(read.left.identity.session)) else {
            unreadable += 1;
            continue;
        };
        let is_free = |tuples: [FlowTuple; 2]| {
            let [connector, target] = tuples;
            connector != target && tuples.iter().all(|tuple| !taken.contains(tuple))
        };
        match session.left.tuples.filter(|tuples| is_free(*tuples)) {
            Some(tuples) => taken.extend(tuples),
            None => session = Found { left: Left { tuples: None, slot: None, ..session.left }, words: None },
        }
        found.push(session);
    }
    (found, unreadable)
}

fn session(tables: &Tables, number: u32, slot: &Slot, record: &Record) -> Option<Found> {
    let deadlines = [slot.deadline[0].load(), slot.deadline[1].load()];
    let identity = record.identity(slot.generation.load())?;
    let [connector, target] = Side::BOTH.map(|side| tuple(tables, slot.side(side)));
    let both = connector.zip(target);
    Some(Found {
        left: Left {
            identity,
            tuples: both.map(|(connector, target)| [connector.1, target.1]),
            slot: both.is_some().then_some(SlotId(number)),
            deadlines: deadlines.map(MonoTime),
            debt: Debt(slot.arrival.load()),
            carried: record.traffic(slot),
            allowance: slot.bucket().allowance,
        },
        words: both.map(|(connector, target)| [connector.0, target.0]),
    })
}

/// The tuple of a line that is whole.
fn tuple(tables: &Tables, line: &SideLine) -> Option<(AnyTuple, FlowTuple)> {
    if line.is_being_written() {
        return None;
    }
    let words = line.tuple(tables)?;
    let tuple = FlowTuple { agent: words.source(), relay: words.destination() };
    check_addresses(tuple).ok()?;
    Some((words, tuple))
}

/// Makes all slots free that are no session's, as a removal does.
fn clear_all_but(tables: &Tables, live: &BTreeMap<u32, &Found>) {
    for (number, (slot, record)) in (0..).zip(tables.slots.iter().zip(tables.records.iter())) {
        if live.contains_key(&number) {
            continue;
        }
        let is_clear = slot.deadline.iter().all(|deadline| deadline.load() == 0)
            && slot.sides.iter().all(|line| line.families.load() == 0 && !line.is_being_written());
        if !is_clear {
            slot.deadline.iter().for_each(|deadline| deadline.store(0));
            slot.sides.iter().for_each(SideLine::clear);
        }
        record.clear();
    }
}

/// Takes out every entry that leads nowhere or twice to one place, and puts in those that are missing.
fn put_index_in_order(tables: &Tables, live: &BTreeMap<u32, &Found>) {
    let words_at = |at: SlotSide| {
        let [connector, target] = live.get(&at.slot)?.words?;
        Some(if at.side == Side::Connector { connector } else { target })
    };
    let mut entered = HashSet::new();
    for (number, bucket) in (0..).zip(tables.index.iter()) {
        for (fingerprint, at) in bucket.entries() {
            let place = words_at(at).map(|words| tables.place(&words));
            let is_right = place
                .is_some_and(|place| place.buckets.contains(&number) && place.fingerprint == fingerprint);
            if !is_right || !entered.insert((at.slot, at.side)) {
                bucket.take_out(fingerprint, at);
            }
        }
    }
    for (slot, found) in live {
        for (words, side) in found.words.iter().flatten().zip(Side::BOTH) {
            if !entered.contains(&(*slot, side)) {
                // Room there is: what was there has just been taken out, or it was never in.
                let at = SlotSide { slot: *slot, side };
                if !tables.enter(words, at, 0) {
                    tracing::warn!(
                        slot,
                        side = side.index(),
                        "no room in the index for a session that was left"
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use proptest::prelude::*;

    use super::super::NoRoutes;
    use super::*;
    use crate::identity::NodeId;
    use crate::protocol::SessionId;
    use crate::relay::datapath::flows::{Flows as _, Origin};
    use crate::relay::datapath::tables::{Arrival, TableSizes};

    const LEASE_END: MonoTime = MonoTime(300_000_000_000);
    const NOW: MonoTime = MonoTime(10_000_000_000);

    fn tuple(number: u8) -> FlowTuple {
        let agent: SocketAddr = match number % 2 {
            0 => ([198, 51, 100, number], 1000).into(),
            _ => ([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(number)], 1000).into(),
        };
        let relay = if agent.is_ipv4() { "192.0.2.1:4433" } else { "[2001:db8:1::1]:4433" };
        FlowTuple { agent, relay: relay.parse().unwrap() }
    }

    fn identity(number: u8) -> Identity {
        Identity {
            session: SessionId([number + 1; 16]),
            nodes: [number, number + 100].map(|byte| NodeId::from_bytes([byte; 32])),
            counters: [u64::from(number), 0],
            prefix: None,
            since: MonoTime(1_000_000_000),
        }
    }

    struct World {
        tables: Arc<Tables>,
        table: FlowTable<NoRoutes>,
        unreadable: u64,
    }

    impl World {
        fn new() -> World {
            let tables = Arc::new(Tables::private(TableSizes::for_sessions(16), [1, 2], *b"\x2amagic!!"));
            World { table: FlowTable::new(Arc::clone(&tables), NoRoutes), tables, unreadable: 0 }
        }

        /// Session `number`, between two agents of its own.
        fn install(&mut self, number: u8) -> SlotId {
            let sides = [tuple(2 * number), tuple(2 * number + 1)];
            let origin = Origin { identity: identity(number), ..Origin::NONE };
            self.table.install(sides, Limit::UNLIMITED, &origin, [LEASE_END; 2], NOW).unwrap()
        }

        /// The daemon dies here, and another one goes on.
        fn succeed(&mut self) -> Vec<Left> {
            let (table, inheritance) = FlowTable::adopt(Arc::clone(&self.tables), NoRoutes, NOW);
            self.table = table;
            self.unreadable = inheritance.unreadable;
            inheritance.sessions
        }

        fn destination(&self, from: FlowTuple) -> Option<SocketAddr> {
            let arrival = Arrival { from: from.agent, to: from.relay, payload: b"x", tos: 0, ttl: 64 };
            self.tables.decide(&arrival, NOW).ok().map(|relayed| relayed.to)
        }

        fn entries(&self) -> u32 {
            self.tables.index.iter().map(|bucket| bucket.used()).sum()
        }

        /// Only what sessions say is forwarded, and to whom they say.
        fn forwards_only(&self, left: &[Left]) {
            let mut placed = 0;
            for session in left.iter().filter(|session| session.slot.is_some()) {
                let [connector, target] = session.tuples.unwrap();
                assert_eq!(self.destination(connector), Some(target.agent));
                assert_eq!(self.destination(target), Some(connector.agent));
                placed += 1;
            }
            assert_eq!((self.table.installed(), self.entries()), (placed, 2 * placed));
        }
    }

    #[test]
    fn sessions_go_on_in_their_slots_with_what_they_have_carried() {
        let mut world = World::new();
        let slots = [0, 1, 2].map(|number| world.install(number));
        world.tables.count(SlotSide { slot: slots[1].0, side: Side::Target }, 3, 300);
        world.tables.slot(slots[1].0).unwrap().side(Side::Connector).traffic.count(50);
        world.table.accepted(slots[2], Side::Target, 77);
        world.table.remove(slots[0], NOW);
        let left = world.succeed();
        assert_eq!(left.iter().map(|it| it.slot).collect::<Vec<_>>(), [Some(slots[1]), Some(slots[2])]);
        assert_eq!(left[0].identity, identity(1));
        assert_eq!(left[1].identity.counters, [2, 77]);
        assert_eq!((left[0].carried.packets(), left[0].carried.bytes()), (4, 350));
        assert_eq!(world.table.traffic(slots[1]), left[0].carried);
        assert!(left[0].has_limit(Limit::UNLIMITED) && !left[0].has_limit(Limit::per_second(1)));
        assert!(!left[0].is_over(NOW) && left[0].is_over(LEASE_END));
        world.forwards_only(&left);
        // What was removed just before rests; what was never used is given next.
        assert_eq!(world.install(7), SlotId(3));
    }

    #[test]
    fn a_session_that_was_half_installed_or_half_removed_leaves_nothing() {
        for dies in 0..3 {
            let mut world = World::new();
            let (stays, slot) = (world.install(0), world.install(1));
            let memory = world.tables.slot(slot.0).unwrap();
            memory.deadline.iter().for_each(|deadline| deadline.store(0));
            if dies >= 1 {
                let words = memory.side(Side::Connector).tuple(&*world.tables).unwrap();
                world.tables.withdraw(&words, SlotSide { slot: slot.0, side: Side::Connector });
            }
            if dies >= 2 {
                memory.side(Side::Connector).clear();
                world.tables.records[slot.0 as usize].clear();
            }
            let left = world.succeed();
            assert_eq!(left.iter().map(|it| it.slot).collect::<Vec<_>>(), [Some(stays)], "{dies}");
            world.forwards_only(&left);
            assert_eq!([2, 3].map(|number| world.destination(tuple(number))), [None, None]);
        }
    }

    #[test]
    fn a_side_that_was_half_moved_is_where_its_own_line_says() {
        let mut world = World::new();
        let slot = world.install(0);
        // The new tuple is entered and written into the side's own line; the other line still leads to the old one.
        let (moved, old) = (tuple(100), tuple(0));
        let words = super::super::words(moved).unwrap();
        let other = world.tables.slot(slot.0).unwrap().side(Side::Target).tuple(&*world.tables).unwrap();
        let lines = Line::of_session([words, other], &world.tables, &mut NoRoutes).unwrap();
        assert!(world.tables.enter(&words, SlotSide { slot: slot.0, side: Side::Connector }, 0));
        lines[0].write(world.tables.slot(slot.0).unwrap(), Side::Connector);
        assert_eq!(world.destination(tuple(1)), Some(old.agent));
        let left = world.succeed();
        assert_eq!(left[0].tuples, Some([moved, tuple(1)]));
        world.forwards_only(&left);
        assert_eq!(world.destination(old), None);
    }

    #[test]
    fn a_session_whose_line_was_being_written_goes_on_without_a_slot() {
        let mut world = World::new();
        let slot = world.install(0);
        world.tables.slot(slot.0).unwrap().side(Side::Target).sequence.add(1);
        let left = world.succeed();
        assert_eq!((left[0].identity, left[0].slot, left[0].tuples), (identity(0), None, None));
        world.forwards_only(&left);
        assert_eq!((world.destination(tuple(0)), world.destination(tuple(1))), (None, None));
    }

    #[test]
    fn a_record_of_another_generation_or_of_an_id_that_there_is_is_no_session_and_is_counted() {
        let mut world = World::new();
        let slot = world.install(0);
        world.tables.slot(slot.0).unwrap().generation.add(1);
        assert_eq!((world.succeed(), world.unreadable), (vec![], 1));
        world.forwards_only(&[]);
        world.install(0);
        let again = [tuple(50), tuple(51)];
        let origin = Origin { identity: identity(0), ..Origin::NONE };
        world.table.install(again, Limit::UNLIMITED, &origin, [LEASE_END; 2], NOW).unwrap();
        let left = world.succeed();
        assert_eq!((left.len(), world.unreadable), (1, 1));
        world.forwards_only(&left);
    }

    #[test]
    fn of_two_sessions_with_one_tuple_the_second_has_no_slot() {
        let mut world = World::new();
        let slots = [world.install(0), world.install(1)];
        let words = super::super::words(tuple(0)).unwrap();
        let other = super::super::words(tuple(3)).unwrap();
        let lines = Line::of_session([words, other], &world.tables, &mut NoRoutes).unwrap();
        lines[0].write(world.tables.slot(slots[1].0).unwrap(), Side::Connector);
        let left = world.succeed();
        assert_eq!([left[0].slot, left[1].slot], [Some(slots[0]), None]);
        world.forwards_only(&left);
    }

    #[test]
    fn sessions_of_tables_that_are_left_behind_can_be_installed_in_others() {
        let mut old = World::new();
        let slot = old.install(0);
        old.tables.count(SlotSide { slot: slot.0, side: Side::Target }, 3, 300);
        let [left] = &sessions_of(&old.tables).sessions[..] else { panic!("there is one") };
        assert_eq!((left.slot, left.tuples), (None, Some([tuple(0), tuple(1)])));
        let mut new = World::new();
        let origin = Origin { identity: left.identity, debt: left.debt, carried: left.carried };
        let slot =
            new.table.install(left.tuples.unwrap(), Limit::UNLIMITED, &origin, left.deadlines, NOW).unwrap();
        assert_eq!(new.table.traffic(slot).bytes(), 300);
        assert_eq!(new.destination(tuple(0)), Some(tuple(1).agent));
    }

    /// A word of the tables that somebody else has written.
    #[derive(Clone, Copy, Debug)]
    enum Damage {
        Line { slot: u8, side: bool, word: u8, value: u32 },
        Deadline { slot: u8, side: bool, value: u64 },
        Generation { slot: u8, value: u32 },
        Index { bucket: u8, word: u8, value: u32 },
        Local { number: u8, value: u32 },
    }

    fn damage() -> impl Strategy<Value = Damage> {
        let value = prop_oneof![Just(0), Just(u32::MAX), any::<u32>(), 0u32..70];
        prop_oneof![
            (0u8..6, any::<bool>(), 0u8..16, value.clone())
                .prop_map(|(slot, side, word, value)| Damage::Line { slot, side, word, value }),
            (0u8..6, any::<bool>(), any::<u64>()).prop_map(|(slot, side, value)| Damage::Deadline {
                slot,
                side,
                value
            }),
            (0u8..6, 0u32..4).prop_map(|(slot, value)| Damage::Generation { slot, value }),
            (any::<u8>(), 0u8..16, value.clone()).prop_map(|(bucket, word, value)| Damage::Index {
                bucket,
                word,
                value
            }),
            (0u8..4, value).prop_map(|(number, value)| Damage::Local { number, value }),
        ]
    }

    impl Damage {
        fn inflict(self, tables: &Tables) {
            match self {
                Damage::Line { slot, side, word, value } => {
                    let line = &tables.slots[usize::from(slot)].sides[usize::from(side)];
                    match usize::from(word) {
                        word @ 0..8 => line.address[word].store(value),
                        8 => line.ports.store(value),
                        9 => line.new_ports.store(value),
                        10 => line.hop_and_delta.store(value),
                        11 => line.families.store(value),
                        _ => line.sequence.store(value),
                    }
                }
                Damage::Deadline { slot, side, value } => {
                    tables.slots[usize::from(slot)].deadline[usize::from(side)].store(value);
                }
                Damage::Generation { slot, value } => tables.slots[usize::from(slot)].generation.store(value),
                Damage::Index { bucket, word, value } => {
                    let bucket = &tables.index[usize::from(bucket) % tables.index.len()];
                    bucket.damage(usize::from(word), value);
                }
                Damage::Local { number, value } => tables.locals[usize::from(number)].damage(value),
            }
        }
    }

    proptest! {
        /// Whatever stands in the tables: it is no panic, and nothing is forwarded but between the tuples of a session.
        #[test]
        fn damaged_tables_are_put_in_order(damages in proptest::collection::vec(damage(), 0..8)) {
            let mut world = World::new();
            let slots: Vec<SlotId> = (0..5).map(|number| world.install(number)).collect();
            world.table.remove(slots[3], NOW);
            damages.iter().for_each(|damage| damage.inflict(&world.tables));
            let left = world.succeed();
            let at = NOW;
            let alive: Vec<Left> = left.into_iter().filter(|left| !left.is_over(at)).collect();
            for session in alive.iter().filter(|session| session.slot.is_some()) {
                let [connector, target] = session.tuples.unwrap();
                prop_assert_eq!(world.destination(connector), Some(target.agent));
                prop_assert_eq!(world.destination(target), Some(connector.agent));
            }
            let of_sessions: Vec<FlowTuple> = alive.iter().filter_map(|left| left.tuples).flatten().collect();
            for number in 0..12 {
                if !of_sessions.contains(&tuple(number)) {
                    prop_assert_eq!(world.destination(tuple(number)), None);
                }
            }
            prop_assert_eq!(world.entries(), 2 * world.table.installed());
            // And they work as before.
            let slot = world.install(90);
            prop_assert_eq!(world.destination(tuple(180)), Some(tuple(181).agent));
            world.table.remove(slot, NOW);
        }
    }
}
