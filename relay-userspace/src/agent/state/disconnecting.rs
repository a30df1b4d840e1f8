//! Sessions that the operator ends.

use super::{Now, State};
use crate::agent::error::SessionEnd;
use crate::identity::NodeId;
use crate::protocol::SessionId;
use crate::protocol::flow_terms::disconnect_reason;

/// Which sessions are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// All with this peer.
    Peer(NodeId),
    /// This one.
    Session(SessionId),
}

impl State {
    /// Ends the sessions that are meant and tells their relays, which tell the peers. How many there were.
    pub fn disconnect(&mut self, whom: Whom, now: Now) -> usize {
        let is_meant = |id: SessionId, peer: NodeId| match whom {
            Whom::Peer(meant) => peer == meant,
            Whom::Session(meant) => id == meant,
        };
        let meant = self.sessions.iter().filter(|(id, session)| is_meant(**id, session.peer));
        // One that moves is one, although it has two paths.
        let meant = meant.map(|(id, session)| (*id, session.is_of_its_own())).collect::<Vec<_>>();
        for (id, _) in &meant {
            self.end_and_tell(*id, SessionEnd::ByOperator, disconnect_reason::SHUTDOWN, now);
        }
        meant.iter().filter(|(_, is_of_its_own)| *is_of_its_own).count()
    }
}
