//! A packet's session: found by its tuple, asked for consent, charged.

use crate::bucket::Charge;
use crate::index::{IndexBucket, MAX_FOLLOWED, Place, SlotSide};
use crate::reason::Reason;
use crate::route::Route;
use crate::slot::Slot;
use crate::tables::Tables;
use crate::tuple::Tuple;

/// The session of a packet, with a private copy of what becomes of the packet.
pub struct Flow<'a> {
    /// The session's slot.
    pub slot: &'a Slot,
    /// Which slot, and which side sent the packet.
    pub at: SlotSide,
    /// The rewrite.
    pub route: Route,
}

/// Finds the session that packets of `tuple` belong to.
///
/// # Errors
/// [`Reason::NoFlow`], or [`Reason::FlowChanged`] if the session was being changed at this moment.
#[inline(always)]
pub fn look_up<'a, T: Tables, K: Tuple>(tables: &'a T, tuple: &K) -> Result<Flow<'a>, Reason> {
    let place = Place::of(tuple.hash(&tables.hash_key(K::WORDS)), tables.bucket_mask());
    let [first, second] = place.buckets;
    if let Some(bucket) = tables.bucket(first)
        && let Some(found) = search(tables, bucket, place.fingerprint, tuple)
    {
        return found;
    }
    if let Some(bucket) = tables.bucket(second)
        && let Some(found) = search(tables, bucket, place.fingerprint, tuple)
    {
        return found;
    }
    Err(Reason::NoFlow)
}

/// Follows the entries of one bucket. An entry is a hint: the slot's own line must describe the tuple.
#[inline(always)]
fn search<'a, T: Tables, K: Tuple>(
    tables: &'a T,
    bucket: &IndexBucket,
    fingerprint: u32,
    tuple: &K,
) -> Option<Result<Flow<'a>, Reason>> {
    let mut candidates = bucket.candidates(fingerprint);
    let mut followed = 0;
    while followed < MAX_FOLLOWED {
        let place = candidates.take()?;
        let at = bucket.entry(place);
        if let Some(slot) = tables.slot(at.slot)
            && let Some(route) = slot.side(at.side).route_of(tuple, tables)
        {
            return Some(match route {
                Ok(route) => Ok(Flow { slot, at, route }),
                Err(_) => Err(Reason::FlowChanged),
            });
        }
        followed += 1;
    }
    None
}

impl Flow<'_> {
    /// Consent, then the limit: the last check, and the only one with an effect. `Ok(true)`: mark the packet CE.
    ///
    /// `payload` is in bytes, `now` in nanoseconds of the coarse monotonic clock.
    ///
    /// # Errors
    /// [`Reason::ConsentExpired`], or [`Reason::Limited`] and [`Reason::Contended`], which are counted in the slot.
    #[inline(always)]
    pub fn admit(&self, payload: u32, markable: bool, now: u64) -> Result<bool, Reason> {
        if !self.slot.consented(now) {
            return Err(Reason::ConsentExpired);
        }
        match self.slot.bucket().charge(payload, markable, now) {
            Charge::Conforming => Ok(false),
            Charge::Marked => {
                self.slot.marked_packets.add(1);
                Ok(true)
            }
            Charge::Over => {
                self.slot.limited_packets.add(1);
                self.slot.limited_bytes.add(payload as u64);
                Err(Reason::Limited)
            }
            Charge::Contended => Err(Reason::Contended),
        }
    }

    /// Counts a packet forwarded by the program.
    #[inline(always)]
    pub fn count(&self, payload: u32) {
        self.slot.side(self.at.side).traffic.count(payload);
    }
}
