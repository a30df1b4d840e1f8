//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! Sums are taken over 16-bit words in the machine's byte order: ones' complement addition does not care, as long as
//! the result is stored in the same order (RFC 1071 section 2, item B).

/// What a rewrite adds to a checksum: the ones' complement sum of the new words and the complemented old ones.
///
/// Constant for one side of a session, so it is computed once, when the flow is installed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChecksumDelta(pub u16);

impl ChecksumDelta {
    /// Nothing changes.
    pub const NONE: ChecksumDelta = ChecksumDelta(0);

    /// The delta of replacing `old` by `new`. Both are whole 16-bit words as they stand in the packet; an odd last byte
    /// is taken with a zero after it (RFC 1071 section 4.1).
    pub fn of(old: &[u8], new: &[u8]) -> ChecksumDelta {
        let removed = words(old).fold(0u32, |sum, word| u32::from(fold(sum + u32::from(!word))));
        let total = words(new).fold(removed, |sum, word| u32::from(fold(sum + u32::from(word))));
        ChecksumDelta(fold(total))
    }

    /// Both changes together.
    #[inline(always)]
    pub const fn and(self, other: ChecksumDelta) -> ChecksumDelta {
        ChecksumDelta(fold(self.0 as u32 + other.0 as u32))
    }

    /// The checksum after the change: RFC 1624 equation 3. Both are as they stand in the packet.
    #[inline(always)]
    pub const fn apply(self, checksum: u16) -> u16 {
        // Two words carry once at most.
        let sum = !checksum as u32 + self.0 as u32;
        !((sum & 0xffff) + (sum >> 16)) as u16
    }
}

/// Folds a 32-bit sum to 16 bits with end-around carry.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

/// Folds a sum of up to 2^16 words of 32 bits.
#[inline(always)]
pub const fn fold_wide(sum: u64) -> u16 {
    let once = (sum & 0xffff_ffff) + (sum >> 32);
    fold(((once & 0xffff_ffff) + (once >> 32)) as u32)
}

/// Whether a sum of up to 2^16 words of 32 bits, which are not all zero, folds to `folded`.
///
/// It folds to the one number of 1 to 65535 that it is congruent with modulo 65535. To see whether a remainder is zero takes
/// a product and a comparison, which is less than making the carries.
#[inline(always)]
pub const fn folds_to(sum: u64, folded: u16) -> bool {
    folded != 0 && (sum + 0xffff - folded as u64).is_multiple_of(0xffff)
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u16> + '_ {
    bytes.chunks(2).map(|pair| match *pair {
        [first, second] => u16::from_ne_bytes([first, second]),
        [last] => u16::from_ne_bytes([last, 0]),
        _ => 0,
    })
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    extern crate std;
    use super::{ChecksumDelta, fold, fold_wide, folds_to, words};
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
    use std::vec::Vec;

    fn checksum(bytes: &[u8]) -> u16 {
        !words(bytes).fold(0u16, |sum, word| fold(u32::from(sum) + u32::from(word)))
    }

    proptest! {
        #[test]
        fn an_incremental_update_equals_a_full_recomputation(
            before in proptest::collection::vec(any::<u8>(), 2..64),
            seed in any::<u64>(),
        ) {
            let before: Vec<u8> = before[..before.len() & !1].to_vec();
            let after: Vec<u8> =
                before.iter().enumerate().map(|(i, b)| b ^ (seed >> (i % 57)) as u8).collect();
            // A header that carries a checksum never sums to zero: pad with a constant word, as a header's version is.
            let with = |bytes: &[u8]| { let mut all = std::vec![0x45, 0x01]; all.extend(bytes); all };
            let updated = ChecksumDelta::of(&before, &after).apply(checksum(&with(&before)));
            prop_assert_eq!(updated, checksum(&with(&after)));
        }
    }

    proptest! {
        #[test]
        fn what_a_sum_folds_to_is_told_without_folding(sum in 1u64..1 << 48, other in any::<u16>(), few in 1u64..0x2_0002) {
            for sum in [sum, few] {
                prop_assert!(folds_to(sum, fold_wide(sum)));
                prop_assert_eq!(folds_to(sum, other), fold_wide(sum) == other);
                prop_assert!(!folds_to(sum, 0));
            }
        }
    }

    #[test]
    fn changing_nothing_leaves_the_checksum() {
        let delta = ChecksumDelta::of(&[1, 2, 3, 4], &[1, 2, 3, 4]);
        for sum in [0x0001, 0x1234, 0xfffe] {
            assert_eq!(delta.apply(sum), sum);
        }
    }
}
