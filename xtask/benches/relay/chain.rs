//! The network of a transfer: sender, relay and receiver in a row, and a link beside them that needs no relay.
//!
//! ```text
//!  sender 10.9.1.1 ── 10.9.1.2 relay 10.9.2.2 ── 10.9.2.1 receiver
//!         10.9.3.1 ─────────────────────────────── 10.9.3.2
//! ```
//!
//! Links are veth pairs as they come, which carry what is to be cut uncut: as hardware does that cuts and merges.

use std::net::{Ipv4Addr, SocketAddr};

use xtask::lab::{Namespace, Site};

/// The relay's port, as the sender sees it.
pub const RELAY: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 9, 1, 2), Ipv4Addr::new(10, 9, 2, 2)];

/// Where the receiver is, seen over the relay and seen directly.
pub const RECEIVER: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 9, 2, 1), Ipv4Addr::new(10, 9, 3, 2)];

/// Where the sender is, to the relay.
pub const SENDER: Ipv4Addr = Ipv4Addr::new(10, 9, 1, 1);

/// More senders: the first of 65,536 addresses that are all the sender's.
pub const SENDERS: Ipv4Addr = Ipv4Addr::new(10, 16, 0, 0);

/// More receivers.
pub const RECEIVERS: Ipv4Addr = Ipv4Addr::new(10, 32, 0, 0);

/// The hosts.
pub struct Chain {
    /// It sends.
    pub sender: Namespace,
    /// It forwards.
    pub relay: Namespace,
    /// It receives.
    pub receiver: Namespace,
}

impl Chain {
    /// Lays the links on `site`.
    ///
    /// # Errors
    /// `ip` failed.
    pub fn lay(site: &Site) -> anyhow::Result<Chain> {
        let sender = site.namespace("sender")?;
        let relay = site.namespace("relay")?;
        let receiver = site.namespace("receiver")?;
        for host in [&sender, &relay, &receiver] {
            // None sends anything of its own accord.
            host.set(&["net/ipv6/conf/all/disable_ipv6", "net/ipv6/conf/default/disable_ipv6"], "1")?;
        }
        link(&sender, &relay, 1)?;
        link(&receiver, &relay, 2)?;
        link(&sender, &receiver, 3)?;
        relay.set(&["net/ipv4/ip_forward"], "1")?;
        sender
            .ip(&format!("route add 10.9.2.0/24 via {}\nroute add local {SENDERS}/16 dev lo\n", RELAY[0]))?;
        receiver.ip(&format!(
            "route add 10.9.1.0/24 via {}\nroute add local {RECEIVERS}/16 dev lo\n",
            RELAY[1]
        ))?;
        relay.ip(&format!(
            "route add {SENDERS}/16 via {SENDER}\nroute add {RECEIVERS}/16 via {}\n",
            RECEIVER[0]
        ))?;
        Ok(Chain { sender, relay, receiver })
    }
}

/// Two ends in the network 10.9.`number`.0, which know each other.
fn link(near: &Namespace, far: &Namespace, number: u8) -> anyhow::Result<()> {
    let station = |end: u8| format!("02:00:00:00:{number:02x}:{end:02x}");
    near.ip(&format!(
        "link add e{number} address {} type veth peer name f{number} address {} netns {}\n",
        station(1),
        station(2),
        far.name()
    ))?;
    for (host, device, own, other) in [(near, "e", 1, 2), (far, "f", 2, 1)] {
        host.ip(&format!(
            "addr add 10.9.{number}.{own}/24 dev {device}{number}\nlink set {device}{number} up\n\
             neigh replace 10.9.{number}.{other} lladdr {} dev {device}{number} nud permanent\n",
            station(other)
        ))?;
    }
    Ok(())
}

/// Address number `number` of those that begin with `first`.
pub fn numbered(first: Ipv4Addr, number: u32, port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::from(u32::from(first) + number).into(), port)
}
