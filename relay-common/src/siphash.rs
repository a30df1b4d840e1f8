//! SipHash-1-3 over a fixed number of words, for maps off the packet path.
//!
//! Aumasson and Bernstein, "SipHash: a fast short-input PRF", with 1 compression
//! and 3 finalisation rounds.

/// A key of 128 bits.
pub type SipKey = [u64; 2];

/// The hash of `words`, whose number is part of the type and so need not be mixed in at run time.
#[expect(clippy::indexing_slicing, reason = "the loop runs over the array's own length")]
#[inline(always)]
pub const fn siphash13<const N: usize>(key: SipKey, words: [u64; N]) -> u64 {
    let [k0, k1] = key;
    let mut state = State {
        a: k0 ^ 0x736f_6d65_7073_6575,
        b: k1 ^ 0x646f_7261_6e64_6f6d,
        c: k0 ^ 0x6c79_6765_6e65_7261,
        d: k1 ^ 0x7465_6462_7974_6573,
    };
    let mut word = 0;
    while word < N {
        state.absorb(words[word]);
        word += 1;
    }
    // The last block of SipHash carries the length in its top byte and no bytes of input.
    state.absorb((N as u64 * 8) << 56);
    state.c ^= 0xff;
    state.round();
    state.round();
    state.round();
    state.a ^ state.b ^ state.c ^ state.d
}

struct State {
    a: u64,
    b: u64,
    c: u64,
    d: u64,
}

impl State {
    #[inline(always)]
    const fn absorb(&mut self, word: u64) {
        self.d ^= word;
        self.round();
        self.a ^= word;
    }

    #[inline(always)]
    const fn round(&mut self) {
        self.a = self.a.wrapping_add(self.b);
        self.b = self.b.rotate_left(13) ^ self.a;
        self.a = self.a.rotate_left(32);
        self.c = self.c.wrapping_add(self.d);
        self.d = self.d.rotate_left(16) ^ self.c;
        self.a = self.a.wrapping_add(self.d);
        self.d = self.d.rotate_left(21) ^ self.a;
        self.c = self.c.wrapping_add(self.b);
        self.b = self.b.rotate_left(17) ^ self.c;
        self.c = self.c.rotate_left(32);
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::siphash13;

    #[test]
    fn equals_the_standard_librarys_hasher() {
        extern crate std;
        use core::hash::Hasher;
        // `DefaultHasher::new` is SipHash-1-3 under the zero key.
        let mut reference = std::collections::hash_map::DefaultHasher::new();
        reference.write_u64(0x0123_4567_89ab_cdef);
        reference.write_u64(0xfeed_f00d_dead_beef);
        assert_eq!(siphash13([0, 0], [0x0123_4567_89ab_cdef, 0xfeed_f00d_dead_beef]), reference.finish());
    }

    #[test]
    fn depends_on_every_bit_of_key_and_input() {
        let reference = siphash13([5, 6], [7, 8]);
        for bit in 0..64 {
            assert_ne!(siphash13([5 ^ (1 << bit), 6], [7, 8]), reference);
            assert_ne!(siphash13([5, 6 ^ (1 << bit)], [7, 8]), reference);
            assert_ne!(siphash13([5, 6], [7 ^ (1 << bit), 8]), reference);
            assert_ne!(siphash13([5, 6], [7, 8 ^ (1 << bit)]), reference);
        }
    }
}
