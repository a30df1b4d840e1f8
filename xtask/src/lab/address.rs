//! The lab's networks and who has which address there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// An interface's addresses, one of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressPair {
    /// IPv4, in a network of 24 bits.
    pub v4: Ipv4Addr,
    /// IPv6, in a network of 64 bits.
    pub v6: Ipv6Addr,
}

impl AddressPair {
    /// The one of `family`.
    pub const fn of(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => IpAddr::V4(self.v4),
            Family::V6 => IpAddr::V6(self.v6),
        }
    }
}

/// The network between two hosts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Network {
    v4: [u8; 3],
    v6: [u16; 4],
}

impl Network {
    /// The relay's, on the Internet.
    pub const RELAY: Network = Network::on_internet(0);

    /// That of the relay's second interface.
    pub const RELAY_SECOND: Network = Network::on_internet(100);

    /// The other relay's.
    pub const OTHER_RELAY: Network = Network::on_internet(101);

    /// The relay's behind a one to one NAT.
    pub const RELAY_PRIVATE: Network = Network { v4: [172, 16, 0], v6: [0xfd09, 0x172, 0, 0] };

    /// Before NAT `number`.
    pub const fn of_nat(number: usize) -> Network {
        Network::on_internet(number as u8 + 1)
    }

    /// Between agent `number` and its NAT.
    pub const fn of_agent(number: usize) -> Network {
        let number = number as u8 + 1;
        Network { v4: [192, 168, number], v6: [0xfd09, 0x192, 0x168, number as u16] }
    }

    const fn on_internet(number: u8) -> Network {
        Network { v4: [10, 9, number], v6: [0x2001, 0xdb8, 9, number as u16] }
    }

    /// The addresses of the end nearer to the relay.
    pub const fn gateway(self) -> AddressPair {
        self.host(1)
    }

    /// The addresses of the other end.
    pub const fn guest(self) -> AddressPair {
        self.host(2)
    }

    const fn host(self, number: u8) -> AddressPair {
        let [a, b, c] = self.v4;
        let [s, t, u, v] = self.v6;
        AddressPair {
            v4: Ipv4Addr::new(a, b, c, number),
            v6: Ipv6Addr::new(s, t, u, v, 0, 0, 0, number as u16),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_number_networks_and_hosts_alike() {
        let nat = Network::of_nat(1).guest();
        assert_eq!(nat.of(Family::V4), IpAddr::from([10, 9, 2, 2]));
        assert_eq!(nat.of(Family::V6), "2001:db8:9:2::2".parse::<IpAddr>().unwrap());
        assert_eq!(Network::of_agent(0).gateway().v4, Ipv4Addr::new(192, 168, 1, 1));
        assert!(Network::of_agent(0).gateway().v6.is_unique_local());
    }
}
