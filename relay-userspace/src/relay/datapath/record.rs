//! What is kept of a session beside its slot, for whoever goes on with the tables: whose it is and what it has carried.
//!
//! The program never looks at it. A record is written before its slot's deadlines and cleared after them, so that a slot
//! with deadlines has a record that is whole, whenever the daemon may have died.

use std::sync::atomic::{AtomicU64, Ordering};

use relay_common::Side;
use relay_common::slot::Slot;
use relay_common::traffic::{Difference, Reading};
use relay_common::word::Word64;

use super::flows::{SideTraffic, Traffic};
use crate::clock::MonoTime;
use crate::identity::NodeId;
use crate::protocol::SessionId;
use crate::relay::prefix::Prefix;

/// Whose session a slot is, as far as it does not stand in the slot itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its id.
    pub session: SessionId,
    /// Its nodes, indexed by [`Side`].
    pub nodes: [NodeId; 2],
    /// The highest bind counters accepted, indexed by [`Side`].
    pub counters: [u64; 2],
    /// Where it was asked for from; none of a session that counts for no prefix.
    pub prefix: Option<Prefix>,
    /// Since when there has been an offer of it, to the millisecond.
    pub since: MonoTime,
}

impl Identity {
    /// Of no session: a slot without one is not gone on with.
    pub const NOBODYS: Identity = Identity {
        session: SessionId([0; 16]),
        nodes: [NodeId::from_bytes([0; 32]); 2],
        counters: [0; 2],
        prefix: None,
        since: MonoTime(0),
    };
}

/// A session's record: three cache lines. The first is the forwarder's to count in, the others are the tables' one
/// writer's.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Record {
    carried: [CarriedSide; 2],
    limited: Widened,
    marked: Widened,
    session: [Word64; 2],
    nodes: [[Word64; 4]; 2],
    counters: [Word64; 2],
    prefix: Word64,
    /// Milliseconds of its beginning above the low bits of the slot's generation.
    since: Word64,
}

const _: () = assert!(size_of::<Record>() == Record::SIZE);

/// What one side of a slot has carried.
#[derive(Debug, Default)]
#[repr(C)]
struct CarriedSide {
    /// Packets forwarded in userspace.
    packets: AtomicU64,
    /// UDP payload bytes forwarded in userspace, and by the program until it was last asked.
    bytes: AtomicU64,
    /// Packets forwarded by the program until it was last asked.
    packets_kernel: AtomicU64,
    /// What the slot's count of the program's packets stood at then.
    seen: AtomicU64,
}

/// A counter of the slot, which wraps at 2^32, in 64 bits: the count when it was last read. Its low half is what the slot's
/// counter was then.
#[derive(Debug, Default)]
#[repr(transparent)]
struct Widened(AtomicU64);

/// Bits of the generation that stand in a record.
const GENERATION_BITS: u32 = 24;
const GENERATION_MASK: u64 = (1 << GENERATION_BITS) - 1;

impl Record {
    /// Size in bytes.
    pub const SIZE: usize = 192;

    /// Makes it `identity`'s, whose earlier slots have carried `carried`. The slot's counters begin at zero, all but the
    /// limit's and the marks', which are to begin with [`Record::counters_of_slot`].
    pub(super) fn begin(&self, identity: &Identity, carried: &Traffic, generation: u32) {
        for (mine, before) in self.carried.iter().zip(carried.sides) {
            mine.packets.store(before.packets_userspace, Ordering::Relaxed);
            mine.packets_kernel.store(before.packets_kernel, Ordering::Relaxed);
            mine.bytes.store(before.bytes, Ordering::Relaxed);
            mine.seen.store(0, Ordering::Relaxed);
        }
        self.limited.0.store(carried.limited_packets, Ordering::Relaxed);
        self.marked.0.store(carried.marked_packets, Ordering::Relaxed);
        for (node, words) in identity.nodes.iter().zip(&self.nodes) {
            store(words, node.as_bytes());
        }
        for (word, counter) in self.counters.iter().zip(identity.counters) {
            word.store(counter);
        }
        self.prefix.store(identity.prefix.map_or(0, Prefix::to_word));
        let milliseconds = identity.since.0 / 1_000_000;
        self.since.store(milliseconds << GENERATION_BITS | u64::from(generation) & GENERATION_MASK);
        store(&self.session, &identity.session.0);
    }

    /// What the slot's own counters of limited and marked packets begin with, so that their low halves agree with these.
    pub(super) fn counters_of_slot(&self) -> [u32; 2] {
        [&self.limited, &self.marked].map(|widened| widened.0.load(Ordering::Relaxed) as u32)
    }

    /// Makes it nobody's.
    pub(super) fn clear(&self) {
        self.session.iter().for_each(|word| word.store(0));
    }

    /// Whose it is; none if it is nobody's, or not of the slot's present generation.
    pub(super) fn identity(&self, generation: u32) -> Option<Identity> {
        let session = SessionId(load(&self.session));
        let since = self.since.load();
        if session == Identity::NOBODYS.session
            || since & GENERATION_MASK != u64::from(generation) & GENERATION_MASK
        {
            return None;
        }
        let [connector, target] = &self.nodes;
        Some(Identity {
            session,
            nodes: [connector, target].map(|words| NodeId::from_bytes(load(words))),
            counters: [self.counters[0].load(), self.counters[1].load()],
            prefix: Prefix::from_word(self.prefix.load()),
            since: MonoTime((since >> GENERATION_BITS).saturating_mul(1_000_000)),
        })
    }

    /// A side's bind datagram with this counter was accepted.
    pub(super) fn accepted(&self, side: Side, counter: u64) {
        if let Some(word) = self.counters.get(side.index()) {
            word.store(counter);
        }
    }

    /// Counts datagrams that userspace has sent, with their payload bytes.
    pub(super) fn count(&self, side: Side, packets: u64, bytes: u64) {
        let [connector, target] = &self.carried;
        let carried = match side {
            Side::Connector => connector,
            Side::Target => target,
        };
        carried.packets.fetch_add(packets, Ordering::Relaxed);
        carried.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// All that the session has carried, now that its slot's counts stand where they do. To be asked as often as
    /// [`relay_common::traffic`] demands, by the tables' one writer.
    pub(super) fn traffic(&self, slot: &Slot) -> Traffic {
        let [connector, target] = &self.carried;
        Traffic {
            sides: [
                connector.sum(slot.side(Side::Connector).traffic.read()),
                target.sum(slot.side(Side::Target).traffic.read()),
            ],
            limited_packets: self.limited.read(slot.limited_packets.load()),
            limited_bytes: slot.limited_bytes.load(),
            marked_packets: self.marked.read(slot.marked_packets.load()),
        }
    }
}

impl CarriedSide {
    fn sum(&self, program: Reading) -> SideTraffic {
        let seen = Reading(self.seen.swap(program.0, Ordering::Relaxed));
        let Difference { packets, bytes } = program.since(seen);
        SideTraffic {
            packets_kernel: self.packets_kernel.fetch_add(packets, Ordering::Relaxed) + packets,
            packets_userspace: self.packets.load(Ordering::Relaxed),
            bytes: self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes,
        }
    }
}

impl Widened {
    /// The count, now that the slot's counter is `counter`. To be asked more often than that one wraps, by the tables' one
    /// writer.
    fn read(&self, counter: u32) -> u64 {
        let before = self.0.load(Ordering::Relaxed);
        let count = before + u64::from(counter.wrapping_sub(before as u32));
        self.0.store(count, Ordering::Relaxed);
        count
    }
}

fn store(words: &[Word64], bytes: &[u8]) {
    for (word, chunk) in words.iter().zip(bytes.chunks_exact(8)) {
        let mut value = [0; 8];
        value.copy_from_slice(chunk);
        word.store(u64::from_ne_bytes(value));
    }
}

fn load<const N: usize>(words: &[Word64]) -> [u8; N] {
    let mut bytes = [0; N];
    for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
        chunk.copy_from_slice(&word.load().to_ne_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            session: SessionId(std::array::from_fn(|byte| byte as u8 + 1)),
            nodes: [1, 2].map(|byte| NodeId::from_bytes(std::array::from_fn(|at| at as u8 ^ byte))),
            counters: [u64::MAX, 7],
            prefix: Some(Prefix::of("2001:db8:1:2ff::1".parse().unwrap())),
            since: MonoTime(123_456_000_000),
        }
    }

    /// As `meta.rs` demands of all that stands in the tables.
    #[test]
    fn a_record_whose_layout_changes_is_one_of_another_version() {
        use std::mem::offset_of;
        assert_eq!(super::super::meta::LAYOUT, 1);
        let places = [
            offset_of!(Record, carried),
            offset_of!(Record, limited),
            offset_of!(Record, marked),
            offset_of!(Record, session),
            offset_of!(Record, nodes),
            offset_of!(Record, counters),
            offset_of!(Record, prefix),
            offset_of!(Record, since),
        ];
        assert_eq!(places, [0, 64, 72, 80, 96, 160, 176, 184]);
        let of_side = [
            offset_of!(CarriedSide, packets),
            offset_of!(CarriedSide, bytes),
            offset_of!(CarriedSide, packets_kernel),
            offset_of!(CarriedSide, seen),
        ];
        assert_eq!(of_side, [0, 8, 16, 24]);
    }

    #[test]
    fn what_was_written_of_a_session_is_read_again_for_its_generation_alone() {
        let record = Record::default();
        assert_eq!(record.identity(0), None);
        record.begin(&identity(), &Traffic::default(), 0x0100_0003);
        assert_eq!(record.identity(0x0100_0003), Some(identity()));
        assert_eq!(record.identity(0x0100_0004), None);
        record.accepted(Side::Target, 8);
        assert_eq!(record.identity(3).unwrap().counters, [u64::MAX, 8]);
        record.clear();
        assert_eq!(record.identity(0x0100_0003), None);
    }

    #[test]
    fn what_earlier_slots_have_carried_is_part_of_it() {
        let record = Record::default();
        let side = |packets| SideTraffic {
            packets_kernel: packets,
            packets_userspace: 2 * packets,
            bytes: 3 * packets,
        };
        let before = Traffic {
            sides: [side(10), side(20)],
            limited_packets: (5 << 32) + 4,
            limited_bytes: 6,
            marked_packets: u64::from(u32::MAX),
        };
        record.begin(&identity(), &before, 1);
        let slot = Slot::default();
        let [limited, marked] = record.counters_of_slot();
        slot.limited_packets.store(limited);
        slot.marked_packets.store(marked);
        slot.limited_bytes.store(before.limited_bytes);
        assert_eq!(record.traffic(&slot), before);
        slot.limited_packets.add(1);
        slot.marked_packets.add(2);
        slot.side(Side::Connector).traffic.count(100);
        record.count(Side::Target, 1, 50);
        let after = record.traffic(&slot);
        assert_eq!(after.limited_packets, before.limited_packets + 1);
        assert_eq!(after.marked_packets, before.marked_packets + 2);
        assert_eq!(after.sides[0].bytes, before.sides[0].bytes + 100);
        assert_eq!(after.sides[1].packets_userspace, before.sides[1].packets_userspace + 1);
    }
}
