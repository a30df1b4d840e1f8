//! The forwarder on loopback sockets. Loopback delivers within the send call, so nothing here waits for the network.

use std::collections::HashMap;
use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Waker};
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use quinn::ConnectionIdGenerator;
use relay_common::{BIND_LEN, BIND_MAGIC_LEN, Reason};

use super::batch_io::{Batch, Headers, report_ancillary, send_fault, send_one};
use super::connection_ids::ConnectionIds;
use super::quic_socket::QUEUE_LEN;
use super::socket_group::SocketGroup;
use super::steering::Marks;
use super::{BIND_QUEUE_LEN, Forwarder, RelayPort, Started};
use crate::clock::MonoTime;
use crate::relay::datapath::{
    Debt, FlowTable, FlowTuple, Flows, Limit, NoRoutes, SlotId, TableSizes, Tables,
};
use crate::relay::family::{Family, PerFamily};
use crate::socket_queue::queue_drops;

const MAGIC: [u8; BIND_MAGIC_LEN] = [0x2a, 1, 2, 3, 4, 5, 6, 7];
const TAG: [u8; 2] = [0xa5, 0x5a];
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
    RelayPort::open_at(PerFamily { v4: LOOPBACK.into(), v6: Some(LOOPBACK_V6.into()) }, 0, MAGIC).unwrap()
}

fn bind_datagram() -> [u8; BIND_LEN] {
    let mut datagram = [0xcc; BIND_LEN];
    datagram[..BIND_MAGIC_LEN].copy_from_slice(&MAGIC);
    datagram
}

/// The payloads that wait in each of the group's sockets.
fn drain(group: &SocketGroup) -> Vec<Vec<Vec<u8>>> {
    let mut batch = Batch::<u8>::new();
    let mut waiting = |socket: &UdpSocket| {
        let count = batch.receive(socket).unwrap_or(0);
        (0..count).map(|index| batch.datagram(index).unwrap().payload.to_vec()).collect()
    };
    group.sockets.iter().map(&mut waiting).collect()
}

#[test]
fn control_datagrams_come_to_the_control_socket_and_the_rest_to_another() {
    for loopback in [IpAddr::from(LOOPBACK), LOOPBACK_V6.into()] {
        control_and_relayed_are_told_apart(loopback);
    }
}

fn control_and_relayed_are_told_apart(loopback: IpAddr) {
    let group = SocketGroup::open(any_port(loopback), MARKS, 1).unwrap();
    let [t, u] = TAG;
    let long_header = vec![0xc3, 0, 0, 0, 1, 8, 0, 0, 0, 0];
    let own_short_header = vec![0x4f, t, u, 0, 0, 0, 0, 0];
    let bind = bind_datagram().to_vec();
    let foreign_short_header = vec![0x4f, t, !u, 0, 0, 0, 0, 0];
    let wireguard = vec![4, 0, 0, 0, 1, 2, 3, 4, 5];
    let tag_without_fixed_bit = vec![0x0f, t, u, 0, 0, 0, 0, 0];
    let half_magic = [&MAGIC[..4], &[0; 92]].concat();
    let (empty, one_byte) = (vec![], vec![0xc0]);

    let agent = UdpSocket::bind(any_port(loopback)).unwrap();
    let control = vec![long_header, own_short_header, bind];
    let relayed = vec![foreign_short_header, wireguard, tag_without_fixed_bit, half_magic, empty, one_byte];
    for payload in control.iter().chain(&relayed) {
        agent.send_to(payload, group.local_addr()).unwrap();
    }
    assert_eq!(drain(&group), [control, relayed]);
}

fn sources_spread(loopback: IpAddr) {
    let group = SocketGroup::open(any_port(loopback), MARKS, 3).unwrap();
    let agents: Vec<_> = (0..64).map(|_| UdpSocket::bind(any_port(loopback)).unwrap()).collect();
    let mut sockets_of = HashMap::new();
    for round in 0..3 {
        for (number, agent) in agents.iter().enumerate() {
            let payload = [0, round, number as u8, 0, 0, 0, 0, 0];
            agent.send_to(&payload, group.local_addr()).unwrap();
        }
        for (socket, payloads) in drain(&group).iter().enumerate() {
            for payload in payloads {
                sockets_of.entry(payload[2]).or_insert_with(Vec::new).push(socket);
            }
        }
    }
    assert_eq!(sockets_of.len(), agents.len());
    assert!(
        sockets_of
            .values()
            .all(|sockets| sockets.len() == 3 && sockets[0] == sockets[1] && sockets[1] == sockets[2])
    );
    let used: Vec<_> =
        (0..4).map(|socket| sockets_of.values().filter(|of| of[0] == socket).count()).collect();
    assert_eq!(used[0], 0);
    assert!(used[1..].iter().all(|count| *count > 5), "sources per socket: {used:?}");
}

#[test]
fn one_sources_datagrams_keep_to_one_socket_and_sources_spread() {
    sources_spread(LOOPBACK.into());
}

#[test]
fn ipv6_sources_spread_too() {
    sources_spread(LOOPBACK_V6.into());
}

#[test]
fn a_port_in_use_is_found_even_if_its_holder_allows_sharing() {
    let holder = SocketGroup::open(any_port(LOOPBACK), MARKS, 1).unwrap();
    let error = SocketGroup::open(holder.local_addr(), MARKS, 1).unwrap_err().to_string();
    assert!(error.contains("in use") && error.contains(&holder.local_addr().port().to_string()), "{error}");
    let everywhere = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), holder.local_addr().port());
    assert!(
        SocketGroup::open(everywhere, MARKS, 1).is_err(),
        "the wildcard would share with {}",
        holder.local_addr()
    );
}

#[test]
fn a_port_in_use_in_either_family_is_found() {
    for holder in ["127.0.0.1", "::1", "::"] {
        let holder = UdpSocket::bind(any_port(holder.parse::<IpAddr>().unwrap())).unwrap();
        let port = holder.local_addr().unwrap().port();
        let error = RelayPort::open(port, MAGIC).unwrap_err().to_string();
        assert!(error.contains(&format!(":{port} is in use")), "{error}");
    }
}

#[test]
fn the_port_is_one_in_both_families() {
    let relay = RelayPort::open(0, MAGIC).unwrap();
    let (v4, v6) = (Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into());
    let at = |address| SocketAddr::new(address, relay.port());
    assert_eq!(relay.addresses(), PerFamily { v4: at(v4), v6: Some(at(v6)) });
    for sockets in &relay.sockets {
        let open: Vec<_> = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
        assert_eq!(open, [at(v4), at(v6)]);
    }
}

#[test]
fn an_address_of_another_host_is_named_as_such() {
    let error = SocketGroup::open("192.0.2.1:0".parse().unwrap(), MARKS, 1).unwrap_err().to_string();
    assert!(error.contains("192.0.2.1") && error.contains("not an address of this host"), "{error}");
}

#[test]
fn connection_ids_begin_with_the_tag_and_differ() {
    let (mut ids, mut others) = (ConnectionIds::tagged(TAG), ConnectionIds::tagged(TAG));
    let made: Vec<_> = (0..100).flat_map(|_| [ids.generate_cid(), others.generate_cid()]).collect();
    assert!(made.iter().all(|id| id.starts_with(&TAG) && id.len() == ids.cid_len()));
    assert!(made.iter().all(|id| ids.validate(id).is_ok()));
    assert_eq!(made.iter().map(|id| id.to_vec()).collect::<std::collections::HashSet<_>>().len(), made.len());
    assert!(ids.validate(&quinn::ConnectionId::new(&[0; 10])).is_err());
}

/// A datagram from `sender` arrives with the TOS and TTL it was sent with, and goes on with others, from the address it
/// came to.
fn headers_are_carried(relay: IpAddr, source: IpAddr) {
    let (tos, ttl) = (0xb9, 7);
    let sockets: Vec<_> = (0..3).map(|_| UdpSocket::bind(any_port(relay)).unwrap()).collect();
    let [sender, relay, receiver] = &sockets[..] else { unreachable!() };
    let address = |socket: &UdpSocket| SocketAddr::new(source, socket.local_addr().unwrap().port());
    report_ancillary(relay).unwrap();
    report_ancillary(receiver).unwrap();
    send_one(sender, b"as it is", Headers { to: address(relay), from: source, tos, ttl }).unwrap();

    let mut batch = Batch::<u8>::new();
    assert_eq!(batch.receive(relay).unwrap(), 1);
    let datagram = batch.datagram(0).unwrap();
    assert_eq!((datagram.payload, datagram.from), (&b"as it is"[..], address(sender)));
    assert_eq!((datagram.ancillary.tos, datagram.ancillary.ttl), (tos, Some(ttl)));
    assert_eq!((datagram.ancillary.to, datagram.ancillary.fragmented), (Some(source), false));
    batch.forward(0, Headers { to: address(receiver), from: source, tos: tos | 3, ttl: ttl - 1 }, 0);
    batch.flush(&PerFamily { v4: relay, v6: Some(relay) }, |_, _, result| assert_eq!(result, Ok(())));

    assert_eq!(batch.receive(receiver).unwrap(), 1);
    let datagram = batch.datagram(0).unwrap();
    assert_eq!((datagram.payload, datagram.from), (&b"as it is"[..], address(relay)));
    assert_eq!((datagram.ancillary.tos, datagram.ancillary.ttl), (tos | 3, Some(ttl - 1)));
}

#[test]
fn tos_ttl_and_addresses_are_received_and_sent() {
    headers_are_carried(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(127, 0, 0, 2).into());
}

#[test]
fn traffic_class_hop_limit_and_addresses_are_received_and_sent() {
    headers_are_carried(LOOPBACK_V6.into(), LOOPBACK_V6.into());
}

#[test]
fn the_largest_datagram_and_the_empty_one_are_sent_on_whole() {
    let (sender, relay, receiver) = (agent(), agent(), agent());
    report_ancillary(&relay).unwrap();
    let largest: Vec<u8> = (0..65507u32).map(|at| (at % 251) as u8).collect();
    sender.send_to(&largest, relay.local_addr().unwrap()).unwrap();
    sender.send_to(&[], relay.local_addr().unwrap()).unwrap();
    let mut batch = Batch::<u8>::new();
    assert_eq!(batch.receive(&relay).unwrap(), 2);
    let headers = Headers { to: receiver.local_addr().unwrap(), from: LOOPBACK.into(), tos: 0, ttl: 64 };
    (0..2).for_each(|index| batch.forward(index, headers, 0));
    batch.flush(&PerFamily { v4: &relay, v6: None }, |_, _, result| assert_eq!(result, Ok(())));
    assert_eq!(batch.receive(&receiver).unwrap(), 2);
    assert_eq!(batch.datagram(0).unwrap().payload, largest);
    assert_eq!(batch.datagram(1).unwrap().payload, &[] as &[u8]);
}

#[test]
fn a_datagram_that_cannot_be_sent_is_reported_and_the_others_are_sent() {
    let (sender, relay, receiver) = (agent(), agent(), agent());
    report_ancillary(&relay).unwrap();
    let mut batch = Batch::<u8>::new();
    for number in 0..5u8 {
        sender.send_to(&[number], relay.local_addr().unwrap()).unwrap();
    }
    assert_eq!(batch.receive(&relay).unwrap(), 5);
    let good = Headers { to: receiver.local_addr().unwrap(), from: LOOPBACK.into(), tos: 0, ttl: 64 };
    let port_zero = Headers { to: any_port(LOOPBACK), ..good };
    let foreign_source = Headers { from: Ipv4Addr::new(192, 0, 2, 1).into(), ..good };
    for (index, headers) in [port_zero, good, foreign_source, good, port_zero].into_iter().enumerate() {
        batch.forward(index, headers, index as u8);
    }
    let mut reports = Vec::new();
    batch.flush(&PerFamily { v4: &relay, v6: None }, |ticket, len, result| {
        reports.push((ticket, len, result))
    });
    assert!(
        reports
            .iter()
            .enumerate()
            .all(|(place, (ticket, len, _))| place == usize::from(*ticket) && *len == 1)
    );
    let results: Vec<_> = reports.into_iter().map(|(_, _, result)| result).collect();
    assert_eq!((results[0], results[1], results[3]), (Err(Reason::SendFailed), Ok(()), Ok(())));
    // What the kernel says to a source that is not ours depends on its routes.
    assert!(results[2].is_err() && results[4].is_err());
    assert_eq!(batch.receive(&receiver).unwrap(), 2);
    assert_eq!(
        (batch.datagram(0).unwrap().payload, batch.datagram(1).unwrap().payload),
        (&[1u8][..], &[3u8][..])
    );
}

#[test]
fn send_errors_have_reasons() {
    let fault = |errno| send_fault(&std::io::Error::from_raw_os_error(errno));
    assert_eq!(fault(libc::EMSGSIZE), Reason::SendTooBig);
    assert_eq!(fault(libc::ENETUNREACH), Reason::SendUnreachable);
    for errno in [libc::ENOBUFS, libc::ECONNREFUSED, libc::EPERM, libc::EINVAL, libc::EAGAIN] {
        assert_eq!(fault(errno), Reason::SendFailed);
    }
}

#[test]
fn datagrams_that_do_not_fit_a_sockets_queue_are_counted() {
    let (sender, receiver) = (agent(), agent());
    socket2::SockRef::from(&receiver).set_recv_buffer_size(0).unwrap();
    for _ in 0..100 {
        sender.send_to(&[0; 1000], receiver.local_addr().unwrap()).unwrap();
    }
    let received = Batch::<u8>::new().receive(&receiver).unwrap();
    assert_eq!(received + queue_drops(receiver.as_fd()).unwrap() as usize, 100);
}

#[test]
fn datagrams_of_one_batch_leave_by_the_socket_of_their_destinations_family() {
    let (sender, receivers) = (agent(), [agent(), agent_v6()]);
    let relay = PerFamily { v4: agent(), v6: Some(agent_v6()) };
    report_ancillary(&relay.v4).unwrap();
    let mut batch = Batch::<u8>::new();
    for number in 0..6 {
        sender.send_to(&[number], relay.v4.local_addr().unwrap()).unwrap();
    }
    assert_eq!(batch.receive(&relay.v4).unwrap(), 6);
    let headers = |receiver: &UdpSocket| {
        let to = receiver.local_addr().unwrap();
        Headers { to, from: to.ip(), tos: 0, ttl: 64 }
    };
    let forward = |batch: &mut Batch<u8>| {
        (0..6).for_each(|index| batch.forward(index, headers(&receivers[index % 2]), index as u8));
    };
    forward(&mut batch);
    let mut sent = Vec::new();
    batch.flush(&relay, |ticket, _, result| sent.push((ticket, result)));
    assert_eq!(sent, [0, 2, 4, 1, 3, 5].map(|ticket| (ticket, Ok(()))));
    for (receiver, (from, numbers)) in receivers.iter().zip(relay.iter().zip([[0, 2, 4], [1, 3, 5]])) {
        let mut received = Batch::<u8>::new();
        assert_eq!(received.receive(receiver).unwrap(), 3);
        for (index, number) in numbers.into_iter().enumerate() {
            let datagram = received.datagram(index).unwrap();
            assert_eq!((datagram.payload, datagram.from), (&[number][..], from.local_addr().unwrap()));
        }
    }

    // Where there is no IPv6, the others are not held up.
    forward(&mut batch);
    let mut reports = Vec::new();
    batch.flush(&PerFamily { v4: &relay.v4, v6: None }, |ticket, _, result| reports.push((ticket, result)));
    let unreachable = [1, 3, 5].map(|ticket| (ticket, Err(Reason::SendUnreachable)));
    assert_eq!(reports, [&[0, 2, 4].map(|ticket| (ticket, Ok(())))[..], &unreachable].concat());
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
        let started = Forwarder::start(port, Arc::clone(&tables)).unwrap();
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
            .install([tuple(connector), tuple(target)], limit, Debt::NONE, [now + consent; 2], now)
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

#[tokio::test]
async fn a_datagram_of_a_flow_is_sent_on_whatever_it_looks_like() {
    let mut relay = Relay::start();
    let (connector, target) = (agent(), agent());
    let slot = relay.join(&connector, &target, Limit::UNLIMITED, CONSENT);
    let payloads = [&[0xc0; 50][..], &[0x40; 50], &[1; 50], &[]];
    let mut buffer = [0; 100];
    for payload in payloads {
        connector.send_to(payload, relay.address).unwrap();
        let (len, from) = target.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..len], from), (payload, relay.address));
    }
    target.send_to(b"back", relay.address).unwrap();
    assert_eq!(connector.recv_from(&mut buffer).unwrap(), (4, relay.address));

    until(&relay.started.forwarder, Reason::Forwarded, 5);
    let [there, back] = relay.flows.traffic(slot).sides;
    assert_eq!((there.packets_userspace, there.bytes, there.packets_kernel), (4, 150, 0));
    assert_eq!((back.packets_userspace, back.bytes), (1, 4));
    assert_eq!(relay.started.forwarder.count(Reason::NoFlow), 0);
}

#[tokio::test]
async fn tos_is_kept_and_one_hop_is_taken_from_the_ttl() {
    let mut relay = Relay::start();
    let (connector, target) = (agent(), agent());
    relay.join(&connector, &target, Limit::UNLIMITED, CONSENT);
    report_ancillary(&target).unwrap();
    let headers = Headers { to: relay.address, from: LOOPBACK.into(), tos: 0xba, ttl: 9 };
    send_one(&connector, b"x", headers).unwrap();
    until(&relay.started.forwarder, Reason::Forwarded, 1);
    let mut batch = Batch::<u8>::new();
    assert_eq!(batch.receive(&target).unwrap(), 1);
    let ancillary = batch.datagram(0).unwrap().ancillary;
    assert_eq!((ancillary.tos, ancillary.ttl), (0xba, Some(8)));
}

/// Both ways: what comes by one family goes by the other, with its TOS byte and one hop less.
#[tokio::test]
async fn agents_of_different_families_are_relayed_to_each_other() {
    let mut relay = Relay::start();
    let (connector, target) = (agent(), agent_v6());
    let slot = relay.join(&connector, &target, Limit::UNLIMITED, CONSENT);
    let mut batch = Batch::<u8>::new();
    let mut sent = 0;
    for [from, to] in [[&connector, &target], [&target, &connector]] {
        report_ancillary(to).unwrap();
        let source = from.local_addr().unwrap().ip();
        let headers = Headers { to: relay.address_for(from), from: source, tos: 0xba, ttl: 9 };
        for payload in [&[0xc0; 1452][..], &[1], &[]] {
            send_one(from, payload, headers).unwrap();
            sent += 1;
            until(&relay.started.forwarder, Reason::Forwarded, sent);
            assert_eq!(batch.receive(to).unwrap(), 1);
            let datagram = batch.datagram(0).unwrap();
            assert_eq!((datagram.payload, datagram.from), (payload, relay.address_for(to)));
            assert_eq!((datagram.ancillary.tos, datagram.ancillary.ttl), (0xba, Some(8)));
        }
    }
    for side in relay.flows.traffic(slot).sides {
        assert_eq!((side.packets_userspace, side.bytes), (3, 1453));
    }
}

#[tokio::test]
async fn a_datagram_whose_ttl_is_used_up_is_dropped_uncharged_but_only_if_it_is_of_a_flow() {
    let mut relay = Relay::start();
    let (connector, target, stranger) = (agent(), agent(), agent());
    let slot = relay.join(&connector, &target, SLOW, CONSENT);
    let headers = Headers { to: relay.address, from: LOOPBACK.into(), tos: 0, ttl: 1 };
    for _ in 0..10 {
        send_one(&connector, &[0; 50_000], headers).unwrap();
    }
    until(&relay.started.forwarder, Reason::TtlExpired, 10);
    assert_eq!(relay.flows.traffic(slot), Default::default());
    connector.send_to(&[0; 50_000], relay.address).unwrap();
    until(&relay.started.forwarder, Reason::Forwarded, 1);
    send_one(&stranger, &[0xc0], headers).unwrap();
    until(&relay.started.forwarder, Reason::NoFlow, 1);
}

#[tokio::test]
async fn a_datagram_over_the_limit_is_dropped_and_counted() {
    let mut relay = Relay::start();
    let (connector, target) = (agent(), agent());
    let slot = relay.join(&connector, &target, SLOW, CONSENT);
    for _ in 0..10 {
        connector.send_to(&[0xc0; 50_000], relay.address).unwrap();
    }
    until(&relay.started.forwarder, Reason::Limited, 9);
    until(&relay.started.forwarder, Reason::Forwarded, 1);
    let traffic = relay.flows.traffic(slot);
    assert_eq!(
        (traffic.limited_packets, traffic.limited_bytes, traffic.sides[0].bytes),
        (9, 450_000, 50_000)
    );
}

#[tokio::test]
async fn a_session_without_fresh_consent_is_not_forwarded() {
    let mut relay = Relay::start();
    let (connector, target) = (agent(), agent());
    relay.join(&connector, &target, Limit::UNLIMITED, Duration::ZERO);
    connector.send_to(&[0; 100], relay.address).unwrap();
    until(&relay.started.forwarder, Reason::ConsentExpired, 1);
}

#[tokio::test]
async fn bind_datagrams_go_to_the_rendezvous_even_from_a_flow() {
    let mut relay = Relay::start();
    let (connector, target) = (agent(), agent_v6());
    relay.join(&connector, &target, Limit::UNLIMITED, CONSENT);
    for agent in [&connector, &target] {
        let address = relay.address_for(agent);
        agent.send_to(&bind_datagram(), address).unwrap();
        let received = relay.started.binds.recv().await.unwrap();
        assert_eq!((received.from, received.to), (agent.local_addr().unwrap(), address));
        assert_eq!(received.bytes, bind_datagram());

        relay.started.bind_sender.send_bind(received.to, received.from, &[7; BIND_LEN]);
        let mut buffer = [0; 200];
        assert_eq!(agent.recv_from(&mut buffer).unwrap(), (BIND_LEN, address));
        assert_eq!(buffer[..BIND_LEN], [7; BIND_LEN]);
    }
}

#[tokio::test]
async fn the_bind_magic_with_another_length_is_dropped_and_counted() {
    let mut relay = Relay::start();
    let agent = agent();
    agent.send_to(&bind_datagram()[..BIND_LEN - 1], relay.address).unwrap();
    agent.send_to(&[&bind_datagram()[..], &[0]].concat(), relay.address).unwrap();
    until(&relay.started.forwarder, Reason::BindMalformed, 2);
    assert!(relay.started.binds.try_recv().is_err());
}

#[tokio::test]
async fn more_bind_datagrams_than_the_queue_holds_are_dropped_and_counted() {
    let mut relay = Relay::start();
    let agent = agent();
    for sent in 1..=BIND_QUEUE_LEN as u64 + 30 {
        agent.send_to(&bind_datagram(), relay.address).unwrap();
        if sent <= BIND_QUEUE_LEN as u64 {
            until(&relay.started.forwarder, Reason::Bind, sent);
        }
    }
    until(&relay.started.forwarder, Reason::BindQueueFull, 30);
    let mut waiting = 0;
    while relay.started.binds.try_recv().is_ok() {
        waiting += 1;
    }
    assert_eq!(waiting, BIND_QUEUE_LEN);
}

#[tokio::test]
async fn what_quic_does_not_take_in_time_is_dropped_and_counted() {
    let relay = Relay::start();
    let agent = agent();
    for sent in 1..=QUEUE_LEN as u64 {
        agent.send_to(&[0xc0; 1200], relay.address).unwrap();
        until(&relay.started.forwarder, Reason::NoFlow, sent);
    }
    for _ in 0..20 {
        agent.send_to(&[0xc0; 1200], relay.address).unwrap();
    }
    until(&relay.started.forwarder, Reason::QuicQueueFull, 20);
    // Neither of these would be given to QUIC.
    agent.send_to(&[0x3f; 1200], relay.address).unwrap();
    agent.send_to(&[0xc0; 1501], relay.address).unwrap();
    until(&relay.started.forwarder, Reason::NoFlow, QUEUE_LEN as u64 + 2);
}

#[tokio::test]
async fn dropping_the_forwarder_ends_its_threads_and_frees_the_port() {
    let Relay { started, flows, tables, address, address_v6 } = Relay::start();
    drop((started, flows));
    assert_eq!(Arc::strong_count(&tables), 1, "a reader still holds the tables");
    for address in [address, address_v6] {
        SocketGroup::open(address, MARKS, 1).unwrap();
    }
}

proptest! {
    /// Whatever a datagram holds, it is a bind datagram, a bad one, QUIC's or nobody's: it gets one reason.
    #[test]
    fn every_datagram_of_no_flow_gets_one_reason(
        magic in any::<bool>(),
        mut payload in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            prop::collection::vec(any::<u8>(), BIND_LEN),
        ],
    ) {
        if magic && payload.len() >= BIND_MAGIC_LEN {
            payload[..BIND_MAGIC_LEN].copy_from_slice(&MAGIC);
        }
        let (quic, reason) = RUNTIME.block_on(async {
            let relay = Relay::start();
            agent().send_to(&payload, relay.address).unwrap();
            let counted = || Reason::ALL.iter().find(|reason| relay.started.forwarder.count(**reason) == 1);
            let reason = loop {
                match counted() {
                    Some(reason) => break *reason,
                    None => thread::yield_now(),
                }
            };
            (relay.started.quic.waiting(), reason)
        });
        let expected = match (payload.starts_with(&MAGIC), payload.first()) {
            (true, _) if payload.len() == BIND_LEN => (0, Reason::Bind),
            (true, _) => (0, Reason::BindMalformed),
            (false, Some(0x40..)) => (1, Reason::NoFlow),
            (false, _) => (0, Reason::NoFlow),
        };
        prop_assert_eq!((quic, reason), expected);
    }
}

static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| tokio::runtime::Runtime::new().unwrap());

#[tokio::test]
async fn quic_connects_and_talks_through_the_readers_in_both_families() {
    let port = relay_port();
    let (addresses, ids) = (port.addresses(), port.connection_ids());
    let tables = Tables::private(TableSizes::for_sessions(4), [1, 2], MAGIC);
    let started = Forwarder::start(port, Arc::new(tables)).unwrap();

    let certificate = rcgen::generate_simple_self_signed(["relay".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(certificate.signing_key.serialize_der());
    let chain = vec![certificate.cert.der().clone()];
    let server = quinn::ServerConfig::with_single_cert(chain.clone(), key.into()).unwrap();
    let mut endpoint_config = quinn::EndpointConfig::default();
    endpoint_config.cid_generator(move || Box::new(ids.clone())).grease_quic_bit(false);
    let runtime = Arc::new(quinn::TokioRuntime);
    let quic: Arc<dyn quinn::AsyncUdpSocket> = Arc::clone(&started.quic) as _;
    assert!(!quic.may_fragment(), "quinn would not discover the path MTU");
    assert!(quic.max_transmit_segments() > 1, "quinn would send datagram by datagram");
    let endpoint =
        quinn::Endpoint::new_with_abstract_socket(endpoint_config, Some(server), quic, runtime).unwrap();

    let mut roots = rustls::RootCertStore::empty();
    roots.add(chain[0].clone()).unwrap();
    let roots = Arc::new(roots);
    let serve = || async {
        let connection = endpoint.accept().await.unwrap().await.unwrap();
        let (mut send, mut receive) = connection.accept_bi().await.unwrap();
        send.write_all(&receive.read_to_end(1 << 20).await.unwrap()).await.unwrap();
        send.finish().unwrap();
        connection.closed().await;
    };
    let ask = |relay: SocketAddr| {
        let mut client = quinn::Endpoint::client(any_port(relay.ip())).unwrap();
        client.set_default_client_config(
            quinn::ClientConfig::with_root_certificates(Arc::clone(&roots)).unwrap(),
        );
        async move {
            let connection = client.connect(relay, "relay").unwrap().await.unwrap();
            let (mut send, mut receive) = connection.open_bi().await.unwrap();
            let question = vec![0x5a; 300_000];
            send.write_all(&question).await.unwrap();
            send.finish().unwrap();
            assert_eq!(receive.read_to_end(1 << 20).await.unwrap(), question);
            connection.close(0u32.into(), b"");
        }
    };
    let both = async { tokio::join!(serve(), serve(), ask(addresses.v4), ask(addresses.v6.unwrap())) };
    tokio::time::timeout(Duration::from_secs(20), both).await.unwrap();
    // Long headers and our own connection ids alike came by the control sockets, which are read first; the other
    // readers saw nothing.
    let seen: Vec<_> =
        started.forwarder.counters.iter().map(|counters| counters.get(Reason::NoFlow) > 0).collect();
    assert_eq!(seen, [true, true, false, false]);
    assert_eq!(started.forwarder.count(Reason::QuicQueueFull), 0);
}

#[tokio::test]
async fn a_full_sender_holds_up_only_what_goes_to_its_family() {
    let port = relay_port();
    let control = port.sockets[0].v6.clone().unwrap();
    let quic = Arc::new(super::QuicSocket::new(&port.sockets[0]).unwrap());
    let (receiver, receiver_v6) = (agent(), agent_v6());
    let send = |to: &UdpSocket| {
        let destination = to.local_addr().unwrap();
        let transmit =
            quinn::udp::Transmit { destination, ecn: None, contents: b"x", segment_size: None, src_ip: None };
        quinn::AsyncUdpSocket::try_send(&*quic, &transmit).map_err(|error| error.kind())
    };
    let [mut poller, mut poller_v6, mut other] =
        [(); 3].map(|()| quinn::AsyncUdpSocket::create_io_poller(Arc::clone(&quic)));
    let mut now = Context::from_waker(Waker::noop());
    let would_block = Err(std::io::ErrorKind::WouldBlock);
    // Until the runtime has heard of them, both count as full; then neither does.
    for (poller, receiver) in [(&mut poller, &receiver), (&mut poller_v6, &receiver_v6)] {
        poll_fn(|cx| poller.as_mut().poll_writable(cx)).await.unwrap();
        while send(receiver) == would_block {
            poll_fn(|cx| poller.as_mut().poll_writable(cx)).await.unwrap();
        }
    }

    quic.fill(Family::V6);
    assert!(poller_v6.as_mut().poll_writable(&mut now).is_ready(), "it is tried");
    assert_eq!(send(&receiver_v6), would_block);
    assert!(poller_v6.as_mut().poll_writable(&mut now).is_pending());
    // An answer to a stranger, after which nobody asks.
    assert_eq!(send(&receiver_v6), would_block);
    for _ in 0..2 {
        assert!(poller.as_mut().poll_writable(&mut now).is_ready());
        assert_eq!(send(&receiver), Ok(()));
    }
    assert!(other.as_mut().poll_writable(&mut now).is_ready());

    // What was sent has left, which the kernel tells.
    control.send_to(b"x", receiver_v6.local_addr().unwrap()).unwrap();
    poll_fn(|cx| poller_v6.as_mut().poll_writable(cx)).await.unwrap();
    assert_eq!(send(&receiver_v6), Ok(()));
}
