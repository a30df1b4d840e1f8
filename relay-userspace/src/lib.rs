//! The relay daemon, the agent library and what both speak.
//!
//! Dependencies go one way: `protocol` is used by `agent` and by `relay`, which do not know each other; the binary on
//! top uses the public API of both, and so does `doctor`.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test"))]

pub mod admin;
pub mod agent;
pub mod bootstrap;
pub mod clock;
pub mod config;
pub mod control_transport;
pub mod doctor;
mod file_owner;
pub mod identity;
pub mod privilege;
pub mod probe;
pub mod protocol;
pub mod refusals;
pub mod relay;
mod socket_queue;
pub mod supervision;
pub mod tls;
mod whole_file;

/// What the page for who writes an agent shows as code is compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/agent.md")]
struct AgentPage;
