//! Forwarders that the kernel brings along: IP routing, and nftables' NAT.

use std::fmt::Write as _;
use std::net::SocketAddrV4;

use anyhow::Context as _;
use xtask::tool::Tool;

use crate::course::{Course, Leg, Load, Numbered, TTL};
use crate::frames::PORT;
use crate::relayed::{receivers, senders};
use crate::track::{End, Forwarder, Place, Track};
use crate::traffic::Traffic;
use crate::wires::{RELAY, SENDER, Wires};

struct Kernel;

impl Forwarder for Kernel {
    fn forwarded(&self, wires: &Wires) -> anyhow::Result<Option<u64>> {
        wires.relay_counter("Ip", "ForwDatagrams").map(Some)
    }
}

/// Lets the kernel route from sender to receiver.
///
/// # Errors
/// It does not let itself be set up.
pub fn routing(traffic: Traffic, wires: Wires, load: Load, end: End) -> anyhow::Result<Track> {
    wires.relay.set(&["net/ipv4/ip_forward"], "1")?;
    let sent = Leg { stations: wires.to_relay(), source: senders(), destination: receivers(), ttl: TTL };
    let arrives = match end {
        End::Sink => Leg {
            stations: wires.to_receiver(),
            source: senders().into(),
            destination: receivers(),
            ttl: TTL - 1,
        },
        End::Echo => Leg {
            stations: wires.to_sender(),
            source: receivers().into(),
            destination: senders(),
            ttl: TTL - 2,
        },
    };
    let course = Course { load, channel: None, sent, arrives };
    Track::new(traffic, wires, course, end, Place::Kernel, Kernel)
}

/// Lets nftables translate: what a sender sends to the relay's port goes to its receiver, from the relay's address.
///
/// # Errors
/// `nft` refuses the rules.
pub fn nat(traffic: Traffic, wires: Wires, load: Load) -> anyhow::Result<Track> {
    wires.relay.set(&["net/ipv4/ip_forward"], "1")?;
    let mut receiver_of = String::new();
    for flow in 0..load.flows {
        let (sender, receiver) = (senders().of(flow), receivers().of(flow));
        write!(
            receiver_of,
            "{} . {} : {} . {},",
            sender.ip(),
            sender.port(),
            receiver.ip(),
            receiver.port()
        )?;
    }
    let rules = format!(
        "table ip nat {{
            map receiver_of {{
                type ipv4_addr . inet_service : ipv4_addr . inet_service
                elements = {{ {receiver_of} }}
            }}
            chain before {{
                type nat hook prerouting priority -100;
                udp dport {PORT} dnat ip to ip saddr . udp sport map @receiver_of
            }}
            chain after {{
                type nat hook postrouting priority 100;
                oifname \"{}\" masquerade
            }}
        }}",
        wires.outward[0].name
    );
    wires.relay.run(&Tool::new("nft").words("-f -").input(rules)).context("nftables' rules")?;
    let relay = Numbered::fixed(SocketAddrV4::new(RELAY[0], PORT));
    let sent = Leg { stations: wires.to_relay(), source: senders(), destination: relay, ttl: TTL };
    // Masquerading keeps the port while nobody else needs it.
    let masqueraded = SocketAddrV4::new(RELAY[1], SENDER.port());
    let arrives = Leg {
        stations: wires.to_receiver(),
        source: Numbered::fixed(masqueraded).into(),
        destination: receivers(),
        ttl: TTL - 1,
    };
    let course = Course { load, channel: None, sent, arrives };
    Track::new(traffic, wires, course, End::Sink, Place::Kernel, Kernel)
}
