//! Datagrams that come merged: each is decided on by itself.

use std::net::UdpSocket;
use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use relay_common::{BIND_LEN, Reason, Tally};

use super::super::gathering::Headers;
use super::super::socket_options::report_ancillary;
use super::super::{Forwarder, Merging};
use super::{
    CONSENT, Heard, Relay, SLOW, agent, agent_v6, bind_datagram, hear, hear_messages, hear_payloads, lens,
    like_a_newcomers, send_together, until,
};
use crate::relay::datapath::{Flows, Hook, Limit, TableSizes, Tables};

const ECT: u8 = 2;
const CE: u8 = 3;

/// `count` datagrams of `len` bytes that are told by their number, which is in their last two bytes.
fn numbered(count: u16, len: usize) -> Vec<Vec<u8>> {
    (0..count).map(|number| [vec![1; len - 2], number.to_be_bytes().to_vec()].concat()).collect()
}

fn headers(from: &UdpSocket, relay: &Relay, tos: u8) -> Headers {
    Headers { to: relay.address_for(from), from: from.local_addr().unwrap().ip(), tos, ttl: 64 }
}

/// The kernel asks any of them when it merges.
#[tokio::test(flavor = "multi_thread")]
async fn all_sockets_of_the_port_take_merged_datagrams_or_none_does() {
    for merging in [Merging::On, Merging::Off] {
        let port = super::relay_port();
        let sockets = port.sockets.clone();
        let tables = Tables::private(TableSizes::for_sessions(4), [1, 2], super::MAGIC);
        // Nobody reads any more.
        drop(Forwarder::start(port, Arc::new(tables), merging).unwrap());
        for (number, sockets) in sockets.iter().enumerate() {
            for (socket, agent) in sockets.iter().zip([agent(), agent_v6()]) {
                let first = if number == 0 { like_a_newcomers() } else { vec![1; 9] };
                let (to, from) = (socket.local_addr().unwrap(), agent.local_addr().unwrap().ip());
                let second = vec![2; first.len()];
                send_together(&agent, &[first, second], Headers { to, from, tos: 0, ttl: 64 });
                assert_eq!(
                    lens(&hear_messages(socket, 2)),
                    if merging == Merging::On { vec![2] } else { vec![1, 1] }
                );
            }
        }
    }
}

#[test]
fn merging_is_left_alone_where_the_program_runs_behind_the_driver() {
    assert_eq!(Merging::beside(None), Merging::On);
    assert_eq!(Merging::beside(Some(Hook::Native)), Merging::On);
    assert_eq!(Merging::beside(Some(Hook::Generic)), Merging::Off);
}

#[tokio::test(flavor = "multi_thread")]
async fn merged_datagrams_over_the_limit_are_dropped_and_the_others_keep_their_order() {
    let mut relay = Relay::start();
    let (connector, target) = (agent(), agent());
    let slot = relay.join(&connector, &target, SLOW, CONSENT);
    // Small ones still conform where large ones do not: here the last does, and those in the middle do not.
    let sent = [numbered(53, 1200), vec![vec![7; 100]]].concat();
    send_together(&connector, &sent, headers(&connector, &relay, 0));
    until(&relay.started.forwarder, Reason::Limited, 6);
    until(&relay.started.forwarder, Reason::Forwarded, 48);
    assert_eq!(hear_payloads(&target, 48), [&sent[..47], &sent[53..]].concat());
    let traffic = relay.flows.traffic(slot);
    assert_eq!((traffic.limited_packets, traffic.limited_bytes), (6, 6 * 1200));
    assert_eq!((traffic.sides[0].packets_userspace, traffic.sides[0].bytes), (48, 47 * 1200 + 100));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_marked_datagram_leaves_its_run_in_its_place() {
    let mut relay = Relay::start();
    let (connector, target) = (agent(), agent());
    relay.join(&connector, &target, SLOW, CONSENT);
    report_ancillary(&target).unwrap();
    let sent = numbered(30, 1200);
    send_together(&connector, &sent, headers(&connector, &relay, ECT));
    until(&relay.started.forwarder, Reason::Forwarded, 30);
    let heard = hear(&target, 30);
    assert_eq!(heard.iter().map(|heard| &heard.payload).collect::<Vec<_>>(), sent.iter().collect::<Vec<_>>());
    // Above a quarter of the burst one is marked, and no other within 100 ms.
    let marks: Vec<_> = heard.iter().map(|heard| heard.ancillary.tos).collect();
    assert_eq!(marks, [vec![ECT; 13], vec![CE], vec![ECT; 16]].concat());
    assert_eq!(relay.started.forwarder.marked(), Tally { packets: 1, bytes: 1200 });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bind_datagram_among_merged_ones_goes_to_the_rendezvous() {
    let mut relay = Relay::start();
    let (connector, target) = (agent(), agent());
    relay.join(&connector, &target, Limit::UNLIMITED, CONSENT);
    let mut sent = numbered(5, BIND_LEN);
    sent[3] = bind_datagram().to_vec();
    send_together(&connector, &sent, headers(&connector, &relay, 0));
    let bind = relay.started.binds.recv().await.unwrap();
    assert_eq!((bind.from, bind.to), (connector.local_addr().unwrap(), relay.address));
    assert_eq!(bind.bytes, bind_datagram());
    until(&relay.started.forwarder, Reason::Forwarded, 4);
    sent.remove(3);
    assert_eq!(hear_payloads(&target, 4), sent);
    assert_eq!(relay.started.forwarder.count(Reason::Bind), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_a_strangers_merged_datagrams_is_counted_and_those_like_quic_are_given_to_it() {
    let relay = Relay::start();
    let stranger = agent();
    let mut sent = numbered(7, 1200);
    sent[2][0] = 0x40;
    sent[4][0] = 0xc0;
    send_together(&stranger, &sent, headers(&stranger, &relay, 0));
    until(&relay.started.forwarder, Reason::NoFlow, 7);
    assert_eq!(relay.started.quic.waiting(), 2);
}

static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| tokio::runtime::Runtime::new().unwrap());

/// What an agent sends at once: to which of two sessions, datagrams of one length, a shorter last one, TOS.
fn sends() -> impl Strategy<Value = Vec<(usize, Vec<Vec<u8>>, u8)>> {
    let lengths = prop_oneof![Just(2usize), Just(100), Just(1200), 3..1400usize];
    let one =
        (0..2usize, 1..20u16, lengths, prop::option::of(0..1200usize), prop_oneof![Just(0u8), Just(ECT)]);
    prop::collection::vec(one, 1..12).prop_map(|sends| {
        let mut number = 0u16;
        let send = |(session, count, len, last, tos): (_, u16, usize, Option<usize>, _)| {
            let mut payloads = Vec::new();
            for _ in 0..count {
                number += 1;
                payloads.push([vec![1; len - 2], number.to_be_bytes().to_vec()].concat());
            }
            payloads.extend(last.map(|last| vec![1; last.min(len)]));
            (session, payloads, tos)
        };
        sends.into_iter().map(send).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The reference forwards one datagram after the other: to the other side of its session, as it is, one hop less.
    #[test]
    fn what_leaves_is_what_a_forwarder_of_single_datagrams_would_send(sends in sends()) {
        let (heard, expected) = RUNTIME.block_on(async {
            let mut relay = Relay::start();
            let connectors = [agent(), agent()];
            let targets = [agent(), agent_v6()];
            for (connector, target) in connectors.iter().zip(&targets) {
                relay.join(connector, target, Limit::UNLIMITED, CONSENT);
                report_ancillary(target).unwrap();
            }
            let mut expected = [vec![], vec![]];
            for (session, payloads, tos) in sends {
                send_together(&connectors[session], &payloads, headers(&connectors[session], &relay, tos));
                expected[session].extend(payloads.into_iter().map(|payload| (payload, tos, Some(63))));
            }
            let count: usize = expected.iter().map(Vec::len).sum();
            until(&relay.started.forwarder, Reason::Forwarded, count as u64);
            let counts = expected.each_ref().map(Vec::len);
            let heard = [0, 1].map(|session| {
                let target = &targets[session];
                let address = relay.address_for(target);
                let of = |Heard { payload, from, ancillary }| {
                    assert_eq!(from, address);
                    (payload, ancillary.tos, ancillary.ttl)
                };
                hear(target, counts[session]).into_iter().map(of).collect::<Vec<_>>()
            });
            (heard, expected)
        });
        prop_assert_eq!(heard, expected);
    }
}
