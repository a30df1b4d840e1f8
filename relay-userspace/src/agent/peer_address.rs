//! The made-up address that QUIC between two agents knows the peer by.

use std::net::{Ipv6Addr, SocketAddr};

use crate::identity::NodeId;

/// A unique local address (RFC 4193, `fd00::/8`) that is `fd` and the first 15 bytes of the node id.
///
/// QUIC wants an address for its peer and a server's must not change, while relays, data sockets and NAT mappings may.
/// No packet ever carries this one.
pub fn peer_address(node: &NodeId) -> SocketAddr {
    let mut octets = [0xfd; 16];
    for (octet, byte) in octets.iter_mut().skip(1).zip(node.as_bytes()) {
        *octet = *byte;
    }
    SocketAddr::new(Ipv6Addr::from(octets).into(), PORT)
}

/// QUIC refuses port 0; any other means nothing.
const PORT: u16 = 4433;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_unique_local_and_differ_by_node() {
        let node = NodeId::from_bytes(std::array::from_fn(|i| i as u8 + 1));
        assert_eq!(peer_address(&node).to_string(), "[fd01:203:405:607:809:a0b:c0d:e0f]:4433");
        assert_ne!(peer_address(&node), peer_address(&NodeId::from_bytes([0; 32])));
    }
}
