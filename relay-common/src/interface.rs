//! The interfaces that relayed packets arrive by.

use crate::word::Word32;

/// Entries of the interface table. An interface stands at its index modulo this number.
pub const INTERFACES: u32 = 256;

/// An interface the program is attached to.
#[derive(Default)]
#[repr(C, align(8))]
pub struct Interface {
    /// Its index; 0 for an empty entry. Two interfaces that fall on one entry cannot both be used.
    pub index: Word32,
    /// The largest IP packet that fits a frame of it, in bytes. Anything larger was merged by receive offload.
    pub mtu: Word32,
    /// The first four bytes of its MAC address, as in the frame.
    pub station_head: Word32,
    /// The last two bytes of it, in the low half.
    pub station_tail: Word32,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Interface>() == 16);

impl Interface {
    /// Whether a frame to `destination` is for this interface.
    #[inline(always)]
    pub fn is_addressed(&self, destination: [u8; 6]) -> bool {
        let [a, b, c, d, e, f] = destination;
        let differs = (self.station_head.load() ^ u32::from_ne_bytes([a, b, c, d]))
            | (self.station_tail.load() ^ u16::from_ne_bytes([e, f]) as u32);
        differs == 0
    }
}

#[cfg(not(target_arch = "bpf"))]
impl Interface {
    /// Describes, as the one with `index`, what `other` describes.
    pub fn copy_from(&self, other: &Interface, index: u32) {
        self.mtu.store(other.mtu.load());
        self.station_head.store(other.station_head.load());
        self.station_tail.store(other.station_tail.load());
        self.index.store(index);
    }

    /// Its MAC address.
    pub fn station(&self) -> [u8; 6] {
        let ([a, b, c, d], [e, f, ..]) =
            (self.station_head.load().to_ne_bytes(), self.station_tail.load().to_ne_bytes());
        [a, b, c, d, e, f]
    }

    /// Describes an interface. The program may see the parts of a change one by one; each is harmless.
    pub fn write(&self, index: u32, station: [u8; 6], mtu: u32) {
        let [a, b, c, d, e, f] = station;
        self.mtu.store(mtu);
        self.station_head.store(u32::from_ne_bytes([a, b, c, d]));
        self.station_tail.store(u32::from(u16::from_ne_bytes([e, f])));
        self.index.store(index);
    }
}
