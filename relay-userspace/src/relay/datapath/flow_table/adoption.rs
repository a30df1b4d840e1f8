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
    pub fn adopt(tables: Arc<Tables>, mut routes: R, now: MonoTime) -> (FlowTable<R>, Vec<Left>) {
        let sessions = sessions(&tables);
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
        (table, sessions.into_iter().map(|found| found.left).collect())
    }
}

/// The sessions in tables that are not gone on with, to be installed in others.
pub fn sessions_of(tables: &Tables) -> Vec<Left> {
    let elsewhere = |found: Found| Left { slot: None, ..found.left };
    sessions(tables).into_iter().map(elsewhere).collect()
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
fn sessions(tables: &Tables) -> Vec<Found> {
    let (mut ids, mut taken) = (HashSet::new(), HashSet::new());
    let mut found = Vec::new();
    for (number, (slot, record)) in (0..).zip(tables.slots.iter().zip(tables.records.iter())) {
        let Some(mut session) = session(tables, number, slot, record) else { continue };
        if !ids.insert(session.left.identity.session) {
            continue;
        }
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
    found
}

fn session(tables: &Tables, number: u32, slot: &Slot, record: &Record) -> Option<Found> {
    let deadlines = [slot.deadline[0].load(), slot.deadline[1].load()];
    if deadlines.contains(&0) {
        return None;
    }
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
