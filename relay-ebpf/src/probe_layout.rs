//! What the probe and the tests that load it share: compiled into both.

use relay_common::word::{Word32, Word64};

/// Words that hold the headers of a frame, Ethernet to UDP, and the first 6 bytes of the payload.
pub const HEAD_WORDS: usize = 6;

/// A frame to be sent again and again, as it comes and as it must leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Case {
    /// Its first bytes when it comes.
    pub fresh: [u64; HEAD_WORDS],
    /// The same bytes when the relay has forwarded it.
    pub forwarded: [u64; HEAD_WORDS],
}

/// A frame of the probe: which case it is stands in the payload, which no relay changes.
#[repr(C)]
pub struct ProbedFrame {
    /// Headers, and the first bytes of the payload.
    pub head: [u64; HEAD_WORDS],
    /// Number of the case.
    pub case: u32,
    /// State of the generator that chooses the next one.
    pub chance: u32,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It left as it must.
    Forwarded = 0,
    /// It is as it came.
    Untouched = 1,
    /// Anything else: it bears another session's addresses, or none that exist.
    Wrong = 2,
}

impl Outcome {
    /// Number of outcomes.
    pub const COUNT: u32 = 3;

    /// What became of a frame of `case` that begins with `head` now.
    #[inline(always)]
    pub fn of(head: &[u64; HEAD_WORDS], case: &Case) -> Outcome {
        let differs = |other: &[u64; HEAD_WORDS]| {
            let mut bits = 0;
            let mut word = 0;
            while word < HEAD_WORDS {
                bits |= head[word] ^ other[word];
                word += 1;
            }
            bits != 0
        };
        if !differs(&case.forwarded) {
            Outcome::Forwarded
        } else if !differs(&case.fresh) {
            Outcome::Untouched
        } else {
            Outcome::Wrong
        }
    }

    /// Where frames of case number `case` with this outcome are counted.
    #[inline(always)]
    pub const fn place(self, case: u32) -> u32 {
        case.wrapping_mul(Self::COUNT).wrapping_add(self as u32)
    }
}

/// Words that several CPUs change at once, and what they have seen of it.
#[derive(Default)]
#[repr(C)]
pub struct Words {
    /// Raised by one with each swap that was won.
    pub raised: Word64,
    /// Swaps that were won.
    pub won: Word64,
    /// Swaps that another CPU was faster with.
    pub lost: Word64,
    /// Never changed: every swap expects something else than it holds.
    pub constant: Word64,
    /// Swaps that should have been lost, and were with the present value told.
    pub refused: Word64,
    /// Anything that no right machine does.
    pub absurd: Word64,
    /// Raised by three each time.
    pub narrow: Word32,
    /// Set to the sum of 1 and what `narrow` was at some time.
    pub stored: Word32,
}
