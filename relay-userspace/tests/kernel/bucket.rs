//! One bucket, charged by the program on two CPUs and by userspace at once: exact.

use std::sync::Arc;
use std::thread::{self, ScopedJoinHandle};

use relay_common::Reason;
use relay_common::slot::{SideLine, Slot};
use relay_common::tables::Tables as _;
use relay_common::traffic::{Difference, Reading};
use relay_userspace::clock::MonoTime;
use relay_userspace::relay::datapath::{
    Arrival, FlowTable, FlowTuple, Flows, Limit, NoRoutes, Origin, Program, SlotId, TableSizes, Tables,
};

use crate::machine::Machine;
use crate::probe::{Probe, agent, case, counted, load_relay};
use crate::probe_layout::Outcome;

/// Payload of a large packet, which leaves the last eighth of a burst, and of a small one, which may use it.
const LARGE: u32 = 1200;
const SMALL: u32 = 200;
const CALLS: u32 = 4;
const PER_CALL: u32 = 500_000;
const TICKS_PER_NS: u64 = 64;
const TICKS_PER_S: u128 = 64_000_000_000;
/// What charges the bucket at once: the program on two CPUs, and userspace.
const CHARGERS: u64 = 3;

#[test]
fn two_cpus_and_userspace_charge_one_bucket_to_the_tick() {
    let Some(machine) = Machine::or_skip("two_cpus_and_userspace_charge_one_bucket_to_the_tick") else {
        return;
    };
    for rate in [1 << 20, 125_000_000, 1_250_000_000, 100_000_000_000] {
        // The longest burst, all of it used at the start: however long a thread has to wait for a CPU, the bucket never
        // runs out of debt, so time that nobody has used is not forgotten, and the word has moved by exactly what was
        // charged.
        let mut race = Race::new(&machine, Limit { bytes_per_s: rate, burst_bytes: 60 * rate }, LARGE);
        let allowance = race.slot().bucket().allowance;
        let (cost, most) = (allowance.cost(LARGE), allowance.burst - (allowance.burst >> 3));
        let from = MonoTime::now();
        let start = from.0 * TICKS_PER_NS + most;
        race.slot().arrival.store(start);

        let mut admitted = race.run(&machine, |_, _| {});
        let until = MonoTime::now();
        // What two CPUs cannot use up is not worth while for one.
        let is_used_up = rate <= 1_250_000_000;
        while is_used_up && race.userspace.charge(until) {
            admitted.userspace += 1;
        }

        let charged = admitted.all() * cost;
        assert_eq!(race.slot().arrival.load() - start, charged, "{rate} bytes/s: the word has moved by that");
        let ticks = (until.0 - from.0) * TICKS_PER_NS;
        assert!(charged <= ticks, "{rate} bytes/s: {charged} in {ticks}");
        assert!(
            !is_used_up || charged + cost > ticks,
            "{rate} bytes/s: {charged} in {ticks}, and no more fitted"
        );
        let bytes = u128::from(admitted.all()) * u128::from(LARGE);
        assert!(bytes * TICKS_PER_S <= u128::from(rate) * u128::from(ticks));
        println!("{rate} bytes/s: {admitted:?}, {bytes} bytes");
    }
}

#[test]
fn two_cpus_and_userspace_never_get_more_than_rate_times_time_plus_burst() {
    let name = "two_cpus_and_userspace_never_get_more_than_rate_times_time_plus_burst";
    let Some(machine) = Machine::or_skip(name) else { return };
    for rate in [1 << 20, 125_000_000] {
        let limit = Limit::per_second(rate);
        let from = MonoTime::now();
        let mut race = Race::new(&machine, limit, LARGE);
        let admitted = race.run(&machine, |_, _| {});
        let ticks = (MonoTime::now().0 - from.0) * TICKS_PER_NS;
        let bytes = u128::from(admitted.all()) * u128::from(LARGE);
        let most = u128::from(rate) * u128::from(ticks) + u128::from(limit.burst_bytes) * TICKS_PER_S;
        assert!(bytes * TICKS_PER_S <= most, "{rate} bytes/s: {bytes} bytes in {ticks} ticks");
        assert!(
            bytes * 9 / 8 + 2 * u128::from(LARGE) >= u128::from(limit.burst_bytes),
            "the burst is granted"
        );
        println!("{rate} bytes/s: {admitted:?}, {bytes} bytes");
    }
}

#[test]
fn changes_of_a_limit_in_use_grant_nothing_but_a_packet_in_flight() {
    let name = "changes_of_a_limit_in_use_grant_nothing_but_a_packet_in_flight";
    let Some(machine) = Machine::or_skip(name) else { return };
    let limits = [1 << 20, 20_000_000, 10 << 20].map(Limit::per_second);
    let from = MonoTime::now();
    let mut race = Race::new(&machine, limits[0], SMALL);
    let id = race.id;
    // The largest sum of rate x time, in bytes x ticks per second: a change falls somewhere between two readings of the
    // clock.
    let mut most = u128::from(limits[0].burst_bytes) * TICKS_PER_S;
    let (mut current, mut since, mut changes) = (0, from, 0);
    let admitted = race.run(&machine, |flows, turn| {
        if turn % 10_000 == 0 {
            let next = (current + 1) % limits.len();
            let before = MonoTime::now();
            flows.set_limit(id, limits[next], before);
            let after = MonoTime::now();
            let [old, new] = [limits[current], limits[next]].map(|limit| limit.bytes_per_s);
            most += earned(old, since, before) + earned(old.max(new), before, after);
            (current, since, changes) = (next, after, changes + 1);
        }
    });
    most += earned(limits[current].bytes_per_s, since, MonoTime::now());
    let in_flight = u128::from(changes * CHARGERS * u64::from(SMALL)) * TICKS_PER_S;
    let bytes = u128::from(admitted.all()) * u128::from(SMALL);
    println!(
        "{changes} changes: {admitted:?}, {bytes} bytes of at most {} + {}",
        most / TICKS_PER_S,
        in_flight / TICKS_PER_S
    );
    assert!(changes > limits.len() as u64, "every limit was in force");
    assert!(bytes * TICKS_PER_S <= most + in_flight);
}

/// Rate x time, in bytes x ticks per second.
fn earned(rate: u64, from: MonoTime, until: MonoTime) -> u128 {
    u128::from(rate) * u128::from((until.0 - from.0) * TICKS_PER_NS)
}

/// Packets that were admitted.
#[derive(Debug, Default)]
struct Admitted {
    program: u64,
    userspace: u64,
}

impl Admitted {
    fn all(&self) -> u64 {
        self.program + self.userspace
    }
}

/// A session whose agents send on two CPUs to the program, and to userspace.
struct Race {
    relay: Program,
    probe: Probe,
    flows: FlowTable<NoRoutes>,
    id: SlotId,
    userspace: Userspace,
}

/// The packets that userspace decides on.
struct Userspace {
    tables: Arc<Tables>,
    from: FlowTuple,
    payload: Vec<u8>,
}

impl Userspace {
    /// Charges one. Whether it was admitted.
    fn charge(&self, now: MonoTime) -> bool {
        let FlowTuple { agent: from, relay: to } = self.from;
        let arrival = Arrival { from, to, payload: &self.payload, tos: 0, ttl: 64 };
        match self.tables.decide(&arrival, now) {
            Ok(_) => true,
            Err(Reason::Limited | Reason::Contended) => false,
            Err(other) => panic!("{other:?}"),
        }
    }
}

impl Race {
    fn new(machine: &Machine, limit: Limit, payload: u32) -> Race {
        let (mut relay, tables) = load_relay(TableSizes::for_sessions(1));
        let [a, b] = [1, 2].map(|host| agent([10, 1, 0, host].into(), 40_000));
        let mut flows = FlowTable::new(Arc::clone(&tables), NoRoutes);
        let id =
            flows.install([a, b], limit, &Origin::NONE, [MonoTime(u64::MAX); 2], MonoTime::now()).unwrap();
        let payload = payload as usize;
        let probe = Probe::load(machine, &mut relay, vec![case(a, b, payload), case(b, a, payload)]);
        Race { relay, probe, flows, id, userspace: Userspace { tables, from: a, payload: vec![0; payload] } }
    }

    fn slot(&self) -> &Slot {
        self.userspace.tables.slot(self.id.0).unwrap()
    }

    /// Sends from two CPUs, and from this thread as long as they do; `turn` comes before each packet of this thread, which
    /// it is told the number of.
    fn run(&mut self, machine: &Machine, mut turn: impl FnMut(&mut FlowTable<NoRoutes>, u64)) -> Admitted {
        let (probe, flows, userspace) = (&self.probe, &mut self.flows, &self.userspace);
        let mut admitted = Admitted::default();
        let lanes = thread::scope(|scope| {
            let lanes = machine.cpus.map(|cpu| {
                scope.spawn(move || {
                    let mut lane = probe.lane(userspace.payload.len(), cpu as u32);
                    (0..CALLS).for_each(|_| _ = lane.send(cpu, PER_CALL));
                    lane
                })
            });
            let mut turns = 0;
            while !lanes.iter().all(ScopedJoinHandle::is_finished) {
                turn(flows, turns);
                turns += 1;
                admitted.userspace += u64::from(userspace.charge(MonoTime::now()));
            }
            lanes.map(|lane| lane.join().unwrap())
        });
        let [there, back] = probe.outcomes(&lanes)[..] else { panic!("two cases") };
        assert_eq!(there[Outcome::Wrong as usize] + back[Outcome::Wrong as usize], 0);
        admitted.program = there[Outcome::Forwarded as usize] + back[Outcome::Forwarded as usize];
        let counted_of = |line: &SideLine| line.traffic.read().since(Reading::default());
        let payload = userspace.payload.len() as u64;
        for (line, outcomes) in self.slot().sides.iter().zip([&there, &back]) {
            let packets = outcomes[Outcome::Forwarded as usize];
            assert_eq!(counted_of(line), Difference { packets, bytes: packets * payload });
        }
        assert_eq!(counted(&self.relay, Reason::Forwarded), admitted.program);
        assert_eq!(
            counted(&self.relay, Reason::Limited) + counted(&self.relay, Reason::Contended),
            there[Outcome::Untouched as usize] + back[Outcome::Untouched as usize]
        );
        println!("contended: {}", counted(&self.relay, Reason::Contended));
        admitted
    }
}
