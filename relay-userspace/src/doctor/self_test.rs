//! One datagram through the real hook: a pair of virtual interfaces in a network namespace made for it, the program attached to
//! both in their driver, a session in its tables; a frame goes in, and what comes out is read and its checksums computed anew.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use relay_common::Reason;
use relay_common::next_hop::{Egress, Hop, station_words};

use super::facts::SelfTest;
use super::wire::{Wire, leave_namespace};
use crate::clock::MonoTime;
use crate::relay::datapath::{
    FlowTable, FlowTuple, Flows as _, Hook, InstallError, Limit, Link, Netlink, OBJECT, Origin, Port,
    Program, Routes, TableSizes, XdpError, make_veth_pair,
};
use crate::relay::udp_frame::{self, Ingredients, UdpFrame};

/// The relay's end, and the agents'.
const NAMES: [&str; 2] = ["doctor-relay", "doctor-agents"];

/// A frame comes in microseconds, or never.
const PATIENCE: Duration = Duration::from_secs(5);

/// The next hop to both agents.
const HOP: u16 = 1;

const MAGIC: [u8; 8] = *b"\x01doctor!";

const PAYLOAD: &[u8] = b"one datagram through the real hook";

/// Runs it.
pub fn run() -> SelfTest {
    if OBJECT.is_none() {
        return SelfTest::NotRun("this binary was built without the XDP program".to_owned());
    }
    // The thread, and with it the namespace and what is in it, is gone when this returns.
    match thread::scope(|scope| scope.spawn(in_a_namespace).join()) {
        Ok(outcome) => outcome,
        Err(_) => SelfTest::Failed("it has panicked, which is a fault of this program".to_owned()),
    }
}

fn in_a_namespace() -> SelfTest {
    match leave_namespace() {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            return SelfTest::NotRun("it needs root, to make a network namespace".to_owned());
        }
        Err(error) => return SelfTest::NotRun(format!("no network namespace: {error}")),
    }
    if let Err(error) = make_veth_pair(NAMES) {
        return SelfTest::NotRun(format!("no pair of virtual interfaces: {error}"));
    }
    match exchange() {
        Ok(shown) => SelfTest::Passed(shown),
        Err(fault) => SelfTest::Failed(fault.to_string()),
    }
}

#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("asking the kernel for the virtual interfaces: {0}")]
    Netlink(#[source] io::Error),
    #[error("the virtual interfaces are not there, or not up")]
    NoPair,
    #[error(transparent)]
    Xdp(#[from] XdpError),
    #[error("the session was not installed: {0:?}")]
    Install(InstallError),
    #[error("the frame could not be made")]
    Make,
    #[error("sending and receiving frames: {0}")]
    Wire(#[source] io::Error),
    #[error("the datagram did not come out within {} s; the program counted: {counted}", PATIENCE.as_secs())]
    Lost { counted: String },
    #[error("the datagram came out wrong: {0}")]
    Wrong(String),
}

/// Every packet leaves by the one next hop.
struct OneHop;

impl Routes for OneHop {
    fn hop_for(&mut self, _agent: std::net::IpAddr, _relay: std::net::IpAddr) -> u16 {
        HOP
    }

    fn release(&mut self, _hop: u16) {}
}

fn exchange() -> Result<String, Fault> {
    let links = Netlink::open().and_then(|mut netlink| netlink.links()).map_err(Fault::Netlink)?;
    let named = |name: &str| links.iter().find(|link| link.name == name);
    let (Some(near), Some(far)) = (named(NAMES[0]), named(NAMES[1])) else { return Err(Fault::NoPair) };
    let (Some(station), Some(other)) = (near.mac, far.mac) else { return Err(Fault::NoPair) };

    let sizes = TableSizes::for_sessions(1);
    let (mut program, tables, mut egress) = Program::load(Hook::Native, sizes, [1, 2], MAGIC)?;
    for (link, station) in [(near, station), (far, other)] {
        let Link { name, index, mtu, .. } = link.clone();
        program.attach(&tables, Port { name, index, station, mtu }, Hook::Native)?;
    }
    egress.set(u32::from(HOP), near.index)?;
    if let Some(entry) = tables.next_hops().get(usize::from(HOP)) {
        let stations = station_words(other, station);
        entry.write(&Hop {
            egress: Egress::Redirect,
            interface: near.index,
            mtu: near.mtu,
            stations,
            vlan: 0,
        });
    }
    // Addresses of documentation (RFC 5737): nobody else's.
    let relay = SocketAddr::from((Ipv4Addr::new(203, 0, 113, 1), 4433));
    let [from, to] =
        [1, 2].map(|host| SocketAddr::from((Ipv4Addr::new(192, 0, 2, host), 40_000 + u16::from(host))));
    let mut flows = FlowTable::new(Arc::new(tables), OneHop);
    let now = MonoTime::now();
    let deadlines = [now + Duration::from_secs(60); 2];
    let sides = [from, to].map(|agent| FlowTuple { agent, relay });
    flows.install(sides, Limit::UNLIMITED, &Origin::NONE, deadlines, now).map_err(Fault::Install)?;

    let of =
        Ingredients { stations: [station, other], vlan: None, source: from, destination: relay, ttl: 64 };
    let frame = udp_frame::make(&of, PAYLOAD).ok_or(Fault::Make)?;
    let wire = Wire::open(NAMES[1], PATIENCE).map_err(Fault::Wire)?;
    wire.send(&frame).map_err(Fault::Wire)?;
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let came = match wire.receive() {
            Ok(came) => came,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(Fault::Wire(error)),
        };
        // The host's own neighbour discovery goes over the interfaces, and what was sent is heard too.
        let Some(read) = UdpFrame::read(&came).filter(|read| read.source == relay) else { continue };
        judge(&read, [other, station], to)?;
        return Ok(format!(
            "one datagram through the program in the driver of a veth: {from} > {relay} came out as {relay} > {to}, TTL {}, checksums right",
            read.ttl
        ));
    }
    let counted = program.tallies()?.into_iter().filter(|(_, tally)| tally.packets > 0);
    let counted: Vec<String> =
        counted.map(|(reason, tally)| format!("{} {}", tally.packets, Reason::name(reason))).collect();
    Err(Fault::Lost { counted: if counted.is_empty() { "nothing".to_owned() } else { counted.join(", ") } })
}

fn judge(read: &UdpFrame<'_>, stations: [[u8; 6]; 2], to: SocketAddr) -> Result<(), Fault> {
    let wrong = |what: String| Err(Fault::Wrong(what));
    if read.destination != to {
        return wrong(format!("it goes to {}, not to {to}", read.destination));
    }
    if read.stations != stations || read.ttl != 63 || read.payload != PAYLOAD {
        return wrong("MAC addresses, TTL or payload are not what they should be".to_owned());
    }
    if !(read.udp_checksum.is_right && read.ip_checksum.is_some_and(|checksum| checksum.is_right)) {
        return wrong("a checksum is wrong".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATIONS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];

    #[test]
    fn what_comes_out_is_judged_by_addresses_ttl_payload_and_checksums() {
        let (relay, to) = ("203.0.113.1:4433".parse().unwrap(), "192.0.2.2:40002".parse().unwrap());
        let right = Ingredients { stations: STATIONS, vlan: None, source: relay, destination: to, ttl: 63 };
        let verdict = |of: &Ingredients, payload: &[u8], damage: Option<usize>| {
            let mut frame = udp_frame::make(of, payload).unwrap();
            damage.into_iter().for_each(|at| frame[at] ^= 1);
            judge(&UdpFrame::read(&frame).unwrap(), STATIONS, to)
        };
        verdict(&right, PAYLOAD, None).unwrap();
        let elsewhere = Ingredients { destination: "192.0.2.3:40002".parse().unwrap(), ..right };
        let [reversed, expiring] =
            [Ingredients { stations: [STATIONS[1], STATIONS[0]], ..right }, Ingredients { ttl: 64, ..right }];
        for of in [elsewhere, reversed, expiring] {
            assert!(matches!(verdict(&of, PAYLOAD, None), Err(Fault::Wrong(_))), "{of:?}");
        }
        assert!(verdict(&right, b"another", None).is_err());
        // The second byte of the IP header's checksum, and of the UDP packet's.
        for at in [25, 41] {
            assert!(verdict(&right, PAYLOAD, Some(at)).unwrap_err().to_string().contains("checksum"), "{at}");
        }
    }
}
