//! `cargo xtask lab`: a lab to look around in.

use std::time::Duration;

use super::{Family, Lab, RELAY_ADDRESSES};
use crate::{interrupt, terminal};

/// Brings up a lab, tells how to enter it, and waits for Ctrl-C.
///
/// # Errors
/// The lab cannot be brought up.
pub fn show() -> anyhow::Result<()> {
    let lab = Lab::up()?;
    terminal::result("The lab is up. To enter:\n");
    let enter = |name: &str, what: &str| {
        terminal::result(format!("  ip netns exec {name:28} bash   # {what}"));
    };
    enter(lab.relay.name(), "relay host, its interface is r0");
    for (agent, place) in lab.agents.iter().zip(["a NAT with random ports", "a NAT that keeps ports"]) {
        enter(agent.name(), &format!("agent behind {place}"));
    }
    for (nat, what) in lab.nats.iter().zip(["NAT with random ports", "NAT that keeps ports"]) {
        enter(nat.name(), what);
    }
    enter(lab.router.name(), "router between the NATs and the relay");
    let [v4, v6] = [Family::V4, Family::V6].map(|family| RELAY_ADDRESSES.of(family));
    terminal::result(format!("\nThe relay is at {v4} and {v6}. Ctrl-C removes the lab."));
    while !interrupt::is_stopped() {
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
