//! Receiving and sending in batches.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use relay_common::Reason;

use super::super::arrivals::{Arrivals, BATCH};
use super::super::departures::{Departures, Outcome, SINGLE_AFTER_REFUSAL, send_fault, send_one};
use super::super::gathering::Headers;
use super::super::socket_options::{refuse_gathered, report_ancillary, report_icmp_errors, set_gro};
use super::{
    Heard, LOOPBACK, LOOPBACK_V6, agent, any_port, hear, hear_messages, hear_payloads, lens, queue,
    send_together,
};
use crate::clock::MonoTime;
use crate::socket_queue::queue_drops;

const NOW: MonoTime = MonoTime(1);

fn headers_to(socket: &UdpSocket) -> Headers {
    Headers { to: socket.local_addr().unwrap(), from: LOOPBACK.into(), tos: 0, ttl: 64 }
}

/// Sends what is queued and returns what became of it.
fn flush(departures: &mut Departures, socket: Option<&UdpSocket>, bytes: &[u8]) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    departures.flush(socket, bytes, NOW, |outcome| outcomes.push(outcome));
    outcomes
}

/// Datagrams from `sender` arrive with the TOS and TTL they were sent with, and go on with others, from the address they
/// came to, whether they come and go together or alone.
fn headers_are_carried(relay: IpAddr, source: IpAddr) {
    let (tos, ttl) = (0xb9, 7);
    let sockets: Vec<_> = (0..3).map(|_| UdpSocket::bind(any_port(relay)).unwrap()).collect();
    let [sender, relay, receiver] = &sockets[..] else { unreachable!() };
    let address = |socket: &UdpSocket| SocketAddr::new(source, socket.local_addr().unwrap().port());
    report_ancillary(relay).unwrap();
    report_ancillary(receiver).unwrap();
    set_gro(relay, true).unwrap();
    let expect = |heard: &[Heard], from, tos, ttl, payloads: &[Vec<u8>]| {
        assert_eq!(heard.iter().map(|heard| &heard.payload).collect::<Vec<_>>(), Vec::from_iter(payloads));
        for Heard { from: seen, ancillary, .. } in heard {
            assert_eq!((*seen, ancillary.tos, ancillary.ttl), (from, tos, Some(ttl)));
            assert_eq!((ancillary.to, ancillary.fragmented), (Some(source), false));
        }
    };
    for payloads in [&[b"as it is".to_vec()][..], &[vec![1; 9], vec![2; 9], vec![3; 5]]] {
        send_together(sender, payloads, Headers { to: address(relay), from: source, tos, ttl });
        let heard = hear(relay, payloads.len());
        expect(&heard, address(sender), tos, ttl, payloads);
        let segment_len = (payloads.len() > 1).then_some(9);
        assert!(heard.iter().all(|heard| heard.ancillary.segment_len == segment_len));
        let onward = Headers { to: address(receiver), from: source, tos: tos | 3, ttl: ttl - 1 };
        send_together(relay, payloads, onward);
        expect(&hear(receiver, payloads.len()), address(relay), tos | 3, ttl - 1, payloads);
    }
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
    let largest: Vec<u8> = (0..65507u32).map(|at| (at % 251) as u8).collect();
    for gro in [false, true] {
        set_gro(&relay, gro).unwrap();
        sender.send_to(&largest, relay.local_addr().unwrap()).unwrap();
        sender.send_to(&[], relay.local_addr().unwrap()).unwrap();
        let payloads = hear_payloads(&relay, 2);
        assert!(payloads == [&largest[..], &[]]);
        send_together(&relay, &payloads, headers_to(&receiver));
        assert!(hear_payloads(&receiver, 2) == payloads);
    }
}

#[test]
fn more_than_one_system_call_takes_is_received_in_order() {
    let (sender, relay) = (agent(), agent());
    let sent: Vec<Vec<u8>> = (0..150u8).map(|number| vec![number; 20]).collect();
    for payload in &sent {
        sender.send_to(payload, relay.local_addr().unwrap()).unwrap();
    }
    assert_eq!(hear_payloads(&relay, 150), sent);
    // The buffers are as good as new afterwards.
    let mut arrivals = Arrivals::new(BATCH);
    for payload in sent {
        sender.send_to(&payload, relay.local_addr().unwrap()).unwrap();
        let received = (0..).find_map(|_| arrivals.receive(&relay).ok());
        assert_eq!(received, Some(1));
        let arrived = arrivals.get(0).unwrap();
        assert_eq!((arrived.from, arrivals.get(1)), (sender.local_addr().unwrap(), None));
        assert_eq!(arrived.place.of(arrivals.bytes()).unwrap(), payload);
    }
    assert!(arrivals.receive(&relay).is_err());
    assert_eq!(arrivals.get(0), None);
}

#[test]
fn datagrams_that_cannot_be_sent_are_reported_one_by_one_and_the_others_are_sent() {
    let (relay, receiver) = (agent(), agent());
    let good = headers_to(&receiver);
    let port_zero = Headers { to: any_port(LOOPBACK), ..good };
    let foreign_source = Headers { from: Ipv4Addr::new(192, 0, 2, 1).into(), ..good };
    let (mut departures, mut bytes) = (Departures::new(), Vec::new());
    let runs = [(port_zero, 3), (good, 2), (foreign_source, 1), (good, 1), (port_zero, 1)];
    for (slot, (headers, count)) in runs.into_iter().enumerate() {
        let payloads: Vec<_> = (0..count).map(|number| vec![slot as u8, number]).collect();
        queue(&mut departures, &mut bytes, &payloads, headers, slot as u32);
    }
    assert_eq!(departures.len(), 8);
    let outcomes = flush(&mut departures, Some(&relay), &bytes);
    let of_slot = |slot| outcomes.iter().filter(move |outcome| outcome.at.slot == slot);
    for (slot, (headers, count)) in runs.into_iter().enumerate() {
        let of_slot = || of_slot(slot as u32);
        assert_eq!(of_slot().map(|outcome| outcome.datagrams).sum::<usize>(), usize::from(count));
        assert_eq!(of_slot().map(|outcome| outcome.bytes).sum::<usize>(), 2 * usize::from(count));
        // What the kernel says to a source that is not ours depends on its routes.
        assert!(of_slot().all(|outcome| outcome.result.is_ok() == (headers == good)));
        if headers == port_zero {
            let one = |outcome: &Outcome| (outcome.datagrams, outcome.result) == (1, Err(Reason::SendFailed));
            assert!(of_slot().all(one));
        }
    }
    assert_eq!(hear_payloads(&receiver, 3), [[1, 0], [1, 1], [3, 0]]);
    assert_eq!(departures.len(), 0);
}

#[test]
fn what_is_for_a_family_that_the_host_has_not_is_reported() {
    let receiver = agent();
    let (mut departures, mut bytes) = (Departures::new(), Vec::new());
    queue(&mut departures, &mut bytes, &[vec![1], vec![2]], headers_to(&receiver), 5);
    let outcomes = flush(&mut departures, None, &bytes);
    let [Outcome { at, datagrams: 2, bytes: 2, result: Err(Reason::SendUnreachable) }] = outcomes[..] else {
        panic!("{outcomes:?}")
    };
    assert_eq!((at.slot, departures.len()), (5, 0));
}

#[test]
fn where_gathered_messages_are_refused_datagrams_leave_one_by_one_for_a_while() {
    let (relay, receiver) = (agent(), agent());
    set_gro(&receiver, true).unwrap();
    let mut departures = Departures::new();
    let payloads = [vec![1; 9], vec![2; 9], vec![3; 9]];
    let mut send = |now| {
        let mut bytes = Vec::new();
        queue(&mut departures, &mut bytes, &payloads, headers_to(&receiver), 0);
        departures.flush(Some(&relay), &bytes, now, |outcome| assert_eq!(outcome.result, Ok(())));
        lens(&hear_messages(&receiver, 3))
    };
    let at = |time: Duration| NOW + time;
    assert_eq!(send(at(Duration::ZERO)), [3]);
    refuse_gathered(&relay, true).unwrap();
    assert_eq!(send(at(Duration::ZERO)), [1, 1, 1]);
    refuse_gathered(&relay, false).unwrap();
    assert_eq!(send(at(SINGLE_AFTER_REFUSAL)), [1, 1, 1], "nothing refused what was sent at that time");
    assert_eq!(send(at(SINGLE_AFTER_REFUSAL)), [3]);
}

#[test]
fn a_refused_address_does_not_end_gathering() {
    let (relay, receiver) = (agent(), agent());
    set_gro(&receiver, true).unwrap();
    let (mut departures, mut bytes) = (Departures::new(), Vec::new());
    let port_zero = Headers { to: any_port(LOOPBACK), ..headers_to(&receiver) };
    queue(&mut departures, &mut bytes, &[vec![1], vec![2]], port_zero, 0);
    assert!(flush(&mut departures, Some(&relay), &bytes).iter().all(|outcome| outcome.result.is_err()));
    queue(&mut departures, &mut bytes, &[vec![1], vec![2]], headers_to(&receiver), 0);
    flush(&mut departures, Some(&relay), &bytes);
    assert_eq!(lens(&hear_messages(&receiver, 2)), [2]);
}

#[test]
fn an_icmp_error_about_one_datagram_costs_no_more_than_the_next() {
    let (relay, receiver) = (agent(), agent());
    let gone = headers_to(&agent());
    report_icmp_errors(&relay).unwrap();
    let (mut departures, mut bytes) = (Departures::new(), Vec::new());
    let mut send = |payloads: &[Vec<u8>], headers| {
        queue(&mut departures, &mut bytes, payloads, headers, 0);
        let outcomes = flush(&mut departures, Some(&relay), &bytes);
        outcomes.into_iter().map(|outcome| outcome.result).collect::<Vec<_>>()
    };
    // Of growing length, so that each is a message by itself.
    let payloads = [vec![1], vec![2; 2], vec![3; 3]];
    for _ in 0..3 {
        assert_eq!(send(&[vec![0]], gone), [Ok(())]);
        assert_eq!(send(&payloads, headers_to(&receiver)), [Err(Reason::SendFailed), Ok(()), Ok(())]);
        assert_eq!(hear_payloads(&receiver, payloads.len() - 1), payloads[1..]);
    }
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
        send_one(&sender, &[0; 1000], headers_to(&receiver)).unwrap();
    }
    let mut received = hear(&receiver, 1).len();
    while received + queue_drops(receiver.as_fd()).unwrap() as usize != 100 {
        received += hear(&receiver, 0).len();
    }
    assert!(received < 100);
}
