//! What becomes of datagrams of sessions.

use std::sync::Arc;
use std::time::Duration;

use relay_common::Reason;

use super::super::Started;
use super::super::departures::send_one;
use super::super::gathering::Headers;
use super::super::socket_group::SocketGroup;
use super::super::socket_options::report_ancillary;
use super::{CONSENT, LOOPBACK, MARKS, Relay, SLOW, agent, agent_v6, hear, until};
use crate::relay::datapath::{Flows, Limit};
#[tokio::test(flavor = "multi_thread")]
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

#[tokio::test(flavor = "multi_thread")]
async fn tos_is_kept_and_one_hop_is_taken_from_the_ttl() {
    let mut relay = Relay::start();
    let (connector, target) = (agent(), agent());
    relay.join(&connector, &target, Limit::UNLIMITED, CONSENT);
    report_ancillary(&target).unwrap();
    let headers = Headers { to: relay.address, from: LOOPBACK.into(), tos: 0xba, ttl: 9 };
    send_one(&connector, b"x", headers).unwrap();
    until(&relay.started.forwarder, Reason::Forwarded, 1);
    let [heard] = &hear(&target, 1)[..] else { panic!("not one datagram") };
    assert_eq!((heard.ancillary.tos, heard.ancillary.ttl), (0xba, Some(8)));
}

/// Both ways: what comes by one family goes by the other, with its TOS byte and one hop less.
#[tokio::test(flavor = "multi_thread")]
async fn agents_of_different_families_are_relayed_to_each_other() {
    let mut relay = Relay::start();
    let (connector, target) = (agent(), agent_v6());
    let slot = relay.join(&connector, &target, Limit::UNLIMITED, CONSENT);
    let mut sent = 0;
    for [from, to] in [[&connector, &target], [&target, &connector]] {
        report_ancillary(to).unwrap();
        let source = from.local_addr().unwrap().ip();
        let headers = Headers { to: relay.address_for(from), from: source, tos: 0xba, ttl: 9 };
        for payload in [&[0xc0; 1452][..], &[1], &[]] {
            send_one(from, payload, headers).unwrap();
            sent += 1;
            until(&relay.started.forwarder, Reason::Forwarded, sent);
            let [heard] = &hear(to, 1)[..] else { panic!("not one datagram") };
            assert_eq!((&heard.payload[..], heard.from), (payload, relay.address_for(to)));
            assert_eq!((heard.ancillary.tos, heard.ancillary.ttl), (0xba, Some(8)));
        }
    }
    for side in relay.flows.traffic(slot).sides {
        assert_eq!((side.packets_userspace, side.bytes), (3, 1453));
    }
}

#[tokio::test(flavor = "multi_thread")]
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

#[tokio::test(flavor = "multi_thread")]
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

#[tokio::test(flavor = "multi_thread")]
async fn a_session_without_fresh_consent_is_not_forwarded() {
    let mut relay = Relay::start();
    let (connector, target) = (agent(), agent());
    relay.join(&connector, &target, Limit::UNLIMITED, Duration::ZERO);
    connector.send_to(&[0; 100], relay.address).unwrap();
    until(&relay.started.forwarder, Reason::ConsentExpired, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_forwarder_has_ended_its_readers_and_freed_the_port() {
    let Relay { started, flows, tables, address, address_v6 } = Relay::start();
    let Started { forwarder, quic, binds, bind_sender } = started;
    drop((flows, quic, binds, bind_sender));
    forwarder.stop().await;
    assert_eq!(Arc::strong_count(&tables), 1, "a reader still holds the tables");
    for address in [address, address_v6] {
        SocketGroup::open(address, MARKS, 1).unwrap();
    }
}
