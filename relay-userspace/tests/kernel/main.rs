//! The loaded XDP program on a real kernel, on two CPUs at once, with userspace changing the same memory beside it.
//!
//! Needs root, two CPUs and what `cargo xtask test` builds. What runs the program so fast is the probe: see
//! `relay-ebpf/src/probe.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    unsafe_code,
    reason = "in a test a panic is a failure, figures are printed, and neither geteuid nor CPU affinity is in std"
)]

mod bucket;
mod churn;
#[path = "../skipping/loadable_object.rs"]
mod loadable_object;
mod machine;
mod probe;
#[path = "../../../relay-ebpf/src/probe_layout.rs"]
mod probe_layout;
#[path = "../skipping/mod.rs"]
mod skipping;
mod verifier;
mod words;
