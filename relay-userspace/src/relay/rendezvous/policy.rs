//! What the operator decides and may change while the relay runs: who may use it, and how much of it.

use std::collections::BTreeSet;

use super::nodes::NodeNumber;
use super::{EndReason, Event, Rendezvous};
use crate::clock::MonoTime;
use crate::identity::NodeId;
use crate::protocol::flow_terms::{Disconnect, disconnect_reason};
use crate::relay::datapath::Flows;

/// Who may use the relay, and how much of it. What is more than a new policy permits stays until it ends by itself; only
/// nodes that may not be here any more go at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Who may be here at all.
    pub access: Access,
    /// Agents that may be announced at once.
    pub announced_agents: u32,
    /// Offers a node may have open as connector.
    pub offers_per_source: u32,
    /// Offers a node may have open as target. One more takes the place of one whose connector has not bound yet. It is also
    /// how many new ones a target is told of in a second, and as many again at once.
    pub offers_per_target: u32,
    /// Sessions and offers a node may have, on whichever side: [`MOST_SESSIONS_PER_NODE`] at most. It also bounds what one
    /// input makes us tell one agent.
    pub sessions_per_node: u32,
    /// Sessions and offers that the nodes of one prefix may have asked for.
    pub sessions_per_prefix: u32,
    /// UDP payload bytes per second, of all sessions together: above it no new session begins. 0: unlimited.
    pub relay_total_limit: u64,
}

/// No policy permits a node more sessions and offers than this.
pub const MOST_SESSIONS_PER_NODE: u32 = 4096;

/// Who may use the relay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Only these; empty: anyone.
    pub allow: BTreeSet<NodeId>,
    /// Not these, even if they are allowed.
    pub deny: BTreeSet<NodeId>,
}

impl Access {
    /// Whether `node` may use the relay.
    pub fn permits(&self, node: &NodeId) -> bool {
        (self.allow.is_empty() || self.allow.contains(node)) && !self.deny.contains(node)
    }
}

impl Default for Policy {
    /// What the configuration says unless it says otherwise.
    fn default() -> Policy {
        Policy {
            access: Access::default(),
            announced_agents: 200,
            offers_per_source: 8,
            offers_per_target: 32,
            sessions_per_node: 64,
            sessions_per_prefix: 256,
            relay_total_limit: 0,
        }
    }
}

impl Rendezvous {
    /// Another policy from now on. Nodes that it does not permit any more are told so, and their sessions end.
    pub fn set_policy(&mut self, policy: Policy, flows: &mut impl Flows, now: MonoTime) {
        self.most_sessions_per_node = self.most_sessions_per_node.max(policy.sessions_per_node);
        let access_changed = self.settings.policy.access != policy.access;
        self.settings.policy = policy;
        if access_changed {
            for node in self.nodes.not_permitted(&self.settings.policy.access) {
                self.turn_out(node, flows, now);
            }
        }
    }

    /// Offers that a target may have open.
    pub(super) fn most_offers_of_target(&self) -> u32 {
        let Policy { offers_per_target, sessions_per_node, .. } = self.settings.policy;
        offers_per_target.min(sessions_per_node)
    }

    /// Messages that may wait for one agent. One input makes us say at most a few things about each of its sessions: that
    /// alone does not reach it.
    pub fn most_waiting(&self) -> usize {
        let sessions = self.most_sessions_per_node.min(MOST_SESSIONS_PER_NODE) as usize;
        (4 * sessions).max(LEAST_WAITING)
    }

    /// Ends all that a node has here.
    fn turn_out(&mut self, number: NodeNumber, flows: &mut impl Flows, now: MonoTime) {
        let Some(node) = self.nodes.get(number).map(|node| node.id) else { return };
        // Without sessions and connections it is not known any more.
        let conns = self.nodes.connections(&node);
        self.end_all(Some(number), EndReason::AccessDenied, flows, now);
        for conn in conns {
            self.event(Event::Closed { node, reason: NOT_PERMITTED.to_owned() });
            self.send(
                conn,
                Disconnect::new(disconnect_reason::OPERATOR, Some(NOT_PERMITTED.to_owned()), None),
            );
            self.close(conn, 0, NOT_PERMITTED);
        }
    }
}

/// What a node is told that may not be here.
pub(super) const NOT_PERMITTED: &str = "the relay's operator does not permit this node here";

/// However few sessions a node may have: agents may say several things before they read an answer.
const LEAST_WAITING: usize = 256;
