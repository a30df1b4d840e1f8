//! Where a rewritten packet leaves: egress interface and link-layer addresses.
//!
//! A small array, named by number from the slots: a gateway that changes is one write, however many sessions use it, and
//! no packet pays for a route look-up.

use crate::slot::Changed;
use crate::word::Word32;

/// How a packet leaves for a next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Egress {
    /// Not from the program: the link-layer address is unknown, or the interface cannot take redirected frames. The
    /// packet goes up, and the userspace forwarder sends it.
    Userspace = 0,
    /// Back out of the interface it came by.
    Transmit = 1,
    /// Through the device map entry of the same number as the next hop.
    Redirect = 2,
}

impl Egress {
    #[inline(always)]
    const fn from_word(word: u32) -> Egress {
        match word {
            1 => Egress::Transmit,
            2 => Egress::Redirect,
            _ => Egress::Userspace,
        }
    }
}

/// A next hop. Written under a sequence count, odd while a write is under way.
#[derive(Default)]
#[repr(C, align(8))]
pub struct NextHop {
    /// Sequence count.
    pub sequence: Word32,
    /// An [`Egress`].
    pub egress: Word32,
    /// Index of the interface the packet leaves by; of a VLAN, the one below it, whose frames carry the tag.
    pub interface: Word32,
    /// The largest IP packet that way takes, in bytes.
    pub mtu: Word32,
    /// Destination and source MAC address, as the first twelve bytes of the frame.
    pub stations: [Word32; 3],
    /// The VLAN whose tag its frames carry; 0: they carry none.
    pub vlan: Word32,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<NextHop>() == 32);

/// A private copy of a [`NextHop`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// How the packet leaves.
    pub egress: Egress,
    /// Index of the interface it leaves by, without VLAN. A copy made by the program has 0.
    pub interface: u32,
    /// The largest IP packet that way takes, in bytes.
    pub mtu: u32,
    /// Destination and source MAC address, as native-endian words of the first twelve bytes of the frame.
    pub stations: [u32; 3],
    /// The VLAN whose tag its frames carry; 0: they carry none.
    pub vlan: u16,
}

impl NextHop {
    /// A copy of the entry.
    ///
    /// # Errors
    /// It was being written.
    #[inline(always)]
    pub fn copy(&self) -> Result<Hop, Changed> {
        let sequence = self.sequence.load();
        let hop = Hop {
            egress: Egress::from_word(self.egress.load()),
            // The program has no use for it: the device map knows where a packet goes.
            interface: if cfg!(target_arch = "bpf") { 0 } else { self.interface.load() },
            mtu: self.mtu.load(),
            stations: [self.stations[0].load(), self.stations[1].load(), self.stations[2].load()],
            vlan: self.vlan.load() as u16,
        };
        if sequence & 1 == 0 && self.sequence.load() == sequence { Ok(hop) } else { Err(Changed) }
    }
}

/// The words of a destination and a source MAC address.
pub fn station_words(destination: [u8; 6], source: [u8; 6]) -> [u32; 3] {
    let [a, b, c, d, e, f] = destination;
    let [g, h, i, j, k, l] = source;
    [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]), u32::from_ne_bytes([i, j, k, l])]
}

#[cfg(not(target_arch = "bpf"))]
impl Hop {
    /// Its own MAC address and that of the interface.
    pub fn stations(&self) -> [[u8; 6]; 2] {
        let [[a, b, c, d], [e, f, g, h], [i, j, k, l]] = self.stations.map(u32::to_ne_bytes);
        [[a, b, c, d, e, f], [g, h, i, j, k, l]]
    }
}

#[cfg(not(target_arch = "bpf"))]
impl NextHop {
    /// Replaces the entry, for its only writer.
    pub fn write(&self, hop: &Hop) {
        let sequence = self.sequence.load() | 1;
        self.sequence.store(sequence);
        // As for SideLine::write: whoever sees one of the new words sees the odd count as well.
        self.egress.store(hop.egress as u32);
        self.interface.store(hop.interface);
        self.mtu.store(hop.mtu);
        for (word, value) in self.stations.iter().zip(hop.stations) {
            word.store(value);
        }
        self.vlan.store(u32::from(hop.vlan));
        self.sequence.store(sequence.wrapping_add(1));
    }
}
