//! An agent at the other end of a connection, as commands print it.

use relay_userspace::agent::PeerSnapshot;

use crate::output;

/// Its id, shortened, and upstream's brackets: `atlas_70b499d01e2464e3... [unknown via relay]`.
pub fn id_and_path(peer: &PeerSnapshot) -> String {
    format!("{} {}", output::short_id(&peer.node_id), brackets(peer))
}

/// `[TRUST via PATH]`.
pub fn brackets(PeerSnapshot { trust, path, .. }: &PeerSnapshot) -> String {
    format!("[{trust} via {path}]")
}
