//! What changes in the host's network, as the kernel announces it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::future::pending;
use std::io;
use std::net::IpAddr;

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_ROUTE};
use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket};

use super::netlink::{local_address, messages, subject};
use super::next_hops::HopKey;
use super::xdp_features::{XdpFeatures, announced};

/// Multicast groups of rtnetlink (linux/rtnetlink.h): links, neighbours, and of both families addresses, routes, rules.
const GROUPS: [u32; 8] = [1, 3, 5, 7, 8, 9, 11, 19];

/// Room for announcements that wait for us, in bytes.
const QUEUE_BYTES: u32 = 1 << 20;

/// Datagrams of announcements taken together.
const PORTION: usize = 256;

/// What has changed. It says what to look at again and not what it is now: between announcement and reading it may have
/// changed once more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkChange {
    /// Interfaces, by index.
    pub links: BTreeSet<u32>,
    /// Neighbour entries.
    pub neighbours: HashSet<HopKey>,
    /// Some route or routing rule: any destination may have another next hop.
    pub routes: bool,
    /// Some address of this host.
    pub addresses: bool,
    /// Announcements were lost: anything may have changed.
    pub everything: bool,
}

/// The kernel's announcements.
pub struct NetworkEvents {
    network: Listener,
    /// Of drivers' XDP support; none on kernels that do not tell.
    drivers: Option<Listener>,
    addresses: HeardAddresses,
}

impl NetworkEvents {
    /// Subscribes. Whoever reads a state after this and then follows the announcements misses nothing. Must be called
    /// within a tokio runtime.
    ///
    /// # Errors
    /// What socket(2) says.
    pub fn subscribe() -> io::Result<NetworkEvents> {
        let drivers = match XdpFeatures::open()? {
            Some(features) => Some(Listener::open(NETLINK_GENERIC, &[features.announcements()])?),
            None => None,
        };
        let network = Listener::open(NETLINK_ROUTE, &GROUPS)?;
        Ok(NetworkEvents { network, drivers, addresses: HeardAddresses::default() })
    }

    /// Waits for announcements and returns those there are as one change, which may be none that matters. Cancelling
    /// loses none.
    pub async fn next(&mut self) -> NetworkChange {
        let NetworkEvents { network, drivers, addresses } = self;
        let mut change = NetworkChange::default();
        let of_drivers = async {
            match drivers {
                Some(drivers) => drivers.next().await,
                None => pending().await,
            }
        };
        tokio::select! {
            received = network.next() => change.network(received, addresses),
            received = of_drivers => change.drivers(received),
        }
        network.rest(|received| change.network(received, addresses));
        if let Some(drivers) = drivers {
            drivers.rest(|received| change.drivers(received));
        }
        change
    }
}

/// A subscription to groups of one netlink family.
struct Listener {
    socket: TokioSocket,
    buffer: Vec<u8>,
}

impl Listener {
    fn open(protocol: isize, groups: &[u32]) -> io::Result<Listener> {
        let mut socket = TokioSocket::new(protocol)?;
        let inner = socket.socket_mut();
        inner.bind_auto()?;
        inner.set_rx_buf_sz(QUEUE_BYTES)?;
        groups.iter().try_for_each(|group| inner.add_membership(*group))?;
        Ok(Listener { socket, buffer: Vec::with_capacity(64 * 1024) })
    }

    /// The next datagram of announcements.
    async fn next(&mut self) -> io::Result<&[u8]> {
        self.buffer.clear();
        self.socket.recv(&mut self.buffer).await?;
        Ok(&self.buffer)
    }

    /// The datagrams that have come already, up to a bound: a storm is taken in portions.
    fn rest(&mut self, mut take: impl FnMut(io::Result<&[u8]>)) {
        for _ in 0..PORTION {
            self.buffer.clear();
            match self.socket.socket_ref().recv(&mut self.buffer, libc::MSG_DONTWAIT) {
                Ok(_) => take(Ok(&self.buffer)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => take(Err(error)),
            }
        }
    }
}

impl NetworkChange {
    /// Adds what a datagram of drivers says. An error means that announcements were lost (ENOBUFS).
    fn drivers(&mut self, received: io::Result<&[u8]>) {
        match received {
            Ok(bytes) => self.links.extend(announced(bytes)),
            Err(_) => self.everything = true,
        }
    }

    /// As [`NetworkChange::drivers`], of the network.
    fn network(&mut self, received: io::Result<&[u8]>, addresses: &mut HeardAddresses) {
        let Ok(bytes) = received else {
            self.everything = true;
            addresses.forget();
            return;
        };
        for message in messages(bytes) {
            let NetlinkPayload::InnerMessage(message) = message.payload else { continue };
            match message {
                Message::NewLink(link) | Message::DelLink(link) => {
                    self.links.insert(link.header.index);
                }
                Message::NewNeighbour(neighbour) | Message::DelNeighbour(neighbour) => {
                    self.neighbours.extend(subject(&neighbour));
                }
                Message::NewRoute(_) | Message::DelRoute(_) | Message::NewRule(_) | Message::DelRule(_) => {
                    self.routes = true;
                }
                Message::NewAddress(address) => self.addresses |= addresses.hear(&address),
                Message::DelAddress(address) => {
                    addresses.remove(&address);
                    self.addresses = true;
                }
                _ => {}
            }
        }
    }
}

/// The addresses of this host that were announced. An address is announced anew whenever a router's advertisement
/// prolongs its lifetime, on which no route depends.
#[derive(Debug, Default)]
struct HeardAddresses(HashMap<AddressKey, u32>);

/// Interface, address and length of its prefix.
type AddressKey = (u32, IpAddr, u8);

impl HeardAddresses {
    /// Whether this tells something new: the address, or its flags.
    fn hear(&mut self, message: &AddressMessage) -> bool {
        let Some(key) = key(message) else { return true };
        let flags = flags(message);
        self.0.insert(key, flags) != Some(flags)
    }

    fn remove(&mut self, message: &AddressMessage) {
        if let Some(key) = key(message) {
            self.0.remove(&key);
        }
    }

    /// Announcements were lost: any of these may be wrong.
    fn forget(&mut self) {
        self.0.clear();
    }
}

fn key(message: &AddressMessage) -> Option<AddressKey> {
    Some((message.header.index, local_address(message)?, message.header.prefix_len))
}

/// All flags; the header has room for the first eight only.
fn flags(message: &AddressMessage) -> u32 {
    let all = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(flags.bits()),
        _ => None,
    });
    all.unwrap_or_else(|| message.header.flags.bits().into())
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{NetlinkHeader, NetlinkMessage};
    use netlink_packet_route::address::{AddressFlags, CacheInfo};

    use super::*;

    /// A datagram with one announcement: `what` of `address` on interface 2.
    fn announcement(what: fn(AddressMessage) -> Message, address: &str, flags: u32, valid: u32) -> Vec<u8> {
        let mut message = AddressMessage::default();
        message.header.index = 2;
        message.header.prefix_len = 64;
        let mut lifetime = CacheInfo::default();
        lifetime.ifa_valid = valid;
        message.attributes = vec![
            AddressAttribute::Address(address.parse().unwrap()),
            AddressAttribute::CacheInfo(lifetime),
            AddressAttribute::Flags(AddressFlags::from_bits_retain(flags)),
        ];
        let mut message =
            NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(what(message)));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    #[test]
    fn an_address_that_is_announced_again_unchanged_asks_for_nothing() {
        const MANAGED: u32 = 0x100;
        const TENTATIVE: u32 = 0x40;
        let mut addresses = HeardAddresses::default();
        let mut asks = |received: io::Result<&[u8]>| {
            let mut change = NetworkChange::default();
            change.network(received, &mut addresses);
            change.addresses || change.everything
        };
        let mut new =
            |address: &str, flags, valid| asks(Ok(&announcement(Message::NewAddress, address, flags, valid)));
        assert!(new("2001:db8::1", MANAGED | TENTATIVE, 600), "it is new");
        assert!(new("2001:db8::1", MANAGED, 600), "it may be used from now on");
        assert!(!new("2001:db8::1", MANAGED, 900), "it lives longer");
        assert!(new("2001:db8::2", MANAGED, 600), "this one is new");
        assert!(!new("2001:db8::1", MANAGED, 1200));
        assert!(asks(Ok(&announcement(Message::DelAddress, "2001:db8::1", MANAGED, 1200))));
        assert!(asks(Ok(&announcement(Message::NewAddress, "2001:db8::1", MANAGED, 600))), "it is back");
        assert!(!asks(Ok(&announcement(Message::NewAddress, "2001:db8::2", MANAGED, 900))));
        assert!(asks(Err(io::Error::from_raw_os_error(libc::ENOBUFS))));
        assert!(
            asks(Ok(&announcement(Message::NewAddress, "2001:db8::2", MANAGED, 900))),
            "it may have gone and come"
        );
    }
}
