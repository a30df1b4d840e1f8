//! What forwards relayed packets, seen from the rendezvous: install, extend, move and remove flows.

mod flows;

pub use flows::{FlowTuple, Flows, InstallError, Limit, SideTraffic, SlotId, Traffic, TupleFault};
