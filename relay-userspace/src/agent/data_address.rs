//! Where a session's datagrams go: what a relay may name as its data address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The first of the `named` addresses that is sound, or else the one that the relay was `reached` at.
///
/// A relay must not have the agent send into networks that only the agent can reach: a loopback, private or link-local
/// address is sound only if the relay itself was reached at one of the same kind.
pub fn data_address(named: &[SocketAddr], reached: SocketAddr) -> SocketAddr {
    let mut of_family = named.iter().copied().filter(|at| at.is_ipv4() == reached.is_ipv4());
    of_family.find(|at| is_sound(*at, reached)).unwrap_or(reached)
}

/// Whether a relay that was `reached` there may name this address.
pub fn is_sound(named: SocketAddr, reached: SocketAddr) -> bool {
    match Scope::of(named.ip()) {
        _ if named.port() == 0 => false,
        Scope::Nobody => false,
        Scope::Public => true,
        scope => scope == Scope::of(reached.ip()),
    }
}

/// From where an address can be reached (RFC 6890).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// From this host.
    Loopback,
    /// From this link.
    Link,
    /// From this organisation, or this provider (RFC 6598).
    Private,
    /// From everywhere, as far as one can tell.
    Public,
    /// Not one host's address.
    Nobody,
}

impl Scope {
    fn of(address: IpAddr) -> Scope {
        match address.to_canonical() {
            IpAddr::V4(address) => Scope::of_v4(address),
            IpAddr::V6(address) => Scope::of_v6(address),
        }
    }

    fn of_v4(address: Ipv4Addr) -> Scope {
        let [first, second, ..] = address.octets();
        match address {
            _ if first == 0 || address.is_multicast() || address.is_broadcast() => Scope::Nobody,
            _ if address.is_loopback() => Scope::Loopback,
            _ if address.is_link_local() => Scope::Link,
            _ if address.is_private() || (first == 100 && second & 0xc0 == 64) => Scope::Private,
            _ => Scope::Public,
        }
    }

    fn of_v6(address: Ipv6Addr) -> Scope {
        match address {
            _ if address.is_unspecified() || address.is_multicast() => Scope::Nobody,
            _ if address.is_loopback() => Scope::Loopback,
            _ if address.is_unicast_link_local() => Scope::Link,
            _ if address.is_unique_local() => Scope::Private,
            _ => Scope::Public,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_address_of_the_family_in_use_is_taken() {
        let named = ["[2001:db8::9]:4433", "192.0.2.9:4433", "192.0.2.10:4433"].map(at);
        assert_eq!(data_address(&named, at("198.51.100.1:443")), at("192.0.2.9:4433"));
        assert_eq!(data_address(&named, at("[2001:db8::1]:443")), at("[2001:db8::9]:4433"));
        assert_eq!(data_address(&[], at("198.51.100.1:443")), at("198.51.100.1:443"));
    }

    #[test]
    fn a_relay_out_there_cannot_point_into_the_agents_networks_nor_at_nobody() {
        let named = [
            "127.0.0.1:53",
            "10.0.0.1:53",
            "172.16.0.1:53",
            "192.168.0.1:53",
            "100.64.0.1:53",
            "169.254.169.254:80",
            "0.0.0.0:53",
            "0.1.2.3:53",
            "224.0.0.251:5353",
            "255.255.255.255:9",
            "192.0.2.9:0",
        ];
        for name in named {
            assert_eq!(data_address(&[at(name)], at("198.51.100.1:443")), at("198.51.100.1:443"), "{name}");
        }
        let named = [
            "[::1]:53",
            "[fe80::1]:53",
            "[fd00::1]:53",
            "[::]:53",
            "[ff02::fb]:5353",
            "[::ffff:127.0.0.1]:53",
            "[::ffff:10.0.0.1]:53",
            "[2001:db8::9]:0",
        ];
        for name in named {
            assert_eq!(data_address(&[at(name)], at("[2001:db8::1]:443")), at("[2001:db8::1]:443"), "{name}");
        }
        let named = ["10.0.0.1:53", "192.0.2.9:4433"].map(at);
        assert_eq!(
            data_address(&named, at("198.51.100.1:443")),
            at("192.0.2.9:4433"),
            "the next is looked at"
        );
    }

    #[test]
    fn a_relay_in_such_a_network_names_addresses_there() {
        let pairs = [
            ("127.0.0.1:443", "127.0.0.1:4433"),
            ("10.1.0.1:443", "192.168.0.1:4433"),
            ("169.254.0.1:443", "169.254.0.2:4433"),
            ("[::1]:443", "[::1]:4433"),
            ("[fd00::1]:443", "[fd01::1]:4433"),
            ("10.1.0.1:443", "192.0.2.9:4433"),
        ];
        for (reached, named) in pairs {
            assert_eq!(data_address(&[at(named)], at(reached)), at(named));
        }
        assert_eq!(data_address(&[at("127.0.0.1:53")], at("10.1.0.1:443")), at("10.1.0.1:443"));
    }

    fn at(address: &str) -> SocketAddr {
        address.parse().unwrap()
    }
}
