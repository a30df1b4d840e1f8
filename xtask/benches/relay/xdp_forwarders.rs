//! Forwarders in XDP: the relay's program, and the bare ones that it is compared with.

use std::net::SocketAddrV4;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use relay_common::Reason;
use relay_common::next_hop::{Egress, Hop, station_words};
use relay_userspace::relay::datapath::{FlowTable, Hook, Port, Program};

use crate::course::{Course, Leg, Load, Numbered, TTL};
use crate::frames::{MAGIC, PORT};
use crate::prologue::BARE_INSTRUCTIONS;
use crate::relayed::{self, BySide, senders};
use crate::sessions::KEY;
use crate::track::{End, Forwarder, Place, Track};
use crate::traffic::Traffic;
use crate::wires::{Links, RELAY, Wires};

/// MTU of the links.
const MTU: u32 = 1500;

/// The relay's program, attached.
struct Relay {
    program: Program,
    _table: FlowTable<BySide>,
}

impl Forwarder for Relay {
    fn forwarded(&self, _: &Wires) -> anyhow::Result<Option<u64>> {
        Ok(Some(self.program.tally(Reason::Forwarded)?.packets))
    }
}

/// Lets the relay's program forward at `hook`.
///
/// # Errors
/// The kernel refuses it.
pub fn relay(traffic: Traffic, wires: Wires, load: Load, end: End, hook: Hook) -> anyhow::Result<Track> {
    let links = wires.links;
    let (mut program, tables, mut egress) =
        Program::load(hook, relayed::sizes(load.flows), KEY, MAGIC).context("the relay's program")?;
    let tables = Arc::new(tables);
    let mut ways = vec![wires.inward];
    if links == Links::Two {
        let [here, there] = wires.outward;
        ways.push([there, here]);
    }
    wires.relay.inside(|| {
        for (hop, [there, here]) in ways.into_iter().enumerate() {
            let port = Port { name: here.name.into(), index: here.index, station: here.station, mtu: MTU };
            program.attach(&tables, port, hook)?;
            egress.set(hop as u32, here.index)?;
            let stations = station_words(there.station, here.station);
            let way = if links == Links::One { Egress::Transmit } else { Egress::Redirect };
            let entry = Hop { egress: way, interface: here.index, mtu: MTU, stations, vlan: 0 };
            tables.next_hops()[hop].write(&entry);
        }
        anyhow::Ok(())
    })??;
    let mut table = FlowTable::new(tables, BySide { links });
    relayed::install(&mut table, load.flows, links)?;
    let course = relayed::course(&wires, load, end);
    Track::new(traffic, wires, course, end, Place::Kernel, Relay { program, _table: table })
}

/// A program that changes next to nothing, and counts nothing.
struct Bare;

impl Forwarder for Bare {
    fn forwarded(&self, _: &Wires) -> anyhow::Result<Option<u64>> {
        Ok(None)
    }
}

/// Lets a bare program forward: the reflector on one link, the redirect between two.
///
/// # Errors
/// The kernel refuses it, or it is not bare.
pub fn bare(mut traffic: Traffic, wires: Wires, load: Load) -> anyhow::Result<Track> {
    let name = match wires.links {
        Links::One => "bare",
        Links::Two => "bare_redirect",
    };
    wires.relay.inside(|| {
        traffic.attach(name, wires.inward[1].name)?;
        if wires.links == Links::Two { traffic.direct(wires.outward[0].index) } else { Ok(()) }
    })??;
    let instructions = traffic.info(name)?.size_translated().context("the length of a program")? / 8;
    ensure!(instructions <= BARE_INSTRUCTIONS, "`{name}` is not bare: it has {instructions} instructions");
    let relay = Numbered::fixed(SocketAddrV4::new(RELAY[0], PORT));
    let sent = Leg { stations: wires.to_relay(), source: senders(), destination: relay, ttl: TTL };
    let stations = match wires.links {
        Links::One => wires.to_sender(),
        Links::Two => wires.to_relay(),
    };
    let arrives = Leg { stations, source: senders().into(), destination: relay, ttl: TTL };
    let course = Course { load, channel: None, sent, arrives };
    Track::new(traffic, wires, course, End::Sink, Place::Kernel, Bare)
}
