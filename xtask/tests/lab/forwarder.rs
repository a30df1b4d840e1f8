//! What forwards the packets of a world, so that a test can hold for both and tell them apart.

use xtask::lab::Process;

use super::world::{NATIVE, USERSPACE, World};

/// What forwards the packets of a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarder {
    Kernel,
    Daemon,
}

impl Forwarder {
    /// Starts the relay so that this one forwards, under a limit in bytes per second.
    pub fn start_relay(self, world: &World, limit: Option<u64>) -> Process {
        let options = match self {
            Forwarder::Kernel => NATIVE,
            Forwarder::Daemon => USERSPACE,
        };
        world.deployment.start_relay(limit, options).unwrap()
    }

    /// The packets it has counted under `reason`.
    pub fn counted(self, world: &World, reason: &str) -> u64 {
        let status = world.status();
        let counters = match self {
            Forwarder::Kernel => status.kernel,
            Forwarder::Daemon => status.userspace,
        };
        counters.get(reason).copied().unwrap_or(0)
    }

    pub fn other(self) -> Forwarder {
        match self {
            Forwarder::Kernel => Forwarder::Daemon,
            Forwarder::Daemon => Forwarder::Kernel,
        }
    }
}
