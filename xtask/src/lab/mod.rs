//! The lab: a relay and agents behind NAT, each a network namespace, as on the Internet. Every link carries IPv4 and
//! IPv6, and NATs translate both.
//!
//! ```text
//!  agent 0 ── NAT 0 ──┐                      NAT 0 gives every mapping a random port,
//!  192.168.1.2        │                      NAT 1 keeps the agent's port where it can
//!                  router ── relay 10.9.0.2, 2001:db8:9::2
//!  192.168.2.2        │       (r0, XDP)
//!  agent 1 ── NAT 1 ──┘
//! ```
//!
//! This is the default [`LabPlan`]; others have the agents behind one NAT or behind two, the relay behind one of its own
//! or on two uplinks, another relay, and other MTUs. The router has no route to the private networks, so agents of different NATs reach
//! each other through the relay or not at all.
//!
//! Dropping a [`Lab`] removes every trace of it; what a killed process left behind is removed when the next lab comes
//! up.

mod address;
pub mod delay;
mod host;
pub mod interactive;
mod leftovers;
mod mount;
mod namespace;
mod nat;
mod plan;
mod site;
mod wiring;

pub use address::{AddressPair, Family};
pub use host::{Host, Process};
pub use mount::Mount;
pub use namespace::Namespace;
pub use plan::{LabPlan, MappedPorts, NatPlan, RelayPlan};
pub use site::Site;

use std::path::Path;

use address::Network;
use delay::DelayLine;

/// Where the relay is reached.
pub const RELAY_ADDRESSES: AddressPair = Network::RELAY.guest();

/// Where it is reached over its second interface, if it has one.
pub const RELAY_SECOND_ADDRESSES: AddressPair = Network::RELAY_SECOND.guest();

/// Where the other relay is reached, if there is one.
pub const OTHER_RELAY_ADDRESSES: AddressPair = Network::OTHER_RELAY.guest();

/// The relay's gateways: the router, on the first and the second interface.
pub const RELAY_GATEWAYS: [AddressPair; 2] = [Network::RELAY.gateway(), Network::RELAY_SECOND.gateway()];

/// The relay's first interface besides `lo`; the other relay's too.
pub const RELAY_INTERFACE: &str = "r0";

/// The relay's second interface, if it has one.
pub const RELAY_SECOND_INTERFACE: &str = "r1";

/// The router's device towards the relay's first interface.
pub const RELAY_GATEWAY_DEVICE: &str = "ir";

/// The router's device towards the relay's second interface.
pub const RELAY_SECOND_GATEWAY_DEVICE: &str = "ir1";

/// The router's device towards the other relay.
pub const OTHER_RELAY_GATEWAY_DEVICE: &str = "io";

/// An agent's only interface besides `lo`.
pub const AGENT_INTERFACE: &str = "e0";

/// A NAT's device towards the relay.
const WAN: &str = "wan";

/// What every name in the lab begins with, so that leftovers can be told.
const PREFIX: &str = "atlas-lab-";

/// A running lab.
pub struct Lab {
    /// The delay lines, in the order of the NATs that are at their ends.
    pub lines: Vec<DelayLine>,
    /// The relay's host.
    pub relay: Namespace,
    /// The other relay's host, if there is one.
    pub other_relay: Option<Namespace>,
    /// The relay's own NAT, if it is behind one.
    pub relay_nat: Option<Namespace>,
    /// The router between the relay and the NATs.
    pub router: Namespace,
    /// The NAT routers, as planned.
    pub nats: Vec<Namespace>,
    /// The agents' hosts, as planned.
    pub agents: Vec<Namespace>,
    // After the namespaces: their processes write into its folder.
    site: Site,
}

impl Lab {
    /// Brings up the default lab.
    ///
    /// # Errors
    /// As for [`Lab::planned`].
    pub fn up() -> anyhow::Result<Self> {
        Lab::planned(&LabPlan::default())
    }

    /// Brings up a lab of its own, whatever others are up.
    ///
    /// # Errors
    /// This is not root, or one of `ip`, `nft` and `ethtool` failed. Nothing stays behind then.
    pub fn planned(plan: &LabPlan) -> anyhow::Result<Self> {
        let site = Site::prepare()?;
        let namespace = |role: &str| site.namespace(role);
        let numbered = |role: &str, count: usize| {
            (0..count).map(|number| namespace(&format!("{role}{number}"))).collect::<anyhow::Result<Vec<_>>>()
        };
        let has_nat = plan.relay == RelayPlan::BehindOneToOneNat;
        let mut lab = Lab {
            lines: Vec::new(),
            relay: namespace("relay")?,
            other_relay: plan.other_relay.then(|| namespace("other")).transpose()?,
            relay_nat: has_nat.then(|| namespace("cloud")).transpose()?,
            router: namespace("router")?,
            nats: numbered("nat", plan.nats.len())?,
            agents: numbered("agent", plan.agents.len())?,
            site,
        };
        lab.lines = lab.wire(plan)?;
        lab.translate(plan)?;
        Ok(lab)
    }

    /// A folder for files of this lab's processes; it goes with the lab.
    pub fn directory(&self) -> &Path {
        self.site.directory()
    }
}
