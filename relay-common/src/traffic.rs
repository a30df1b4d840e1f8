//! Packets and bytes in one word, so that one atomic addition counts both.
//!
//! An atomic addition is among the dearest instructions of the program. The word is a plain sum, of 2^36 for each packet and
//! 1 for each byte, modulo 2^64: it is read by its difference from an earlier reading, which tells both exactly if less than
//! [`BYTES_BETWEEN_READINGS`] and [`PACKETS_BETWEEN_READINGS`] came in between.

use crate::word::Word64;

/// The bits below those that count packets.
const BYTE_BITS: u32 = 36;

/// 64 GiB: more than 100 Gbit/s carry in the 5 s between two readings of a session.
pub const BYTES_BETWEEN_READINGS: u64 = 1 << BYTE_BITS;

/// 268 million.
pub const PACKETS_BETWEEN_READINGS: u64 = 1 << (64 - BYTE_BITS);

/// A count of packets and their bytes.
#[derive(Default)]
#[repr(transparent)]
pub struct Traffic(Word64);

/// What a [`Traffic`] has counted between two readings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What a [`Traffic`] stood at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading(pub u64);

impl Traffic {
    /// Counts a packet of `bytes`.
    #[inline(always)]
    pub fn count(&self, bytes: u32) {
        self.0.add(1 << BYTE_BITS | bytes as u64);
    }

    /// What it stands at.
    #[inline(always)]
    pub fn read(&self) -> Reading {
        Reading(self.0.load())
    }

    /// Makes it stand at nothing, for the only one who may.
    #[cfg(not(target_arch = "bpf"))]
    pub fn reset(&self) {
        self.0.store(0);
    }
}

impl Reading {
    /// What came after `earlier`.
    pub const fn since(self, earlier: Reading) -> Difference {
        let sum = self.0.wrapping_sub(earlier.0);
        Difference { packets: sum >> BYTE_BITS, bytes: sum & (BYTES_BETWEEN_READINGS - 1) }
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::{BYTE_BITS, Difference, Reading, Traffic};
    use crate::word::Word64;
    use proptest::prelude::{any, prop_assert_eq, proptest};

    proptest! {
        #[test]
        fn two_readings_tell_what_came_in_between_wherever_the_word_stood(
            stood in any::<u64>(),
            packets in proptest::collection::vec(0u32..65_508, 0..100),
        ) {
            let traffic = Traffic(Word64::default());
            traffic.0.store(stood);
            let before = traffic.read();
            packets.iter().for_each(|bytes| traffic.count(*bytes));
            let bytes = packets.iter().copied().map(u64::from).sum();
            let expected = Difference { packets: packets.len() as u64, bytes };
            prop_assert_eq!(traffic.read().since(before), expected);
        }
    }

    #[test]
    fn as_much_as_fits_between_two_readings_is_told_exactly() {
        let most = Reading(u64::MAX).since(Reading(0));
        assert_eq!(most, Difference { packets: (1 << (64 - BYTE_BITS)) - 1, bytes: (1 << BYTE_BITS) - 1 });
    }
}
