//! The forwarder on loopback sockets.

mod control;
mod forwarding;
mod merging;
mod ports;
mod sending;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use relay_common::index::SlotSide;
use relay_common::{BIND_LEN, BIND_MAGIC_LEN, Reason, Side};

use super::ancillary::Ancillary;
use super::arrivals::{Arrivals, BATCH, Place};
use super::departures::{Departures, Outcome};
use super::gathering::{Departure, Headers};
use super::steering::Marks;
use super::{Forwarder, Merging, RelayPort, Started};
use crate::clock::MonoTime;
use crate::relay::datapath::{
    FlowTable, FlowTuple, Flows, Limit, NoRoutes, Origin, SlotId, TableSizes, Tables,
};
use crate::relay::family::PerFamily;

const MAGIC: [u8; BIND_MAGIC_LEN] = [0x2a, 1, 2, 3, 4, 5, 6, 7];
const TAG: [u8; 4] = [0xa5, 0x5a, 0x96, 0x69];
const MARKS: Marks = Marks { bind_magic: MAGIC, connection_tag: TAG };
const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;
const LOOPBACK_V6: Ipv6Addr = Ipv6Addr::LOCALHOST;

fn any_port(address: impl Into<IpAddr>) -> SocketAddr {
    SocketAddr::new(address.into(), 0)
}

fn agent() -> UdpSocket {
    UdpSocket::bind(any_port(LOOPBACK)).unwrap()
}

fn agent_v6() -> UdpSocket {
    UdpSocket::bind(any_port(LOOPBACK_V6)).unwrap()
}

/// A port on loopback, in both families.
fn relay_port() -> RelayPort {
    RelayPort::open_at(PerFamily { v4: LOOPBACK.into(), v6: Some(LOOPBACK_V6.into()) }, 0, 1, MAGIC).unwrap()
}

fn bind_datagram() -> [u8; BIND_LEN] {
    let mut datagram = [0xcc; BIND_LEN];
    datagram[..BIND_MAGIC_LEN].copy_from_slice(&MAGIC);
    datagram
}

/// A datagram that may begin a connection to the relay, as far as the kernel can tell.
fn like_a_newcomers() -> Vec<u8> {
    let mut datagram = vec![0xc0, 0, 0, 0, 1, 8];
    datagram.resize(1200, 0);
    datagram
}

/// A received datagram.
#[derive(Debug, PartialEq, Eq)]
struct Heard {
    payload: Vec<u8>,
    from: SocketAddr,
    ancillary: Ancillary,
}

/// The next datagrams that come to the socket, each by itself: `count`, and those that have come with them.
fn hear(socket: &UdpSocket, count: usize) -> Vec<Heard> {
    hear_messages(socket, count).into_iter().flatten().collect()
}

/// Their payloads.
fn hear_payloads(socket: &UdpSocket, count: usize) -> Vec<Vec<u8>> {
    hear(socket, count).into_iter().map(|heard| heard.payload).collect()
}

/// The same by the messages they come in.
fn hear_messages(socket: &UdpSocket, count: usize) -> Vec<Vec<Heard>> {
    let deadline = Instant::now() + Duration::from_secs(20);
    let (mut arrivals, mut messages) = (Arrivals::new(BATCH), Vec::<Vec<Heard>>::new());
    loop {
        assert!(Instant::now() < deadline, "waiting for {count} datagrams: {messages:?}");
        // On a busy machine loopback may deliver after the call that sends.
        let received = arrivals.receive(socket).unwrap_or(0);
        for arrived in (0..received).map(|index| arrivals.get(index).unwrap()) {
            let heard = arrived.datagrams().map(|place| Heard {
                payload: place.of(arrivals.bytes()).unwrap().to_vec(),
                from: arrived.from,
                ancillary: arrived.ancillary,
            });
            messages.push(heard.collect());
        }
        if messages.iter().map(Vec::len).sum::<usize>() >= count {
            return messages;
        }
    }
}

/// How many datagrams there are in each of these messages.
fn lens(messages: &[Vec<Heard>]) -> Vec<usize> {
    messages.iter().map(Vec::len).collect()
}

/// Queues datagrams of one side, in this order.
fn queue(
    departures: &mut Departures,
    bytes: &mut Vec<u8>,
    payloads: &[Vec<u8>],
    headers: Headers,
    slot: u32,
) {
    for payload in payloads {
        let place = Place { start: bytes.len(), len: payload.len() };
        bytes.extend(payload);
        let at = SlotSide { slot, side: Side::Target };
        departures.add(&Departure { payload: place, headers, at, fragmented: false });
    }
}

/// Sends datagrams together, where they are alike: what a busy agent's kernel does. They arrive merged.
fn send_together(socket: &UdpSocket, payloads: &[Vec<u8>], headers: Headers) {
    let (mut departures, mut bytes) = (Departures::new(), Vec::new());
    queue(&mut departures, &mut bytes, payloads, headers, 0);
    departures.flush(Some(socket), &bytes, MonoTime(1), |Outcome { result, .. }| assert_eq!(result, Ok(())));
}

/// A started forwarder on loopback, and its tables' writer.
struct Relay {
    started: Started,
    flows: FlowTable<NoRoutes>,
    tables: Arc<Tables>,
    address: SocketAddr,
    address_v6: SocketAddr,
}

impl Relay {
    fn start() -> Relay {
        let port = relay_port();
        let PerFamily { v4: address, v6: Some(address_v6) } = port.addresses() else { panic!("no IPv6") };
        let tables = Arc::new(Tables::private(TableSizes::for_sessions(4), [1, 2], MAGIC));
        let flows = FlowTable::new(Arc::clone(&tables), NoRoutes);
        let started = Forwarder::start(port, Arc::clone(&tables), Merging::On).unwrap();
        Relay { started, flows, tables, address, address_v6 }
    }

    /// Its address in the family of `agent`.
    fn address_for(&self, agent: &UdpSocket) -> SocketAddr {
        if agent.local_addr().unwrap().is_ipv4() { self.address } else { self.address_v6 }
    }

    /// Joins two agents in a session.
    fn join(&mut self, connector: &UdpSocket, target: &UdpSocket, limit: Limit, consent: Duration) -> SlotId {
        let tuple = |agent: &UdpSocket| FlowTuple {
            agent: agent.local_addr().unwrap(),
            relay: self.address_for(agent),
        };
        let now = MonoTime::now();
        self.flows
            .install([tuple(connector), tuple(target)], limit, &Origin::NONE, [now + consent; 2], now)
            .unwrap()
    }
}

/// Lets one datagram of 50,000 bytes pass, and the next after 10 s.
const SLOW: Limit = Limit { bytes_per_s: 4096, burst_bytes: 64 * 1024 };

const CONSENT: Duration = Duration::from_secs(300);

/// Lets the readers work until they have counted `count` datagrams of `reason`.
fn until(forwarder: &Forwarder, reason: Reason, count: u64) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while forwarder.count(reason) != count {
        let seen: Vec<_> = Reason::ALL
            .iter()
            .map(|reason| (reason.name(), forwarder.count(*reason)))
            .filter(|(_, n)| *n > 0)
            .collect();
        assert!(Instant::now() < deadline, "waiting for {count} {}: {seen:?}", reason.name());
        thread::yield_now();
    }
}
