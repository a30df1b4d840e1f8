//! Places that are taken, altogether and by each source, and those of handshakes under way.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::relay::prefix::Prefix;

/// So many at once, and so many of them for one source prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Altogether.
    pub all: usize,
    /// Of one prefix.
    pub per_prefix: usize,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// All are taken.
    All,
    /// The source prefix has its share.
    Prefix,
}

/// How many places are taken, altogether and by each prefix.
#[derive(Debug, Default)]
pub(super) struct Shares {
    all: usize,
    by_prefix: BTreeMap<Prefix, usize>,
}

impl Shares {
    pub fn all(&self) -> usize {
        self.all
    }

    pub fn of(&self, prefix: Prefix) -> usize {
        self.by_prefix.get(&prefix).copied().unwrap_or(0)
    }

    /// Why `prefix` cannot have one more.
    pub fn full(&self, prefix: Prefix, limits: Limits) -> Option<Full> {
        if self.all >= limits.all {
            return Some(Full::All);
        }
        (self.of(prefix) >= limits.per_prefix).then_some(Full::Prefix)
    }

    pub fn add(&mut self, prefix: Prefix) {
        self.all += 1;
        *self.by_prefix.entry(prefix).or_default() += 1;
    }

    pub fn remove(&mut self, prefix: Prefix) {
        let Some(of_prefix) = self.by_prefix.get_mut(&prefix) else { return };
        self.all -= 1;
        *of_prefix -= 1;
        if *of_prefix == 0 {
            self.by_prefix.remove(&prefix);
        }
    }
}

/// The places of what is under way: handshakes, probes.
#[derive(Debug, Default)]
pub(super) struct Places {
    shares: Mutex<Shares>,
}

/// A place that is taken, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    prefix: Prefix,
}

impl Places {
    /// How many are taken, and how many of them by `prefix`.
    pub fn taken(&self, prefix: Prefix) -> (usize, usize) {
        let shares = self.lock();
        (shares.all(), shares.of(prefix))
    }

    /// Takes a place for `prefix` if there is one.
    pub fn take_within(self: &Arc<Self>, prefix: Prefix, limits: Limits) -> Result<Place, Full> {
        let mut shares = self.lock();
        if let Some(full) = shares.full(prefix, limits) {
            return Err(full);
        }
        shares.add(prefix);
        Ok(Place { places: Arc::clone(self), prefix })
    }

    /// Takes a place for `prefix`, whether there is one or not: that is decided before.
    pub fn take(self: &Arc<Self>, prefix: Prefix) -> Place {
        self.lock().add(prefix);
        Place { places: Arc::clone(self), prefix }
    }

    fn lock(&self) -> MutexGuard<'_, Shares> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().remove(self.prefix);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn one_source_leaves_places_for_others_and_all_together_have_so_many() {
        let (mut shares, limits) = (Shares::default(), Limits { all: 3, per_prefix: 2 });
        shares.add(prefix("192.0.2.1"));
        shares.add(prefix("::ffff:192.0.2.1"));
        assert_eq!(shares.full(prefix("192.0.2.1"), limits), Some(Full::Prefix));
        assert_eq!(shares.full(prefix("192.0.2.2"), limits), None);
        shares.add(prefix("192.0.2.2"));
        assert_eq!(shares.full(prefix("192.0.2.3"), limits), Some(Full::All));
        shares.remove(prefix("192.0.2.1"));
        assert_eq!(shares.full(prefix("192.0.2.1"), limits), None);
    }

    #[test]
    fn a_place_is_taken_until_it_is_dropped() {
        let places = Arc::<Places>::default();
        let held = ["192.0.2.1", "192.0.2.1", "192.0.2.2"].map(|from| places.take(prefix(from)));
        assert_eq!(places.taken(prefix("192.0.2.1")), (3, 2));
        drop(held);
        assert_eq!(places.taken(prefix("192.0.2.1")), (0, 0));
        assert!(places.lock().by_prefix.is_empty());
    }
}
