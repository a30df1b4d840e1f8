//! `cargo xtask lab`: a lab to look around in.

use std::time::Duration;

use super::{Lab, RELAY_ADDRESS};
use crate::{interrupt, terminal};

/// Brings up a lab, tells how to enter it, and waits for Ctrl-C.
///
/// # Errors
/// The lab cannot be brought up.
pub fn show() -> anyhow::Result<()> {
    let lab = Lab::up()?;
    terminal::result("The lab is up. To enter:\n");
    let hosts = [
        (&lab.relay, "relay host, its interface is r0".to_owned()),
        (&lab.agents[0], format!("agent behind a NAT with random ports; the relay is {RELAY_ADDRESS}")),
        (&lab.agents[1], "agent behind a NAT that keeps ports".to_owned()),
        (&lab.nats[0], "NAT with random ports".to_owned()),
        (&lab.nats[1], "NAT that keeps ports".to_owned()),
        (&lab.router, "router between the NATs and the relay".to_owned()),
    ];
    for (host, what) in hosts {
        terminal::result(format!("  ip netns exec {:28} bash   # {what}", host.name()));
    }
    terminal::result("\nCtrl-C removes it.");
    while !interrupt::is_stopped() {
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
