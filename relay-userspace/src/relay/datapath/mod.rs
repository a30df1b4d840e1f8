//! What forwards relayed packets, seen from the rendezvous: install, extend, move and remove flows.
//!
//! [`Flows`] is what the rendezvous asks for, [`FlowTable`] does it, [`Tables`] is the memory that it writes and that the
//! XDP program (loaded by [`Program`]) and the userspace forwarder read. [`Selection`] says which of them runs.

mod attach_fault;
mod backing;
pub mod descriptors;
mod explain;
mod flow_index;
mod flow_table;
mod flows;
mod hop_writer;
mod mapping;
mod meta;
mod netlink;
mod network_events;
mod next_hops;
pub mod offloads;
pub mod packet_filter;
pub mod pinned;
pub mod ports;
mod previous_tuples;
mod program;
mod record;
mod resolution;
mod routing;
mod selection;
mod slot_pool;
mod tables;
mod veth_pair;
mod xdp_features;

pub use backing::{Backing, BackingFault, BackingKind};
pub use explain::{ByProgram, CopiedFlow, ExplainError, Explainer, Fate, MAX_FRAME, Packet};
pub use flow_table::{FlowTable, Inheritance, Left, NoRoutes, Routes, TrialError, sessions_of};
pub use flows::{
    Debt, FlowTuple, Flows, InstallError, Limit, Origin, SideTraffic, SlotId, Traffic, TupleFault,
};
pub use hop_writer::HopWriter;
pub use meta::LAYOUT;
pub use netlink::{KnownNeighbour, LinkCounts, NeighbourEntry, Netlink};
pub use network_events::{NetworkChange, NetworkEvents};
pub use next_hops::{Acquired, HopArray, HopId, HopKey, HopTable, Link, Neighbour, Vlan, XdpProgram};
pub use ports::PortError;
pub use previous_tuples::PREVIOUS_TUPLE_KEPT;
pub use program::{EgressMap, Hook, OBJECT, Port, Program, XdpError};
pub use record::Identity;
pub use routing::{NextHops, Way};
pub use selection::{NewTables, Selection};
pub use slot_pool::QUARANTINE;
pub use tables::{Arrival, Relayed, Run, TableSizes, Tables};
pub use veth_pair::make_veth_pair;
pub use xdp_features::{FEATURES, XdpFeatures};
