//! The real tables, and an account of what should stand in them.

use std::cell::RefCell;
use std::sync::Arc;

use relay_common::Side;

use super::super::Ledger;
use super::*;
use crate::relay::datapath::{
    Arrival, Debt, FlowTable, FlowTuple, NoRoutes, Origin, PREVIOUS_TUPLE_KEPT, SlotId, TableSizes, Tables,
    Traffic,
};

pub struct Books {
    pub ledger: Ledger,
    pub tables: Arc<Tables>,
    table: FlowTable<NoRoutes>,
    /// The table's slot of each of the ledger's.
    slots: BTreeMap<SlotId, SlotId>,
    /// What each side moved away from last.
    left: BTreeMap<(SlotId, Side), FlowTuple>,
    /// Who has moved away from a tuple last, and when.
    left_by: BTreeMap<FlowTuple, (SlotId, Side, MonoTime)>,
    /// Slots that the rendezvous has asked about or changed.
    touched: RefCell<BTreeSet<SlotId>>,
}

impl Books {
    pub fn new() -> Books {
        let sizes = TableSizes::for_sessions(AGENTS as u32);
        let tables = Arc::new(Tables::private(sizes, [1, 2], super::super::magic().0));
        let table = FlowTable::new(Arc::clone(&tables), NoRoutes);
        Books {
            ledger: Ledger::default(),
            tables,
            table,
            slots: BTreeMap::new(),
            left: BTreeMap::new(),
            left_by: BTreeMap::new(),
            touched: RefCell::default(),
        }
    }

    /// What either side sends now arrives at the other.
    pub fn forwards(&self, slot: SlotId, now: MonoTime) {
        let [connector, target] = self.ledger.slots[&slot].tuples;
        for (from, to) in [(connector, target), (target, connector)] {
            let arrival = Arrival { from: from.agent, to: from.relay, payload: b"x", tos: 0, ttl: 64 };
            assert_eq!(self.tables.decide(&arrival, now).map(|relayed| relayed.to), Ok(to.agent));
        }
    }

    /// Where a datagram goes that a side sent just before it moved.
    pub fn destination_of_previous(&self, tuple: &FlowTuple, now: MonoTime) -> Option<SocketAddr> {
        let (slot, side, _) = self.left_by.get(tuple).filter(|(.., at)| now < *at + PREVIOUS_TUPLE_KEPT)?;
        Some(self.ledger.slots[slot].tuples[side.other().index()].agent)
    }

    /// Slots touched since this was asked last.
    pub fn take_touched(&mut self) -> BTreeSet<SlotId> {
        self.touched.take()
    }

    pub fn some_slot(&self, random: &mut Seeded) -> Option<SlotId> {
        let from = SlotId(random.below(u64::from(self.ledger.next_slot.max(1))) as u32);
        self.ledger.slots.range(from..).next().map(|(slot, _)| *slot)
    }

    /// Somebody has proved `tuple`.
    fn not_left(&mut self, tuple: FlowTuple) {
        if let Some((slot, side, _)) = self.left_by.remove(&tuple) {
            self.left.remove(&(slot, side));
        }
    }

    fn leave(&mut self, slot: SlotId, side: Side) {
        if let Some(tuple) = self.left.remove(&(slot, side)) {
            self.left_by.remove(&tuple);
        }
    }

    fn touch(&self, slot: SlotId) {
        self.touched.borrow_mut().insert(slot);
    }
}

impl Flows for Books {
    fn install(
        &mut self,
        tuples: [FlowTuple; 2],
        limit: Limit,
        origin: &Origin,
        deadlines: [MonoTime; 2],
        now: MonoTime,
    ) -> Result<SlotId, InstallError> {
        let slot = self.ledger.install(tuples, limit, origin, deadlines, now)?;
        let of_table =
            self.table.install(tuples, limit, origin, deadlines, now).expect("the tables have room");
        self.slots.insert(slot, of_table);
        tuples.into_iter().for_each(|tuple| self.not_left(tuple));
        Ok(slot)
    }

    fn accepted(&mut self, slot: SlotId, side: Side, counter: u64) {
        self.touch(slot);
        self.ledger.accepted(slot, side, counter);
        self.table.accepted(self.slots[&slot], side, counter);
    }

    fn extend(&mut self, slot: SlotId, side: Side, deadline: MonoTime) {
        self.touch(slot);
        self.ledger.extend(slot, side, deadline);
        self.table.extend(self.slots[&slot], side, deadline);
    }

    fn rebind(
        &mut self,
        slot: SlotId,
        side: Side,
        tuple: FlowTuple,
        now: MonoTime,
    ) -> Result<(), InstallError> {
        self.touch(slot);
        let before = self.ledger.slots[&slot].tuples[side.index()];
        self.ledger.rebind(slot, side, tuple, now)?;
        self.not_left(tuple);
        if before != tuple {
            self.leave(slot, side);
            self.left.insert((slot, side), before);
            self.left_by.insert(before, (slot, side, now));
        }
        self.table.rebind(self.slots[&slot], side, tuple, now).expect("the tables have room");
        Ok(())
    }

    fn set_limit(&mut self, slot: SlotId, limit: Limit, now: MonoTime) {
        self.touch(slot);
        self.ledger.set_limit(slot, limit, now);
        self.table.set_limit(self.slots[&slot], limit, now);
    }

    fn remove(&mut self, slot: SlotId, now: MonoTime) -> Debt {
        self.touch(slot);
        self.ledger.remove(slot, now);
        Side::BOTH.into_iter().for_each(|side| self.leave(slot, side));
        let debt = self.table.remove(self.slots.remove(&slot).unwrap(), now);
        assert_eq!(self.table.installed() as usize, self.slots.len());
        debt
    }

    fn proved(&mut self, tuple: FlowTuple) {
        self.not_left(tuple);
        self.table.proved(tuple);
    }

    /// The ledger's: the simulation decides what is carried.
    fn traffic(&self, slot: SlotId) -> Traffic {
        self.touch(slot);
        self.ledger.traffic(slot)
    }

    fn egress_mtus(&self, slot: SlotId) -> [Option<u32>; 2] {
        self.ledger.egress_mtus(slot)
    }
}
