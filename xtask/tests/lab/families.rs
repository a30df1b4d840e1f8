//! IPv6, and an agent that speaks IPv4 with one that speaks IPv6.

use xtask::deployment::Reached;
use xtask::lab::{Family, LabPlan, RELAY_ADDRESSES};

use super::world::{GENERIC, NATIVE, USERSPACE, World};

const IPV6: [Family; 2] = [Family::V6, Family::V6];
const IPV4_TO_IPV6: [Family; 2] = [Family::V4, Family::V6];
const IPV6_TO_IPV4: [Family; 2] = [Family::V6, Family::V4];

#[test]
fn the_kernel_forwards_a_file_over_ipv6() {
    the_kernel_forwards("the_kernel_forwards_a_file_over_ipv6", IPV6, NATIVE);
}

#[test]
fn the_kernel_forwards_a_file_from_ipv4_to_ipv6() {
    the_kernel_forwards("the_kernel_forwards_a_file_from_ipv4_to_ipv6", IPV4_TO_IPV6, NATIVE);
}

#[test]
fn the_kernel_forwards_a_file_from_ipv6_to_ipv4() {
    the_kernel_forwards("the_kernel_forwards_a_file_from_ipv6_to_ipv4", IPV6_TO_IPV4, NATIVE);
}

#[test]
fn generic_mode_translates_as_well() {
    the_kernel_forwards("generic_mode_translates_as_well", IPV4_TO_IPV6, GENERIC);
}

#[test]
fn the_daemon_translates_without_xdp() {
    let Some(world) = world("the_daemon_translates_without_xdp", IPV4_TO_IPV6) else { return };
    let _relay = world.deployment.start_relay(Some(0), USERSPACE).unwrap();

    let copied = world.copy_a_file();

    assert_eq!(copied.by_kernel(), 0);
    assert_eq!(world.lab.invalid_packets_at_nats().unwrap(), 0, "packets with wrong checksums");
}

fn the_kernel_forwards(name: &str, families: [Family; 2], relay_options: &str) {
    let Some(world) = world(name, families) else { return };
    let _relay = world.deployment.start_relay(Some(0), relay_options).unwrap();

    let copied = world.copy_a_file();

    copied.assert_by_kernel();
    assert_eq!(world.lab.invalid_packets_at_nats().unwrap(), 0, "packets with wrong checksums");
}

fn world(name: &str, families: [Family; 2]) -> Option<World> {
    World::planned(name, &LabPlan::default(), Reached::by(families, RELAY_ADDRESSES, 4433))
}
