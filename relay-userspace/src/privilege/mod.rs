//! With how little the daemon runs: what it needs privilege for is done at its start.
//!
//! In this order: [`renounce`] while there is one thread, [`file_access::restrict`] with it, then threads and all that takes
//! a capability (the program, its maps and links, netlink, the port), and at last [`drop_all`]. Capabilities belong to a
//! thread, not to a process: those that are started in between call [`drop_in_thread`] first of all.

mod capabilities;
pub mod file_access;

pub use capabilities::{Capabilities, drop_all, drop_in_thread, of_caller, of_process, renounce};
