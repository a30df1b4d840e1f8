//! The entries of the flow index, put in and taken out by its one writer.

use relay_common::hash::MAX_WORDS;
use relay_common::index::{ENTRIES, Place, SlotSide};
use relay_common::tables::Tables as _;
use relay_common::tuple::AnyTuple;

use super::tables::Tables;

/// Up to this many entries the first bucket of a tuple is used alone; above, the emptier of its two. A look-up asks the
/// first bucket first, so the fewer entries are in second ones the better; with many more than this, the index
/// would refuse sessions before it is filled to what it is sized for.
const FIRST_BUCKET_FILL: u32 = ENTRIES as u32 * 5 / 8;

impl Tables {
    /// Looks at the buckets of several tuples at once: in a large table none of them is in the cache, and waiting for all of
    /// them takes no longer than waiting for one.
    pub(super) fn fetch(&self, tuples: &[AnyTuple]) {
        for tuple in tuples {
            for number in self.place(tuple).buckets {
                if let Some(bucket) = self.bucket(number) {
                    std::hint::black_box(bucket.used());
                }
            }
        }
    }

    /// Puts an entry for `tuple` into one of its buckets if that leaves `kept_free` of its places free. Whether there was
    /// room.
    pub(super) fn enter(&self, tuple: &AnyTuple, at: SlotSide, kept_free: u32) -> bool {
        let place = self.place(tuple);
        let [Some(first), Some(second)] = place.buckets.map(|number| self.bucket(number)) else {
            return false;
        };
        let used = first.used();
        let order = match used < FIRST_BUCKET_FILL || used <= second.used() {
            true => [first, second],
            false => [second, first],
        };
        order
            .into_iter()
            .any(|bucket| bucket.used() + kept_free < ENTRIES as u32 && bucket.put(place.fingerprint, at))
    }

    /// Takes the entry of `tuple` out again.
    pub(super) fn withdraw(&self, tuple: &AnyTuple, at: SlotSide) {
        let place = self.place(tuple);
        let taken = place
            .buckets
            .iter()
            .filter_map(|number| self.bucket(*number))
            .any(|bucket| bucket.take_out(place.fingerprint, at));
        debug_assert!(taken, "every installed line has its entry");
    }

    pub(super) fn place(&self, tuple: &AnyTuple) -> Place {
        Place::of(tuple.hash(&self.hash_key(MAX_WORDS)), self.bucket_mask())
    }
}
