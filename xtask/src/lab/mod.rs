//! The lab: a relay and two agents behind NAT, each a network namespace, as on the Internet.
//!
//! ```text
//!  agent 0 ── NAT 0 ──┐                      NAT 0 gives every mapping a random port,
//!  192.168.1.2        │                      NAT 1 keeps the agent's port where it can
//!                  router ── relay 10.9.0.2
//!  192.168.2.2        │       (r0, XDP)
//!  agent 1 ── NAT 1 ──┘
//! ```
//!
//! The router has no route to the private networks, so agents reach each other through the relay or not at all.
//! Dropping a [`Lab`] removes every trace of it; what a killed process left behind is removed when the next lab comes
//! up.

mod host;
pub mod interactive;
mod leftovers;
mod namespace;

pub use host::{Host, Process};
pub use namespace::Namespace;

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, bail};

use crate::syscall;
use crate::tool::Tool;

/// The relay's address in the lab.
pub const RELAY_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);

/// The relay's only interface besides `lo`.
pub const RELAY_INTERFACE: &str = "r0";

/// An agent's only interface besides `lo`.
pub const AGENT_INTERFACE: &str = "e0";

/// What every name in the lab begins with, so that leftovers can be told.
const PREFIX: &str = "atlas-lab-";

/// A running lab.
pub struct Lab {
    /// The relay's host.
    pub relay: Namespace,
    /// The router between the relay and the NATs.
    pub router: Namespace,
    /// The NAT routers: one that draws ports at random, one that keeps them.
    pub nats: [Namespace; 2],
    /// The agents' hosts, each behind the NAT of its number.
    pub agents: [Namespace; 2],
    // After the namespaces: their processes write into it.
    directory: Directory,
}

impl Lab {
    /// Brings up a lab of its own, whatever others are up.
    ///
    /// # Errors
    /// This is not root, or one of `ip`, `nft` and `ethtool` failed. Nothing stays behind then.
    pub fn up() -> anyhow::Result<Self> {
        if !syscall::is_root() {
            bail!("the lab needs root: it creates network namespaces");
        }
        leftovers::remove()?;

        let directory = Directory::create()?;
        let namespace = |role: &str| Namespace::create(&format!("{}-{role}", directory.name));
        let lab = Lab {
            relay: namespace("relay")?,
            router: namespace("router")?,
            nats: [namespace("nat0")?, namespace("nat1")?],
            agents: [namespace("agent0")?, namespace("agent1")?],
            directory,
        };
        lab.wire()?;
        lab.masquerade()?;
        // The router's device hands the relay whole packets with finished checksums, as a wire does: with transmit
        // offload on, the XDP program would see super-frames whose checksums nobody has computed yet. And only with GRO
        // on does veth poll for what the relay redirects to it.
        lab.router.run(&Tool::new("ethtool").words("-K ir tx off gro on"))?;
        Ok(lab)
    }

    /// A folder for files of this lab's processes; it goes with the lab.
    pub fn directory(&self) -> &Path {
        &self.directory.path
    }

    /// Packets the NATs' connection tracking found invalid: a wrong checksum shows here and nowhere else.
    ///
    /// # Errors
    /// The kernel's statistics cannot be read.
    pub fn invalid_packets_at_nats(&self) -> anyhow::Result<u64> {
        let mut invalid = 0;
        for nat in &self.nats {
            let statistics = nat.run(&Tool::new("cat").arg("/proc/net/stat/nf_conntrack"))?;
            invalid += sum_of_column(&statistics, "invalid").with_context(|| {
                format!("/proc/net/stat/nf_conntrack is in an unknown form: {statistics}")
            })?;
        }
        Ok(invalid)
    }

    fn wire(&self) -> anyhow::Result<()> {
        let [nat0, nat1] = &self.nats;
        let [agent0, agent1] = &self.agents;
        for (near, device, address, far, far_device, far_address) in [
            (agent0, AGENT_INTERFACE, "192.168.1.2/24", nat0, "lan", "192.168.1.1/24"),
            (agent1, AGENT_INTERFACE, "192.168.2.2/24", nat1, "lan", "192.168.2.1/24"),
            (nat0, "wan", "10.9.1.2/24", &self.router, "i0", "10.9.1.1/24"),
            (nat1, "wan", "10.9.2.2/24", &self.router, "i1", "10.9.2.1/24"),
            (&self.relay, RELAY_INTERFACE, "10.9.0.2/24", &self.router, "ir", "10.9.0.1/24"),
        ] {
            Tool::new("ip")
                .args(["link", "add", device, "netns", near.name(), "type", "veth"])
                .args(["peer", "name", far_device, "netns", far.name()])
                .output()?;
            for (host, device, address) in [(near, device, address), (far, far_device, far_address)] {
                host.ip(&format!("addr add {address} dev {device}\nlink set {device} up\n"))?;
            }
        }
        for (host, gateway) in [
            (agent0, "192.168.1.1"),
            (agent1, "192.168.2.1"),
            (nat0, "10.9.1.1"),
            (nat1, "10.9.2.1"),
            (&self.relay, "10.9.0.1"),
        ] {
            host.ip(&format!("route add default via {gateway}\n"))?;
        }
        for host in [nat0, nat1, &self.router] {
            host.inside(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1"))?
                .context("cannot switch on forwarding")?;
        }
        Ok(())
    }

    fn masquerade(&self) -> anyhow::Result<()> {
        for (nat, how) in self.nats.iter().zip(["masquerade fully-random", "masquerade"]) {
            let rules = format!(
                "table ip nat {{\nchain postrouting {{\ntype nat hook postrouting priority srcnat\n\
                 oifname \"wan\" {how}\n}}\n}}\n"
            );
            nat.run(&Tool::new("nft").words("-f -").input(rules))?;
        }
        Ok(())
    }
}

/// The lab's folder. Its lock is held as long as the lab lives: a free lock marks a leftover.
struct Directory {
    path: PathBuf,
    name: String,
    _lock: File,
}

impl Directory {
    fn create() -> anyhow::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(&name);
        std::fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let lock = File::create(path.join("lock")).context("cannot create the lab's lock")?;
        lock.try_lock().context("cannot take the lab's lock")?;
        Ok(Directory { path, name, _lock: lock })
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Adds up a column of a statistics file whose first line has the names and whose other lines, one a CPU, have
/// hexadecimal numbers.
fn sum_of_column(statistics: &str, column: &str) -> Option<u64> {
    let mut lines = statistics.lines();
    let position = lines.next()?.split_whitespace().position(|name| name == column)?;
    lines.map(|line| u64::from_str_radix(line.split_whitespace().nth(position)?, 16).ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_is_summed_over_the_cpus() {
        let statistics = "entries  clashres found invalid\n00000002  0 0 0000001f\n00000002  0 0 00000001\n";
        assert_eq!(sum_of_column(statistics, "invalid"), Some(32));
        assert_eq!(sum_of_column(statistics, "missing"), None);
    }
}
