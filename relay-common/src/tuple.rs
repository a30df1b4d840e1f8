//! What a flow is recognised by: source and destination address and port.

use crate::hash::{HashKey, hash};
use crate::slot::SideLine;
use crate::tables::Tables;

/// An IPv4 address as it stands in a packet (network order), read as a native-endian word: nothing on the packet path
/// swaps bytes.
pub type AddressV4 = u32;

/// An IPv6 address as it stands in a packet, read as native-endian words.
pub type AddressV6 = [u32; 4];

/// A tuple of either family.
pub trait Tuple: Copy {
    /// How many words its hash is made of.
    const WORDS: usize;

    /// Where the tuple may be found in the index.
    fn hash(&self, key: &HashKey) -> u64;

    /// Whether `line` describes packets of this tuple.
    fn is_described_by<T: Tables>(&self, line: &SideLine, tables: &T) -> bool;
}

/// The tuple of an IPv4 UDP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TupleV4 {
    /// Source address.
    pub source: AddressV4,
    /// Destination address: one of the relay's.
    pub destination: AddressV4,
    /// Source port in the first two bytes, destination port in the last two.
    pub ports: u32,
}

/// The tuple of an IPv6 UDP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TupleV6 {
    /// Source address.
    pub source: AddressV6,
    /// Destination address: one of the relay's.
    pub destination: AddressV6,
    /// Source port in the first two bytes, destination port in the last two.
    pub ports: u32,
}

impl Tuple for TupleV4 {
    const WORDS: usize = 3;

    #[inline(always)]
    fn hash(&self, key: &HashKey) -> u64 {
        hash::<{ Self::WORDS }>(key, [self.source, self.destination, self.ports])
    }

    #[inline(always)]
    fn is_described_by<T: Tables>(&self, line: &SideLine, _: &T) -> bool {
        let differs = (line.address[0].load() ^ self.source)
            | (line.address[1].load() ^ self.destination)
            | (line.ports.load() ^ self.ports)
            | (line.families.load() & SideLine::TAKES_MASK ^ SideLine::TAKES_V4);
        differs == 0
    }
}

impl Tuple for TupleV6 {
    const WORDS: usize = 6;

    #[inline(always)]
    fn hash(&self, key: &HashKey) -> u64 {
        let [a, b, c, d] = self.source;
        // The destination is one of the relay's few addresses and not the sender's to choose freely, so a word made of it
        // will do. Addresses that have it in common share places in the index, no more.
        let [e, f, g, h] = self.destination;
        hash::<{ Self::WORDS }>(key, [a, b, c, d, e ^ f ^ g ^ h, self.ports])
    }

    #[inline(always)]
    fn is_described_by<T: Tables>(&self, line: &SideLine, tables: &T) -> bool {
        let families = line.families.load();
        let [a, b, c, d] = self.source;
        let differs = (line.address[0].load() ^ a)
            | (line.address[1].load() ^ b)
            | (line.address[2].load() ^ c)
            | (line.address[3].load() ^ d)
            | (line.ports.load() ^ self.ports)
            | (families & SideLine::TAKES_MASK ^ SideLine::TAKES_V6);
        if differs != 0 {
            return false;
        }
        match tables.local(SideLine::taken_local(families)) {
            Some(local) => {
                let ([a, b, c, d], [e, f, g, h]) = (local.load(), self.destination);
                (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) == 0
            }
            None => false,
        }
    }
}

/// The word of two ports as they stand in a packet.
#[inline(always)]
pub const fn port_word(source: [u8; 2], destination: [u8; 2]) -> u32 {
    u32::from_ne_bytes([source[0], source[1], destination[0], destination[1]])
}

#[cfg(not(target_arch = "bpf"))]
mod any {
    use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

    use super::{AddressV4, AddressV6, Tuple, TupleV4, TupleV6, port_word};
    use crate::hash::HashKey;

    /// A tuple of either family, for code off the packet path.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum AnyTuple {
        /// IPv4.
        V4(TupleV4),
        /// IPv6.
        V6(TupleV6),
    }

    impl AnyTuple {
        /// The tuple of packets from `source` to `destination`; none if their families differ.
        pub fn new(source: SocketAddr, destination: SocketAddr) -> Option<AnyTuple> {
            let ports = port_word(source.port().to_be_bytes(), destination.port().to_be_bytes());
            match (source.ip(), destination.ip()) {
                (IpAddr::V4(source), IpAddr::V4(destination)) => Some(AnyTuple::V4(TupleV4 {
                    source: words_v4(source),
                    destination: words_v4(destination),
                    ports,
                })),
                (IpAddr::V6(source), IpAddr::V6(destination)) => Some(AnyTuple::V6(TupleV6 {
                    source: words_v6(source),
                    destination: words_v6(destination),
                    ports,
                })),
                _ => None,
            }
        }

        /// Where the tuple may be found in the index.
        pub fn hash(&self, key: &HashKey) -> u64 {
            match self {
                AnyTuple::V4(tuple) => tuple.hash(key),
                AnyTuple::V6(tuple) => tuple.hash(key),
            }
        }

        /// Source address and port.
        pub fn source(&self) -> SocketAddr {
            let [high, low, _, _] = self.ports().to_ne_bytes();
            let ip = match self {
                AnyTuple::V4(tuple) => address_v4(tuple.source).into(),
                AnyTuple::V6(tuple) => address_v6(tuple.source).into(),
            };
            SocketAddr::new(ip, u16::from_be_bytes([high, low]))
        }

        /// Destination address and port.
        pub fn destination(&self) -> SocketAddr {
            let [_, _, high, low] = self.ports().to_ne_bytes();
            let ip = match self {
                AnyTuple::V4(tuple) => address_v4(tuple.destination).into(),
                AnyTuple::V6(tuple) => address_v6(tuple.destination).into(),
            };
            SocketAddr::new(ip, u16::from_be_bytes([high, low]))
        }

        /// The tuple of packets the other way.
        pub fn reversed(&self) -> AnyTuple {
            let [a, b, c, d] = self.ports().to_ne_bytes();
            let ports = u32::from_ne_bytes([c, d, a, b]);
            match *self {
                AnyTuple::V4(TupleV4 { source, destination, .. }) => {
                    AnyTuple::V4(TupleV4 { source: destination, destination: source, ports })
                }
                AnyTuple::V6(TupleV6 { source, destination, .. }) => {
                    AnyTuple::V6(TupleV6 { source: destination, destination: source, ports })
                }
            }
        }

        /// Both ports as they stand in a packet.
        pub fn ports(&self) -> u32 {
            match self {
                AnyTuple::V4(tuple) => tuple.ports,
                AnyTuple::V6(tuple) => tuple.ports,
            }
        }
    }

    fn words_v4(address: Ipv4Addr) -> AddressV4 {
        u32::from_ne_bytes(address.octets())
    }

    pub(crate) fn words_v6(address: Ipv6Addr) -> AddressV6 {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address.octets();
        [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]].map(u32::from_ne_bytes)
    }

    fn address_v4(address: AddressV4) -> Ipv4Addr {
        Ipv4Addr::from(address.to_ne_bytes())
    }

    pub(crate) fn address_v6(address: AddressV6) -> Ipv6Addr {
        let mut octets = [0; 16];
        for (place, word) in octets.chunks_exact_mut(4).zip(address) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        Ipv6Addr::from(octets)
    }
}

#[cfg(not(target_arch = "bpf"))]
pub use any::AnyTuple;
#[cfg(not(target_arch = "bpf"))]
pub(crate) use any::{address_v6, words_v6};
