//! How many there are of what the rendezvous has, and what the limits of all sessions have dropped.

use super::Rendezvous;
use crate::relay::datapath::Traffic;

/// Numbers for metrics. None takes a walk over what it counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Control connections.
    pub connections: usize,
    /// Agents that are announced.
    pub announced: u32,
    /// Sessions and offers of agents that bind.
    pub sessions_and_offers: usize,
    /// Pairings of two streams.
    pub spliced: usize,
    /// What the limits have dropped since the daemon's start.
    pub restrained: Restrained,
}

/// What a limit has dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restrained {
    /// Packets it dropped.
    pub limited_packets: u64,
    /// Their UDP payload bytes.
    pub limited_bytes: u64,
}

impl Restrained {
    /// What `traffic` says of it.
    pub(super) fn of(traffic: &Traffic) -> Restrained {
        let Traffic { limited_packets, limited_bytes, .. } = *traffic;
        Restrained { limited_packets, limited_bytes }
    }

    /// What has come since `before`.
    pub(super) fn since(self, before: Restrained) -> Restrained {
        Restrained {
            limited_packets: self.limited_packets.saturating_sub(before.limited_packets),
            limited_bytes: self.limited_bytes.saturating_sub(before.limited_bytes),
        }
    }

    pub(super) fn add(&mut self, more: Restrained) {
        self.limited_packets = self.limited_packets.saturating_add(more.limited_packets);
        self.limited_bytes = self.limited_bytes.saturating_add(more.limited_bytes);
    }
}

impl Rendezvous {
    /// How many there are of everything.
    pub fn counts(&self) -> Counts {
        Counts {
            connections: self.agents.count(),
            announced: self.nodes.announced(),
            sessions_and_offers: self.sessions.total(),
            spliced: self.splices.total(),
            restrained: self.restrained,
        }
    }
}
