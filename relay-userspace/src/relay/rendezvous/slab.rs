//! Records by number.

use std::mem::replace;

/// Records to a chunk: a slab grows by one chunk and copies nothing.
const CHUNK: usize = 256;

/// Records, each under a number that stays its own until it is removed. Then another one gets the number.
#[derive(Debug)]
pub(super) struct Slab<T> {
    chunks: Vec<Vec<Entry<T>>>,
    /// The entry that was vacated last.
    vacant: Option<u32>,
    records: usize,
}

#[derive(Debug)]
enum Entry<T> {
    Record(T),
    /// The one that was vacated before it.
    Vacant(Option<u32>),
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab { chunks: Vec::new(), vacant: None, records: 0 }
    }
}

impl<T> Slab<T> {
    /// How many records there are.
    pub fn len(&self) -> usize {
        self.records
    }

    pub fn get(&self, number: u32) -> Option<&T> {
        let (chunk, place) = position(number);
        match self.chunks.get(chunk)?.get(place)? {
            Entry::Record(record) => Some(record),
            Entry::Vacant(_) => None,
        }
    }

    pub fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        match self.entry_mut(number)? {
            Entry::Record(record) => Some(record),
            Entry::Vacant(_) => None,
        }
    }

    /// Puts a record in: its number.
    pub fn insert(&mut self, record: T) -> u32 {
        self.records += 1;
        if let Some(number) = self.vacant.take()
            && let Some(entry) = self.entry_mut(number)
        {
            if let Entry::Vacant(before) = replace(entry, Entry::Record(record)) {
                self.vacant = before;
            }
            return number;
        }
        if self.chunks.last().is_none_or(|last| last.len() == CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        let full = (self.chunks.len() - 1) * CHUNK;
        let mut place = 0;
        if let Some(last) = self.chunks.last_mut() {
            place = last.len();
            last.push(Entry::Record(record));
        }
        (full + place) as u32
    }

    pub fn remove(&mut self, number: u32) -> Option<T> {
        let before = self.vacant;
        let entry = self.entry_mut(number)?;
        match replace(entry, Entry::Vacant(before)) {
            Entry::Record(record) => {
                self.vacant = Some(number);
                self.records -= 1;
                Some(record)
            }
            vacant @ Entry::Vacant(_) => {
                *entry = vacant;
                None
            }
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flatten().filter_map(|entry| match entry {
            Entry::Record(record) => Some(record),
            Entry::Vacant(_) => None,
        })
    }

    fn entry_mut(&mut self, number: u32) -> Option<&mut Entry<T>> {
        let (chunk, place) = position(number);
        self.chunks.get_mut(chunk)?.get_mut(place)
    }
}

const fn position(number: u32) -> (usize, usize) {
    (number as usize / CHUNK, number as usize % CHUNK)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::{CHUNK, Slab};

    proptest! {
        #[test]
        fn a_record_keeps_its_number_until_it_is_removed(
            steps in proptest::collection::vec((any::<bool>(), 0..2 * CHUNK as u32), 0..4 * CHUNK),
        ) {
            let mut slab = Slab::default();
            let mut model = BTreeMap::new();
            for (at, (insert, number)) in steps.into_iter().enumerate() {
                if insert {
                    prop_assert_eq!(model.insert(slab.insert(at), at), None, "a number is one record's");
                } else {
                    prop_assert_eq!(slab.remove(number), model.remove(&number));
                }
            }
            prop_assert_eq!(slab.len(), model.len());
            prop_assert_eq!(slab.iter().collect::<Vec<_>>(), model.values().collect::<Vec<_>>());
            for number in 0..2 * CHUNK as u32 {
                prop_assert_eq!(slab.get(number), model.get(&number));
                prop_assert_eq!(slab.get_mut(number), model.get_mut(&number));
            }
        }
    }

    #[test]
    fn a_number_is_used_again_before_the_slab_grows() {
        let mut slab = Slab::default();
        let numbers: Vec<u32> = (0..CHUNK as u32 + 10).map(|record| slab.insert(record)).collect();
        for number in &numbers {
            slab.remove(*number);
        }
        for record in 0..CHUNK as u32 + 10 {
            assert!(numbers.contains(&slab.insert(record)));
        }
        assert_eq!(slab.chunks.len(), 2);
    }
}
