//! What the kernel has counted on the interfaces that the program is attached to.

use std::io;

use super::observation::AttachedInterface;
use crate::relay::datapath::{LinkCounts, Netlink};

/// Each interface that is still there, with its counts. Blocks: the kernel answers once nobody else changes a link.
///
/// # Errors
/// The kernel cannot be asked.
pub fn of(interfaces: &[AttachedInterface]) -> io::Result<Vec<(String, LinkCounts)>> {
    if interfaces.is_empty() {
        return Ok(Vec::new());
    }
    let mut netlink = Netlink::open()?;
    let mut counts = Vec::new();
    for interface in interfaces {
        if let Some(of_link) = netlink.link_counts(interface.index)? {
            counts.push((interface.name.clone(), of_link));
        }
    }
    Ok(counts)
}
