//! What a lab is to be like.

use std::time::Duration;

use super::delay::Conditions;

/// A lab to be brought up. The default is the one in the picture of [`super`].
#[derive(Clone, Debug)]
pub struct LabPlan {
    /// The NAT routers.
    pub nats: Vec<NatPlan>,
    /// The agents: for each the number of the NAT that it is behind.
    pub agents: Vec<usize>,
    /// How the relay is connected.
    pub relay: RelayPlan,
    /// Whether there is a host for another relay, with public addresses.
    pub other_relay: bool,
    /// The largest IP packet of every link but the relay's.
    pub mtu: u32,
    /// The largest IP packet of the relay's links.
    pub relay_mtu: u32,
}

/// A NAT router.
#[derive(Clone, Debug)]
pub struct NatPlan {
    /// Which port a mapping gets.
    pub ports: MappedPorts,
    /// The number of the NAT that this one is behind; none: it is on the Internet.
    pub behind: Option<usize>,
    /// How long a UDP mapping lives without a packet; none: as long as the system has it.
    pub udp_timeout: Option<Duration>,
    /// What its line to the Internet, or to the NAT that it is behind, does to packets in each direction; none: nothing.
    pub line: Option<Conditions>,
}

/// Which port a NAT gives to a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MappedPorts {
    /// A random one.
    Random,
    /// The agent's own, where that is free.
    Kept,
}

/// How the relay is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayPlan {
    /// By one interface with public addresses.
    Public,
    /// By two, each with public addresses of its own. Its default route leads over the first.
    TwoUplinks,
    /// It has private addresses only, and its router translates them to public ones and back, one to one, as clouds do.
    BehindOneToOneNat,
}

impl NatPlan {
    /// A NAT on the Internet.
    pub const fn on_internet(ports: MappedPorts) -> Self {
        NatPlan { ports, behind: None, udp_timeout: None, line: None }
    }
}

impl LabPlan {
    /// What fits into an Ethernet frame.
    pub const ETHERNET_MTU: u32 = 1500;

    /// Every link, the relay's too, carries IP packets of at most `mtu` bytes.
    pub fn with_mtu(mtu: u32) -> Self {
        LabPlan { mtu, relay_mtu: mtu, ..LabPlan::default() }
    }

    /// Agent 1 is at the end of a line that does this to packets in each direction.
    pub fn over_a_line(line: Conditions) -> Self {
        let mut plan = LabPlan::default();
        if let Some(nat) = plan.nats.get_mut(1) {
            nat.line = Some(line);
        }
        plan
    }

    /// Both agents are behind one NAT, which draws ports at random.
    pub fn behind_one_nat() -> Self {
        LabPlan {
            nats: vec![NatPlan::on_internet(MappedPorts::Random)],
            agents: vec![0, 0],
            ..LabPlan::default()
        }
    }

    /// The agents' NATs are themselves behind one: their provider's.
    pub fn behind_two_nats() -> Self {
        let behind = Some(2);
        let home = |ports| NatPlan { behind, ..NatPlan::on_internet(ports) };
        LabPlan {
            nats: vec![
                home(MappedPorts::Random),
                home(MappedPorts::Kept),
                NatPlan::on_internet(MappedPorts::Random),
            ],
            ..LabPlan::default()
        }
    }
}

impl Default for LabPlan {
    fn default() -> Self {
        LabPlan {
            nats: vec![NatPlan::on_internet(MappedPorts::Random), NatPlan::on_internet(MappedPorts::Kept)],
            agents: vec![0, 1],
            relay: RelayPlan::Public,
            other_relay: false,
            mtu: LabPlan::ETHERNET_MTU,
            relay_mtu: LabPlan::ETHERNET_MTU,
        }
    }
}
