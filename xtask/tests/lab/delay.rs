//! The lab's delay line, by what comes out of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quinn::udp::{Transmit, UdpSocketState};
use xtask::deployment::Reached;
use xtask::lab::delay::{Conditions, Counts, DelayLine};
use xtask::lab::{Family, Lab, LabPlan, RELAY_ADDRESSES};
use xtask::test::privileged_or_skip;

use super::world::{NATIVE, RELAY, World};

const DELAY: Duration = Duration::from_millis(20);
const MTU: u32 = 1500;
const SEED: u64 = 4711;

const NEAR: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1)), IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1))];
const FAR: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2)), IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2))];

#[test]
fn packets_take_at_least_the_delay_and_keep_their_order() {
    let conditions = Conditions { jitter: Duration::from_millis(5), ..Conditions::delay(DELAY) };
    let Some(link) = Link::new("packets_take_at_least_the_delay_and_keep_their_order", conditions) else {
        return;
    };
    for family in [0, 1] {
        let arrivals = link.send(family, Load { datagrams: 1_000, at_once: 1, per_s: 5_000 });
        assert!(
            arrivals.iter().map(|arrival| arrival.number).eq(0..1_000),
            "{} arrive, or not in order",
            arrivals.len()
        );
        let shortest = arrivals.iter().map(|arrival| arrival.spent).min().unwrap();
        assert!(shortest >= DELAY, "{shortest:?}");
    }
}

#[test]
fn segments_that_were_sent_as_one_travel_as_one() {
    let Some(link) = Link::new("segments_that_were_sent_as_one_travel_as_one", Conditions::delay(DELAY))
    else {
        return;
    };
    for family in [0, 1] {
        let before = link.there();
        let arrivals = link.send(family, Load { datagrams: 4_000, at_once: 40, per_s: 20_000 });
        assert!(
            arrivals.iter().map(|arrival| arrival.number).eq(0..4_000),
            "{} arrive, or not in order",
            arrivals.len()
        );
        let carried = link.there().carried - before.carried;
        // Neighbour and router discovery go over it as well.
        assert!((100..150).contains(&carried), "{carried} packets carried 100 times 40 segments");
    }
}

#[test]
fn the_stated_shares_are_lost_and_overtaken() {
    let conditions = Conditions { loss: 0.1, reordering: 0.05, ..Conditions::delay(DELAY) };
    let Some(link) = Link::new("the_stated_shares_are_lost_and_overtaken", conditions) else { return };
    const SENT: usize = 10_000;
    // As one, and yet each datagram has its own fate.
    let arrivals = link.send(0, Load { datagrams: SENT, at_once: 10, per_s: 10_000 });
    // Four standard deviations of 30 and of 21.
    assert!(arrivals.len().abs_diff(9_000) < 120, "{} of {SENT} arrived", arrivals.len());
    let Counts { held_back, lost, .. } = link.there();
    assert!(held_back.abs_diff(450) < 85, "{held_back} were held back");
    assert!(lost as usize + arrivals.len() >= SENT, "the line says that it lost {lost}");
    let overtaken = arrivals.windows(2).filter(|pair| pair[0].number > pair[1].number).count();
    assert!(overtaken > 100, "{overtaken} were overtaken");
    assert!(arrivals.iter().all(|arrival| arrival.spent >= DELAY));
}

#[test]
fn what_finds_no_room_is_dropped_and_counted() {
    let conditions = Conditions { room_bytes: 100_000, ..Conditions::delay(DELAY) };
    let Some(link) = Link::new("what_finds_no_room_is_dropped_and_counted", conditions) else { return };
    // In 20 ms four times what there is room for.
    let arrivals = link.send(0, Load { datagrams: 4_000, at_once: 1, per_s: 16_000 });
    let Counts { overflowed, .. } = link.there();
    assert!(overflowed > 0 && arrivals.len() < 4_000, "{overflowed} found no room");
    assert!(overflowed as usize + arrivals.len() >= 4_000, "{overflowed} found no room");
}

#[test]
fn a_relayed_file_crosses_a_line_that_delays_loses_and_reorders_and_no_nat_sees_a_wrong_packet() {
    let name = "a_relayed_file_crosses_a_line_that_delays_loses_and_reorders_and_no_nat_sees_a_wrong_packet";
    let conditions = Conditions {
        jitter: Duration::from_millis(1),
        loss: 0.001,
        reordering: 0.001,
        ..Conditions::delay(Duration::from_millis(5))
    };
    for family in [Family::V4, Family::V6] {
        let reached = Reached::by([family; 2], RELAY_ADDRESSES, RELAY.port());
        let Some(world) = World::planned(name, &LabPlan::over_a_line(conditions), reached) else { return };
        let _relay = world.deployment.start_relay(Some(0), NATIVE).unwrap();
        let copied = world.copy_a_file();
        copied.assert_by_kernel();
        let [_, to_agent] = world.lab.lines[0].counts();
        assert!(
            to_agent.lost > 0 && to_agent.held_back > 0,
            "{family:?}: the line did nothing: {to_agent:?}"
        );
        assert_eq!(
            world.lab.invalid_packets_at_nats().unwrap(),
            0,
            "{family:?}: packets with wrong checksums"
        );
    }
}

#[test]
#[ignore = "long: figures of the delay line alone, for a machine with nothing else to do"]
fn the_delay_is_exact_under_load() {
    let Some(link) = Link::new("the_delay_is_exact_under_load", Conditions::delay(DELAY)) else { return };
    for (per_s, at_once) in [(1_000, 1), (20_000, 1), (20_000, 10), (50_000, 10), (100_000, 20)] {
        let load = Load { datagrams: per_s * 5, at_once, per_s };
        let before = link.there();
        let mut errors: Vec<Duration> =
            link.send(0, load).iter().map(|arrival| arrival.spent.saturating_sub(DELAY)).collect();
        errors.sort_unstable();
        let carried = link.there().carried - before.carried;
        let us = |share: f64| errors[(errors.len() as f64 * share) as usize].as_micros();
        println!(
            "{per_s} datagrams/s, {at_once} at once: late by p50 {} us, p99 {} us, p99.9 {} us; the line carried \
             {carried} packets, the receiver missed {} datagrams of {}",
            us(0.5),
            us(0.99),
            us(0.999),
            load.datagrams - errors.len(),
            load.datagrams
        );
        let counts = link.there();
        assert_eq!((counts.overflowed, counts.refused), (0, 0));
        assert!(carried as usize >= load.datagrams / at_once, "the line lost some before it saw them");
    }
}

/// Two namespaces of a lab with a line between them.
struct Link {
    line: DelayLine,
    lab: Lab,
}

/// What is sent.
#[derive(Clone, Copy)]
struct Load {
    datagrams: usize,
    /// Given to the system as one packet of so many segments.
    at_once: usize,
    per_s: usize,
}

/// A datagram that came out.
#[derive(Clone, Copy)]
struct Arrival {
    number: usize,
    spent: Duration,
}

impl Link {
    /// A link for the test `name`, or `None` after it said why it cannot run.
    fn new(name: &str, conditions: Conditions) -> Option<Link> {
        privileged_or_skip(name)?;
        let lab = Lab::up().unwrap();
        let ends = [(&lab.agents[0], "d0"), (&lab.router, "d1")];
        let line = DelayLine::lay(ends, MTU, [conditions; 2], SEED).unwrap();
        for ((namespace, device), addresses) in ends.into_iter().zip([NEAR, FAR]) {
            let [v4, v6] = addresses;
            namespace
                .ip(&format!("addr add {v4}/24 dev {device}\naddr add {v6}/64 dev {device} nodad\n"))
                .unwrap();
        }
        Some(Link { line, lab })
    }

    fn there(&self) -> Counts {
        self.line.counts()[0]
    }

    /// Sends through the line and gives what came out, in that order.
    fn send(&self, family: usize, load: Load) -> Vec<Arrival> {
        let receiver = self.lab.router.inside(|| UdpSocket::bind((FAR[family], 0)).unwrap()).unwrap();
        let sender = self.lab.agents[0].inside(|| UdpSocket::bind((NEAR[family], 0)).unwrap()).unwrap();
        let to = receiver.local_addr().unwrap();
        // The line is tested, not whether this machine runs the receiver at once.
        UdpSocketState::new((&receiver).into())
            .and_then(|state| state.set_recv_buffer_size((&receiver).into(), 4 << 20))
            .unwrap();
        receiver.set_nonblocking(false).unwrap();
        let (start, all_sent) = (Instant::now(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let receiving = scope.spawn(|| receive(&receiver, start, load, &all_sent));
            send(&sender, to, start, load);
            all_sent.store(true, Ordering::Relaxed);
            receiving.join().unwrap()
        })
    }
}

const PAYLOAD: usize = 1_200;

fn send(socket: &UdpSocket, destination: SocketAddr, start: Instant, load: Load) {
    let state = UdpSocketState::new(socket.into()).unwrap();
    for first in (0..load.datagrams).step_by(load.at_once) {
        let due = start + Duration::from_secs_f64(first as f64 / load.per_s as f64);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let sent_ns = start.elapsed().as_nanos() as u64;
        let mut contents = vec![0; load.at_once * PAYLOAD];
        for (datagram, number) in contents.chunks_mut(PAYLOAD).zip(first as u64..) {
            datagram[..8].copy_from_slice(&number.to_le_bytes());
            datagram[8..16].copy_from_slice(&sent_ns.to_le_bytes());
        }
        let segment_size = (load.at_once > 1).then_some(PAYLOAD);
        let transmit = Transmit { destination, ecn: None, contents: &contents, segment_size, src_ip: None };
        while let Err(error) = state.try_send(socket.into(), &transmit) {
            assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}");
            std::thread::sleep(Duration::from_micros(100)); // the socket's own buffer is full
        }
    }
}

/// Receives until all are there, or none has come for a while after the last was sent.
fn receive(socket: &UdpSocket, start: Instant, load: Load, all_sent: &AtomicBool) -> Vec<Arrival> {
    socket.set_read_timeout(Some(DELAY + Duration::from_millis(480))).unwrap();
    let mut arrivals = Vec::with_capacity(load.datagrams);
    // Datagrams that travelled as one are received as one.
    let mut buffer = [0; 1 << 16];
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
    while arrivals.len() < load.datagrams {
        match socket.recv(&mut buffer) {
            Ok(length) => arrivals.extend(buffer[..length].chunks(PAYLOAD).map(|datagram| Arrival {
                number: word(&datagram[..8]) as usize,
                spent: start.elapsed() - Duration::from_nanos(word(&datagram[8..16])),
            })),
            Err(_none_came) if all_sent.load(Ordering::Relaxed) => break,
            Err(_not_yet) => {}
        }
    }
    arrivals
}
