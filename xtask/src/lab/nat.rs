//! NAT: what the lab's routers do with addresses and ports, and what they have seen.

use std::net::SocketAddr;

use anyhow::Context as _;

use super::address::Network;
use super::plan::{LabPlan, MappedPorts, NatPlan};
use super::{Lab, Namespace, WAN};
use crate::tool::Tool;

impl Lab {
    pub(super) fn translate(&self, plan: &LabPlan) -> anyhow::Result<()> {
        for (nat, planned) in self.nats.iter().zip(&plan.nats) {
            masquerade(nat, planned)?;
        }
        self.relay_nat.as_ref().map_or(Ok(()), one_to_one)
    }

    /// Packets the NATs' connection tracking found invalid, of both families: a wrong checksum shows here and nowhere
    /// else.
    ///
    /// # Errors
    /// The kernel's statistics cannot be read.
    pub fn invalid_packets_at_nats(&self) -> anyhow::Result<u64> {
        let mut invalid = 0;
        for nat in self.nats.iter().chain(&self.relay_nat) {
            let statistics = nat.run(&Tool::new("cat").arg("/proc/net/stat/nf_conntrack"))?;
            invalid += sum_of_column(&statistics, "invalid").with_context(|| {
                format!("/proc/net/stat/nf_conntrack is in an unknown form: {statistics}")
            })?;
        }
        Ok(invalid)
    }
}

/// Every mapping of both families gets the address of the NAT's outside.
fn masquerade(nat: &Namespace, plan: &NatPlan) -> anyhow::Result<()> {
    let how = match plan.ports {
        MappedPorts::Random => "masquerade fully-random",
        MappedPorts::Kept => "masquerade",
    };
    nat.run(&Tool::new("nft").words("-f -").input(format!(
        "table inet nat {{\nchain postrouting {{\ntype nat hook postrouting priority srcnat\n\
         oifname \"{WAN}\" {how}\n}}\n}}\n"
    )))?;
    if let Some(timeout) = plan.udp_timeout {
        let timeouts = ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"];
        let timeouts = timeouts.map(|name| format!("net/netfilter/{name}"));
        nat.set(&timeouts.each_ref().map(String::as_str), &timeout.as_secs().to_string())?;
    }
    Ok(())
}

/// What comes for the relay's public addresses goes to its private ones, whatever the port, and the reverse.
fn one_to_one(nat: &Namespace) -> anyhow::Result<()> {
    let (public, private) = (Network::RELAY.guest(), Network::RELAY_PRIVATE.guest());
    nat.run(&Tool::new("nft").words("-f -").input(format!(
        "table inet nat {{\n\
         chain prerouting {{\ntype nat hook prerouting priority dstnat\n\
         ip daddr {} dnat ip to {}\nip6 daddr {} dnat ip6 to {}\n}}\n\
         chain postrouting {{\ntype nat hook postrouting priority srcnat\n\
         ip saddr {} snat ip to {}\nip6 saddr {} snat ip6 to {}\n}}\n}}\n",
        public.v4, private.v4, public.v6, private.v6, private.v4, public.v4, private.v6, public.v6
    )))?;
    Ok(())
}

impl Lab {
    /// Makes NAT `number` forget which mapping the datagrams to `relay` have, and give other ports from `first_port` on
    /// to those that come next: what a restarted or overfull home router does.
    ///
    /// # Errors
    /// `nft` or `conntrack` failed.
    pub fn move_mappings(&self, number: usize, first_port: u16, relay: SocketAddr) -> anyhow::Result<()> {
        let nat = self.nats.get(number).context("there is no such NAT")?;
        let last_port = first_port.saturating_add(999);
        nat.run(&Tool::new("nft").words("-f -").input(format!(
            "flush chain inet nat postrouting\n\
             add rule inet nat postrouting oifname \"{WAN}\" meta l4proto udp masquerade to :{first_port}-{last_port}\n"
        )))?;
        self.forget_mappings(number, relay)
    }

    /// Makes NAT `number` forget every UDP mapping towards `relay`.
    ///
    /// # Errors
    /// `conntrack` failed.
    pub fn forget_mappings(&self, number: usize, relay: SocketAddr) -> anyhow::Result<()> {
        let nat = self.nats.get(number).context("there is no such NAT")?;
        let family = if relay.is_ipv4() { "ipv4" } else { "ipv6" };
        let tool = Tool::new("conntrack").words("--delete --proto udp --family").arg(family);
        nat.run(&tool.arg("--orig-dst").arg(relay.ip().to_string()))?;
        Ok(())
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
