//! Where facts come from, one file for each place.

pub mod bpffs;
pub mod filters;
pub mod host_clock;
pub mod interfaces;
pub mod kernel;
pub mod port;
mod program;
pub mod unit;
