//! Places for connections and handshakes: bounded altogether, and for each source.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::relay::prefix::Prefix;

/// So many at once, and so many of them for one source prefix.
#[derive(Debug)]
pub(super) struct Places {
    all: usize,
    per_prefix: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_prefix: BTreeMap<Prefix, usize>,
}

/// A place that is taken, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    prefix: Prefix,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// All are taken.
    All,
    /// The source prefix has its share.
    Prefix,
}

impl Places {
    /// `all` places, `per_prefix` of them for one source prefix.
    pub fn new(all: usize, per_prefix: usize) -> Arc<Places> {
        Arc::new(Places { all, per_prefix, taken: Mutex::default() })
    }

    /// How many are taken, and how many of them by the prefix of `from`.
    pub fn taken(&self, from: IpAddr) -> (usize, usize) {
        let taken = self.lock();
        (taken.all, taken.by_prefix.get(&Prefix::of(from)).copied().unwrap_or(0))
    }

    /// Why there is no place for `from` now; None if there is one.
    pub fn full(&self, from: IpAddr) -> Option<Full> {
        match self.taken(from) {
            (all, _) if all >= self.all => Some(Full::All),
            (_, of_prefix) if of_prefix >= self.per_prefix => Some(Full::Prefix),
            _ => None,
        }
    }

    /// Takes a place for `from`.
    pub fn take(self: &Arc<Self>, from: IpAddr) -> Result<Place, Full> {
        let prefix = Prefix::of(from);
        let mut taken = self.lock();
        if taken.all >= self.all {
            return Err(Full::All);
        }
        let of_prefix = taken.by_prefix.entry(prefix).or_default();
        if *of_prefix >= self.per_prefix {
            return Err(Full::Prefix);
        }
        *of_prefix += 1;
        taken.all += 1;
        Ok(Place { places: Arc::clone(self), prefix })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.all -= 1;
        if let Some(of_prefix) = taken.by_prefix.get_mut(&self.prefix) {
            *of_prefix -= 1;
            if *of_prefix == 0 {
                taken.by_prefix.remove(&self.prefix);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_source_leaves_places_for_others_and_all_together_have_so_many() {
        let places = Places::new(3, 2);
        let held = [ip("192.0.2.1"), ip("::ffff:192.0.2.1")].map(|from| places.take(from).unwrap());
        assert_eq!(places.take(ip("192.0.2.1")).unwrap_err(), Full::Prefix);
        assert_eq!(places.full(ip("192.0.2.1")), Some(Full::Prefix));
        assert_eq!((places.full(ip("192.0.2.2")), places.taken(ip("192.0.2.2"))), (None, (2, 0)));
        let other = places.take(ip("192.0.2.2")).unwrap();
        assert_eq!(places.take(ip("192.0.2.3")).unwrap_err(), Full::All);
        drop((held, other));
        assert_eq!(places.taken(ip("192.0.2.1")), (0, 0));
        assert!(places.lock().by_prefix.is_empty());
    }
}
