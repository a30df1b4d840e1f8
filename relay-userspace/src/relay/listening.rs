//! Where the relay's sockets are open, and why a packet to another address does not reach them.

use std::net::{IpAddr, SocketAddr};

use super::datapath::Netlink;
use super::family::{Family, PerFamily};

/// Where the sockets of the relay's port are open: on every address of the host.
#[derive(Clone, Copy, Debug)]
pub struct Listening(pub PerFamily<SocketAddr>);

impl Listening {
    /// Why no packet to `address` reaches the sockets; none if it does, or if the kernel does not tell.
    pub fn why_not(self, address: SocketAddr) -> Option<String> {
        let own = || Netlink::open().and_then(|mut netlink| netlink.addresses()).ok();
        self.why_not_with(address, own)
    }

    /// Whether it is known that packets to `address` reach the sockets.
    pub fn is_at(self, address: SocketAddr) -> bool {
        let own = || Netlink::open().and_then(|mut netlink| netlink.addresses()).unwrap_or_default();
        self.why_not_with(address, || Some(own())).is_none()
    }

    fn why_not_with(self, address: SocketAddr, own: impl FnOnce() -> Option<Vec<IpAddr>>) -> Option<String> {
        let Some(open) = self.0.get(Family::of(address)) else {
            return Some("it has no socket for IPv6".to_owned());
        };
        if open.port() != address.port() {
            return Some(format!("its port is {}", open.port()));
        }
        let ip = address.ip();
        let is_here = ip.is_loopback() || own().is_none_or(|own| own.contains(&ip));
        (!is_here).then(|| format!("{ip} is none of this host's addresses"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_a_packet_does_not_reach_the_sockets_is_told() {
        let v4 = "0.0.0.0:4433".parse().unwrap();
        let listening = Listening(PerFamily { v4, v6: None });
        let own: Option<Vec<IpAddr>> = Some(vec!["198.51.100.1".parse().unwrap()]);
        let why_not = |to: &str, own: &Option<Vec<IpAddr>>| {
            listening.why_not_with(to.parse().unwrap(), || own.clone()).unwrap_or_default()
        };
        assert_eq!(why_not("198.51.100.1:4433", &own), "");
        assert_eq!(why_not("127.0.0.1:4433", &own), "");
        assert_eq!(why_not("198.51.100.1:443", &own), "its port is 4433");
        assert_eq!(why_not("198.51.100.2:4433", &own), "198.51.100.2 is none of this host's addresses");
        assert_eq!(why_not("198.51.100.2:4433", &None), "", "it cannot be told");
        assert_eq!(why_not("[2001:db8::1]:4433", &own), "it has no socket for IPv6");
    }
}
