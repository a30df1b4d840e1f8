//! The next-hop array that the program reads, and the device map beside it, as one thing to write.

use std::sync::Arc;

use relay_common::next_hop::{Egress, Hop};

use super::next_hops::{HopArray, HopId};
use super::program::EgressMap;
use super::tables::Tables;
use crate::clock::MonoTime;
use crate::relay::line_pace::LinePace;

/// Writes next hops where the program reads them.
pub struct HopWriter {
    tables: Arc<Tables>,
    egress: EgressMap,
    /// Lines about what the device map does not take.
    faults: LinePace,
}

impl HopWriter {
    /// The array in `tables`, and the map of the program that reads them.
    pub fn new(tables: Arc<Tables>, egress: EgressMap) -> HopWriter {
        HopWriter { tables, egress, faults: LinePace::OF_FAULTS }
    }
}

impl HopArray for HopWriter {
    /// The device map first: an entry that says "redirect" must have somewhere to redirect to.
    fn write(&mut self, id: HopId, hop: &Hop) {
        let mut hop = *hop;
        if hop.egress == Egress::Redirect
            && let Err(error) = self.egress.set(u32::from(id.0), hop.interface)
        {
            self.faults.write(MonoTime::now(), || {
                tracing::warn!(
                    interface = hop.interface, %error,
                    "the interface does not take redirected packets: those that leave by it are forwarded in userspace"
                );
            });
            hop.egress = Egress::Userspace;
        }
        if let Some(entry) = self.tables.next_hops().get(usize::from(id.0)) {
            entry.write(&hop);
        }
    }
}
