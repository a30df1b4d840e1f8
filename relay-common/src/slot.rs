//! A session's record in the table that kernel and userspace share: three cache lines.
//!
//! Slots are the truth; the index only points at them. The first line holds what both directions share, the other two
//! one side each. A side's line describes packets *from* that side: what they look like, and what becomes of them.

use crate::bucket::{Allowance, Bucket};
use crate::checksum::ChecksumDelta;
use crate::route::{Onward, Route};
use crate::side::Side;
use crate::tables::Tables;
use crate::traffic::Traffic;
use crate::tuple::Tuple;
use crate::word::{Word32, Word64};

/// A session's record.
#[derive(Default)]
#[repr(C, align(64))]
pub struct Slot {
    /// Bucket: theoretical arrival time, 1/64 ns.
    pub arrival: Word64,
    /// Bucket: see [`Allowance::cost_per_byte`].
    pub cost_per_byte: Word64,
    /// Bucket: see [`Allowance::burst`].
    pub burst: Word64,
    /// Until when packets from and to each side may be forwarded, ns of the coarse monotonic clock. 0: never.
    pub deadline: [Word64; 2],
    /// When a packet was marked last, in steps of 2^20 ns.
    pub marked_at: Word32,
    /// Packets marked CE, wrapping.
    pub marked_packets: Word32,
    /// UDP payload bytes dropped for the limit.
    pub limited_bytes: Word64,
    /// Packets dropped for the limit, wrapping.
    pub limited_packets: Word32,
    /// How often the slot was given to a session; part of what the daemon checks.
    pub generation: Word32,
    /// One line per side, in the order of [`Side`].
    pub sides: [SideLine; 2],
}

/// What packets from one side look like, and what becomes of them.
///
/// Written under a sequence count: odd while a write is under way. A reader copies what it needs and looks at the count
/// again; if it changed, the copy is worthless. Addresses and ports are as they stand in a packet, read as native-endian
/// words.
#[derive(Default)]
#[repr(C, align(64))]
pub struct SideLine {
    /// What comes: for IPv4 source and relay address in the first two words, for IPv6 the source in the first four.
    /// What goes: for IPv4 new source, new destination and the IP header's checksum delta in the fifth to seventh word,
    /// for IPv6 the new destination in the last four.
    pub address: [Word32; 8],
    /// Source and destination port.
    pub ports: Word32,
    /// New source and destination port.
    pub new_ports: Word32,
    /// Number of the next hop in the low, the UDP checksum delta in the high half.
    pub hop_and_delta: Word32,
    /// Families of what comes and goes, and for IPv6 the relay's addresses in the table of locals. Bits 0-3:
    /// [`SideLine::TAKES_MASK`]; bits 4-7: [`SideLine::MAKES_MASK`]; bits 8-19 and 20-31: local destination of what
    /// comes, local source of what goes.
    pub families: Word32,
    /// Sequence count.
    pub sequence: Word32,
    /// Packets forwarded by the program, with their UDP payload bytes.
    pub traffic: Traffic,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Slot>() == Slot::SIZE && size_of::<SideLine>() == 64);

impl Slot {
    /// Size in bytes.
    pub const SIZE: usize = 192;

    /// The session's bucket.
    #[inline(always)]
    pub fn bucket(&self) -> Bucket<'_> {
        Bucket {
            arrival: &self.arrival,
            marked_at: &self.marked_at,
            allowance: Allowance { cost_per_byte: self.cost_per_byte.load(), burst: self.burst.load() },
        }
    }

    /// Whether both sides have consented to traffic at `now` (ns).
    #[inline(always)]
    pub fn consented(&self, now: u64) -> bool {
        now < self.deadline[0].load() && now < self.deadline[1].load()
    }

    /// The line of packets from `side`.
    #[expect(clippy::indexing_slicing, reason = "the number is masked to the array's length")]
    #[inline(always)]
    pub fn side(&self, side: Side) -> &SideLine {
        // No `match`: BPF has no conditional moves, and which side a packet comes from is nothing a CPU can foresee.
        &self.sides[side as usize & 1]
    }
}

impl SideLine {
    /// The family of what comes, in [`SideLine::families`]. 0: nothing does.
    pub const TAKES_MASK: u32 = 0xf;
    /// IPv4 comes.
    pub const TAKES_V4: u32 = 0x4;
    /// IPv6 comes.
    pub const TAKES_V6: u32 = 0x6;
    /// The family of what goes, in [`SideLine::families`].
    pub const MAKES_MASK: u32 = 0xf0;
    /// IPv6 goes; else IPv4.
    pub const MAKES_V6: u32 = 0x60;
    /// IPv4 goes.
    pub const MAKES_V4: u32 = 0x40;

    /// The number of the relay address that IPv6 packets come to.
    #[inline(always)]
    pub const fn taken_local(families: u32) -> u32 {
        families >> 8 & 0xfff
    }

    /// The number of the relay address that IPv6 packets go from.
    #[inline(always)]
    pub const fn made_local(families: u32) -> u32 {
        families >> 20
    }

    /// The route of packets that look like `tuple`, if this line describes them and is not being written.
    #[inline(always)]
    pub fn route_of<K: Tuple, T: Tables>(&self, tuple: &K, tables: &T) -> Option<Result<Route, Changed>> {
        let sequence = self.sequence.load();
        if sequence & 1 != 0 || !tuple.is_described_by(self, tables) {
            return None;
        }
        // What seemed to describe the tuple may have been parts of two others: the line that does stands elsewhere.
        if self.sequence.load() != sequence {
            return None;
        }
        let route = self.route(tables)?;
        Some(if self.sequence.load() == sequence { Ok(route) } else { Err(Changed) })
    }

    #[inline(always)]
    fn route<T: Tables>(&self, tables: &T) -> Option<Route> {
        let families = self.families.load();
        let hop_and_delta = self.hop_and_delta.load();
        let last = [&self.address[4], &self.address[5], &self.address[6], &self.address[7]].map(Word32::load);
        let [first, second, third, _] = last;
        let onward = if families & Self::MAKES_MASK == Self::MAKES_V6 {
            Onward::V6 { source: tables.local(Self::made_local(families))?.load(), destination: last }
        } else {
            Onward::V4 { source: first, destination: second, ip_delta: ChecksumDelta(third as u16) }
        };
        Some(Route {
            onward,
            ports: self.new_ports.load(),
            udp_delta: ChecksumDelta((hop_and_delta >> 16) as u16),
            hop: hop_and_delta as u16,
        })
    }
}

/// A record changed while it was being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed;

#[cfg(not(target_arch = "bpf"))]
mod writer {
    use super::{SideLine, Slot};
    use crate::bucket::{Allowance, TICKS_PER_NS};
    use crate::route::{Onward, Route};
    use crate::tables::Tables;
    use crate::tuple::{AnyTuple, TupleV4, TupleV6, address_v6};

    /// The numbers of the relay's addresses in the table of locals, where a line needs them; 0 for IPv4.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct LineLocals {
        /// Of the address that packets come to.
        pub taken: u16,
        /// Of the address that packets go from.
        pub made: u16,
    }

    /// Further ahead than any burst, in ticks of a bucket: 2^62 of them are two years.
    const CLOSED: u64 = 1 << 62;

    impl Slot {
        /// Writes what stands in `other`, but for what is counted of it: for tables that nobody else looks at.
        pub fn copy_from(&self, other: &Slot) {
            for (mine, theirs) in [
                (&self.arrival, &other.arrival),
                (&self.cost_per_byte, &other.cost_per_byte),
                (&self.burst, &other.burst),
                (&self.deadline[0], &other.deadline[0]),
                (&self.deadline[1], &other.deadline[1]),
            ] {
                mine.store(theirs.load());
            }
            self.marked_at.store(other.marked_at.load());
            self.generation.store(other.generation.load());
            for (mine, theirs) in self.sides.iter().zip(&other.sides) {
                mine.copy_from(theirs);
            }
        }

        /// Makes the bucket go on at `now` (ns) where another one of the session stood, for the slot's only writer before
        /// it lets packets pass. `arrival` is that one's word; of what it owed, one burst of this one at most is still owed.
        pub fn resume(&self, arrival: u64, now: u64) {
            let latest = now.wrapping_mul(TICKS_PER_NS).saturating_add(self.burst.load());
            self.arrival.store(arrival.min(latest));
        }

        /// Changes the bucket's allowance at `now` (ns), for the slot's only writer: what is left of the burst stays left.
        ///
        /// Several words change, and others charge the bucket meanwhile. So it is closed first: for these few
        /// instructions every packet is over the limit, and none is judged by parts of both allowances. Who has read the
        /// old allowance before and comes to charge after may still do so once: one packet for each CPU.
        pub fn set_allowance(&self, new: Allowance, now: u64) {
            let old = self.bucket().allowance;
            if old.cost_per_byte == 0 || new.cost_per_byte == 0 {
                // The cost tells whether there is a limit, so it goes first or last: no cost is seen with a burst of
                // nothing.
                if new.cost_per_byte == 0 {
                    self.cost_per_byte.store(0);
                }
                self.arrival.store(old.carry(self.arrival.load(), new, now));
                self.burst.store(new.burst);
                self.cost_per_byte.store(new.cost_per_byte);
                return;
            }
            let closed = now.wrapping_mul(TICKS_PER_NS).saturating_add(CLOSED);
            let mut arrival = self.arrival.load();
            while let Err(found) = self.arrival.replace(arrival, closed) {
                arrival = found;
            }
            self.burst.store(new.burst);
            self.cost_per_byte.store(new.cost_per_byte);
            self.arrival.store(old.carry(arrival, new, now));
        }
    }

    impl SideLine {
        /// Makes the line describe packets of `tuple` with `route`, under the sequence count.
        pub fn write(&self, tuple: &AnyTuple, route: &Route, locals: LineLocals) {
            let (takes, [a, b, c, d]) = match *tuple {
                AnyTuple::V4(TupleV4 { source, destination, .. }) => {
                    (Self::TAKES_V4, [source, destination, 0, 0])
                }
                AnyTuple::V6(TupleV6 { source, .. }) => (Self::TAKES_V6, source),
            };
            let (makes, [e, f, g, h]) = match route.onward {
                Onward::V4 { source, destination, ip_delta } => {
                    (Self::MAKES_V4, [source, destination, u32::from(ip_delta.0), 0])
                }
                Onward::V6 { destination, .. } => (Self::MAKES_V6, destination),
            };
            self.under_sequence(|line| {
                for (word, value) in line.address.iter().zip([a, b, c, d, e, f, g, h]) {
                    word.store(value);
                }
                line.ports.store(tuple.ports());
                line.new_ports.store(route.ports);
                line.hop_and_delta.store(u32::from(route.hop) | u32::from(route.udp_delta.0) << 16);
                line.families
                    .store(takes | makes | u32::from(locals.taken) << 8 | u32::from(locals.made) << 20);
            });
        }

        fn copy_from(&self, other: &SideLine) {
            for (mine, theirs) in self.address.iter().zip(&other.address) {
                mine.store(theirs.load());
            }
            self.ports.store(other.ports.load());
            self.new_ports.store(other.new_ports.load());
            self.hop_and_delta.store(other.hop_and_delta.load());
            self.families.store(other.families.load());
            self.sequence.store(other.sequence.load());
        }

        /// The number of the next hop that stands in it, described packets or not.
        pub fn hop(&self) -> u16 {
            self.hop_and_delta.load() as u16
        }

        /// The route of packets of `tuple`, if these are what it describes, for its only writer.
        pub fn describes(&self, tuple: &AnyTuple, tables: &impl Tables) -> Option<Route> {
            let route = match tuple {
                AnyTuple::V4(tuple) => self.route_of(tuple, tables),
                AnyTuple::V6(tuple) => self.route_of(tuple, tables),
            };
            route?.ok()
        }

        /// Whether somebody has begun to write it and has not finished.
        pub fn is_being_written(&self) -> bool {
            self.sequence.load() & 1 != 0
        }

        /// Makes the line describe no packets.
        pub fn clear(&self) {
            self.under_sequence(|line| line.families.store(0));
        }

        /// The tuple it describes, for its only writer.
        pub fn tuple(&self, tables: &impl Tables) -> Option<AnyTuple> {
            let families = self.families.load();
            let ports = self.ports.load();
            let [a, b, c, d] = [&self.address[0], &self.address[1], &self.address[2], &self.address[3]]
                .map(|word| word.load());
            match families & Self::TAKES_MASK {
                Self::TAKES_V4 => Some(AnyTuple::V4(TupleV4 { source: a, destination: b, ports })),
                Self::TAKES_V6 => {
                    let destination = tables.local(Self::taken_local(families))?.load();
                    (!address_v6(destination).is_unspecified()).then_some(AnyTuple::V6(TupleV6 {
                        source: [a, b, c, d],
                        destination,
                        ports,
                    }))
                }
                _ => None,
            }
        }

        fn under_sequence(&self, write: impl FnOnce(&SideLine)) {
            let sequence = self.sequence.load() | 1;
            self.sequence.store(sequence);
            // Every word is stored with release: whoever sees one of the new ones sees the odd count as well.
            write(self);
            self.sequence.store(sequence.wrapping_add(1));
        }
    }
}

#[cfg(not(target_arch = "bpf"))]
pub use writer::LineLocals;
