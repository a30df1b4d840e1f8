//! The lab itself does what the other tests take for granted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use xtask::lab::{Family, Lab, RELAY_ADDRESSES};
use xtask::test::privileged_or_skip;

#[test]
fn agents_reach_the_relay_through_nats_of_both_kinds() {
    let Some(_) = privileged_or_skip("agents_reach_the_relay_through_nats_of_both_kinds") else { return };
    let lab = Lab::up().unwrap();

    for family in [Family::V4, Family::V6] {
        let seen = [0, 1].map(|agent| mapped_ports(&lab, agent, family));

        assert!(seen[0].iter().all(|(own, mapped)| own != mapped), "the first NAT draws ports: {seen:?}");
        assert!(seen[1].iter().all(|(own, mapped)| own == mapped), "the second NAT keeps ports: {seen:?}");
    }
    assert_eq!(lab.invalid_packets_at_nats().unwrap(), 0);
}

#[test]
fn agents_do_not_reach_each_other() {
    let Some(_) = privileged_or_skip("agents_do_not_reach_each_other") else { return };
    let lab = Lab::up().unwrap();

    for (near, far, nat) in [
        ("192.168.1.2:7000", "192.168.2.2:7000", "10.9.2.2:7000"),
        ("[fd09:192:168:1::2]:7000", "[fd09:192:168:2::2]:7000", "[2001:db8:9:2::2]:7000"),
    ] {
        let here = lab.agents[0].inside(|| UdpSocket::bind(near).unwrap()).unwrap();
        let there = lab.agents[1].inside(|| UdpSocket::bind(far).unwrap()).unwrap();
        there.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        for address in [far, nat] {
            let _ = here.send_to(b"hello", address);
        }

        assert!(there.recv_from(&mut [0; 16]).is_err());
    }
}

#[test]
fn nothing_of_a_lab_stays_behind() {
    let Some(_) = privileged_or_skip("nothing_of_a_lab_stays_behind") else { return };
    let lab = Lab::up().unwrap();
    let directory = lab.directory().to_owned();
    let namespace = format!("/run/netns/{}", lab.relay.name());
    let sleeper =
        lab.relay.host().start(&xtask::tool::Tool::new("sleep").arg("600"), &directory, "sleeper").unwrap();
    let process = format!("/proc/{}", sleeper.id());
    std::mem::forget(sleeper); // as if its owner had been killed

    drop(lab);

    assert!(!std::fs::exists(directory).unwrap());
    assert!(!std::fs::exists(namespace).unwrap());
    let state = std::fs::read_to_string(format!("{process}/stat")).unwrap_or_default();
    assert!(state.is_empty() || state.contains(") Z "), "the process lives: {state}");
}

/// (own, mapped) port of some sockets of an agent, the latter as the relay's host sees it.
fn mapped_ports(lab: &Lab, agent: usize, family: Family) -> Vec<(u16, u16)> {
    let any: IpAddr = match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    let relay = lab.relay.inside(|| UdpSocket::bind((RELAY_ADDRESSES.of(family), 0)).unwrap()).unwrap();
    relay.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let relay_address = relay.local_addr().unwrap();
    let ask = || {
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.send_to(b"hello", relay_address).unwrap();
        let (_, mapped): (usize, SocketAddr) = relay.recv_from(&mut [0; 16]).unwrap();
        relay.send_to(b"hello yourself", mapped).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        socket.recv_from(&mut [0; 16]).expect("the answer comes back through the NAT");
        (socket.local_addr().unwrap().port(), mapped.port())
    };
    lab.agents[agent].inside(|| (0..4).map(|_| ask()).collect()).unwrap()
}
