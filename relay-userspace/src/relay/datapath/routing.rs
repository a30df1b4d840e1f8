//! Which next hop leads to an agent, by the kernel's routes and neighbours, kept as they are now.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use relay_common::maps::NEXT_HOP_ENTRIES;

use super::flow_table::Routes;
use super::netlink::{NeighbourEntry, Netlink};
use super::network_events::NetworkChange;
use super::next_hops::{Acquired, HopArray, HopId, HopKey, HopTable, Link};
use super::program::Hook;
use super::resolution::resolve;
use super::xdp_features::XdpFeatures;
use crate::clock::MonoTime;
use crate::relay::line_pace::LinePace;

/// The next hops in use, and the connection to the kernel that knows of them.
pub struct NextHops<A> {
    table: HopTable<A>,
    netlink: Netlink,
    features: Option<XdpFeatures>,
    /// Whether it was said that the table is full; once is enough.
    told_full: bool,
    faults: Faults,
}

/// Lines about what the kernel did not say: of routes, interfaces and neighbours.
struct Faults {
    routes: LinePace,
    links: LinePace,
    neighbours: LinePace,
}

/// A way to an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// The gateway's address, or the agent's if it is on the interface's own network.
    pub gateway: IpAddr,
    /// The interface's name.
    pub interface: String,
    /// The gateway's entry in the kernel's neighbour table; none if it has none.
    pub neighbour: Option<NeighbourEntry>,
}

impl<A: HopArray> NextHops<A> {
    /// No next hops yet, in front of `array`. To miss nothing, subscribe to
    /// [`NetworkEvents`](super::NetworkEvents) before.
    ///
    /// # Errors
    /// The kernel cannot be reached over netlink.
    pub fn open(array: A) -> io::Result<NextHops<A>> {
        let capacity = u16::try_from(NEXT_HOP_ENTRIES).unwrap_or(u16::MAX);
        let table = HopTable::new(array, capacity);
        let faults = Faults {
            routes: LinePace::OF_FAULTS,
            links: LinePace::OF_FAULTS,
            neighbours: LinePace::OF_FAULTS,
        };
        let (netlink, features) = (Netlink::open()?, XdpFeatures::open()?);
        Ok(NextHops { table, netlink, features, told_full: false, faults })
    }

    /// Tells which interfaces the program is attached to, by index, and where it runs.
    pub fn set_ingress(&mut self, ingress: BTreeMap<u32, Hook>) {
        self.table.set_ingress(ingress);
    }

    /// The next hop of packets from the relay's address `relay` to `agent`, for one more user; to be given back with
    /// [`NextHops::release`]. If it is not known how to reach it, the hop leaves its packets to userspace, where sending
    /// them makes the kernel find out.
    pub fn hop_for(&mut self, agent: IpAddr, relay: IpAddr) -> HopId {
        let key = match self.netlink.next_hop(agent, relay) {
            Ok(Some(key)) => key,
            Ok(None) => return HopId::USERSPACE,
            Err(error) => {
                self.faults.routes.write(MonoTime::now(), || {
                    tracing::warn!(%agent, %relay, %error, "the kernel did not say by which route an agent is reached");
                });
                return HopId::USERSPACE;
            }
        };
        match self.table.acquire(key) {
            Acquired::Known(id) => id,
            Acquired::New(id) => {
                if !self.table.knows_link(key.interface) {
                    self.read_link(key.interface);
                }
                // A VLAN's frames leave by the interface below it.
                if let Some(below) =
                    self.table.below(key.interface).filter(|below| !self.table.knows_link(*below))
                {
                    self.read_link(below);
                }
                self.read_neighbour(key, true);
                id
            }
            Acquired::Full => {
                if !self.told_full {
                    self.told_full = true;
                    tracing::warn!(
                        hops = NEXT_HOP_ENTRIES,
                        "more next hops than the program can name: sessions by further ones are forwarded in userspace"
                    );
                }
                HopId::USERSPACE
            }
        }
    }

    /// Gives a hop back.
    pub fn release(&mut self, hop: HopId) {
        self.table.release(hop);
    }

    /// Looks again at what has changed. Returns whether routes may have: then every user's hop is to be asked for again.
    pub fn refresh(&mut self, change: &NetworkChange) -> bool {
        let keys: Vec<HopKey> = self.table.keys().collect();
        let links: BTreeSet<u32> = self
            .table
            .links()
            .chain(self.table.ingress())
            .chain(keys.iter().map(|key| key.interface))
            .collect();
        for link in links.into_iter().filter(|link| change.everything || change.links.contains(link)) {
            self.read_link(link);
        }
        for key in keys.into_iter().filter(|key| change.everything || change.neighbours.contains(key)) {
            self.read_neighbour(key, false);
        }
        change.everything || change.routes || change.addresses
    }

    /// The next hops in use.
    pub fn table(&self) -> &HopTable<A> {
        &self.table
    }

    /// What the kernel says of the way from the relay's address `relay` to `agent`, for people; none if it has none.
    ///
    /// # Errors
    /// The kernel cannot be reached.
    pub fn way_to(&mut self, agent: IpAddr, relay: IpAddr) -> io::Result<Option<Way>> {
        let Some(key) = self.netlink.next_hop(agent, relay)? else { return Ok(None) };
        let interface = self.netlink.link(key.interface)?.map(|link| link.name).unwrap_or_default();
        Ok(Some(Way { gateway: key.gateway, interface, neighbour: self.netlink.neighbour_entry(key)? }))
    }

    /// The name of the interface with this index; none if it is gone.
    ///
    /// # Errors
    /// The kernel cannot be reached.
    pub fn interface_name(&mut self, index: u32) -> io::Result<Option<String>> {
        Ok(self.netlink.link(index)?.map(|link| link.name))
    }

    fn read_link(&mut self, index: u32) {
        let link = self.link(index).unwrap_or_else(|error| {
            self.faults.links.write(MonoTime::now(), || {
                tracing::warn!(index, %error, "the kernel did not describe an interface: it is not forwarded to");
            });
            None
        });
        self.table.set_link(index, link);
    }

    fn link(&mut self, index: u32) -> io::Result<Option<Link>> {
        let Some(mut link) = self.netlink.link(index)? else { return Ok(None) };
        if let Some(features) = &mut self.features {
            link.takes_redirects = features.takes_redirects(index)?;
        }
        Ok(Some(link))
    }

    /// The kernel looks after a neighbour only while somebody uses its entry, which the program does unseen. So a stale
    /// one in use is asked after, and an unknown one asked for, if `is_new`: later the forwarder's own sending does that.
    fn read_neighbour(&mut self, key: HopKey, is_new: bool) {
        let known = self.netlink.neighbour(key).unwrap_or_else(|error| {
            self.faults.neighbours.write(MonoTime::now(), || {
                tracing::warn!(gateway = %key.gateway, %error, "the kernel did not describe a neighbour");
            });
            None
        });
        self.table.set_neighbour(key, known.map(|known| known.neighbour));
        if known.map_or(is_new, |known| known.stale)
            && let Err(error) = resolve(key)
        {
            tracing::debug!(gateway = %key.gateway, %error, "the kernel was not made to look for a neighbour");
        }
    }
}

impl<A: HopArray> Routes for NextHops<A> {
    fn hop_for(&mut self, agent: IpAddr, relay: IpAddr) -> u16 {
        NextHops::hop_for(self, agent, relay).0
    }

    fn release(&mut self, hop: u16) {
        NextHops::release(self, HopId(hop));
    }

    fn hold(&mut self, users: &BTreeMap<u16, u32>) {
        self.table.hold(users.iter().map(|(hop, users)| (HopId(*hop), *users)));
    }
}
