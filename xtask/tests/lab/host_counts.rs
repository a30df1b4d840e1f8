//! What the hosts of a lab count: the datagrams of a [`Steady`](super::steady::Steady) traffic that pass their devices, and
//! what they drop.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;
use xtask::lab::Namespace;
use xtask::tool::Tool;

use super::steady::{LENGTH, mark};

/// The table of each host that counts.
const TABLE: &str = "steady";

/// Makes `host` count both sides' packets as they come and go by each of `devices`.
pub fn count(host: &Namespace, devices: &[String]) {
    let (mut counters, mut arriving, mut leaving) = (String::new(), String::new(), String::new());
    for (device, side) in devices.iter().flat_map(|device| [(device, 0), (device, 1)]) {
        let marked = format!("meta l4proto udp @th,64,32 {:#x}", mark(side));
        let _ = writeln!(counters, "counter in_{device}_{side} {{}}\ncounter out_{device}_{side} {{}}");
        let _ = writeln!(arriving, "iifname {device} {marked} counter name in_{device}_{side}");
        let _ = writeln!(leaving, "oifname {device} {marked} counter name out_{device}_{side}");
    }
    let table = format!(
        "table inet {TABLE} {{\n{counters}\
         chain arriving {{\ntype filter hook prerouting priority -310\n{arriving}}}\n\
         chain leaving {{\ntype filter hook postrouting priority 310\n{leaving}}}\n}}\n"
    );
    host.run(&Tool::new("nft").words("-f -").input(table)).unwrap();
}

/// What stands before the datagram in each packet: headers of IPv4 and UDP.
const HEADERS: u64 = 28;

/// The datagrams that have passed a host's devices. Several may be one packet there, as far as they are still to be
/// segmented.
pub struct Passed(BTreeMap<String, u64>);

impl Passed {
    pub fn by(host: &Namespace) -> Passed {
        let listed = host.run(&Tool::new("nft").words("-j list counters table inet").arg(TABLE)).unwrap();
        let listed: Value = serde_json::from_str(&listed).unwrap();
        let counters = listed["nftables"].as_array().unwrap().iter().filter_map(|it| it.get("counter"));
        let named = |it: &Value| {
            let [packets, bytes] = ["packets", "bytes"].map(|what| it[what].as_u64().unwrap());
            (it["name"].as_str().unwrap().to_owned(), (bytes - HEADERS * packets) / LENGTH as u64)
        };
        Passed(counters.map(named).collect())
    }

    pub fn came(&self, device: &str, side: usize) -> u64 {
        self.0[&format!("in_{device}_{side}")]
    }

    pub fn went(&self, device: &str, side: usize) -> u64 {
        self.0[&format!("out_{device}_{side}")]
    }
}

/// What a host has dropped, whose packets ever.
pub struct Drops {
    /// By its stack.
    pub stack: BTreeMap<String, u64>,
    /// By its devices, sending and receiving.
    devices: BTreeMap<String, [u64; 2]>,
}

impl Drops {
    pub fn of(host: &Namespace) -> Drops {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap();
        let [devices, stack] = host.inside(|| ["dev", "snmp"].map(read)).unwrap();
        Drops { stack: stack_drops(&stack), devices: device_drops(&devices) }
    }

    pub fn drops(&self, device: &str) -> [u64; 2] {
        self.devices[device]
    }

    pub fn device(&self, device: &str) -> Vec<(String, u64)> {
        let [sending, receiving] = self.drops(device);
        vec![(format!("{device} sending"), sending), (format!("{device} receiving"), receiving)]
    }
}

/// From what `/proc/net/snmp` has.
fn stack_drops(text: &str) -> BTreeMap<String, u64> {
    const IP: [&str; 6] =
        ["InHdrErrors", "InAddrErrors", "InUnknownProtos", "InDiscards", "OutDiscards", "OutNoRoutes"];
    // A full queue is an error of receiving as well.
    const UDP: [&str; 2] = ["NoPorts", "InErrors"];
    let lines: Vec<_> = text.lines().filter_map(|line| line.split_once(": ")).collect();
    let mut drops = BTreeMap::new();
    for pair in lines.chunks_exact(2) {
        let [(protocol, names), (_, values)] = pair else { unreachable!("chunks of two") };
        let wanted: &[&str] = match *protocol {
            "Ip" => &IP,
            "Udp" => &UDP,
            _ => &[],
        };
        for (name, value) in names.split(' ').zip(values.split(' ')).filter(|(name, _)| wanted.contains(name))
        {
            drops.insert(format!("{protocol} {name}"), value.parse().unwrap());
        }
    }
    assert_eq!(drops.len(), IP.len() + UDP.len(), "{text}");
    drops
}

/// From what `/proc/net/dev` has: sending, receiving.
fn device_drops(text: &str) -> BTreeMap<String, [u64; 2]> {
    let device = |line: &str| {
        let (name, counts) = line.split_once(':')?;
        let counts: Vec<u64> = counts.split_whitespace().map(|count| count.parse().unwrap()).collect();
        // Both begin with bytes, packets, errors, drops; eight are of receiving.
        Some((name.trim().to_owned(), [counts[8 + 2] + counts[8 + 3], counts[2] + counts[3]]))
    };
    text.lines().skip(2).filter_map(device).collect()
}
