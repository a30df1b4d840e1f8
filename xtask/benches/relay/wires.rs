//! The network of a measurement: the relay's host, and one that the agents of both sides are on.
//!
//! ```text
//!  agents ── a0 ─────── r0 ── relay       what agents send leaves by a0
//!    │                         │
//!    └────── b0 ─────── r1 ────┘          and arrives by b0, or by a0 where there is one link
//! ```
//!
//! Links are veth pairs, set up to carry what a wire would: whole packets with finished checksums.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::Context as _;
use serde::Deserialize;
use xtask::lab::{Namespace, Site};
use xtask::tool::Tool;

use crate::course::Station;

/// The agents' host's addresses.
pub const AGENTS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 9, 1, 1), Ipv4Addr::new(10, 9, 2, 1)];

/// The relay's.
pub const RELAY: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 9, 1, 2), Ipv4Addr::new(10, 9, 2, 2)];

/// What the agents that send have: the first of a million addresses, and their port.
pub const SENDER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 16, 0, 0), 40000);

/// What their peers have.
pub const RECEIVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 32, 0, 0), 50000);

/// Whether packets leave the relay by the interface that they came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// They do.
    One,
    /// They leave by another.
    Two,
}

/// An interface at the end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Its name.
    pub name: &'static str,
    /// Its index in its namespace.
    pub index: u32,
    /// Its MAC address.
    pub station: Station,
}

/// The two hosts, and the links between them.
pub struct Wires {
    /// How many links there are.
    pub links: Links,
    /// Where agents are.
    pub agents: Namespace,
    /// Where the relay is.
    pub relay: Namespace,
    /// From which what agents send comes, and its other end.
    pub inward: [End; 2],
    /// By which it leaves the relay, and its other end. The same link where there is one.
    pub outward: [End; 2],
}

const INWARD: [(&str, Station); 2] = [("a0", [2, 0, 0, 0, 1, 1]), ("r0", [2, 0, 0, 0, 1, 2])];
const OUTWARD: [(&str, Station); 2] = [("b0", [2, 0, 0, 0, 2, 1]), ("r1", [2, 0, 0, 0, 2, 2])];

impl Wires {
    /// Lays them on `site`, for the measurement `name`.
    ///
    /// # Errors
    /// `ip` or `ethtool` failed.
    pub fn lay(site: &Site, name: &str, links: Links) -> anyhow::Result<Wires> {
        let agents = site.namespace(&format!("{name}agents"))?;
        let relay = site.namespace(&format!("{name}relay"))?;
        for host in [&agents, &relay] {
            // Neither sends anything of its own accord.
            host.set(&["net/ipv6/conf/all/disable_ipv6", "net/ipv6/conf/default/disable_ipv6"], "1")?;
        }
        let inward = lay(&agents, &relay, INWARD, 0)?;
        let outward = match links {
            Links::One => [inward[1], inward[0]],
            Links::Two => {
                let [there, here] = lay(&agents, &relay, OUTWARD, 1)?;
                [here, there]
            }
        };
        let gateway = match links {
            Links::One => AGENTS[0],
            Links::Two => AGENTS[1],
        };
        relay.ip(&format!(
            "route add {}/12 via {}\nroute add {}/12 via {gateway}\n",
            SENDER.ip(),
            AGENTS[0],
            RECEIVER.ip()
        ))?;
        Ok(Wires { links, agents, relay, inward, outward })
    }

    /// Destination and source MAC of frames from senders.
    pub fn to_relay(&self) -> [Station; 2] {
        let [from, to] = self.inward.map(|end| end.station);
        [to, from]
    }

    /// Destination and source MAC of frames to senders.
    pub fn to_sender(&self) -> [Station; 2] {
        self.inward.map(|end| end.station)
    }

    /// Destination and source MAC of frames to receivers.
    pub fn to_receiver(&self) -> [Station; 2] {
        let [from, to] = self.outward.map(|end| end.station);
        [to, from]
    }

    /// What the kernel of the relay's host has counted as `name` of `protocol`.
    ///
    /// # Errors
    /// It counts no such thing.
    pub fn relay_counter(&self, protocol: &str, name: &str) -> anyhow::Result<u64> {
        let counters = self.relay.inside(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))??;
        let mut lines = counters.lines().filter(|line| line.starts_with(&format!("{protocol}: ")));
        let (names, values) =
            lines.next().zip(lines.next()).with_context(|| format!("no counters of {protocol}"))?;
        let mut both = names.split(' ').zip(values.split(' '));
        let (_, value) = both.find(|(of, _)| *of == name).with_context(|| format!("no counter {name}"))?;
        Ok(value.parse()?)
    }
}

/// A link, with addresses at both ends, which know each other.
fn lay(
    agents: &Namespace,
    relay: &Namespace,
    names: [(&'static str, Station); 2],
    number: usize,
) -> anyhow::Result<[End; 2]> {
    let [(near, near_station), (far, far_station)] = names;
    let [near_mac, far_mac] = [near_station, far_station].map(written);
    agents.ip(&format!(
        "link add {near} address {near_mac} type veth peer name {far} address {far_mac} netns {}\n",
        relay.name()
    ))?;
    let ends = [(agents, near, AGENTS[number], far_mac), (relay, far, RELAY[number], near_mac)];
    let others = [RELAY[number], AGENTS[number]];
    for ((host, device, address, other_mac), other) in ends.into_iter().zip(others) {
        host.ip(&format!(
            "addr add {address}/24 dev {device}\nlink set {device} up\n\
             neigh replace {other} lladdr {other_mac} dev {device} nud permanent\n"
        ))?;
        // Without GRO, a veth takes no frames from a generator or a redirect unless a program is attached to it.
        host.run(&Tool::new("ethtool").arg("-K").arg(device).words("tx off gro on"))?;
    }
    let end = |host: &Namespace, name, station| anyhow::Ok(End { name, index: index(host, name)?, station });
    Ok([end(agents, near, near_station)?, end(relay, far, far_station)?])
}

fn index(host: &Namespace, device: &str) -> anyhow::Result<u32> {
    #[derive(Deserialize)]
    struct Link {
        ifindex: u32,
    }
    let links = host.run(&Tool::new("ip").words("-json link show dev").arg(device))?;
    let links: Vec<Link> = serde_json::from_str(&links).context("what ip says of a link")?;
    links.first().map(|link| link.ifindex).with_context(|| format!("no device {device}"))
}

fn written(station: Station) -> String {
    station.map(|byte| format!("{byte:02x}")).join(":")
}
