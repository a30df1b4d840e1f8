//! What is remembered about many who can be as many as they like: of so many at most, those seen last.

use std::collections::{BTreeMap, BTreeSet};

use crate::clock::MonoTime;

/// A map that forgets whom it has not seen for longest, once it is full.
#[derive(Debug)]
pub struct Remembered<K, V> {
    most: usize,
    entries: BTreeMap<K, (MonoTime, V)>,
    /// Who was seen when, the one seen longest ago first.
    order: BTreeSet<(MonoTime, K)>,
}

impl<K: Copy + Ord, V> Remembered<K, V> {
    /// Nobody yet, and at no time more than `most`.
    pub const fn new(most: usize) -> Remembered<K, V> {
        Remembered { most, entries: BTreeMap::new(), order: BTreeSet::new() }
    }

    /// What is remembered about `key`, which is seen at `now`; `first` if nothing is.
    pub fn see(&mut self, key: K, now: MonoTime, first: impl FnOnce() -> V) -> &mut V {
        if !self.entries.contains_key(&key) {
            while self.entries.len() >= self.most {
                let Some((_, oldest)) = self.order.pop_first() else { break };
                self.entries.remove(&oldest);
            }
        }
        let (seen, value) = self.entries.entry(key).or_insert_with(|| (now, first()));
        self.order.remove(&(*seen, key));
        *seen = now;
        self.order.insert((now, key));
        value
    }

    /// What is remembered about `key`.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(_, value)| value)
    }

    /// As [`Remembered::get`], to be changed. It is not seen by that.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.entries.get_mut(key).map(|(_, value)| value)
    }

    /// Forgets `key`.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let (seen, value) = self.entries.remove(key)?;
        self.order.remove(&(seen, *key));
        Some(value)
    }

    /// All, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (K, &V)> {
        self.entries.iter().map(|(key, (_, value))| (*key, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_more_than_there_is_room_for_the_one_seen_longest_ago_is_forgotten() {
        let mut remembered = Remembered::new(3);
        for (time, key) in [(1, 'a'), (2, 'b'), (3, 'c'), (4, 'a'), (5, 'd')] {
            *remembered.see(key, MonoTime(time), || 0) += 1;
        }
        assert_eq!(remembered.iter().collect::<Vec<_>>(), [('a', &2), ('c', &1), ('d', &1)]);
        assert_eq!((remembered.remove(&'c'), remembered.remove(&'c')), (Some(1), None));
        remembered.see('e', MonoTime(6), || 0);
        assert_eq!(remembered.iter().count(), 3);
        assert_eq!(remembered.entries.len(), remembered.order.len());
    }

    #[test]
    fn without_room_for_anybody_the_last_one_is_remembered() {
        let mut remembered = Remembered::new(0);
        remembered.see('a', MonoTime(1), || 1);
        remembered.see('b', MonoTime(1), || 2);
        assert_eq!(remembered.iter().collect::<Vec<_>>(), [('b', &2)]);
    }
}
