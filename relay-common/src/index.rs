//! The flow index: from a tuple to the slots that may describe it.
//!
//! Buckets of one cache line with twelve entries each; every tuple has two buckets, chosen by a keyed hash. An entry is a
//! hint (fingerprint, slot number, side): the slot's own line decides. The fingerprints stand together, so that one operation
//! compares four of them. Entries never move, so a reader cannot miss a session that stays installed.

use crate::side::Side;
use crate::word::Word32;

/// Entries in a bucket. In a model there are fewer: every order of accesses to them is tried.
pub const ENTRIES: usize = if cfg!(loom) { 4 } else { 12 };

/// At most this many entries of one fingerprint are put into one bucket, and a look-up follows twice as many: an entry
/// that is replaced between the scan and the second look costs one of them.
pub const MAX_EQUAL_FINGERPRINTS: u32 = 4;

/// How many entries a look-up follows in one bucket.
pub const MAX_FOLLOWED: u32 = 2 * MAX_EQUAL_FINGERPRINTS;

/// Slots that an entry can name: 21 bits.
pub const MAX_SLOTS: u32 = 1 << 21;

/// Buckets that the hash can name: 22 bits.
pub const MAX_BUCKETS: u32 = 1 << 22;

/// Fingerprints in a word.
const PER_WORD: usize = 4;

/// Words of fingerprints.
const FINGERPRINT_WORDS: usize = ENTRIES / PER_WORD;

/// Words of a bucket.
const WORDS: usize = 16;

/// The word of the first entry. The words are a power of two, and the entries no array of their own: so any number of four
/// bits lies in the bucket, which the kernel's verifier sees.
const FIRST: usize = 4;

const _: () =
    assert!(FINGERPRINT_WORDS <= FIRST && FIRST + ENTRIES <= WORDS && ENTRIES.is_multiple_of(PER_WORD));

/// A bucket: first a fingerprint for each entry, four in a word; zero says that its entry is free. From the fifth word on the
/// entries, each with the slot's number above the side in the lowest bit.
#[derive(Default)]
#[repr(C, align(64))]
pub struct IndexBucket {
    words: [Word32; WORDS],
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
    /// 8 bits, never all zero.
    pub fingerprint: u32,
}

impl Place {
    /// The place of a tuple with this hash, in an index of `bucket_mask + 1` buckets (a power of two, at least 2).
    #[inline(always)]
    pub const fn of(hash: u64, bucket_mask: u32) -> Place {
        let first = hash as u32 & bucket_mask;
        let other = (hash >> 22) as u32 & bucket_mask;
        let second = if other == first { other ^ 1 } else { other };
        let fingerprint = (hash >> 56) as u32;
        Place { buckets: [first, second], fingerprint: fingerprint | (fingerprint == 0) as u32 }
    }
}

impl IndexBucket {
    /// Which entries carry `fingerprint`: one bit each, in an order known to [`Candidates`].
    #[expect(clippy::indexing_slicing, reason = "the loop ends within the array")]
    #[inline(always)]
    pub fn candidates(&self, fingerprint: u32) -> Candidates {
        const HIGH: u32 = 0x8080_8080;
        let pattern = fingerprint.wrapping_mul(0x0101_0101);
        let mut found = 0;
        let mut word = 0;
        while word < FINGERPRINT_WORDS {
            let differing = self.words[word].load() ^ pattern;
            // The high bit of each byte that is not zero. Adding within a byte cannot carry out of it, so a
            // fingerprint never answers for its neighbour.
            let others = ((differing & !HIGH) + !HIGH) | differing;
            found |= (!others & HIGH) >> word;
            word += 1;
        }
        Candidates { found }
    }

    /// Where the entry in the word `place` points.
    #[expect(clippy::indexing_slicing, reason = "the place is masked to the array's length")]
    #[inline(always)]
    pub fn entry(&self, place: u32) -> SlotSide {
        SlotSide::from_entry(self.words[place as usize % WORDS].load())
    }
}

/// The entries of one bucket that carry a fingerprint.
#[derive(Clone, Copy, Debug)]
pub struct Candidates {
    found: u32,
}

impl Candidates {
    /// Takes one of them: its word in the bucket.
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

/// The word of the entry that the one bit in `bit` stands for.
///
/// BPF has no instruction that counts zeroes, and what stands for it is a dozen. A product with this constant has another
/// number in its top four bits for each bit there may be, and a table in a word makes the place of it.
#[inline(always)]
const fn place_of(bit: u32) -> u32 {
    const APART: u32 = 0x0042_91c3;
    const PLACES: u64 = 0x060b_0907_afd5_e48c;
    let number = bit.wrapping_mul(APART) >> 28;
    (PLACES >> (number * 4)) as u32 % WORDS as u32
}

const _: () = {
    let mut place = 0;
    while place < ENTRIES {
        let (word, byte) = (place / PER_WORD, place % PER_WORD);
        assert!(place_of(0x80 << (8 * byte) >> word) == (FIRST + place) as u32);
        place += 1;
    }
};

#[cfg(not(target_arch = "bpf"))]
impl IndexBucket {
    /// Entries in use.
    pub fn used(&self) -> u32 {
        (0..ENTRIES).filter(|number| self.fingerprint_of(*number) != 0).count() as u32
    }

    /// Its entries, each with its fingerprint, for the index's only writer.
    pub fn entries(&self) -> impl Iterator<Item = (u32, SlotSide)> + '_ {
        (0..ENTRIES).filter_map(|number| {
            let fingerprint = self.fingerprint_of(number);
            let entry = self.words.get(FIRST + number)?.load();
            (fingerprint != 0).then(|| (fingerprint, SlotSide::from_entry(entry)))
        })
    }

    /// Writes a word of it, whatever it means: for tests of what others may have written.
    pub fn damage(&self, word: usize, value: u32) {
        self.words.get(word).into_iter().for_each(|word| word.store(value));
    }

    /// Puts an entry in, for the index's only writer. Whether there was room: a free entry, and fewer than
    /// [`MAX_EQUAL_FINGERPRINTS`] of this fingerprint.
    pub fn put(&self, fingerprint: u32, at: SlotSide) -> bool {
        let mut candidates = self.candidates(fingerprint);
        if (0..MAX_EQUAL_FINGERPRINTS).all(|_| candidates.take().is_some()) {
            return false;
        }
        let free = (0..ENTRIES).find(|number| self.fingerprint_of(*number) == 0);
        let Some((number, word)) = free.and_then(|number| Some((number, self.words.get(FIRST + number)?)))
        else {
            return false;
        };
        // Whoever sees the fingerprint sees the entry.
        word.store(at.slot << 1 | at.side as u32);
        self.set_fingerprint(number, fingerprint);
        true
    }

    /// Takes an entry out, for the index's only writer. Whether it was there.
    pub fn take_out(&self, fingerprint: u32, at: SlotSide) -> bool {
        let mut candidates = self.candidates(fingerprint);
        while let Some(place) = candidates.take() {
            if self.entry(place) == at {
                // The entry stays, and is nobody's.
                self.set_fingerprint(place as usize - FIRST, 0);
                return true;
            }
        }
        false
    }

    fn fingerprint_of(&self, number: usize) -> u32 {
        self.words.get(number / PER_WORD).map_or(0, |word| word.load() >> (number % PER_WORD * 8) & 0xff)
    }

    fn set_fingerprint(&self, number: usize, fingerprint: u32) {
        if let Some(word) = self.words.get(number / PER_WORD) {
            let shift = number % PER_WORD * 8;
            word.store(word.load() & !(0xff << shift) | fingerprint << shift);
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
            all.push(bucket.entry(place));
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
            prop_assert!((1..256).contains(&place.fingerprint));
        }
    }

    #[test]
    fn a_neighbour_of_an_equal_entry_is_not_a_candidate() {
        let bucket = IndexBucket::default();
        let at = SlotSide { slot: MAX_SLOTS - 1, side: Side::Target };
        assert!(bucket.put(0x80, at));
        assert_eq!(found(&bucket, 0x80), [at]);
        for other in [1, 0x7f, 0x81, 0xff] {
            assert_eq!(found(&bucket, other), [], "{other:#x}");
        }
    }

    #[test]
    fn every_place_of_a_bucket_can_be_used_and_found() {
        let bucket = IndexBucket::default();
        let at = |slot| SlotSide { slot, side: Side::Connector };
        for slot in 0..ENTRIES as u32 {
            assert!(bucket.put(slot + 1, at(slot)));
        }
        assert_eq!((bucket.used(), bucket.put(99, at(99))), (ENTRIES as u32, false));
        for slot in 0..ENTRIES as u32 {
            assert_eq!(found(&bucket, slot + 1), [at(slot)]);
        }
    }
}
