//! The relay's port: its sockets, and which of them a datagram comes to.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use quinn::ConnectionIdGenerator;

use super::super::RelayPort;
use super::super::connection_ids::ConnectionIds;
use super::super::kept_out::MAX_KEPT_OUT;
use super::super::socket_group::SocketGroup;
use super::super::socket_options::attach_filter;
use super::super::steering;
use super::{LOOPBACK, LOOPBACK_V6, MAGIC, MARKS, TAG, any_port, bind_datagram, hear_payloads};
use crate::relay::family::PerFamily;

/// What comes to each of the group's sockets: `count` datagrams in all.
fn drain(group: &SocketGroup, count: usize) -> Vec<Vec<Vec<u8>>> {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut payloads = vec![Vec::new(); group.sockets.len()];
    while payloads.iter().map(Vec::len).sum::<usize>() < count {
        assert!(Instant::now() < deadline, "waiting for {count} datagrams: {payloads:?}");
        for (socket, payloads) in group.sockets.iter().zip(&mut payloads) {
            payloads.extend(hear_payloads(socket, 0));
        }
    }
    payloads
}

#[test]
fn control_datagrams_come_to_the_control_socket_and_the_rest_to_another() {
    for loopback in [IpAddr::from(LOOPBACK), LOOPBACK_V6.into()] {
        control_and_relayed_are_told_apart(loopback);
    }
}

fn control_and_relayed_are_told_apart(loopback: IpAddr) {
    let group = SocketGroup::open(any_port(loopback), MARKS, 1).unwrap();
    let [t, u, v, w] = TAG;
    let long_header = |first: u8, version: u8, id: [u8; 4], len: usize| {
        let mut datagram = [&[first, 0, 0, 0, version, 8][..], &id].concat();
        datagram.resize(len, 0);
        datagram
    };
    let newcomer = long_header(0xc3, 1, [0; 4], 1200);
    let handshake = long_header(0xe3, 1, TAG, 60);
    let own_short_header = vec![0x4f, t, u, v, w, 0, 0, 0, 0, 0];
    let bind = bind_datagram().to_vec();
    let foreign_short_header = vec![0x4f, t, u, v, !w, 0, 0, 0, 0, 0];
    let wireguard = vec![4, 0, 0, 0, 1, 2, 3, 4, 5];
    let tag_without_fixed_bit = vec![0x0f, t, u, v, w, 0, 0, 0, 0, 0];
    let half_magic = [&MAGIC[..4], &[0; 92]].concat();
    let (empty, one_byte) = (vec![], vec![0xc0]);

    let small_initial = long_header(0xc3, 1, [0; 4], 1199);
    let foreign_handshake = long_header(0xe3, 1, [0; 4], 1200);
    let other_version = long_header(0xc3, 2, [0; 4], 1200);
    let no_more_than_an_id = long_header(0xc3, 1, TAG, 9);

    let control = vec![newcomer, handshake, own_short_header, bind];
    let mut relayed =
        vec![foreign_short_header, wireguard, tag_without_fixed_bit, half_magic, empty, one_byte];
    relayed.extend([small_initial, foreign_handshake, other_version, no_more_than_an_id]);
    let agent = UdpSocket::bind(any_port(loopback)).unwrap();
    for payload in control.iter().chain(&relayed) {
        agent.send_to(payload, group.local_addr()).unwrap();
    }
    let count = control.len() + relayed.len();
    assert_eq!(drain(&group, count), [control, relayed]);
}

#[test]
fn a_source_that_is_kept_out_gets_only_bind_datagrams_in() {
    for loopback in [IpAddr::from(LOOPBACK), LOOPBACK_V6.into()] {
        keeps_out(loopback);
    }
}

fn keeps_out(loopback: IpAddr) {
    const FACTOR: u32 = 0x1234_5677;
    let [socket, first, second, other] = [(); 4].map(|()| UdpSocket::bind(any_port(loopback)).unwrap());
    let address = socket.local_addr().unwrap();
    let keep_out = |sources: &[&UdpSocket]| {
        let sources = sources.iter().map(|source| source.local_addr().unwrap());
        attach_filter(&socket, &steering::keep_out(sources, FACTOR, loopback.is_ipv4())).unwrap();
    };
    let send = |passing| {
        for (number, sender) in [&first, &second, &other].into_iter().enumerate() {
            sender.send_to(&[0xc0, number as u8], address).unwrap();
            sender.send_to(&[0x40, number as u8], address).unwrap();
            sender.send_to(&[0x2a, number as u8], address).unwrap();
        }
        hear_payloads(&socket, passing)
    };
    let of_other = [[0xc0, 2], [0x40, 2], [0x2a, 2]];
    keep_out(&[&first, &second]);
    assert_eq!(send(5), [&[[0x2a, 0], [0x2a, 1]][..], &of_other].concat());
    keep_out(&[&second]);
    assert_eq!(send(7), [&[[0xc0, 0], [0x40, 0], [0x2a, 0], [0x2a, 1]][..], &of_other].concat());
    keep_out(&[]);
    assert_eq!(send(9).len(), 9);
    let many: Vec<_> = (0..MAX_KEPT_OUT).map(|_| &first).collect();
    keep_out(&many);
    assert_eq!(send(7).len(), 7);
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
        for (socket, payloads) in drain(&group, agents.len()).iter().enumerate() {
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
        let error = RelayPort::open(port, 1, MAGIC).unwrap_err().to_string();
        assert!(error.contains(&format!(":{port} is in use")), "{error}");
    }
}

#[test]
fn the_port_is_one_in_both_families() {
    let relay = RelayPort::open(0, 1, MAGIC).unwrap();
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
