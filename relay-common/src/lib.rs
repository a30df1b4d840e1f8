//! The packet decision of the relay, shared by the XDP program and the userspace forwarder.
//!
//! What this crate does not have: a clock, sockets, allocation, panics, `std`. Time is a parameter, packets and tables
//! are reached through traits, and the same code is compiled for the kernel and for the host. Its only unsafe code is
//! in `word`: the words of shared memory.
//!
//! To follow one packet, read [`forward`](mod@forward) first, then the modules in the order it names them: `parse`,
//! `flow` (over `index` and `slot`), `next_hop`, `bucket`, `rewrite`.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics))]
#![cfg_attr(target_arch = "bpf", allow(internal_features, reason = "the BPF target has no other atomics"))]

#[cfg(not(any(target_arch = "x86_64", target_arch = "bpf")))]
compile_error!(
    "the order of plain loads and stores to the shared tables is that of x86-64: see ARCHITECTURE.md"
);

pub mod bucket;
pub mod checksum;
pub mod datagram;
pub mod flow;
pub mod forward;
pub mod frame;
pub mod hash;
mod header;
pub mod index;
pub mod interface;
pub mod local;
pub mod next_hop;
pub mod parse;
pub mod reason;
pub mod rewrite;
pub mod route;
mod side;
pub mod siphash;
pub mod slot;
pub mod tables;
pub mod traffic;
pub mod tuple;
pub mod vlan;
pub mod word;

pub use forward::{Departure, forward};
pub use reason::{Action, Reason};
pub use side::Side;

/// Length of the magic every bind datagram begins with, in bytes.
pub const BIND_MAGIC_LEN: usize = 8;

/// Length of every bind datagram, in bytes: questions and answers have one length, so no answer amplifies.
pub const BIND_LEN: usize = 96;

/// The maps of the XDP program, by the names both sides use.
pub mod maps {
    /// Array of [`IndexBucket`](crate::index::IndexBucket), mapped by the daemon.
    pub const INDEX: &str = "INDEX";
    /// Array of [`Slot`](crate::slot::Slot), mapped by the daemon.
    pub const SLOTS: &str = "SLOTS";
    /// Array of [`NextHop`](crate::next_hop::NextHop), mapped by the daemon.
    pub const NEXT_HOPS: &str = "NEXT_HOPS";
    /// Array of [`Local`](crate::local::Local), mapped by the daemon.
    pub const LOCALS: &str = "LOCALS";
    /// Array of [`Interface`](crate::interface::Interface), mapped by the daemon.
    pub const INTERFACES: &str = "INTERFACES";
    /// Device map: the egress interface of each next hop, under the hop's number.
    pub const EGRESS: &str = "EGRESS";
    /// Per-CPU array of one [`PerCpu`](crate::PerCpu).
    pub const PER_CPU: &str = "PER_CPU";
    /// Array of what is kept of each session beside its slot. The daemon's alone, like [`META`].
    pub const SESSIONS: &str = "SESSIONS";
    /// Array of one record: what the tables are.
    pub const META: &str = "META";
    /// Array of one word: the time in nanoseconds, for tests that compare the program with the host code.
    pub const CLOCK: &str = "CLOCK";

    /// Read-only data: the two words of the index's hash key.
    pub const HASH_KEY: [&str; crate::hash::MAX_WORDS + 1] =
        ["HASH_KEY_0", "HASH_KEY_1", "HASH_KEY_2", "HASH_KEY_3", "HASH_KEY_4", "HASH_KEY_5", "HASH_KEY_6"];
    /// Read-only data: number of index buckets less one.
    pub const BUCKET_MASK: &str = "BUCKET_MASK";
    /// Read-only data: the bind magic.
    pub const BIND_MAGIC: &str = "BIND_MAGIC";

    /// Read-only data: not 0 to take the time from [`CLOCK`] instead of the kernel.
    pub const FIXED_CLOCK: &str = "FIXED_CLOCK";

    /// Read-only data: not 0 if a frame leaves as its bytes and nothing beside them, so that those that look unfinished are
    /// looked into.
    pub const BARE_FRAMES: &str = "BARE_FRAMES";

    /// Entries of the next-hop array and the device map.
    pub const NEXT_HOP_ENTRIES: u32 = 1024;
}

/// What one CPU keeps for itself: one record, so that a packet looks for it once.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct PerCpu {
    /// The time as this CPU has read it last.
    pub coarse: CoarseTime,
    /// What it has counted, by the reason's index.
    pub tallies: [Tally; Reason::COUNT],
    /// Packets that it has marked CE, with their UDP payload bytes.
    pub marked: Tally,
}

/// A time, and when it was read.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct CoarseTime {
    /// The tick, as the kernel counts them.
    pub tick: u64,
    /// Nanoseconds of the coarse monotonic clock.
    pub now: u64,
}

/// What one CPU has counted of one kind of packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Tally {
    /// Packets.
    pub packets: u64,
    /// Bytes: of a [`Reason`] those of their frames.
    pub bytes: u64,
}
