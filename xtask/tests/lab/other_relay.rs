//! The other relay of a world that has a host for one.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use xtask::answers::Status;
use xtask::deployment::{Node, relay_configuration};
use xtask::lab::{OTHER_RELAY_ADDRESSES, Process};

use super::world::{NATIVE, World};

/// Where it is reached by IPv4.
pub const OTHER: SocketAddr = SocketAddr::new(IpAddr::V4(OTHER_RELAY_ADDRESSES.v4), 4433);

/// Makes its identity and configuration.
pub fn other_relay(world: &World) -> Node {
    let host = world.lab.other_relay.as_ref().unwrap().host();
    let other = Node::init(host, &world.binary, world.lab.directory(), "other").unwrap();
    other.configure(&relay_configuration(0)).unwrap();
    other
}

/// How `relay` is named that is reached at `address`.
pub fn relay_at(relay: &Node, address: SocketAddr) -> String {
    format!("{}@{address}", relay.id())
}

/// Starts it and waits until it serves.
pub fn start_other(other: &Node) -> Process {
    let mut relay = other.start(&format!("net listen --port {} {NATIVE}", OTHER.port())).unwrap();
    let serves = |_: &Process| other.json::<Status>("xdp status --json").ok();
    relay.wait_until("the start", Duration::from_secs(10), serves).unwrap();
    relay
}
