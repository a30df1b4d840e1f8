//! What is to be looked at when.

use std::collections::BTreeMap;

use crate::clock::MonoTime;

/// Entries in the order of their times. Putting one in and taking one out cost little, so there is no way to move or
/// remove one: whatever it is for remembers the time of its one entry that counts, and others that come are ignored.
///
/// Many entries have one time, as the clock is coarse.
#[derive(Debug)]
pub(super) struct Timers<K> {
    due: BTreeMap<MonoTime, Vec<K>>,
}

impl<K> Default for Timers<K> {
    fn default() -> Self {
        Timers { due: BTreeMap::new() }
    }
}

impl<K> Timers<K> {
    /// Puts in an entry.
    pub fn add(&mut self, key: K, at: MonoTime) {
        self.due.entry(at).or_default().push(key);
    }

    /// The first time of all.
    pub fn first(&self) -> Option<MonoTime> {
        self.due.first_key_value().map(|(at, _)| *at)
    }

    /// Takes an entry that is due at `now`, with its time.
    pub fn take_due(&mut self, now: MonoTime) -> Option<(K, MonoTime)> {
        let mut first = self.due.first_entry().filter(|first| *first.key() <= now)?;
        let at = *first.key();
        let key = first.get_mut().pop();
        if first.get().is_empty() {
            first.remove();
        }
        Some((key?, at))
    }

    #[cfg(test)]
    pub fn has(&self, key: K, at: MonoTime) -> bool
    where
        K: PartialEq,
    {
        self.due.get(&at).is_some_and(|keys| keys.contains(&key))
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.due.values().map(Vec::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_when_they_are_due_and_earlier_ones_first() {
        let mut timers = Timers::default();
        for (key, at) in [('c', 3), ('a', 1), ('d', 3), ('b', 2)] {
            timers.add(key, MonoTime(at));
        }
        assert_eq!(timers.take_due(MonoTime(0)), None);
        let due: Vec<_> = std::iter::from_fn(|| timers.take_due(MonoTime(2))).collect();
        assert_eq!(due, [('a', MonoTime(1)), ('b', MonoTime(2))]);
        assert_eq!(timers.first(), Some(MonoTime(3)));
        let mut last: Vec<_> = std::iter::from_fn(|| timers.take_due(MonoTime(9))).collect();
        last.sort_unstable();
        assert_eq!(last, [('c', MonoTime(3)), ('d', MonoTime(3))]);
        assert_eq!(timers.first(), None);
    }
}
