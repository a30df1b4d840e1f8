//! The packet decision of the relay, shared by the XDP program and the userspace forwarder.
//!
//! What this crate does not have: a clock, sockets, allocation, panics, `std`. Time is a parameter, packets and tables
//! are reached through traits, and the same code is compiled for the kernel and for the host.
#![no_std]

mod side;

pub use side::Side;

/// Length of the magic every bind datagram begins with, in bytes.
pub const BIND_MAGIC_LEN: usize = 8;

/// Length of every bind datagram, in bytes: questions and answers have one length, so no answer amplifies.
pub const BIND_LEN: usize = 96;
