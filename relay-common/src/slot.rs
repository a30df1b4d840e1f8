//! A session's record in the table that kernel and userspace share: three cache lines.
//!
//! Slots are the truth; the index only points at them. The first line holds what both directions share, the other two
//! one side each. A side's line describes packets *from* that side: what they look like, and what becomes of them.

use crate::bucket::{Allowance, Bucket};
use crate::checksum::ChecksumDelta;
use crate::side::Side;
use crate::tuple::TupleV4;
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
/// again; if it changed, the copy is worthless.
#[derive(Default)]
#[repr(C, align(64))]
pub struct SideLine {
    /// IPv4: source, relay address, new source, new destination, and in the fifth word the IP header's checksum delta.
    /// Each address as it stands in the packet, read as a native-endian word. The rest is for IPv6.
    pub address: [Word32; 8],
    /// Source and destination port, as the four bytes stand in the packet.
    pub ports: Word32,
    /// New source and destination port, likewise.
    pub new_ports: Word32,
    /// Number of the next hop in the low, the UDP checksum delta in the high half.
    pub hop_and_delta: Word32,
    /// The address family: 0 for nothing, [`SideLine::FAMILY_V4`].
    pub family: Word32,
    /// Sequence count.
    pub sequence: Word32,
    /// Packets forwarded by the program, wrapping.
    pub packets: Word32,
    /// Their UDP payload bytes.
    pub bytes: Word64,
}

const _: () = assert!(size_of::<Slot>() == Slot::SIZE && size_of::<SideLine>() == 64);

/// The rewrite of one side's packets, IPv4 to IPv4: a private copy, taken under the sequence count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteV4 {
    /// New source address, as in the packet.
    pub source: u32,
    /// New destination address, as in the packet.
    pub destination: u32,
    /// New source and destination port, as in the packet.
    pub ports: u32,
    /// Change of the IP header checksum, TTL decrement included.
    pub ip_delta: ChecksumDelta,
    /// Change of the UDP checksum.
    pub udp_delta: ChecksumDelta,
    /// Number of the next hop.
    pub hop: u16,
}

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
    #[inline(always)]
    pub fn side(&self, side: Side) -> &SideLine {
        match side {
            Side::Connector => &self.sides[0],
            Side::Target => &self.sides[1],
        }
    }
}

impl SideLine {
    /// [`SideLine::family`] of a line that takes IPv4 packets and makes IPv4 packets.
    pub const FAMILY_V4: u32 = 4;

    /// The route of packets that look like `tuple`, if this line describes them and is not being written.
    #[inline(always)]
    pub fn route_of(&self, tuple: &TupleV4) -> Option<Result<RouteV4, Changed>> {
        let sequence = self.sequence.load();
        let differs = (self.address[0].load() ^ tuple.source)
            | (self.address[1].load() ^ tuple.destination)
            | (self.ports.load() ^ tuple.ports)
            | (self.family.load() ^ Self::FAMILY_V4);
        if sequence & 1 != 0 || differs != 0 {
            return None;
        }
        let hop_and_delta = self.hop_and_delta.load();
        let route = RouteV4 {
            source: self.address[2].load(),
            destination: self.address[3].load(),
            ports: self.new_ports.load(),
            ip_delta: ChecksumDelta(self.address[4].load() as u16),
            udp_delta: ChecksumDelta((hop_and_delta >> 16) as u16),
            hop: hop_and_delta as u16,
        };
        Some(if self.sequence.load() == sequence { Ok(route) } else { Err(Changed) })
    }
}

/// A record changed while it was being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed;

#[cfg(not(target_arch = "bpf"))]
impl RouteV4 {
    /// The route that turns packets of `from` into packets of `to`, by next hop `hop`.
    pub fn new(from: &TupleV4, to: &TupleV4, hop: u16) -> RouteV4 {
        let addresses = |tuple: &TupleV4| {
            let ([a, b, c, d], [e, f, g, h]) = (tuple.source.to_ne_bytes(), tuple.destination.to_ne_bytes());
            [a, b, c, d, e, f, g, h]
        };
        let address_delta = ChecksumDelta::of(&addresses(from), &addresses(to));
        let port_delta = ChecksumDelta::of(&from.ports.to_ne_bytes(), &to.ports.to_ne_bytes());
        // TTL is the first byte of its word.
        let ttl_delta = ChecksumDelta::of(&[1, 0], &[0, 0]);
        RouteV4 {
            source: to.source,
            destination: to.destination,
            ports: to.ports,
            ip_delta: address_delta.and(ttl_delta),
            udp_delta: address_delta.and(port_delta),
            hop,
        }
    }

    /// The tuple of the packets it makes.
    pub fn tuple(&self) -> TupleV4 {
        TupleV4 { source: self.source, destination: self.destination, ports: self.ports }
    }
}

#[cfg(not(target_arch = "bpf"))]
impl SideLine {
    /// Makes the line describe packets of `tuple` with `route`, under the sequence count.
    pub fn write(&self, tuple: &TupleV4, route: &RouteV4) {
        self.under_sequence(|line| {
            line.address[0].store(tuple.source);
            line.address[1].store(tuple.destination);
            line.address[2].store(route.source);
            line.address[3].store(route.destination);
            line.address[4].store(u32::from(route.ip_delta.0));
            line.ports.store(tuple.ports);
            line.new_ports.store(route.ports);
            line.hop_and_delta.store(u32::from(route.hop) | u32::from(route.udp_delta.0) << 16);
            line.family.store(Self::FAMILY_V4);
        });
    }

    /// Makes the line describe no packets.
    pub fn clear(&self) {
        self.under_sequence(|line| line.family.store(0));
    }

    /// The tuple it describes, for its only writer.
    pub fn tuple(&self) -> Option<TupleV4> {
        (self.family.load() == Self::FAMILY_V4).then(|| TupleV4 {
            source: self.address[0].load(),
            destination: self.address[1].load(),
            ports: self.ports.load(),
        })
    }

    fn under_sequence(&self, write: impl FnOnce(&SideLine)) {
        use core::sync::atomic::{Ordering, fence};
        let sequence = self.sequence.load() | 1;
        self.sequence.store(sequence);
        // The odd count must be seen before any of the new words: x86-64 keeps stores in order, the fence keeps the
        // compiler to it.
        fence(Ordering::SeqCst);
        write(self);
        self.sequence.store(sequence.wrapping_add(1));
    }
}
