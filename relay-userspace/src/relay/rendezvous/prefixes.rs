//! How many sessions the nodes of each prefix have asked for.

use std::collections::BTreeMap;

use super::slab::Slab;
use crate::relay::prefix::Prefix;

/// A prefix' number as long as it has sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PrefixNumber(u32);

/// Prefixes that have asked for sessions which are not over. A session names its prefix by number: addresses are long.
#[derive(Debug, Default)]
pub(super) struct Prefixes {
    all: Slab<(Prefix, u32)>,
    by_prefix: BTreeMap<Prefix, u32>,
}

impl Prefixes {
    /// How many sessions and offers a prefix has asked for.
    pub fn sessions_of(&self, prefix: Prefix) -> u32 {
        let counted = self.by_prefix.get(&prefix).and_then(|number| self.all.get(*number));
        counted.map_or(0, |(_, sessions)| *sessions)
    }

    /// The prefix of that number.
    pub fn get(&self, PrefixNumber(number): PrefixNumber) -> Option<Prefix> {
        self.all.get(number).map(|(prefix, _)| *prefix)
    }

    /// It has asked for one more.
    pub fn add(&mut self, prefix: Prefix) -> PrefixNumber {
        let number = *self.by_prefix.entry(prefix).or_insert_with(|| self.all.insert((prefix, 0)));
        if let Some((_, sessions)) = self.all.get_mut(number) {
            *sessions += 1;
        }
        PrefixNumber(number)
    }

    /// One that it has asked for is over.
    pub fn remove(&mut self, PrefixNumber(number): PrefixNumber) {
        let Some((prefix, sessions)) = self.all.get_mut(number) else { return };
        let prefix = *prefix;
        *sessions = sessions.saturating_sub(1);
        if *sessions == 0 {
            self.all.remove(number);
            self.by_prefix.remove(&prefix);
        }
    }

    #[cfg(test)]
    pub fn iter(&self) -> impl Iterator<Item = (Prefix, u32)> {
        self.all.iter().copied()
    }
}
