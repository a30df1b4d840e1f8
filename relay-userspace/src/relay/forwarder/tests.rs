//! The forwarder on loopback sockets. Loopback delivers within the send call, so nothing here waits for the network.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use quinn::ConnectionIdGenerator;
use relay_common::{BIND_LEN, BIND_MAGIC_LEN, Reason};

use super::batch_io::{Batch, Headers, queue_drops, report_ancillary, send_fault, send_one};
use super::quic_socket::QUEUE_LEN;
use super::{BIND_QUEUE_LEN, Forwarder, SocketGroup, Started};
use crate::clock::MonoTime;
use crate::relay::datapath::{FlowTable, FlowTuple, Flows, Limit, NoRoutes, SlotId, TableSizes, Tables};

const MAGIC: [u8; BIND_MAGIC_LEN] = [0x2a, 1, 2, 3, 4, 5, 6, 7];
const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

fn any_port(address: impl Into<IpAddr>) -> SocketAddr {
    SocketAddr::new(address.into(), 0)
}

fn agent() -> UdpSocket {
    UdpSocket::bind(any_port(LOOPBACK)).unwrap()
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
    let group = SocketGroup::open(any_port(LOOPBACK), MAGIC).unwrap();
    let [t, u] = group.marks.connection_tag;
    let long_header = vec![0xc3, 0, 0, 0, 1, 8, 0, 0, 0, 0];
    let own_short_header = vec![0x4f, t, u, 0, 0, 0, 0, 0];
    let bind = bind_datagram().to_vec();
    let foreign_short_header = vec![0x4f, t, !u, 0, 0, 0, 0, 0];
    let wireguard = vec![4, 0, 0, 0, 1, 2, 3, 4, 5];
    let tag_without_fixed_bit = vec![0x0f, t, u, 0, 0, 0, 0, 0];
    let half_magic = [&MAGIC[..4], &[0; 92]].concat();
    let (empty, one_byte) = (vec![], vec![0xc0]);

    let agent = agent();
    let control = vec![long_header, own_short_header, bind];
    let relayed = vec![foreign_short_header, wireguard, tag_without_fixed_bit, half_magic, empty, one_byte];
    for payload in control.iter().chain(&relayed) {
        agent.send_to(payload, group.local_addr()).unwrap();
    }
    assert_eq!(drain(&group), [control, relayed]);
}

fn sources_spread(loopback: IpAddr) {
    let group = SocketGroup::open_sized(any_port(loopback), MAGIC, 3).unwrap();
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
    sources_spread(std::net::Ipv6Addr::LOCALHOST.into());
}

#[test]
fn a_port_in_use_is_found_even_if_its_holder_allows_sharing() {
    let holder = SocketGroup::open(any_port(LOOPBACK), MAGIC).unwrap();
    let error = SocketGroup::open(holder.local_addr(), MAGIC).unwrap_err().to_string();
    assert!(error.contains("in use") && error.contains(&holder.local_addr().port().to_string()), "{error}");
    let everywhere = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), holder.local_addr().port());
    assert!(
        SocketGroup::open(everywhere, MAGIC).is_err(),
        "the wildcard would share with {}",
        holder.local_addr()
    );
}

#[test]
fn an_address_of_another_host_is_named_as_such() {
    let error = SocketGroup::open("192.0.2.1:0".parse().unwrap(), MAGIC).unwrap_err().to_string();
    assert!(error.contains("192.0.2.1") && error.contains("not an address of this host"), "{error}");
}

#[test]
fn connection_ids_begin_with_the_tag_and_differ() {
    let group = SocketGroup::open(any_port(LOOPBACK), MAGIC).unwrap();
    let (mut ids, mut others) = (group.connection_ids(), group.connection_ids());
    let made: Vec<_> = (0..100).flat_map(|_| [ids.generate_cid(), others.generate_cid()]).collect();
    assert!(made.iter().all(|id| id.starts_with(&group.marks.connection_tag) && id.len() == ids.cid_len()));
    assert!(made.iter().all(|id| ids.validate(id).is_ok()));
    assert_eq!(made.iter().map(|id| id.to_vec()).collect::<std::collections::HashSet<_>>().len(), made.len());
    assert!(
        ids.validate(&quinn::ConnectionId::new(&[0; 10])).is_err() || group.marks.connection_tag == [0, 0]
    );
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
    batch.flush(relay, |_, _, result| assert_eq!(result, Ok(())));

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
    let loopback = std::net::Ipv6Addr::LOCALHOST.into();
    headers_are_carried(loopback, loopback);
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
    batch.flush(&relay, |_, _, result| assert_eq!(result, Ok(())));
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
    batch.flush(&relay, |ticket, len, result| reports.push((ticket, len, result)));
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
    assert_eq!(received + queue_drops(&receiver).unwrap() as usize, 100);
}

/// A started forwarder on loopback, and its tables' writer.
struct Relay {
    started: Started,
    flows: FlowTable<NoRoutes>,
    tables: Arc<Tables>,
    address: SocketAddr,
}

impl Relay {
    fn start() -> Relay {
        let group = SocketGroup::open(any_port(LOOPBACK), MAGIC).unwrap();
        let address = group.local_addr();
        let tables = Arc::new(Tables::private(TableSizes::for_sessions(4), [1, 2], MAGIC));
        let flows = FlowTable::new(Arc::clone(&tables), NoRoutes);
        let started = Forwarder::start(group, Arc::clone(&tables)).unwrap();
        Relay { started, flows, tables, address }
    }

    /// Joins two agents in a session.
    fn join(&mut self, connector: &UdpSocket, target: &UdpSocket, limit: Limit, consent: Duration) -> SlotId {
        let tuple = |agent: &UdpSocket| FlowTuple { agent: agent.local_addr().unwrap(), relay: self.address };
        let now = MonoTime::now();
        self.flows.install([tuple(connector), tuple(target)], limit, [now + consent; 2], now).unwrap()
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
    let (connector, target) = (agent(), agent());
    relay.join(&connector, &target, Limit::UNLIMITED, CONSENT);
    connector.send_to(&bind_datagram(), relay.address).unwrap();
    let received = relay.started.binds.recv().await.unwrap();
    assert_eq!((received.from, received.to), (connector.local_addr().unwrap(), relay.address));
    assert_eq!(received.bytes, bind_datagram());

    relay.started.bind_sender.send_bind(received.to, received.from, &[7; BIND_LEN]);
    let mut buffer = [0; 200];
    assert_eq!(connector.recv_from(&mut buffer).unwrap(), (BIND_LEN, relay.address));
    assert_eq!(buffer[..BIND_LEN], [7; BIND_LEN]);
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
    let Relay { started, flows, tables, address } = Relay::start();
    drop((started, flows));
    assert_eq!(Arc::strong_count(&tables), 1, "a reader still holds the tables");
    SocketGroup::open(address, MAGIC).unwrap();
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
async fn quic_connects_and_talks_through_the_readers() {
    let group = SocketGroup::open(any_port(LOOPBACK), MAGIC).unwrap();
    let (relay, ids) = (group.local_addr(), group.connection_ids());
    let tables = Tables::private(TableSizes::for_sessions(4), [1, 2], MAGIC);
    let started = Forwarder::start(group, Arc::new(tables)).unwrap();

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
    let mut client = quinn::Endpoint::client(any_port(LOOPBACK)).unwrap();
    client.set_default_client_config(quinn::ClientConfig::with_root_certificates(Arc::new(roots)).unwrap());

    let serve = async {
        let connection = endpoint.accept().await.unwrap().await.unwrap();
        let (mut send, mut receive) = connection.accept_bi().await.unwrap();
        send.write_all(&receive.read_to_end(1 << 20).await.unwrap()).await.unwrap();
        send.finish().unwrap();
        connection.closed().await;
    };
    let ask = async {
        let connection = client.connect(relay, "relay").unwrap().await.unwrap();
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        let question = vec![0x5a; 300_000];
        send.write_all(&question).await.unwrap();
        send.finish().unwrap();
        assert_eq!(receive.read_to_end(1 << 20).await.unwrap(), question);
        connection.close(0u32.into(), b"");
    };
    tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(serve, ask) }).await.unwrap();
    // Long headers and our own connection ids alike came by the control socket; the other reader saw nothing.
    assert_eq!(started.forwarder.counters[1].get(Reason::NoFlow), 0);
    assert_eq!(started.forwarder.count(Reason::QuicQueueFull), 0);
}
