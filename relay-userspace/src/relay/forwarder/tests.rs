//! The forwarder on loopback sockets. Loopback delivers within the send call, so nothing here waits for the network.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use quinn::ConnectionIdGenerator;
use relay_common::{BIND_LEN, BIND_MAGIC_LEN, Reason};

use super::batch_io::{Batch, Headers, queue_drops, report_ancillary, send_fault, send_one};
use super::quic_socket::QUEUE_LEN;
use super::{Arrival, BIND_QUEUE_LEN, Decide, Forwarder, SocketGroup, Started};

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
    let mut batch = Batch::new();
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

    let mut batch = Batch::new();
    assert_eq!(batch.receive(relay).unwrap(), 1);
    let datagram = batch.datagram(0).unwrap();
    assert_eq!((datagram.payload, datagram.from), (&b"as it is"[..], address(sender)));
    assert_eq!((datagram.ancillary.tos, datagram.ancillary.ttl), (tos, Some(ttl)));
    assert_eq!((datagram.ancillary.to, datagram.ancillary.fragmented), (Some(source), false));
    batch.forward(0, Headers { to: address(receiver), from: source, tos: tos | 3, ttl: ttl - 1 });
    batch.flush(relay, |fault| panic!("{fault:?}"));

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
    let mut batch = Batch::new();
    assert_eq!(batch.receive(&relay).unwrap(), 2);
    let headers = Headers { to: receiver.local_addr().unwrap(), from: LOOPBACK.into(), tos: 0, ttl: 64 };
    (0..2).for_each(|index| batch.forward(index, headers));
    batch.flush(&relay, |fault| panic!("{fault:?}"));
    assert_eq!(batch.receive(&receiver).unwrap(), 2);
    assert_eq!(batch.datagram(0).unwrap().payload, largest);
    assert_eq!(batch.datagram(1).unwrap().payload, &[] as &[u8]);
}

#[test]
fn a_datagram_that_cannot_be_sent_is_reported_and_the_others_are_sent() {
    let (sender, relay, receiver) = (agent(), agent(), agent());
    report_ancillary(&relay).unwrap();
    let mut batch = Batch::new();
    for number in 0..5u8 {
        sender.send_to(&[number], relay.local_addr().unwrap()).unwrap();
    }
    assert_eq!(batch.receive(&relay).unwrap(), 5);
    let good = Headers { to: receiver.local_addr().unwrap(), from: LOOPBACK.into(), tos: 0, ttl: 64 };
    let port_zero = Headers { to: any_port(LOOPBACK), ..good };
    let foreign_source = Headers { from: Ipv4Addr::new(192, 0, 2, 1).into(), ..good };
    for (index, headers) in [port_zero, good, foreign_source, good, port_zero].into_iter().enumerate() {
        batch.forward(index, headers);
    }
    let mut faults = Vec::new();
    batch.flush(&relay, |fault| faults.push(fault));
    // What the kernel says to a source that is not ours depends on its routes.
    assert_eq!((faults.len(), faults[0], faults[2]), (3, Reason::SendFailed, Reason::SendFailed));
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
    let received = Batch::new().receive(&receiver).unwrap();
    assert_eq!(received + queue_drops(&receiver).unwrap() as usize, 100);
}

/// Flow tables that say what they were told to.
#[derive(Default)]
struct Told {
    flows: Mutex<HashMap<SocketAddr, Result<Headers, Reason>>>,
    asked: Mutex<Vec<Arrival>>,
}

impl Decide for Told {
    fn decide(&self, arrival: &Arrival) -> Result<Headers, Reason> {
        self.asked.lock().unwrap().push(*arrival);
        self.flows.lock().unwrap().get(&arrival.from).copied().unwrap_or(Err(Reason::NoFlow))
    }
}

fn started() -> (Started, Arc<Told>, SocketAddr) {
    let group = SocketGroup::open(any_port(LOOPBACK), MAGIC).unwrap();
    let (told, relay) = (Arc::new(Told::default()), group.local_addr());
    (Forwarder::start(group, Arc::clone(&told)).unwrap(), told, relay)
}

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
    let (mut started, told, relay) = started();
    let (agent, other) = (agent(), agent());
    let headers = Headers { to: other.local_addr().unwrap(), from: LOOPBACK.into(), tos: 1, ttl: 63 };
    told.flows.lock().unwrap().insert(agent.local_addr().unwrap(), Ok(headers));
    let payloads = [&[0xc0; 50][..], &[0x40; 50], &[1; 50], &[]];
    let mut buffer = [0; 100];
    for payload in payloads {
        agent.send_to(payload, relay).unwrap();
        let (len, from) = other.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..len], from), (payload, relay));
    }
    until(&started.forwarder, Reason::Forwarded, payloads.len() as u64);
    assert!(started.binds.try_recv().is_err());
    let asked = told.asked.lock().unwrap();
    assert!(asked.iter().all(|arrival| arrival.to == relay && arrival.ttl == 64 && arrival.tos == 0));
    assert_eq!(asked.iter().map(|arrival| arrival.payload_len).sum::<usize>(), 150);
}

#[tokio::test]
async fn bind_datagrams_go_to_the_rendezvous_even_from_a_flow() {
    let (mut started, told, relay) = started();
    let (agent, other) = (agent(), agent());
    let headers = Headers { to: other.local_addr().unwrap(), from: LOOPBACK.into(), tos: 0, ttl: 63 };
    told.flows.lock().unwrap().insert(agent.local_addr().unwrap(), Ok(headers));
    agent.send_to(&bind_datagram(), relay).unwrap();
    let received = started.binds.recv().await.unwrap();
    assert_eq!((received.from, received.to), (agent.local_addr().unwrap(), relay));
    assert_eq!(received.bytes, bind_datagram());

    started.bind_sender.send_bind(received.to, received.from, &[7; BIND_LEN]);
    let mut buffer = [0; 200];
    assert_eq!(agent.recv_from(&mut buffer).unwrap(), (BIND_LEN, relay));
    assert_eq!(buffer[..BIND_LEN], [7; BIND_LEN]);
}

#[tokio::test]
async fn the_bind_magic_with_another_length_is_dropped_and_counted() {
    let (mut started, told, relay) = started();
    let agent = agent();
    agent.send_to(&bind_datagram()[..BIND_LEN - 1], relay).unwrap();
    agent.send_to(&[&bind_datagram()[..], &[0]].concat(), relay).unwrap();
    until(&started.forwarder, Reason::BindMalformed, 2);
    assert!(started.binds.try_recv().is_err());
    assert!(told.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn more_bind_datagrams_than_the_queue_holds_are_dropped_and_counted() {
    let (mut started, _told, relay) = started();
    let agent = agent();
    for sent in 1..=BIND_QUEUE_LEN as u64 + 30 {
        agent.send_to(&bind_datagram(), relay).unwrap();
        if sent <= BIND_QUEUE_LEN as u64 {
            until(&started.forwarder, Reason::Bind, sent);
        }
    }
    until(&started.forwarder, Reason::BindQueueFull, 30);
    let mut waiting = 0;
    while started.binds.try_recv().is_ok() {
        waiting += 1;
    }
    assert_eq!(waiting, BIND_QUEUE_LEN);
}

#[tokio::test]
async fn what_quic_does_not_take_in_time_is_dropped_and_counted() {
    let (started, _told, relay) = started();
    let agent = agent();
    for sent in 1..=QUEUE_LEN as u64 {
        agent.send_to(&[0xc0; 1200], relay).unwrap();
        until(&started.forwarder, Reason::NoFlow, sent);
    }
    for _ in 0..20 {
        agent.send_to(&[0xc0; 1200], relay).unwrap();
    }
    until(&started.forwarder, Reason::QuicQueueFull, 20);
    // Neither of these would be given to QUIC.
    agent.send_to(&[0x3f; 1200], relay).unwrap();
    agent.send_to(&[0xc0; 1501], relay).unwrap();
    until(&started.forwarder, Reason::NoFlow, QUEUE_LEN as u64 + 2);
}

#[tokio::test]
async fn a_datagram_the_tables_refuse_is_counted_under_their_reason_and_not_given_to_quic() {
    let (started, told, relay) = started();
    let agent = agent();
    told.flows.lock().unwrap().insert(agent.local_addr().unwrap(), Err(Reason::Limited));
    agent.send_to(&[0xc0; 100], relay).unwrap();
    until(&started.forwarder, Reason::Limited, 1);
    assert_eq!(started.forwarder.count(Reason::NoFlow), 0);
}

#[tokio::test]
async fn dropping_the_forwarder_ends_its_threads_and_frees_the_port() {
    let (started, told, relay) = started();
    drop(started);
    assert_eq!(Arc::strong_count(&told), 1, "a reader still holds the tables");
    SocketGroup::open(relay, MAGIC).unwrap();
}

#[tokio::test]
async fn quic_connects_and_talks_through_the_readers() {
    let group = SocketGroup::open(any_port(LOOPBACK), MAGIC).unwrap();
    let (relay, ids) = (group.local_addr(), group.connection_ids());
    let started = Forwarder::start(group, Arc::new(Told::default())).unwrap();

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
