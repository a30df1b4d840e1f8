//! What is to be said of an interface that the XDP program is attached to.

use super::{Check, Facts, Finding, Level, if_program};
use crate::config::DatapathMode;
use crate::doctor::facts::Interface;

/// The smallest packet that IPv6 needs every link to take.
const LEAST_MTU: u32 = 1280;

/// What drivers with the program take at most, frames in parts included.
const MOST_MTU: u32 = 9216;

/// Above this, a frame does not fit one page with the room that XDP needs: the driver has to hand it over in parts.
const ONE_PAGE_MTU: u32 = 3498;

/// All of it.
pub fn findings(facts: &Facts, interface: &Interface) -> Vec<Finding> {
    let name = interface.name.as_str();
    let config = facts.config.display().to_string();
    let cpus = facts.cpus.to_string();
    let values = [("interface", name), ("config", config.as_str()), ("cpus", cpus.as_str())];
    let at = |check: Check, level: Level, found: String| match level {
        Level::Ok => Finding { interface: Some(name.to_owned()), ..check.ok(found) },
        level => check.at(if_program(facts, level), found, &values),
    };
    let mut all = Vec::new();
    all.push(match interface.up {
        true => at(Check::Interface, Level::Ok, "up".to_owned()),
        false => at(Check::Interface, Level::Error, "down, or without a carrier".to_owned()),
    });
    let (level, found) = driver(facts, interface);
    all.push(at(Check::Driver, level, found));
    all.push(match interface.program {
        None => at(Check::OtherProgram, Level::Ok, "none".to_owned()),
        Some((id, true)) => at(Check::OtherProgram, Level::Ok, format!("program {id}, the running relay's")),
        Some((id, false)) => at(
            Check::OtherProgram,
            Level::Warning,
            format!("program {id} of somebody else: one interface has one"),
        ),
    });
    let (level, found) = mtu(interface);
    all.push(at(Check::Mtu, level, found));
    let (level, found) = receive_merging(interface);
    all.push(at(Check::ReceiveMerging, level, found));
    let (level, found) = vlan_offload(interface);
    all.push(at(Check::VlanOffload, level, found));
    all.extend(interface.queues.map(|queues| {
        let found = format!("{queues} receive queues, {cpus} CPUs");
        let level = if queues < facts.cpus { Level::Note } else { Level::Ok };
        at(Check::Queues, level, found)
    }));
    all.push(match headroom(interface) {
        Some(bytes) => at(Check::Headroom, Level::Ok, format!("{bytes} bytes")),
        None => at(
            Check::Headroom,
            Level::Note,
            "not known of this driver: the self-test is on another one".to_owned(),
        ),
    });
    all
}

/// Whether nothing says that the program cannot run in its driver.
pub fn may_be_native(interface: &Interface) -> bool {
    interface.xdp_features.as_ref().is_none_or(|features| features.contains(&"basic"))
}

fn driver(facts: &Facts, interface: &Interface) -> (Level, String) {
    let driver = interface.driver.as_deref().unwrap_or("of unknown name");
    let Some(features) = &interface.xdp_features else {
        return (Level::Note, format!("{driver}: this kernel cannot say what it can do"));
    };
    let found =
        format!("{driver}: {}", if features.is_empty() { "no XDP".to_owned() } else { features.join(" ") });
    if !features.contains(&"basic") {
        let level = if facts.mode == DatapathMode::XdpNative { Level::Warning } else { Level::Note };
        return (level, format!("{found}; the program runs in the stack, and costs more there"));
    }
    // A veth takes redirected frames only while its peer is ready for them, and others only with a program attached.
    let redirects = features.contains(&"ndo_xmit") || interface.program.is_none();
    match redirects {
        true => (Level::Ok, found),
        false => (Level::Note, format!("{found}; frames redirected to it go through userspace")),
    }
}

fn mtu(interface: &Interface) -> (Level, String) {
    let Interface { mtu, xdp_features, .. } = interface;
    let found = format!("{mtu} bytes");
    let in_parts = xdp_features.as_ref().is_none_or(|features| features.contains(&"rx_sg"));
    match *mtu {
        ..LEAST_MTU => (Level::Warning, format!("{found}: IPv6 needs {LEAST_MTU}")),
        mtu if mtu > MOST_MTU => (Level::Warning, format!("{found}: more than XDP programs are given")),
        mtu if mtu > ONE_PAGE_MTU && !in_parts => (
            Level::Warning,
            format!(
                "{found}: its driver gives XDP programs no frames in parts, and frames over {ONE_PAGE_MTU} need it"
            ),
        ),
        _ => (Level::Ok, found),
    }
}

/// Frames that were merged are larger than the MTU: the program passes them up, and userspace takes them apart. Drivers turn
/// merging off when a program is attached to them, or refuse the program.
fn receive_merging(interface: &Interface) -> (Level, String) {
    let Some(features) = &interface.features else {
        return (Level::Note, "cannot tell: this kernel does not list features".to_owned());
    };
    let is_on = |feature: &str| features.iter().any(|name| name == feature);
    let names: Vec<&str> = ["rx-lro", "rx-gro-hw"].into_iter().filter(|name| is_on(name)).collect();
    let names = names.join(" and ");
    let is_attached = matches!(interface.program, Some((_, true)));
    match (names.is_empty(), is_attached, is_on("rx-lro")) {
        (true, ..) => (Level::Ok, "off".to_owned()),
        (false, true, _) => {
            (Level::Warning, format!("{names} on: merged frames go through userspace (super_frame)"))
        }
        (false, false, true) => (
            Level::Warning,
            format!("{names} on: drivers refuse an XDP program while they are, or turn them off"),
        ),
        (false, false, false) => (
            Level::Note,
            format!("{names} on: the driver has to turn it off for an XDP program, or refuses it"),
        ),
    }
}

fn vlan_offload(interface: &Interface) -> (Level, String) {
    let Some(features) = &interface.features else {
        return (Level::Note, "cannot tell: this kernel does not list features".to_owned());
    };
    match (features.iter().any(|name| name == "rx-vlan-hw-parse"), interface.vlans) {
        (true, true) => {
            let found =
                "rx-vlan-hw-parse on: the program does not see the tags of the VLANs on this interface";
            (Level::Warning, found.to_owned())
        }
        (true, false) => (Level::Ok, "on, and no VLAN is on this interface".to_owned()),
        (false, _) => (Level::Ok, "off".to_owned()),
    }
}

/// What drivers leave in front of a frame for XDP programs, as their sources have it (XDP_PACKET_HEADROOM).
fn headroom(interface: &Interface) -> Option<u32> {
    match interface.driver.as_deref()? {
        "veth" | "virtio_net" => Some(256),
        _ => None,
    }
}
