//! The relay's own IPv6 addresses, named by number from the slots: two of them would not fit beside the agents'.

use crate::tuple::AddressV6;
use crate::word::Word32;

/// Entries of the table.
pub const LOCALS: u32 = 256;

/// One of the relay's IPv6 addresses. An entry is written once, before any slot names it, and never changes.
#[derive(Default)]
#[repr(C, align(8))]
pub struct Local {
    words: [Word32; 4],
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Local>() == 16);

impl Local {
    /// The address.
    #[inline(always)]
    pub fn load(&self) -> AddressV6 {
        [self.words[0].load(), self.words[1].load(), self.words[2].load(), self.words[3].load()]
    }
}

#[cfg(not(target_arch = "bpf"))]
impl Local {
    /// Writes what stands in `other`.
    pub fn copy_from(&self, other: &Local) {
        self.words.iter().zip(other.load()).for_each(|(word, value)| word.store(value));
    }

    /// Writes all of its words, whatever that means: for tests of what others may have written.
    pub fn damage(&self, value: u32) {
        self.words.iter().for_each(|word| word.store(value));
    }

    /// The number under which `address` stands in `table`, put there if it is new; none if the table is full.
    pub fn number(table: &[Local], address: core::net::Ipv6Addr) -> Option<u16> {
        let wanted = crate::tuple::words_v6(address);
        for (number, entry) in table.iter().enumerate() {
            let held = entry.load();
            if held == [0; 4] {
                for (word, value) in entry.words.iter().zip(wanted) {
                    word.store(value);
                }
                return u16::try_from(number).ok();
            }
            if held == wanted {
                return u16::try_from(number).ok();
            }
        }
        None
    }
}
