//! What the relay is to forward in a measurement of its rate: sessions with everything on, one for each flow.

use std::net::{IpAddr, SocketAddrV4};
use std::time::Duration;

use anyhow::Context as _;
use relay_userspace::clock::MonoTime;
use relay_userspace::relay::datapath::{FlowTable, FlowTuple, Flows as _, Limit, Origin, Routes, TableSizes};

use crate::course::{Course, Leg, Load, Numbered, TTL};
use crate::frames::PORT;
use crate::track::End;
use crate::wires::{Links, RECEIVER, RELAY, SENDER, Wires};

/// Longer than any run.
const CONSENT: Duration = Duration::from_secs(3600);

/// More than anything here can send in one session: the bucket is charged, and never full.
const LIMIT: Limit = Limit { bytes_per_s: 10_000_000_000, burst_bytes: 2_500_000_000 };

/// Next hops by the side that they lead to.
pub struct BySide {
    /// 0 leads to senders, 1 to receivers, unless both are on one link.
    pub links: Links,
}

impl Routes for BySide {
    fn hop_for(&mut self, agent: IpAddr, _relay: IpAddr) -> u16 {
        let to_receiver = matches!(agent, IpAddr::V4(agent) if agent >= *RECEIVER.ip());
        u16::from(to_receiver && self.links == Links::Two)
    }

    fn release(&mut self, _hop: u16) {}
}

/// Tables for `flows` sessions.
pub fn sizes(flows: u32) -> TableSizes {
    TableSizes::for_sessions(flows)
}

/// Installs a session for each of `flows` flows.
///
/// # Errors
/// The tables refuse one.
pub fn install<R: Routes>(table: &mut FlowTable<R>, flows: u32, links: Links) -> anyhow::Result<()> {
    let now = MonoTime::now();
    let [here, there] = relay(links);
    for flow in 0..flows {
        let side =
            |agent: SocketAddrV4, relay: SocketAddrV4| FlowTuple { agent: agent.into(), relay: relay.into() };
        let sides = [side(senders().of(flow), here), side(receivers().of(flow), there)];
        table
            .install(sides, LIMIT, &Origin::NONE, [now + CONSENT; 2], now)
            .with_context(|| format!("session {flow} of {flows}"))?;
    }
    Ok(())
}

/// The datagrams of these sessions: from sender to receiver, or there and back.
pub fn course(wires: &Wires, load: Load, end: End) -> Course {
    let [here, there] = relay(wires.links);
    let arrives = match end {
        End::Sink => Leg {
            stations: wires.to_receiver(),
            source: Numbered::fixed(there).into(),
            destination: receivers(),
            ttl: TTL - 1,
        },
        End::Echo => Leg {
            stations: wires.to_sender(),
            source: Numbered::fixed(here).into(),
            destination: senders(),
            ttl: TTL - 2,
        },
    };
    let sent =
        Leg { stations: wires.to_relay(), source: senders(), destination: Numbered::fixed(here), ttl: TTL };
    Course { load, channel: None, sent, arrives }
}

/// Where each flow is sent from.
pub const fn senders() -> Numbered {
    Numbered::by_address(SENDER)
}

/// Where each flow is sent to.
pub const fn receivers() -> Numbered {
    Numbered::by_address(RECEIVER)
}

/// The relay's addresses, for senders and for receivers.
fn relay(links: Links) -> [SocketAddrV4; 2] {
    let far = match links {
        Links::One => RELAY[0],
        Links::Two => RELAY[1],
    };
    [SocketAddrV4::new(RELAY[0], PORT), SocketAddrV4::new(far, PORT)]
}
