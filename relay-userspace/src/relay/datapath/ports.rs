//! Which interfaces the XDP program is attached to.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::netlink::Netlink;
use super::program::Port;

/// The interfaces with these names.
///
/// # Errors
/// One does not exist or does not speak Ethernet.
pub fn named(names: &[String]) -> Result<Vec<Port>, PortError> {
    let ports = all(&mut open()?)?;
    let port = |name: &String| {
        ports.iter().find(|port| port.name == *name).cloned().ok_or_else(|| PortError::Unknown {
            name: name.clone(),
            known: ports.iter().map(|port| port.name.clone()).collect(),
        })
    };
    names.iter().map(port).collect()
}

/// The interfaces of the default routes. There may be none.
///
/// # Errors
/// The kernel does not answer.
pub fn towards_the_internet() -> Result<Vec<Port>, PortError> {
    let mut netlink = open()?;
    let mut ports = all(&mut netlink)?;
    // Addresses that are nobody's and so lie behind a default route, if anywhere (RFC 5737, RFC 3849).
    let far: [(IpAddr, IpAddr); 2] = [
        (Ipv4Addr::new(192, 0, 2, 1).into(), Ipv4Addr::UNSPECIFIED.into()),
        (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(), Ipv6Addr::UNSPECIFIED.into()),
    ];
    let mut towards = Vec::new();
    for (to, from) in far {
        towards.extend(netlink.next_hop(to, from).map_err(PortError::Netlink)?.map(|hop| hop.interface));
    }
    ports.retain(|port| towards.contains(&port.index));
    Ok(ports)
}

/// The interfaces are not known.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// There is no such interface.
    #[error("there is no interface {name:?} that speaks Ethernet; there are: {}", .known.join(", "))]
    Unknown {
        /// The name.
        name: String,
        /// Those there are.
        known: Vec<String>,
    },
    /// The kernel does not answer.
    #[error("asking the kernel for interfaces: {0}")]
    Netlink(#[source] io::Error),
}

fn open() -> Result<Netlink, PortError> {
    Netlink::open().map_err(PortError::Netlink)
}

/// Every interface that speaks Ethernet.
fn all(netlink: &mut Netlink) -> Result<Vec<Port>, PortError> {
    let links = netlink.links().map_err(PortError::Netlink)?;
    let port = |link: super::next_hops::Link| {
        Some(Port { station: link.mac?, name: link.name, index: link.index, mtu: link.mtu })
    };
    Ok(links.into_iter().filter_map(port).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_interface_is_named_with_those_there_are() {
        let error = named(&["no-such-if".to_owned()]).unwrap_err();
        assert!(
            error.to_string().starts_with("there is no interface \"no-such-if\" that speaks Ethernet"),
            "{error}"
        );
    }

    #[test]
    fn default_interfaces_have_names_and_indices() {
        assert!(towards_the_internet().unwrap().iter().all(|port| port.index > 0 && !port.name.is_empty()));
    }
}
