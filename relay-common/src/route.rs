//! What becomes of one side's packets: a private copy of the second half of a slot's line.

use crate::checksum::ChecksumDelta;
use crate::tuple::{AddressV4, AddressV6};

/// The rewrite of one side's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// New addresses.
    pub onward: Onward,
    /// New source and destination port, as in the packet.
    pub ports: u32,
    /// Change of the UDP checksum: addresses and ports, across families too (RFC 7915 section 4.5).
    pub udp_delta: ChecksumDelta,
    /// Number of the next hop.
    pub hop: u16,
}

/// New addresses, and with them the family of the packets that are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Onward {
    /// IPv4.
    V4 {
        /// New source: the relay's address.
        source: AddressV4,
        /// New destination: the other agent.
        destination: AddressV4,
        /// Change of an IPv4 header's checksum, TTL decrement included. Nothing for packets that come as IPv6.
        ip_delta: ChecksumDelta,
    },
    /// IPv6.
    V6 {
        /// New source: the relay's address.
        source: AddressV6,
        /// New destination: the other agent.
        destination: AddressV6,
    },
}

#[cfg(not(target_arch = "bpf"))]
mod host {
    use super::{Onward, Route};
    use crate::checksum::ChecksumDelta;
    use crate::tuple::{AnyTuple, TupleV4, TupleV6};

    impl Route {
        /// The route that turns packets of `from` into packets of `to`, by next hop `hop`.
        pub fn new(from: &AnyTuple, to: &AnyTuple, hop: u16) -> Route {
            let address_delta =
                address_bytes(from, |old| address_bytes(to, |new| ChecksumDelta::of(old, new)));
            let port_delta = ChecksumDelta::of(&from.ports().to_ne_bytes(), &to.ports().to_ne_bytes());
            let onward = match *to {
                AnyTuple::V4(TupleV4 { source, destination, .. }) => Onward::V4 {
                    source,
                    destination,
                    ip_delta: match from {
                        // TTL is the first byte of its word.
                        AnyTuple::V4(_) => address_delta.and(ChecksumDelta::of(&[1, 0], &[0, 0])),
                        AnyTuple::V6(_) => ChecksumDelta::NONE,
                    },
                },
                AnyTuple::V6(TupleV6 { source, destination, .. }) => Onward::V6 { source, destination },
            };
            Route { onward, ports: to.ports(), udp_delta: address_delta.and(port_delta), hop }
        }

        /// The tuple of the packets it makes.
        pub fn tuple(&self) -> AnyTuple {
            let ports = self.ports;
            match self.onward {
                Onward::V4 { source, destination, .. } => {
                    AnyTuple::V4(TupleV4 { source, destination, ports })
                }
                Onward::V6 { source, destination } => AnyTuple::V6(TupleV6 { source, destination, ports }),
            }
        }
    }

    /// Both addresses as they stand in a packet.
    fn address_bytes<R>(tuple: &AnyTuple, with: impl FnOnce(&[u8]) -> R) -> R {
        let mut bytes = [0; 32];
        let (v4, v6);
        let words: &[u32] = match tuple {
            AnyTuple::V4(tuple) => {
                v4 = [tuple.source, tuple.destination];
                &v4
            }
            AnyTuple::V6(tuple) => {
                let ([a, b, c, d], [e, f, g, h]) = (tuple.source, tuple.destination);
                v6 = [a, b, c, d, e, f, g, h];
                &v6
            }
        };
        for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        with(bytes.get(..4 * words.len()).unwrap_or_default())
    }
}
