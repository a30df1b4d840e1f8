//! The relay daemon: rendezvous of agents, and the packet path that follows.

pub mod datapath;
pub mod forwarder;
pub mod rendezvous;
