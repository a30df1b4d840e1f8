//! Tests in the lab: the real binary, real NAT, real packets. They need root and `cargo xtask test`, which builds the
//! binary and tells them where it is; elsewhere each says why it skips.

#[cfg(test)] // always so here; it tells clippy that helpers of tests may unwrap
#[path = "lab"]
mod in_lab {
    mod capture;
    mod completions;
    mod congestion;
    mod deaths;
    mod delay;
    mod doctor;
    mod explain;
    mod failover;
    mod fallback;
    mod families;
    mod firewalld;
    mod forwarder;
    mod hand_agent;
    mod handshake_flood;
    mod host_counts;
    mod interrupted_demo;
    mod kept_maps;
    mod kept_relay;
    mod limit;
    mod located;
    mod loss;
    mod machine;
    mod metrics;
    mod moves;
    mod network;
    mod nobody;
    mod one_nat;
    mod other_program;
    mod other_relay;
    mod other_stack;
    mod overload;
    mod packages;
    mod page;
    mod paths;
    mod privilege;
    mod raw_agents;
    mod refusals;
    mod restart;
    mod restart_access;
    mod restart_application;
    mod restart_datapath;
    mod restart_deadline;
    mod restart_drain;
    mod restart_faults;
    mod restart_stop;
    mod restart_userspace;
    mod scheduling;
    mod shown_commands;
    mod steady;
    mod strangers;
    mod strangers_datagrams;
    mod stream;
    mod supervised;
    #[path = "../../../relay-userspace/tests/terminal/mod.rs"]
    mod terminal;
    mod top;
    mod transfer;
    mod unprivileged_demo;
    mod untracked;
    mod walk;
    mod world;
}
