use super::super::slot_pool::QUARANTINE;
use super::*;
use crate::relay::datapath::PREVIOUS_TUPLE_KEPT;
use crate::relay::datapath::flows::SideTraffic;
use crate::relay::datapath::tables::{Arrival, Relayed, TableSizes};
use proptest::prelude::*;
use relay_common::Reason;
use relay_common::index::IndexBucket;
use relay_common::next_hop::Hop;
use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

const RELAY: &str = "10.9.0.2:4433";
const LATER: MonoTime = MonoTime(u64::MAX);

fn at(seconds: u64) -> MonoTime {
    MonoTime(seconds * 1_000_000_000)
}

fn table(sessions: u32) -> (Arc<Tables>, FlowTable<NoRoutes>) {
    let tables = Arc::new(Tables::private(TableSizes::for_sessions(sessions), [3, 4], *b"\x01magic!!"));
    (Arc::clone(&tables), FlowTable::new(tables, NoRoutes))
}

fn agent(number: u32) -> FlowTuple {
    let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 1, 0, 0)) + number / 4);
    FlowTuple { agent: SocketAddr::from((ip, 40_000 + (number % 4) as u16)), relay: RELAY.parse().unwrap() }
}

fn install(table: &mut FlowTable<NoRoutes>, a: u32, b: u32, now: MonoTime) -> Result<SlotId, InstallError> {
    table.install([agent(a), agent(b)], Limit::UNLIMITED, &Origin::NONE, [LATER, LATER], now)
}

fn decide(tables: &Tables, from: FlowTuple, payload: &[u8], now: MonoTime) -> Result<Relayed, Reason> {
    tables.decide(&Arrival { from: from.agent, to: from.relay, payload, tos: 0, ttl: 64 }, now)
}

fn decide_previous(
    tables: &Tables,
    from: FlowTuple,
    payload: &[u8],
    now: MonoTime,
) -> Result<Relayed, Reason> {
    tables.decide_previous(&Arrival { from: from.agent, to: from.relay, payload, tos: 0, ttl: 64 }, now)
}

/// Where a datagram of `from` goes.
fn destination(tables: &Tables, from: FlowTuple) -> Option<SocketAddr> {
    decide(tables, from, b"data", at(1)).ok().map(|relayed| relayed.to)
}

#[test]
fn an_installed_session_relays_both_ways_and_a_removed_one_neither() {
    let (tables, mut table) = table(8);
    let slot = install(&mut table, 1, 2, at(1)).unwrap();
    assert_eq!(destination(&tables, agent(1)), Some(agent(2).agent));
    assert_eq!(destination(&tables, agent(2)), Some(agent(1).agent));
    table.remove(slot, at(1));
    assert_eq!(destination(&tables, agent(1)), None);
    assert_eq!(destination(&tables, agent(2)), None);
}

#[test]
fn a_full_table_refuses_until_a_removed_slot_has_rested() {
    let (_tables, mut table) = table(1);
    let slot = install(&mut table, 1, 2, at(1)).unwrap();
    assert_eq!(install(&mut table, 3, 4, at(1)), Err(InstallError::TableFull));
    table.remove(slot, at(2));
    assert_eq!(install(&mut table, 3, 4, at(2)), Err(InstallError::TableFull));
    assert!(install(&mut table, 3, 4, at(2) + QUARANTINE).is_ok());
}

#[test]
fn too_many_addresses_of_the_relay_are_the_tuples_fault_and_leave_room_for_others() {
    let (_tables, mut table) = table(300);
    let tuple = |number: u16, relay: u16| FlowTuple {
        agent: (Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, number), 5).into(),
        relay: (Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, relay), 4433).into(),
    };
    let mut join = |number: u16, relay: u16| {
        let sides = [tuple(2 * number, relay), tuple(2 * number + 1, relay)];
        table.install(sides, Limit::UNLIMITED, &Origin::NONE, [at(100); 2], at(1))
    };
    let refused = (1..=257).find_map(|number| join(number, number).err());
    assert_eq!(refused, Some(InstallError::Tuple(TupleFault::RelayAddresses)));
    assert!(join(258, 1).is_ok());
}

#[test]
fn a_sessions_next_slot_owes_what_its_last_one_did() {
    let (tables, mut table) = table(4);
    let limit = Limit { bytes_per_s: 1000, burst_bytes: 10_000 };
    let spend = |now| (0..1000).filter(|_| decide(&tables, agent(1), &[0; 200], now).is_ok()).count();
    let install = |table: &mut FlowTable<NoRoutes>, debt, now| {
        let origin = Origin { debt, ..Origin::NONE };
        table.install([agent(1), agent(2)], limit, &origin, [LATER, LATER], now).unwrap()
    };
    let slot = install(&mut table, Debt::NONE, at(1));
    assert_eq!(spend(at(1)), 50);
    let debt = table.remove(slot, at(1));
    let slot = install(&mut table, debt, at(2));
    assert_eq!(spend(at(2)), 5, "a second's worth");
    let debt = table.remove(slot, at(2));
    install(&mut table, debt, at(1000));
    assert_eq!(spend(at(1000)), 50, "and no more than a burst");
}

#[test]
fn a_refused_install_leaves_nothing_behind() {
    let (tables, mut table) = table(4);
    install(&mut table, 1, 2, at(1)).unwrap();
    assert_eq!(install(&mut table, 3, 1, at(1)), Err(InstallError::Tuple(TupleFault::InUse)));
    assert_eq!(destination(&tables, agent(3)), None);
    assert_eq!(table.installed(), 1);
}

#[test]
fn a_rebound_side_is_reached_at_its_new_tuple_only() {
    let (tables, mut table) = table(4);
    let slot = install(&mut table, 1, 2, at(1)).unwrap();
    table.rebind(slot, Side::Connector, agent(9), at(1)).unwrap();
    assert_eq!(destination(&tables, agent(1)), None);
    assert_eq!(destination(&tables, agent(9)), Some(agent(2).agent));
    assert_eq!(destination(&tables, agent(2)), Some(agent(9).agent));
}

#[test]
fn what_was_sent_before_a_move_is_relayed_for_a_while_and_charged_to_the_same_bucket() {
    let (tables, mut table) = table(4);
    let slot = install(&mut table, 1, 2, at(1)).unwrap();
    let limit = Limit { bytes_per_s: 1000, burst_bytes: 10_000 };
    table.set_limit(slot, limit, at(1));
    table.rebind(slot, Side::Connector, agent(9), at(1)).unwrap();
    let late = decide_previous(&tables, agent(1), &[0; 200], at(1)).unwrap();
    assert_eq!((late.to, late.from, late.at.side), (agent(2).agent, agent(2).relay, Side::Connector));
    let present = (0..100).filter(|_| decide(&tables, agent(9), &[0; 200], at(1)).is_ok()).count();
    assert_eq!(present, 10_000 / 200 - 1, "the late datagram was charged");
    let too_late = at(1) + PREVIOUS_TUPLE_KEPT;
    assert_eq!(decide_previous(&tables, agent(1), b"late", too_late), Err(Reason::NoFlow));
}

#[test]
fn a_previous_tuple_is_its_sides_no_more_once_another_session_has_it_or_its_own_is_over() {
    let (tables, mut table) = table(4);
    let slot = install(&mut table, 1, 2, at(1)).unwrap();
    table.rebind(slot, Side::Connector, agent(9), at(1)).unwrap();
    install(&mut table, 1, 5, at(1)).unwrap();
    assert_eq!(decide(&tables, agent(1), b"data", at(1)).unwrap().to, agent(5).agent);
    table.rebind(slot, Side::Connector, agent(10), at(2)).unwrap();
    assert!(decide_previous(&tables, agent(9), b"data", at(2)).is_ok());
    table.proved(agent(9));
    assert_eq!(decide_previous(&tables, agent(9), b"data", at(2)), Err(Reason::NoFlow));
    table.rebind(slot, Side::Connector, agent(11), at(3)).unwrap();
    assert!(decide_previous(&tables, agent(10), b"data", at(3)).is_ok());
    table.remove(slot, at(3));
    assert_eq!(decide_previous(&tables, agent(10), b"data", at(3)), Err(Reason::NoFlow));
}

#[test]
fn new_sessions_leave_a_sixth_of_each_bucket_to_sides_that_move() {
    // Two buckets, so that every tuple has the same two places.
    let sizes = TableSizes { slots: 64, buckets: 2 };
    let tables = Arc::new(Tables::private(sizes, [3, 4], *b"\x01magic!!"));
    let mut table = FlowTable::new(Arc::clone(&tables), NoRoutes);
    let mut sessions = Vec::new();
    for number in 0..64 {
        sessions.extend(install(&mut table, 2 * number, 2 * number + 1, at(1)));
    }
    let entries: u32 = tables.index.iter().map(IndexBucket::used).sum();
    assert!((16..=20).contains(&entries), "{entries} of 24 entries are in use");
    let moved = sessions
        .iter()
        .zip(200..)
        .take(8)
        .filter(|(slot, to)| table.rebind(**slot, Side::Connector, agent(*to), at(1)).is_ok());
    assert!(moved.count() >= 6, "sides still move");
}

#[test]
fn a_tuple_of_another_session_is_not_rebound_to() {
    let (tables, mut table) = table(4);
    let slot = install(&mut table, 1, 2, at(1)).unwrap();
    install(&mut table, 3, 4, at(1)).unwrap();
    for taken in [agent(2), agent(3)] {
        assert_eq!(
            table.rebind(slot, Side::Connector, taken, at(1)),
            Err(InstallError::Tuple(TupleFault::InUse))
        );
    }
    assert_eq!(destination(&tables, agent(1)), Some(agent(2).agent));
    assert_eq!(destination(&tables, agent(3)), Some(agent(4).agent));
}

#[test]
fn tuples_that_cannot_be_sent_to_are_refused() {
    let (_tables, mut table) = table(4);
    for (address, fault) in [
        ("10.1.0.1:0", TupleFault::PortZero),
        ("224.0.0.1:5", TupleFault::Address),
        ("255.255.255.255:5", TupleFault::Address),
        ("0.0.0.0:5", TupleFault::Address),
        (RELAY, TupleFault::Address),
        ("[2001:db8::1]:5", TupleFault::Family),
        ("[ff02::1]:5", TupleFault::Address),
    ] {
        let bad = FlowTuple { agent: address.parse().unwrap(), relay: RELAY.parse().unwrap() };
        let refused = table.install([agent(1), bad], Limit::UNLIMITED, &Origin::NONE, [LATER, LATER], at(1));
        assert_eq!(refused, Err(InstallError::Tuple(fault)), "{address}");
    }
}

#[test]
fn nothing_is_relayed_after_a_deadline() {
    let (tables, mut table) = table(4);
    let slot =
        table.install([agent(1), agent(2)], Limit::UNLIMITED, &Origin::NONE, [at(5), at(9)], at(1)).unwrap();
    let decide = |now| decide(&tables, agent(1), b"data", now).map(|_| ());
    assert_eq!(decide(at(4)), Ok(()));
    assert_eq!(decide(at(5)), Err(Reason::ConsentExpired));
    table.extend(slot, Side::Connector, at(20));
    assert_eq!(decide(at(8)), Ok(()));
    assert_eq!(decide(at(9)), Err(Reason::ConsentExpired));
}

#[test]
fn a_datagram_with_no_hop_left_to_go_is_dropped_uncharged() {
    let (tables, mut table) = table(4);
    let slot = install(&mut table, 1, 2, at(1)).unwrap();
    table.set_limit(slot, Limit::per_second(1000), at(1));
    let FlowTuple { agent, relay } = agent(1);
    let expiring = Arrival { from: agent, to: relay, payload: b"data", tos: 0, ttl: 1 };
    assert_eq!(tables.decide(&expiring, at(1)), Err(Reason::TtlExpired));
    assert_eq!(tables.slots[slot.0 as usize].arrival.load(), 0);
}

/// Counts the users of each hop; the hop of an agent is its port's last digit, after `shift`.
#[derive(Default)]
struct Counted {
    users: HashMap<u16, u32>,
    shift: u16,
}

impl Routes for Counted {
    fn hop_for(&mut self, agent: IpAddr, _relay: IpAddr) -> u16 {
        let IpAddr::V4(ip) = agent else { panic!("IPv4") };
        let hop = u16::from(ip.octets()[3]) + self.shift;
        *self.users.entry(hop).or_default() += 1;
        hop
    }

    fn release(&mut self, hop: u16) {
        *self.users.get_mut(&hop).unwrap() -= 1;
    }
}

#[test]
fn every_hop_is_given_back_whatever_becomes_of_its_session() {
    let (tables, _) = table(2);
    let mut table = FlowTable::new(tables, Counted::default());
    let far = [LATER, LATER];
    let first = table.install([agent(0), agent(4)], Limit::UNLIMITED, &Origin::NONE, far, at(1)).unwrap();
    let second = table.install([agent(8), agent(12)], Limit::UNLIMITED, &Origin::NONE, far, at(1)).unwrap();
    assert!(table.install([agent(16), agent(20)], Limit::UNLIMITED, &Origin::NONE, far, at(1)).is_err());
    table.rebind(first, Side::Connector, agent(24), at(1)).unwrap();
    assert!(table.rebind(first, Side::Connector, agent(8), at(1)).is_err());
    table.routes().shift = 100;
    reroute_all(&mut table);
    let in_use = |table: &mut FlowTable<Counted>| {
        let mut hops: Vec<u16> =
            table.routes().users.iter().filter(|(_, users)| **users > 0).map(|(hop, _)| *hop).collect();
        hops.sort_unstable();
        hops
    };
    assert_eq!(in_use(&mut table), [101, 102, 103, 106]);
    table.remove(first, at(2));
    table.remove(second, at(2));
    assert_eq!(in_use(&mut table), [0u16; 0]);
}

#[test]
fn a_change_of_routes_while_sessions_are_rerouted_reroutes_all_of_them_again() {
    let (tables, _) = table(2 * REROUTED_AT_ONCE);
    let mut table = FlowTable::new(tables, Counted::default());
    for number in 0..2 * REROUTED_AT_ONCE {
        let sides = [agent(4 * (2 * number % 40)), agent(4 * (2 * number % 40) + 4)]
            .map(|tuple| FlowTuple { agent: (tuple.agent.ip(), 1000 + number as u16).into(), ..tuple });
        table.install(sides, Limit::UNLIMITED, &Origin::NONE, [LATER, LATER], at(1)).unwrap();
    }
    table.routes().shift = 100;
    table.reroute();
    table.reroute_some();
    table.routes().shift = 200;
    table.reroute();
    assert!(table.is_rerouting());
    reroute_all(&mut table);
    assert!(table.routes().users.iter().all(|(hop, users)| *users == 0 || *hop >= 200));
}

fn reroute_all(table: &mut FlowTable<Counted>) {
    if !table.is_rerouting() {
        table.reroute();
    }
    while table.is_rerouting() {
        table.reroute_some();
    }
}

#[test]
fn what_fits_towards_a_side_is_what_the_other_sides_next_hop_takes() {
    let (tables, _) = table(2);
    let mut table = FlowTable::new(Arc::clone(&tables), Counted::default());
    let slot =
        table.install([agent(4), agent(8)], Limit::UNLIMITED, &Origin::NONE, [LATER, LATER], at(1)).unwrap();
    assert_eq!(table.egress_mtus(slot), [None, None]);
    let towards = |sender: Side| usize::from(tables.slots[slot.0 as usize].side(sender).hop());
    let hop = |mtu| Hop { egress: Egress::Redirect, interface: 1, mtu, stations: [0; 3], vlan: 0 };
    tables.next_hops[towards(Side::Connector)].write(&hop(1280));
    assert_eq!(table.egress_mtus(slot), [None, Some(1280)]);
    tables.next_hops[towards(Side::Target)].write(&hop(9000));
    assert_eq!(table.egress_mtus(slot), [Some(9000), Some(1280)]);
}

#[test]
fn a_limit_holds_at_once_when_it_changes() {
    let (tables, mut table) = table(4);
    let slot = install(&mut table, 1, 2, at(1)).unwrap();
    let decide = || decide(&tables, agent(1), &[0; 1000], at(1)).is_ok();
    assert_eq!((0..1000).filter(|_| decide()).count(), 1000);
    table.set_limit(slot, Limit { bytes_per_s: 100_000, burst_bytes: 80_000 }, at(1));
    assert_eq!((0..1000).filter(|_| decide()).count(), 70);
    let traffic = table.traffic(slot);
    assert_eq!((traffic.limited_packets, traffic.limited_bytes), (930, 930_000));
    let word = &tables.slots[slot.0 as usize].limited_packets;
    word.store(u32::MAX);
    let before = table.traffic(slot).limited_packets;
    word.store(4);
    assert_eq!(table.traffic(slot).limited_packets, before + 5, "the slot's counter wraps");
    table.set_limit(slot, Limit::UNLIMITED, at(1));
    assert!(decide());
}

#[test]
fn traffic_adds_up_over_the_readings_of_the_programs_count() {
    let (tables, mut table) = table(4);
    let slot = install(&mut table, 1, 2, at(1)).unwrap();
    let line = &tables.slots[slot.0 as usize].sides[0];
    let side = |table: &FlowTable<_>| table.traffic(slot).sides[0];
    for round in 1..=3 {
        line.traffic.count(1000);
        line.traffic.count(0);
        let found = side(&table);
        assert_eq!((found.packets_kernel, found.bytes), (2 * round, 1000 * round));
        assert_eq!(side(&table), found, "what was counted is not counted again");
    }
    tables.count(SlotSide { slot: slot.0, side: Side::Connector }, 2, 7);
    let SideTraffic { packets_kernel, packets_userspace, bytes } = side(&table);
    assert_eq!((packets_kernel, packets_userspace, bytes), (6, 2, 3007));
}

#[test]
fn the_table_fills_to_a_half_without_a_refusal() {
    let sessions = 4096 * 12 / 2 / 2;
    let (tables, mut table) = table(sessions);
    assert_eq!(tables.bucket_mask() + 1, 4096);
    for number in 0..sessions {
        install(&mut table, 2 * number, 2 * number + 1, at(1)).unwrap();
    }
    for number in 0..2 * sessions {
        assert_eq!(destination(&tables, agent(number)), Some(agent(number ^ 1).agent));
    }
}

proptest! {
    /// Against a map: whatever is installed, moved and removed, exactly the present tuples are relayed, and right.
    #[test]
    fn the_tables_relay_what_is_installed_and_nothing_else(
        steps in proptest::collection::vec((0u8..3, 0u32..24, 0u32..24, any::<bool>()), 1..120),
    ) {
        let (tables, mut table) = table(64);
        let mut sessions: Vec<(SlotId, [u32; 2])> = Vec::new();
        for (second, (step, a, b, side)) in steps.into_iter().enumerate() {
            let now = at(2 + second as u64);
            let used = |number: u32| sessions.iter().any(|(_, sides)| sides.contains(&number));
            match step {
                0 => {
                    let free = a != b && !used(a) && !used(b);
                    let slot = install(&mut table, a, b, now);
                    prop_assert_eq!(slot.is_ok(), free);
                    if let Ok(slot) = slot { sessions.push((slot, [a, b])); }
                }
                1 if !sessions.is_empty() => {
                    let (slot, _) = sessions.swap_remove(a as usize % sessions.len());
                    table.remove(slot, now);
                }
                2 if !sessions.is_empty() => {
                    let chosen = a as usize % sessions.len();
                    let (slot, mut sides) = sessions[chosen];
                    let side = if side { Side::Target } else { Side::Connector };
                    let free = !used(b) || sides[side.index()] == b;
                    prop_assert_eq!(table.rebind(slot, side, agent(b), now).is_ok(), free);
                    if free { sides[side.index()] = b; sessions[chosen] = (slot, sides); }
                }
                _ => {}
            }
            let mut expected: HashMap<u32, u32> = HashMap::new();
            for (_, [a, b]) in &sessions {
                expected.insert(*a, *b);
                expected.insert(*b, *a);
            }
            for number in 0..24 {
                let to = expected.get(&number).map(|to| agent(*to).agent);
                prop_assert_eq!(destination(&tables, agent(number)), to);
            }
        }
    }
}
