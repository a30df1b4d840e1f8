//! Sessions come and go beside a steady one, in its own buckets and with its own fingerprint, while the program looks it
//! up: not one miss, not one packet with another session's address.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use relay_common::hash;
use relay_common::index::Place;
use relay_common::tables::Tables as _;
use relay_common::tuple::AnyTuple;
use relay_common::{Reason, Side};
use relay_userspace::clock::MonoTime;
use relay_userspace::relay::datapath::{
    FlowTable, FlowTuple, Flows, InstallError, Limit, NoRoutes, Origin, QUARANTINE, SlotId, TableSizes,
    Tables,
};

use crate::machine::{Machine, stay_on};
use crate::probe::{KEY, Probe, agent, case, counted, load_relay};
use crate::probe_layout::{Case, Outcome};

/// Two buckets, so that every tuple shares both of the steady session's.
const SIZES: TableSizes = TableSizes { slots: 24, buckets: 2 };
const PAYLOAD: usize = 64;
const PER_CALL: u32 = 1_000_000;
const LATER: [MonoTime; 2] = [MonoTime(u64::MAX); 2];

const STEADY_IP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const STEADY_PORT: u16 = 40_000;

#[test]
fn a_steady_session_is_never_missed_while_its_neighbours_change() {
    steady("a_steady_session_is_never_missed_while_its_neighbours_change", 10_000_000);
}

#[test]
#[ignore = "long: 100 million packets"]
fn a_steady_session_is_never_missed_in_100_million_packets() {
    steady("a_steady_session_is_never_missed_in_100_million_packets", 100_000_000);
}

fn steady(name: &str, packets: u64) {
    let Some(machine) = Machine::or_skip(name) else { return };
    let (mut relay, tables) = load_relay(SIZES);
    let mut flows = FlowTable::new(Arc::clone(&tables), NoRoutes);
    let [a, b] = [agent(STEADY_IP, STEADY_PORT), agent(Ipv4Addr::new(10, 2, 0, 1), STEADY_PORT)];
    flows.install([a, b], Limit::UNLIMITED, &Origin::NONE, LATER, MonoTime(0)).unwrap();
    let probe = Probe::load(&machine, &mut relay, vec![case(a, b, PAYLOAD), case(b, a, PAYLOAD)]);
    let neighbours = neighbours(&[a, b]);
    let outcomes = run(&machine, &probe, Churn::new(flows, neighbours), packets);
    assert_eq!(outcomes.iter().map(|[forwarded, ..]| forwarded).sum::<u64>(), packets, "{outcomes:?}");
    assert_eq!(counted(&relay, Reason::Forwarded), packets);
}

#[test]
fn of_many_sessions_the_steady_ones_are_never_missed_and_none_gets_anothers_address() {
    let name = "of_many_sessions_the_steady_ones_are_never_missed_and_none_gets_anothers_address";
    let Some(machine) = Machine::or_skip(name) else { return };
    let (mut relay, tables) = load_relay(SIZES);
    let mut flows = FlowTable::new(Arc::clone(&tables), NoRoutes);
    let steady = [
        [agent(STEADY_IP, STEADY_PORT), agent(Ipv4Addr::new(10, 2, 0, 1), STEADY_PORT)],
        in_second_bucket(&tables, &mut flows),
    ];
    flows.install(steady[0], Limit::UNLIMITED, &Origin::NONE, LATER, MonoTime(0)).unwrap();
    let neighbours = neighbours(steady.as_flattened());

    let mut cases: Vec<Case> =
        steady.iter().flat_map(|[a, b]| [case(*a, *b, PAYLOAD), case(*b, *a, PAYLOAD)]).collect();
    let of_steady = cases.len();
    // A neighbour's connector has the same peer always, so its packets may be missed, but lead nowhere else.
    cases.extend(neighbours.iter().flat_map(|neighbour| {
        neighbour.connectors.map(|connector| case(connector, neighbour.target, PAYLOAD))
    }));
    let probe = Probe::load(&machine, &mut relay, cases);
    let outcomes = run(&machine, &probe, Churn::new(flows, neighbours), 10_000_000);
    let (steady, neighbours) = outcomes.split_at(of_steady);
    for [forwarded, untouched, wrong] in steady {
        assert!(*forwarded > 0 && *untouched == 0 && *wrong == 0, "{outcomes:?}");
    }
    let sum = |outcome: Outcome| neighbours.iter().map(|counts| counts[outcome as usize]).sum::<u64>();
    let [forwarded, untouched] = [sum(Outcome::Forwarded), sum(Outcome::Untouched)];
    println!("of the neighbours' packets {forwarded} forwarded, {untouched} missed");
    assert!(forwarded > 0 && untouched > 0, "neighbours come and go while the program runs");
    assert_eq!(sum(Outcome::Wrong), 0, "{outcomes:?}");
}

/// Runs the program on one CPU for `packets` while the other one churns.
fn run(machine: &Machine, probe: &Probe, mut churn: Churn, packets: u64) -> Vec<[u64; 3]> {
    let [program_cpu, writer_cpu] = machine.cpus;
    let done = AtomicBool::new(false);
    let mut lane = probe.lane(PAYLOAD, 0x5eed);
    thread::scope(|scope| {
        let (lane, done, churn) = (&mut lane, &done, &mut churn);
        scope.spawn(move || {
            for _ in 0..packets / u64::from(PER_CALL) {
                lane.send(program_cpu, PER_CALL);
            }
            done.store(true, Ordering::Relaxed);
        });
        scope.spawn(move || {
            stay_on(writer_cpu);
            let started = Instant::now();
            while !done.load(Ordering::Relaxed) {
                churn.step();
            }
            let seconds = started.elapsed().as_secs_f64();
            println!(
                "{packets} packets beside {} installs, {} removals, {} moves, {} refusals: {:.0} a second",
                churn.installs,
                churn.removals,
                churn.moves,
                churn.refusals,
                churn.changes() as f64 / seconds
            );
        });
    });
    assert!(churn.installs > 1000 && churn.removals > 1000 && churn.moves > 1000);
    probe.outcomes(&[lane])
}

/// A session beside the steady ones: its connector moves between two tuples.
#[derive(Clone, Copy)]
struct Neighbour {
    connectors: [FlowTuple; 2],
    target: FlowTuple,
}

/// Half of their tuples have a fingerprint of `steady`. Of these, half share its address and half its port: parts of two
/// of them make up the steady tuple.
fn neighbours(steady: &[FlowTuple]) -> Vec<Neighbour> {
    let mut targets = (0..).map(|number| agent(Ipv4Addr::new(10, 3, 0, 1), 1000 + number));
    let mut neighbours = Vec::new();
    for of in steady {
        let fingerprint = place(*of).fingerprint;
        let std::net::IpAddr::V4(ip) = of.agent.ip() else { panic!("IPv4") };
        let port = of.agent.port();
        let same_address = (1024..u16::MAX).filter(|other| *other != port).map(|port| agent(ip, port));
        let same_port = (0..).map(|number: u32| agent(Ipv4Addr::from(0x0a04_0000 + number), port));
        let alike = |tuple: &FlowTuple| place(*tuple).fingerprint == fingerprint;
        let connectors = same_address.filter(alike).zip(same_port.filter(alike)).take(6);
        neighbours.extend(
            connectors.zip(&mut targets).map(|((a, b), target)| Neighbour { connectors: [a, b], target }),
        );
    }
    neighbours
}

fn place(tuple: FlowTuple) -> Place {
    Place::of(AnyTuple::new(tuple.agent, tuple.relay).unwrap().hash(&hash::key(KEY)), SIZES.buckets - 1)
}

/// Installs a session while the first bucket of both its tuples is crowded: its entries stand in the second.
fn in_second_bucket(tables: &Tables, flows: &mut FlowTable<NoRoutes>) -> [FlowTuple; 2] {
    let mut of_first = (1..)
        .map(|number| agent(Ipv4Addr::from(0x0a05_0000 + number), STEADY_PORT))
        .filter(|tuple| place(*tuple).buckets[0] == 0);
    let mut pair = || [of_first.next().unwrap(), of_first.next().unwrap()];
    let session = pair();
    let mut fillers: Vec<SlotId> = Vec::new();
    while tables.bucket(1).unwrap().used() == 0 {
        fillers.push(flows.install(pair(), Limit::UNLIMITED, &Origin::NONE, LATER, MonoTime(0)).unwrap());
    }
    flows.install(session, Limit::UNLIMITED, &Origin::NONE, LATER, MonoTime(0)).unwrap();
    for filler in fillers {
        flows.remove(filler, MonoTime(0));
    }
    let used = [0, 1].map(|number| tables.bucket(number).unwrap().used());
    assert_eq!(used, [0, 2], "both entries are in the second bucket");
    session
}

/// Changes of neighbours, one after the other.
struct Churn {
    flows: FlowTable<NoRoutes>,
    neighbours: Vec<Neighbour>,
    installed: Vec<Option<(SlotId, usize)>>,
    now: MonoTime,
    chance: u64,
    installs: u64,
    removals: u64,
    moves: u64,
    refusals: u64,
}

impl Churn {
    fn new(flows: FlowTable<NoRoutes>, neighbours: Vec<Neighbour>) -> Churn {
        Churn {
            flows,
            installed: vec![None; neighbours.len()],
            neighbours,
            now: MonoTime(1),
            chance: 1,
            installs: 0,
            removals: 0,
            moves: 0,
            refusals: 0,
        }
    }

    fn changes(&self) -> u64 {
        self.installs + self.removals + self.moves
    }

    /// One change of one neighbour. Slots rest only as far as this clock tells: they are used again at once.
    fn step(&mut self) {
        self.now = self.now + QUARANTINE;
        self.chance = self.chance.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let number = (self.chance >> 33) as usize % self.neighbours.len();
        let moves = self.chance >> 62 == 0;
        let Neighbour { connectors, target } = self.neighbours[number];
        match self.installed[number] {
            None => {
                let connector = (self.chance >> 61 & 1) as usize;
                let sides = [connectors[connector], target];
                match self.flows.install(sides, Limit::UNLIMITED, &Origin::NONE, LATER, self.now) {
                    Ok(slot) => {
                        self.installed[number] = Some((slot, connector));
                        self.installs += 1;
                    }
                    refused => self.refused(refused.map(|_| ())),
                }
            }
            Some((slot, connector)) if moves => {
                let other = 1 - connector;
                match self.flows.rebind(slot, Side::Connector, connectors[other], self.now) {
                    Ok(()) => {
                        self.installed[number] = Some((slot, other));
                        self.moves += 1;
                    }
                    refused => self.refused(refused),
                }
            }
            Some((slot, _)) => {
                self.flows.remove(slot, self.now);
                self.installed[number] = None;
                self.removals += 1;
            }
        }
    }

    fn refused(&mut self, result: Result<(), InstallError>) {
        // Four of one fingerprint in both buckets, or no free slot.
        assert_eq!(result, Err(InstallError::TableFull));
        self.refusals += 1;
    }
}
