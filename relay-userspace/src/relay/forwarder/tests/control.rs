//! What becomes of datagrams of no session: binds and QUIC.

use std::future::poll_fn;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Waker};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use relay_common::{BIND_LEN, BIND_MAGIC_LEN, Reason};

use super::super::quic_socket::{QUEUE_LEN, QuicSocket, STRANGERS_LEN};
use super::super::{BIND_QUEUE_LEN, Forwarder, Merging};
use super::{
    CONSENT, MAGIC, Relay, agent, agent_v6, any_port, bind_datagram, like_a_newcomers, relay_port, until,
};
use crate::relay::datapath::{Limit, TableSizes, Tables};
use crate::relay::family::Family;

#[tokio::test(flavor = "multi_thread")]
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

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_floods_control_has_a_share_forwarded_and_the_rest_dropped_and_counted() {
    for [connector, target, newcomer] in [[(); 3].map(|()| agent()), [(); 3].map(|()| agent_v6())] {
        let mut relay = Relay::start();
        relay.join(&connector, &target, Limit::UNLIMITED, CONSENT);
        let address = relay.address_for(&connector);
        let forwarder = &relay.started.forwarder;
        let mut sent = 0;
        let mut flood = |datagrams| {
            for _ in 0..datagrams {
                connector.send_to(&like_a_newcomers(), address).unwrap();
                sent += 1;
                // One after the other, so that none is lost because the queue is full.
                let passed = || forwarder.count(Reason::Forwarded) + forwarder.count(Reason::ControlShare);
                while passed() != sent {
                    thread::yield_now();
                }
            }
        };
        flood(1000);
        let forwarded = forwarder.count(Reason::Forwarded);
        // Somewhat more than the burst: the flood takes time.
        assert!((128..500).contains(&forwarded), "{forwarded} were forwarded");
        let by_reader = || {
            let seen = forwarder.counters[..2].iter().map(|counters| counters.get(Reason::ControlShare));
            seen.map(|tally| tally.packets).sum::<u64>()
        };
        let before = by_reader();
        assert!(before < 1000 - forwarded, "the kernel has dropped none");
        flood(100);
        assert_eq!(by_reader(), before, "they reached the reader");

        newcomer.send_to(&like_a_newcomers(), address).unwrap();
        until(forwarder, Reason::NoFlow, 1);
        assert_eq!(relay.started.quic.waiting(), 1, "a newcomer is heard");
        connector.send_to(&bind_datagram(), address).unwrap();
        assert_eq!(
            relay.started.binds.recv().await.unwrap().bytes,
            bind_datagram(),
            "and the session's bind"
        );
        connector.send_to(&[0x11; 1200], address).unwrap();
        until(forwarder, Reason::Forwarded, forwarded + 1);
        assert_eq!(forwarder.socket_queue_drops(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bind_magic_with_another_length_is_dropped_and_counted() {
    let mut relay = Relay::start();
    let agent = agent();
    agent.send_to(&bind_datagram()[..BIND_LEN - 1], relay.address).unwrap();
    agent.send_to(&[&bind_datagram()[..], &[0]].concat(), relay.address).unwrap();
    until(&relay.started.forwarder, Reason::BindMalformed, 2);
    assert!(relay.started.binds.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
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

#[tokio::test(flavor = "multi_thread")]
async fn what_quic_does_not_take_in_time_is_dropped_and_counted() {
    let relay = Relay::start();
    let agent = agent();
    let send_until_full = |datagram: &[u8], heard_before: u64, room: u64| {
        for sent in 1..=room {
            agent.send_to(datagram, relay.address).unwrap();
            until(&relay.started.forwarder, Reason::NoFlow, heard_before + sent);
        }
        for _ in 0..20 {
            agent.send_to(datagram, relay.address).unwrap();
        }
    };
    // What does not come by control's sockets may fill a part of the queue only.
    send_until_full(&[0xc0; 1200], 0, STRANGERS_LEN as u64);
    until(&relay.started.forwarder, Reason::QuicQueueFull, 20);
    send_until_full(&like_a_newcomers(), STRANGERS_LEN as u64, (QUEUE_LEN - STRANGERS_LEN) as u64);
    until(&relay.started.forwarder, Reason::QuicQueueFull, 40);
    // Neither of these would be given to QUIC.
    agent.send_to(&[0x3f; 1200], relay.address).unwrap();
    agent.send_to(&[0xc0; 1501], relay.address).unwrap();
    until(&relay.started.forwarder, Reason::NoFlow, QUEUE_LEN as u64 + 2);
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

#[tokio::test(flavor = "multi_thread")]
async fn quic_connects_and_talks_through_the_readers_in_both_families() {
    let port = relay_port();
    let (addresses, ids) = (port.addresses(), port.connection_ids());
    let tables = Tables::private(TableSizes::for_sessions(4), [1, 2], MAGIC);
    let started = Forwarder::start(port, Arc::new(tables), Merging::On).unwrap();

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
        started.forwarder.counters.iter().map(|counters| counters.get(Reason::NoFlow).packets > 0).collect();
    assert_eq!(seen, [true, true, false, false]);
    assert_eq!(started.forwarder.count(Reason::QuicQueueFull), 0);
}

#[tokio::test]
async fn a_full_sender_holds_up_only_what_goes_to_its_family() {
    let port = relay_port();
    let quic = Arc::new(QuicSocket::new(&port.sockets[0]).unwrap());
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
    for (poller, receiver) in [(&mut poller, &receiver), (&mut poller_v6, &receiver_v6)] {
        assert!(poller.as_mut().poll_writable(&mut now).is_ready());
        assert_eq!(send(receiver), Ok(()));
    }

    let full = quic.fill(Family::V6);
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

    // The kernel says that there is room, to all who wait.
    drop(full);
    poll_fn(|cx| poller_v6.as_mut().poll_writable(cx)).await.unwrap();
    assert_eq!(send(&receiver_v6), Ok(()));
}
