//! What a flow is recognised by: source and destination address and port.

use crate::siphash::{HashKey, siphash13};

/// The tuple of an IPv4 UDP packet. Addresses and ports hold the bytes as they stand in the packet (network order),
/// read as native-endian words: nothing on the packet path swaps bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TupleV4 {
    /// Source address.
    pub source: u32,
    /// Destination address: one of the relay's.
    pub destination: u32,
    /// Source port in the first two bytes, destination port in the last two.
    pub ports: u32,
}

impl TupleV4 {
    /// Where the tuple may be found in the index.
    #[inline(always)]
    pub fn hash(&self, key: HashKey) -> u64 {
        siphash13(key, [u64::from(self.source) | u64::from(self.ports) << 32, u64::from(self.destination)])
    }
}

/// The word of two ports as they stand in a packet.
#[inline(always)]
pub const fn port_word(source: [u8; 2], destination: [u8; 2]) -> u32 {
    u32::from_ne_bytes([source[0], source[1], destination[0], destination[1]])
}

#[cfg(not(target_arch = "bpf"))]
mod addresses {
    use core::net::{Ipv4Addr, SocketAddrV4};

    use super::{TupleV4, port_word};

    impl TupleV4 {
        /// The tuple of packets from `source` to `destination`.
        pub fn new(source: SocketAddrV4, destination: SocketAddrV4) -> TupleV4 {
            TupleV4 {
                source: address_word(*source.ip()),
                destination: address_word(*destination.ip()),
                ports: port_word(source.port().to_be_bytes(), destination.port().to_be_bytes()),
            }
        }

        /// Source address and port.
        pub fn source(&self) -> SocketAddrV4 {
            let [high, low, _, _] = self.ports.to_ne_bytes();
            SocketAddrV4::new(address(self.source), u16::from_be_bytes([high, low]))
        }

        /// Destination address and port.
        pub fn destination(&self) -> SocketAddrV4 {
            let [_, _, high, low] = self.ports.to_ne_bytes();
            SocketAddrV4::new(address(self.destination), u16::from_be_bytes([high, low]))
        }
    }

    /// An address as it stands in a packet, read as a native-endian word.
    pub(crate) fn address_word(address: Ipv4Addr) -> u32 {
        u32::from_ne_bytes(address.octets())
    }

    fn address(word: u32) -> Ipv4Addr {
        Ipv4Addr::from(word.to_ne_bytes())
    }
}
