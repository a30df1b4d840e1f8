//! The cables of a lab: links, addresses, routes, forwarding.

use anyhow::Context as _;

use super::address::{AddressPair, Network};
use super::delay::DelayLine;
use super::plan::{LabPlan, RelayPlan};
use super::{
    AGENT_INTERFACE, Lab, Namespace, OTHER_RELAY_GATEWAY_DEVICE, RELAY_GATEWAY_DEVICE, RELAY_INTERFACE,
    RELAY_SECOND_GATEWAY_DEVICE, RELAY_SECOND_INTERFACE, WAN,
};
use crate::tool::Tool;

impl Lab {
    /// Lays everything; what takes time on the way is given back, to be kept.
    pub(super) fn wire(&self, plan: &LabPlan) -> anyhow::Result<Vec<DelayLine>> {
        let hosts = self.agents.iter().chain(&self.nats).chain([&self.relay, &self.router]);
        for host in hosts.chain(&self.other_relay).chain(&self.relay_nat) {
            have_addresses_at_once(host)?;
        }
        for (number, (agent, nat)) in self.agents.iter().zip(&plan.agents).enumerate() {
            let inside = self.nats.get(*nat).context("an agent is behind a NAT that is not planned")?;
            let network = Network::of_agent(number);
            connect(
                &End { host: agent, device: AGENT_INTERFACE, addresses: network.guest() },
                &End { host: inside, device: &format!("lan{number}"), addresses: network.gateway() },
                plan.mtu,
            )?;
        }
        let mut lines = Vec::new();
        for (number, (nat, planned)) in self.nats.iter().zip(&plan.nats).enumerate() {
            let outside = match planned.behind {
                Some(outer) => self.nats.get(outer).context("a NAT is behind one that is not planned")?,
                None => &self.router,
            };
            let network = Network::of_nat(number);
            let near = End { host: nat, device: WAN, addresses: network.guest() };
            let far = End { host: outside, device: &format!("i{number}"), addresses: network.gateway() };
            match planned.line {
                None => connect(&near, &far, plan.mtu)?,
                Some(conditions) => {
                    let ends = [(nat, WAN), (outside, far.device)];
                    lines.push(DelayLine::lay(ends, plan.mtu, [conditions; 2], number as u64)?);
                    address(&near, &far)?;
                }
            }
        }
        self.wire_relay(plan)?;
        if let Some(host) = &self.other_relay {
            let near = End { host, device: RELAY_INTERFACE, addresses: Network::OTHER_RELAY.guest() };
            let gateway = Network::OTHER_RELAY.gateway();
            let there = End { host: &self.router, device: OTHER_RELAY_GATEWAY_DEVICE, addresses: gateway };
            connect(&near, &there, plan.relay_mtu)?;
            like_a_wire(&there)?;
        }
        for host in self.nats.iter().chain([&self.router]).chain(&self.relay_nat) {
            forward(host)?;
        }
        Ok(lines)
    }

    fn wire_relay(&self, plan: &LabPlan) -> anyhow::Result<()> {
        let relay = |device, network: Network| End { host: &self.relay, device, addresses: network.guest() };
        let gateway = |host, device, network: Network| End { host, device, addresses: network.gateway() };
        if plan.relay == RelayPlan::TwoUplinks {
            // First: the default route is the one that comes last.
            let there = gateway(&self.router, RELAY_SECOND_GATEWAY_DEVICE, Network::RELAY_SECOND);
            connect(&relay(RELAY_SECOND_INTERFACE, Network::RELAY_SECOND), &there, plan.relay_mtu)?;
            like_a_wire(&there)?;
        }
        let (near, there) = match &self.relay_nat {
            None => (
                relay(RELAY_INTERFACE, Network::RELAY),
                gateway(&self.router, RELAY_GATEWAY_DEVICE, Network::RELAY),
            ),
            Some(nat) => {
                connect(
                    &End { host: nat, device: WAN, addresses: Network::RELAY.guest() },
                    &gateway(&self.router, RELAY_GATEWAY_DEVICE, Network::RELAY),
                    plan.mtu,
                )?;
                (relay(RELAY_INTERFACE, Network::RELAY_PRIVATE), gateway(nat, "lan", Network::RELAY_PRIVATE))
            }
        };
        connect(&near, &there, plan.relay_mtu)?;
        like_a_wire(&there)
    }
}

/// One end of a link.
struct End<'a> {
    host: &'a Namespace,
    device: &'a str,
    addresses: AddressPair,
}

/// Lays a link. The default route of `near` leads over it.
fn connect(near: &End, far: &End, mtu: u32) -> anyhow::Result<()> {
    Tool::new("ip")
        .args([
            "link",
            "add",
            near.device,
            "mtu",
            &mtu.to_string(),
            "netns",
            near.host.name(),
            "type",
            "veth",
        ])
        .args(["peer", "name", far.device, "mtu", &mtu.to_string(), "netns", far.host.name()])
        .output()?;
    address(near, far)
}

/// Gives both ends of a link their addresses. The default route of `near` leads over it.
fn address(near: &End, far: &End) -> anyhow::Result<()> {
    let up = |end: &End| {
        let (device, AddressPair { v4, v6 }) = (end.device, end.addresses);
        format!("addr add {v4}/24 dev {device}\naddr add {v6}/64 dev {device}\nlink set {device} up\n")
    };
    far.host.ip(&up(far))?;
    let AddressPair { v4, v6 } = far.addresses;
    near.host.ip(&format!("{}route replace 0.0.0.0/0 via {v4}\nroute replace ::/0 via {v6}\n", up(near)))
}

/// Makes a device that faces the relay hand over whole packets with finished checksums, as a wire does: with transmit
/// offload on, the XDP program would see super-frames whose checksums nobody has computed yet. And only with GRO on does
/// veth poll for what the relay redirects to it.
fn like_a_wire(end: &End) -> anyhow::Result<()> {
    end.host.run(&Tool::new("ethtool").arg("-K").arg(end.device).words("tx off gro on"))?;
    Ok(())
}

/// Makes IPv6 addresses usable without asking first, for a second, whether somebody has them.
fn have_addresses_at_once(host: &Namespace) -> anyhow::Result<()> {
    host.set(&["net/ipv6/conf/all/accept_dad", "net/ipv6/conf/default/accept_dad"], "0")
}

fn forward(host: &Namespace) -> anyhow::Result<()> {
    host.set(&["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"], "1")
}
