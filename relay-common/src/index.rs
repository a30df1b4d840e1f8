//! The flow index: from a tuple to the slots that may describe it.
//!
//! Buckets of one cache line with sixteen entries each; every tuple has two buckets, chosen by a keyed hash. An entry is
//! a hint (fingerprint, slot number, side): the slot's own line decides. Entries never move, so a reader cannot miss a
//! session that stays installed.

use crate::side::Side;
use crate::word::Word64;

/// Entries in a bucket. In a model there are fewer: every order of accesses to them is tried.
pub const ENTRIES: usize = if cfg!(loom) { 4 } else { 16 };

/// At most this many entries of one fingerprint are put into one bucket, and a look-up follows twice as many: an entry
/// that is replaced between the scan and the second look costs one of them.
pub const MAX_EQUAL_FINGERPRINTS: u32 = 4;

/// How many entries a look-up follows in one bucket.
pub const MAX_FOLLOWED: u32 = 2 * MAX_EQUAL_FINGERPRINTS;

/// Slots that an entry can name: 21 bits.
pub const MAX_SLOTS: u32 = 1 << 21;

/// Buckets that the hash can name: 22 bits.
pub const MAX_BUCKETS: u32 = 1 << 22;

const FINGERPRINT_SHIFT: u32 = 22;
const HIGH_BIT: u64 = 0x8000_0000_8000_0000;
const FINGERPRINT: u64 = 0xffc0_0000_ffc0_0000;
/// Where [`IndexBucket::candidates`] has a bit for each entry: the last word's are the high bits of its halves, each word
/// before it has them one lower.
const CANDIDATES: u64 = {
    let half = !0 << (32 - ENTRIES / 2) & 0xffff_ffff;
    half | half << 32
};

/// A bucket: eight words of two entries. An empty entry is zero.
#[derive(Default)]
#[repr(C, align(64))]
pub struct IndexBucket {
    /// Two entries a word, the even one in the low half.
    pub words: [Word64; ENTRIES / 2],
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<IndexBucket>() == 64);

/// A pointer from the index to one side of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotSide {
    /// Number of the slot, below [`MAX_SLOTS`].
    pub slot: u32,
    /// Side whose packets it stands for.
    pub side: Side,
}

impl SlotSide {
    #[inline(always)]
    const fn from_entry(entry: u32) -> SlotSide {
        let side = if entry & 1 == 0 { Side::Connector } else { Side::Target };
        SlotSide { slot: (entry >> 1) & (MAX_SLOTS - 1), side }
    }
}

/// Where a tuple's entry may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The two buckets; never the same.
    pub buckets: [u32; 2],
    /// 10 bits, never zero.
    pub fingerprint: u32,
}

impl Place {
    /// The place of a tuple with this hash, in an index of `bucket_mask + 1` buckets (a power of two, at least 2).
    #[inline(always)]
    pub const fn of(hash: u64, bucket_mask: u32) -> Place {
        let first = hash as u32 & bucket_mask;
        let other = (hash >> 22) as u32 & bucket_mask;
        let second = if other == first { other ^ 1 } else { other };
        let fingerprint = (hash >> 48) as u32 & 0x3ff;
        Place { buckets: [first, second], fingerprint: if fingerprint == 0 { 1 } else { fingerprint } }
    }
}

impl IndexBucket {
    /// Which entries carry `fingerprint`: one bit each, in an order known to [`Candidates`].
    #[expect(clippy::indexing_slicing, reason = "the loop runs over the array's own length")]
    #[inline(always)]
    pub fn candidates(&self, fingerprint: u32) -> Candidates {
        let wanted = (fingerprint as u64) << FINGERPRINT_SHIFT;
        let pattern = wanted | wanted << 32;
        let mut others = 0;
        let mut word = 0;
        while word < self.words.len() {
            let differing = self.words[word].load() ^ pattern;
            // Whether a half is at least 2^22, which is having another fingerprint, for both halves at once. Adding
            // within each half cannot carry out of it, so an entry never answers for its neighbour.
            let other = ((differing & !HIGH_BIT) + (FINGERPRINT & !HIGH_BIT)) | differing;
            others = others >> 1 | other & HIGH_BIT;
            word += 1;
        }
        Candidates { found: !others & CANDIDATES }
    }

    /// The entry at `place`, if it is not empty.
    #[expect(clippy::indexing_slicing, reason = "the place is masked to the array's length")]
    #[inline(always)]
    pub fn entry(&self, place: u32) -> Option<SlotSide> {
        let word = self.words[(place as usize >> 1) & (ENTRIES / 2 - 1)].load();
        // No condition: BPF has no conditional moves, and which half it is is nothing a CPU can foresee.
        let entry = (word >> ((place & 1) * 32)) as u32;
        if entry == 0 { None } else { Some(SlotSide::from_entry(entry)) }
    }
}

/// The entries of one bucket that carry a fingerprint.
#[derive(Clone, Copy, Debug)]
pub struct Candidates {
    found: u64,
}

impl Candidates {
    /// Takes one of them: its place in the bucket.
    #[inline(always)]
    pub fn take(&mut self) -> Option<u32> {
        if self.found == 0 {
            return None;
        }
        let lowest = self.found & self.found.wrapping_neg();
        self.found ^= lowest;
        Some(place_of(lowest))
    }
}

/// The place of the entry that the one bit in `bit` stands for.
///
/// BPF has no instruction that counts zeroes, and what stands for it is a dozen. A product with this constant has another
/// number in its top four bits for each bit there may be, and a table in a word makes the place of it.
#[inline(always)]
const fn place_of(bit: u64) -> u32 {
    const APART: u64 = 0x3d_2000_000b;
    const PLACES: u64 = 0x468d_9aef_2b7c_0531;
    let number = bit.wrapping_mul(APART) >> 60;
    // In a bucket of eight words the first one's bit is the lowest.
    const LOWEST: u32 = 2 * (8 - ENTRIES as u32 / 2);
    (PLACES >> (number * 4)) as u32 % 16 - LOWEST
}

const _: () = {
    let mut word = 0;
    while word < ENTRIES / 2 {
        let low = 32 - ENTRIES / 2 + word;
        assert!(place_of(1 << low) == 2 * word as u32 && place_of(1 << (low + 32)) == 2 * word as u32 + 1);
        word += 1;
    }
};

#[cfg(not(target_arch = "bpf"))]
impl IndexBucket {
    /// Entries in use.
    pub fn used(&self) -> u32 {
        let in_word = |word: u64| u32::from(word as u32 != 0) + u32::from(word >> 32 != 0);
        self.words.iter().map(|word| in_word(word.load())).sum()
    }

    /// Puts an entry in, for the index's only writer. Whether there was room: a free entry, and fewer than
    /// [`MAX_EQUAL_FINGERPRINTS`] of this fingerprint.
    pub fn put(&self, fingerprint: u32, at: SlotSide) -> bool {
        let mut candidates = self.candidates(fingerprint);
        if (0..MAX_EQUAL_FINGERPRINTS).all(|_| candidates.take().is_some()) {
            return false;
        }
        match (0..ENTRIES as u32).find(|place| self.entry(*place).is_none()) {
            Some(free) => {
                self.set(free, fingerprint << FINGERPRINT_SHIFT | at.slot << 1 | at.side as u32);
                true
            }
            None => false,
        }
    }

    /// Takes an entry out, for the index's only writer. Whether it was there.
    pub fn take_out(&self, fingerprint: u32, at: SlotSide) -> bool {
        let mut candidates = self.candidates(fingerprint);
        while let Some(place) = candidates.take() {
            if self.entry(place) == Some(at) {
                self.set(place, 0);
                return true;
            }
        }
        false
    }

    fn set(&self, place: u32, entry: u32) {
        if let Some(word) = self.words.get(place as usize / 2) {
            let present = word.load();
            word.store(if place & 1 == 0 {
                present & !0xffff_ffff | u64::from(entry)
            } else {
                present & 0xffff_ffff | u64::from(entry) << 32
            });
        }
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    extern crate std;
    use super::{ENTRIES, IndexBucket, MAX_EQUAL_FINGERPRINTS, MAX_SLOTS, Place, SlotSide};
    use crate::side::Side;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
    use std::collections::HashMap;
    use std::vec::Vec;

    fn found(bucket: &IndexBucket, fingerprint: u32) -> Vec<SlotSide> {
        let mut candidates = bucket.candidates(fingerprint);
        let mut all = Vec::new();
        while let Some(place) = candidates.take() {
            all.push(bucket.entry(place).expect("a candidate is never empty"));
        }
        all
    }

    proptest! {
        /// The bucket behaves as a bounded multimap from fingerprint to slot side.
        #[test]
        fn a_bucket_holds_what_was_put_and_not_taken_out(
            steps in proptest::collection::vec((any::<bool>(), 1u32..5, 0u32..6, any::<bool>()), 0..200),
        ) {
            let bucket = IndexBucket::default();
            let mut model: HashMap<u32, Vec<SlotSide>> = HashMap::new();
            for (put, fingerprint, slot, side) in steps {
                let at = SlotSide { slot, side: if side { Side::Target } else { Side::Connector } };
                let total: usize = model.values().map(Vec::len).sum();
                let held = model.entry(fingerprint).or_default();
                if put {
                    let room = total < ENTRIES && held.len() < MAX_EQUAL_FINGERPRINTS as usize;
                    prop_assert_eq!(bucket.put(fingerprint, at), room);
                    if room { held.push(at); }
                } else {
                    let place = held.iter().position(|h| *h == at);
                    prop_assert_eq!(bucket.take_out(fingerprint, at), place.is_some());
                    if let Some(place) = place { held.remove(place); }
                }
            }
            for (fingerprint, held) in model {
                let mut present = found(&bucket, fingerprint);
                prop_assert_eq!(present.len(), held.len());
                for at in held {
                    let place = present.iter().position(|p| *p == at);
                    prop_assert!(place.is_some());
                    present.remove(place.unwrap());
                }
            }
        }

        #[test]
        fn a_place_has_two_buckets_within_the_mask(hash in any::<u64>(), bits in 1u32..23) {
            let mask = (1u32 << bits) - 1;
            let place = Place::of(hash, mask);
            prop_assert!(place.buckets[0] != place.buckets[1]);
            prop_assert!(place.buckets.iter().all(|bucket| *bucket <= mask));
            prop_assert!(place.fingerprint != 0 && place.fingerprint < 1024);
        }
    }

    #[test]
    fn a_neighbour_of_an_equal_entry_is_not_a_candidate() {
        let bucket = IndexBucket::default();
        let at = SlotSide { slot: MAX_SLOTS - 1, side: Side::Target };
        assert!(bucket.put(1, at));
        assert_eq!(found(&bucket, 1), [at]);
        assert_eq!(found(&bucket, 2), []);
    }
}
