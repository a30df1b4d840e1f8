//! Interfaces: by rtnetlink, by the kernel's families "netdev" and "ethtool", and /sys/class/net.

use std::fs;
use std::path::Path;

use crate::doctor::facts::Interface;
use crate::relay::datapath::offloads::active_features;
use crate::relay::datapath::{FEATURES, Link, Netlink, Port, XdpFeatures, ports};

/// The interfaces that are `named` or, without names, that lead to the internet. `attached` are those that the running relay's
/// program is attached to.
///
/// # Errors
/// Why they are not known, for people.
pub fn interfaces(named: &[String], attached: &[String]) -> Result<Vec<Interface>, String> {
    let ports = match named {
        [] => ports::towards_the_internet(),
        named => ports::named(named),
    };
    let ports = ports.map_err(|error| error.to_string())?;
    let unreadable = |error: std::io::Error| format!("asking the kernel for interfaces: {error}");
    let links = Netlink::open().and_then(|mut netlink| netlink.links()).map_err(unreadable)?;
    let mut features = XdpFeatures::open().map_err(unreadable)?;
    ports.iter().map(|port| Ok(describe(port, &links, attached, features.as_mut()))).collect()
}

fn describe(
    port: &Port,
    links: &[Link],
    attached: &[String],
    features: Option<&mut XdpFeatures>,
) -> Interface {
    let link = links.iter().find(|link| link.index == port.index);
    let program = link.and_then(|link| link.xdp).map(|program| (program.id, attached.contains(&port.name)));
    let bits = features.and_then(|features| features.of(port.index).ok().flatten());
    Interface {
        name: port.name.clone(),
        up: link.is_some_and(|link| link.up),
        mtu: port.mtu,
        driver: driver(&port.name).or_else(|| link.filter(|link| link.veth).map(|_| "veth".to_owned())),
        xdp_features: bits.map(named_bits),
        program,
        features: active_features(port.index).ok().flatten(),
        vlans: links.iter().any(|link| link.vlan.is_some_and(|vlan| vlan.below == port.index)),
        queues: queues(&port.name),
    }
}

fn named_bits(bits: u64) -> Vec<&'static str> {
    FEATURES.iter().enumerate().filter(|(place, _)| bits >> place & 1 != 0).map(|(_, name)| *name).collect()
}

fn driver(interface: &str) -> Option<String> {
    let driver = fs::read_link(Path::new("/sys/class/net").join(interface).join("device/driver")).ok()?;
    Some(driver.file_name()?.to_string_lossy().into_owned())
}

fn queues(interface: &str) -> Option<usize> {
    let queues = fs::read_dir(Path::new("/sys/class/net").join(interface).join("queues")).ok()?;
    let names = queues.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Some(names.filter(|name| name.starts_with("rx-")).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_told_by_their_names() {
        assert!(named_bits(0).is_empty());
        assert_eq!(named_bits(0b10_0111), ["basic", "redirect", "ndo_xmit", "rx_sg"]);
        assert_eq!(named_bits(u64::MAX), FEATURES);
    }

    #[test]
    fn an_interface_that_is_not_there_is_told_with_those_there_are() {
        let error = interfaces(&["no-such-if".to_owned()], &[]).unwrap_err();
        assert!(error.contains("no-such-if"), "{error}");
    }
}
