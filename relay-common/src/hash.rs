//! The keyed hash of the flow index.
//!
//! Tuples are the attacker's choice, so the hash must be keyed and no set of tuples may collide under every key. This is the
//! multilinear family: the sum of products of the tuple's words with random ones, modulo 2^64, of which two tuples chosen
//! without knowledge of the key have the same value with a chance of 2^-32 at most (Lemire and Kaser, "Strongly universal
//! string hashing is fast", 2014). A sum alone would carry regularities of the tuples, ports in a row, over to the index;
//! so a permutation of 64 bits follows that leaves none of them: the upper half is mixed into the lower, before and after a
//! product with an odd number. Nobody learns values of it.
//!
//! SipHash-1-3, which the key is made by, would do as well, but BPF has no rotations: it was a tenth of the program.

use crate::siphash::siphash13;

/// What the key is made from, drawn at random when the tables are made.
pub type HashSeed = [u64; 2];

/// Number of words that [`hash`] can take.
pub const MAX_WORDS: usize = 6;

/// The key: what the sum begins with, and a factor for each word.
pub type HashKey = [u64; MAX_WORDS + 1];

/// The key that is made from `seed`.
#[expect(clippy::indexing_slicing, reason = "the loop runs over the array's own length")]
pub const fn key(seed: HashSeed) -> HashKey {
    let mut key = [0; MAX_WORDS + 1];
    let mut place = 0;
    while place < key.len() {
        key[place] = siphash13(seed, [place as u64]);
        place += 1;
    }
    key
}

/// The hash of `words`, at most [`MAX_WORDS`].
#[expect(
    clippy::indexing_slicing,
    reason = "both arrays are longer than the loop runs, which is checked before"
)]
#[inline(always)]
pub const fn hash<const N: usize>(key: &HashKey, words: [u32; N]) -> u64 {
    const { assert!(N <= MAX_WORDS) };
    let mut sum = key[0];
    let mut word = 0;
    while word < N {
        sum = sum.wrapping_add((words[word] as u64).wrapping_mul(key[word + 1]));
        word += 1;
    }
    sum ^= sum >> 32;
    sum = sum.wrapping_mul(0xd6e8_feb8_6659_fd93);
    sum ^ sum >> 32
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    extern crate std;
    use super::{MAX_WORDS, hash, key};
    use proptest::prelude::{any, prop_assert_ne, proptest};
    use std::collections::HashSet;
    use std::vec::Vec;

    proptest! {
        #[test]
        fn tuples_that_differ_in_one_word_differ_in_their_hash(
            seed in any::<[u64; 2]>(),
            words in any::<[u32; MAX_WORDS]>(),
            place in 0..MAX_WORDS,
            difference in 1u32..,
        ) {
            let mut other = words;
            other[place] ^= difference;
            prop_assert_ne!(hash(&key(seed), words), hash(&key(seed), other));
        }
    }

    #[test]
    fn every_bit_of_the_seed_changes_the_hash() {
        let reference = hash(&key([5, 6]), [1, 2, 3]);
        for bit in 0..64 {
            assert_ne!(hash(&key([5 ^ (1 << bit), 6]), [1, 2, 3]), reference);
            assert_ne!(hash(&key([5, 6 ^ (1 << bit)]), [1, 2, 3]), reference);
        }
    }

    /// As addresses and ports often are: every port of one address, one port of addresses in a row, strides of both.
    #[test]
    fn tuples_in_a_row_are_spread_as_evenly_as_random_ones() {
        const BUCKETS: usize = 1 << 12;
        let rows: [fn(u32) -> [u32; 3]; 4] = [
            |n| [0x0a00_0001, 0x0a00_0002, n.to_be()],
            |n| [(0x0a00_0000 + n).to_be(), 0x0a00_0002, 0x5111_1388],
            |n| [0x0a00_0001u32.wrapping_add(n << 16), 0x0a00_0002, n << 4],
            |n| [n & 0xff, 0x0a00_0002, n >> 8 << 20],
        ];
        for seed in 0..4 {
            let key = key([seed, 7]);
            for row in rows {
                for shift in [0, 22, 48] {
                    let mut load = std::vec![0u32; BUCKETS];
                    for n in 0..16 * BUCKETS as u32 {
                        load[(hash(&key, row(n)) >> shift) as usize % BUCKETS] += 1;
                    }
                    // 16 on average; of as many balls thrown at random one bucket in 10^8 has more than 45.
                    assert!(load.iter().all(|load| *load < 48), "{:?}", load.iter().max());
                }
            }
        }
    }

    #[test]
    fn half_a_million_tuples_have_as_many_hashes() {
        let key = key([1, 2]);
        let hashes: Vec<u64> = (0..1 << 19).map(|n| hash(&key, [n, 9, n >> 3])).collect();
        assert_eq!(hashes.iter().collect::<HashSet<_>>().len(), hashes.len());
    }
}
