//! The project's tasks, as a library so that the privileged tests drive the same lab as `cargo xtask demo`.
//!
//! Read `main.rs` for the list of tasks. What a task needs from the machine is in [`setup`], what runs in network
//! namespaces in [`lab`]. Nothing here is part of the product: it only builds, starts and watches it.

pub mod answers;
pub mod bench;
pub mod build;
pub mod ci;
pub mod clean_root;
pub mod demo;
pub mod deployment;
pub mod dist;
pub mod interrupt;
pub mod lab;
pub mod load;
pub mod prometheus;
pub mod python;
pub mod setup;
pub mod supervisor;
pub mod tcp_copy;
pub mod terminal;
pub mod test;
pub mod tidy;
pub mod tool;
pub mod toolchain;
pub mod verifier;
pub mod workspace;

mod syscall;
