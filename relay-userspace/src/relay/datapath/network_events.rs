//! What changes in the host's network, as the kernel announces it.

use std::collections::{BTreeSet, HashSet};
use std::future::pending;
use std::io;

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_ROUTE};
use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket};

use super::netlink::{messages, subject};
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
        Ok(NetworkEvents { network: Listener::open(NETLINK_ROUTE, &GROUPS)?, drivers })
    }

    /// Waits for announcements and returns those there are as one change. Cancelling loses none.
    pub async fn next(&mut self) -> NetworkChange {
        let mut change = NetworkChange::default();
        let drivers = async {
            match &mut self.drivers {
                Some(drivers) => drivers.next().await,
                None => pending().await,
            }
        };
        tokio::select! {
            network = self.network.next() => change.take(network, NetworkChange::network),
            drivers = drivers => change.take(drivers, NetworkChange::drivers),
        }
        self.network.rest(|more| change.take(more, NetworkChange::network));
        if let Some(drivers) = &mut self.drivers {
            drivers.rest(|more| change.take(more, NetworkChange::drivers));
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
    /// Adds what `read` finds in a datagram. An error means that announcements were lost (ENOBUFS).
    fn take(&mut self, received: io::Result<&[u8]>, read: fn(&mut NetworkChange, &[u8])) {
        match received {
            Ok(bytes) => read(self, bytes),
            Err(_) => self.everything = true,
        }
    }

    fn drivers(&mut self, bytes: &[u8]) {
        self.links.extend(announced(bytes));
    }

    fn network(&mut self, bytes: &[u8]) {
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
                Message::NewAddress(_) | Message::DelAddress(_) => self.addresses = true,
                _ => {}
            }
        }
    }
}
