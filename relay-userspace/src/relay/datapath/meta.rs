//! What the tables are: the first thing a successor reads of them.

use relay_common::hash::HashSeed;
use relay_common::word::{Word32, Word64};

use super::tables::TableSizes;

/// The version of everything that stands in the tables. A program or a daemon that would read a record otherwise has
/// another one: what was left with another version is not gone on with.
pub const LAYOUT: u32 = 1;

/// The record of the tables themselves.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Meta {
    pub(super) layout: Word32,
    pub(super) slots: Word32,
    pub(super) buckets: Word32,
    _unused: Word32,
    hash_seed: [Word64; 2],
    bind_magic: Word64,
    _reserved: [Word64; 3],
}

const _: () = assert!(size_of::<Meta>() == 64);

impl Meta {
    /// The tables are whole and of this kind from now on.
    pub(super) fn write(&self, sizes: TableSizes, hash_seed: HashSeed, bind_magic: u64) {
        self.slots.store(sizes.slots);
        self.buckets.store(sizes.buckets);
        self.hash_seed[0].store(hash_seed[0]);
        self.hash_seed[1].store(hash_seed[1]);
        self.bind_magic.store(bind_magic);
        self.layout.store(LAYOUT);
    }

    /// The version; 0 if they never were whole.
    pub(super) fn layout(&self) -> u32 {
        self.layout.load()
    }

    /// How large they are, if that is what tables can be.
    pub(super) fn sizes(&self) -> Option<TableSizes> {
        let sizes = TableSizes { slots: self.slots.load(), buckets: self.buckets.load() };
        (TableSizes::for_sessions(sizes.slots) == sizes).then_some(sizes)
    }

    /// The key of their index.
    pub(super) fn hash_seed(&self) -> HashSeed {
        [self.hash_seed[0].load(), self.hash_seed[1].load()]
    }

    /// What bind datagrams begin with.
    pub(super) fn bind_magic(&self) -> u64 {
        self.bind_magic.load()
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use relay_common::PerCpu;
    use relay_common::index::{ENTRIES, IndexBucket};
    use relay_common::interface::Interface;
    use relay_common::local::Local;
    use relay_common::next_hop::NextHop;
    use relay_common::slot::{SideLine, Slot};

    use super::super::record::Record;
    use super::*;

    /// What is to be done if this fails: give [`LAYOUT`] a new number, and say in the change log that a restart into this
    /// version ends sessions unless the old tables are copied.
    #[test]
    fn a_layout_that_changes_gets_another_version() {
        assert_eq!(LAYOUT, 1);
        let sizes = [
            size_of::<Slot>(),
            size_of::<Record>(),
            size_of::<IndexBucket>(),
            size_of::<NextHop>(),
            size_of::<Interface>(),
            size_of::<Local>(),
            size_of::<Meta>(),
        ];
        assert_eq!(sizes, [192, 192, 64, 32, 16, 16, 64]);
        assert_eq!(ENTRIES, 12);
        let slot = [
            offset_of!(Slot, arrival),
            offset_of!(Slot, cost_per_byte),
            offset_of!(Slot, burst),
            offset_of!(Slot, deadline),
            offset_of!(Slot, marked_at),
            offset_of!(Slot, marked_packets),
            offset_of!(Slot, limited_bytes),
            offset_of!(Slot, limited_packets),
            offset_of!(Slot, generation),
            offset_of!(Slot, sides),
        ];
        assert_eq!(slot, [0, 8, 16, 24, 40, 44, 48, 56, 60, 64]);
        let line = [
            offset_of!(SideLine, address),
            offset_of!(SideLine, ports),
            offset_of!(SideLine, new_ports),
            offset_of!(SideLine, hop_and_delta),
            offset_of!(SideLine, families),
            offset_of!(SideLine, sequence),
            offset_of!(SideLine, traffic),
        ];
        assert_eq!(line, [0, 32, 36, 40, 44, 48, 56]);
        // The counters by reason go on too: a reason that is added at the end is a new map with the others at their places.
        assert_eq!(offset_of!(PerCpu, tallies), 16);
    }
}
