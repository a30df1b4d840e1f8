//! What is around a daemon: who keeps its descriptors while none runs, what was left there, and who is told how it is.

use super::datapath::LAYOUT;
use super::keeper::{Keeper, Kept};
use crate::config::{Config, DatapathMode};
use crate::identity::NodeId;
use crate::supervision::Supervision;

/// All of it. By default there is nobody.
#[derive(Debug, Default)]
pub struct Surroundings {
    /// Who keeps.
    pub keeper: Keeper,
    /// What a predecessor has left.
    pub kept: Vec<Kept>,
    /// Who is told.
    pub supervision: Supervision,
}

impl Surroundings {
    /// Looks around for the relay `node`. Its directory of pins is there afterwards if it can be had.
    pub fn find(mut supervision: Supervision, config: &Config, node: &NodeId) -> Surroundings {
        // Sockets and memory files, which that datapath lives on, cannot be pinned.
        let never = config.datapath.mode == DatapathMode::Userspace;
        let bpffs = config.datapath.bpffs.as_deref().filter(|_| !never);
        let (keeper, kept) = Keeper::find(&mut supervision, bpffs, node, LAYOUT);
        Surroundings { keeper, kept, supervision }
    }
}
