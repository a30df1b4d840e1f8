//! What peers may do here at present.

use crate::config::{Allow, ForwardProtocol, HostPort};
use crate::identity::NodeId;

/// `[agent] accept` and `[[agent.allow]]`. Whoever is not named may do nothing.
#[derive(Clone, Debug, Default)]
pub struct Permitted {
    /// Who may connect and send messages.
    pub accept: Vec<NodeId>,
    /// What they may reach through this agent.
    pub allow: Vec<Allow>,
}

impl Permitted {
    /// Whether `peer` may connect and send messages.
    pub fn accepts(&self, peer: NodeId) -> bool {
        self.accept.contains(&peer)
    }

    /// Whether `peer` may reach `to` through this agent.
    pub fn allows(&self, peer: NodeId, protocol: ForwardProtocol, to: &HostPort) -> bool {
        self.allow.iter().any(|rule| rule.peer == peer && rule.protocol == protocol && rule.to == *to)
    }
}
