//! What the packet path looks things up in.

use crate::hash::HashKey;
use crate::index::IndexBucket;
use crate::interface::Interface;
use crate::local::Local;
use crate::next_hop::NextHop;
use crate::slot::Slot;

/// The tables of the packet path: BPF maps in the program, the same memory mapped in the daemon, or plain memory.
pub trait Tables {
    /// Key of the index's hash, of which only the part for `words` words need be right.
    fn hash_key(&self, words: usize) -> HashKey;

    /// Number of index buckets less one; the number is a power of two, at least 2.
    fn bucket_mask(&self) -> u32;

    /// An index bucket.
    fn bucket(&self, number: u32) -> Option<&IndexBucket>;

    /// A session's slot.
    fn slot(&self, number: u32) -> Option<&Slot>;

    /// A next hop.
    fn next_hop(&self, number: u32) -> Option<&NextHop>;

    /// One of the relay's IPv6 addresses.
    fn local(&self, number: u32) -> Option<&Local>;

    /// The entry on which the interface with this index falls.
    fn interface(&self, index: u32) -> Option<&Interface>;

    /// The first eight bytes of every bind datagram, as they stand in the packet, read as a native-endian word.
    fn bind_magic(&self) -> u64;

    /// A packet with so many bytes of UDP payload is marked CE: for who counts those of all sessions together.
    #[inline(always)]
    fn marked(&self, _payload: u32) {}
}
