//! What the kernel has counted on the interfaces that sessions' packets come and leave by.

use std::io;

use super::observation::WatchedInterface;
use crate::relay::datapath::{LinkCounts, Netlink};

/// Each interface with its counts; none: it is gone. Blocks: the kernel answers once nobody else changes a link.
///
/// # Errors
/// The kernel cannot be asked.
pub fn of(interfaces: &[WatchedInterface]) -> io::Result<Vec<(WatchedInterface, Option<LinkCounts>)>> {
    if interfaces.is_empty() {
        return Ok(Vec::new());
    }
    let mut netlink = Netlink::open()?;
    interfaces
        .iter()
        .map(|interface| Ok((interface.clone(), netlink.link_counts(interface.index)?)))
        .collect()
}
