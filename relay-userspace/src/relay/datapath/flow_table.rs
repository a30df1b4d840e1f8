//! The one writer of the flow tables: installs, moves and removes sessions while others read.
//!
//! Order matters, since readers take no lock. Install: the slot's lines, then the index, then the deadlines. Removal:
//! the reverse, and the slot rests before another session gets it, because a reader past its last check may still
//! charge it.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use relay_common::Side;
use relay_common::bucket::Allowance;
use relay_common::index::{ENTRIES, Place, SlotSide};
use relay_common::local::Local;
use relay_common::next_hop::Egress;
use relay_common::route::Route;
use relay_common::slot::{LineLocals, SideLine, Slot};
use relay_common::tables::Tables as _;
use relay_common::tuple::AnyTuple;

use super::flows::{Debt, FlowTuple, Flows, InstallError, Limit, SideTraffic, SlotId, Traffic, TupleFault};
use super::tables::{Carried, Tables};
use crate::clock::MonoTime;

/// How long a removed session's slot rests: far longer than any packet is being looked at.
pub const QUARANTINE: Duration = Duration::from_secs(1);

/// Up to this many entries the first bucket of a tuple is used alone; above, the emptier of its two. A look-up asks the
/// first bucket first, so the fewer entries are in second ones the better; with more than this, the index would refuse
/// sessions before it is filled to two thirds.
const FIRST_BUCKET_FILL: u32 = ENTRIES as u32 * 5 / 8;

/// Sessions whose next hops are asked for at once: a fraction of a millisecond of the driver's time. Binds wait for no more
/// than one such portion.
const REROUTED_AT_ONCE: u32 = 16;

/// A new session's entry leaves so many of a bucket's places free: a tenth, for sides that move.
const KEPT_FOR_MOVES: u32 = 2;

/// Which next hop leads to an agent.
pub trait Routes {
    /// The number of the next hop for packets from the relay's address `relay` to `agent`, for one more user of it.
    fn hop_for(&mut self, agent: IpAddr, relay: IpAddr) -> u16;

    /// One user less of a hop.
    fn release(&mut self, hop: u16);
}

/// No routes, no next hops: see [`NoRoutes`].
impl<R: Routes> Routes for Option<R> {
    fn hop_for(&mut self, agent: IpAddr, relay: IpAddr) -> u16 {
        self.as_mut().map_or(0, |routes| routes.hop_for(agent, relay))
    }

    fn release(&mut self, hop: u16) {
        if let Some(routes) = self {
            routes.release(hop);
        }
    }
}

/// No next hops: userspace sends everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoRoutes;

impl Routes for NoRoutes {
    fn hop_for(&mut self, _agent: IpAddr, _relay: IpAddr) -> u16 {
        0
    }

    fn release(&mut self, _hop: u16) {}
}

/// The sessions in the tables.
pub struct FlowTable<R> {
    tables: Arc<Tables>,
    routes: R,
    /// Slots below this number have been used.
    touched: u32,
    free: Vec<u32>,
    resting: VecDeque<(MonoTime, u32)>,
    installed: u32,
    rerouting: Rerouting,
}

/// How far sessions have got their next hops anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rerouting {
    Done,
    /// Slots from this one on have not. `again`: routes have changed since, so that all are to be done once more.
    From {
        slot: u32,
        again: bool,
    },
}

impl<R: Routes> FlowTable<R> {
    /// A writer of `tables`, which must be empty.
    pub fn new(tables: Arc<Tables>, routes: R) -> Self {
        FlowTable {
            tables,
            routes,
            touched: 0,
            free: Vec::new(),
            resting: VecDeque::new(),
            installed: 0,
            rerouting: Rerouting::Done,
        }
    }

    /// The routes, to be told of changes.
    pub fn routes(&mut self) -> &mut R {
        &mut self.routes
    }

    /// Sessions in the tables.
    pub fn installed(&self) -> u32 {
        self.installed
    }

    /// How many sessions the tables hold.
    pub fn capacity(&self) -> u32 {
        self.tables.slots.len() as u32
    }

    /// Routes have changed: every session's next hops are to be asked for again. The kernel answers for one destination
    /// at a time, so that is done in portions, by [`FlowTable::reroute_some`].
    pub fn reroute(&mut self) {
        match self.rerouting {
            Rerouting::Done => self.rerouting = Rerouting::From { slot: 0, again: false },
            Rerouting::From { slot, .. } => self.rerouting = Rerouting::From { slot, again: true },
        }
    }

    /// Whether some sessions' next hops are still to be asked for.
    pub fn is_rerouting(&self) -> bool {
        self.rerouting != Rerouting::Done
    }

    /// Asks for the next hops of a portion of the sessions.
    pub fn reroute_some(&mut self) {
        let Rerouting::From { slot: first, again } = self.rerouting else { return };
        let end = first.saturating_add(REROUTED_AT_ONCE).min(self.touched);
        let tables = Arc::clone(&self.tables);
        for slot in (first..end).filter_map(|number| tables.slot(number)) {
            self.reroute_slot(slot, &tables);
        }
        self.rerouting = match (end < self.touched, again) {
            (true, again) => Rerouting::From { slot: end, again },
            (false, true) => Rerouting::From { slot: 0, again: false },
            (false, false) => Rerouting::Done,
        };
    }

    fn reroute_slot(&mut self, slot: &Slot, tables: &Tables) {
        let [Some(connector), Some(target)] = Side::BOTH.map(|side| slot.side(side).tuple(tables)) else {
            return;
        };
        // The locals are those the lines have already, so this cannot fail.
        let Ok(lines) = self.lines([connector, target]) else { return };
        for (line, side) in lines.iter().zip(Side::BOTH) {
            let before = slot.side(side).hop();
            if before != line.route.hop {
                line.write(slot, side);
            }
            self.routes.release(before);
        }
    }

    fn release(&mut self, lines: [Line; 2]) {
        for line in lines {
            self.routes.release(line.route.hop);
        }
    }

    fn take_slot(&mut self, now: MonoTime) -> Option<u32> {
        while let Some((rested, number)) = self.resting.front().copied().filter(|(rested, _)| *rested <= now)
        {
            debug_assert!(rested <= now);
            self.resting.pop_front();
            self.free.push(number);
        }
        self.free.pop().or_else(|| {
            (self.touched < self.capacity()).then(|| {
                self.touched += 1;
                self.touched - 1
            })
        })
    }

    fn slot(&self, id: SlotId) -> Option<&Slot> {
        self.tables.slot(id.0)
    }

    fn place(&self, tuple: &AnyTuple) -> Place {
        Place::of(tuple.hash(self.tables.hash_key()), self.tables.bucket_mask())
    }

    /// Puts an entry for `tuple` into one of its buckets if that leaves `kept_free` of its places free. Whether there was
    /// room.
    fn put(&self, tuple: &AnyTuple, at: SlotSide, kept_free: u32) -> bool {
        let place = self.place(tuple);
        let [Some(first), Some(second)] = place.buckets.map(|number| self.tables.bucket(number)) else {
            return false;
        };
        let (first_used, second_used) = (first.used(), second.used());
        let first_is_better = first_used < FIRST_BUCKET_FILL || first_used <= second_used;
        let used = [(first, first_used), (second, second_used)];
        let order = if first_is_better { used } else { [used[1], used[0]] };
        order
            .into_iter()
            .any(|(bucket, used)| used + kept_free < ENTRIES as u32 && bucket.put(place.fingerprint, at))
    }

    fn take_out(&self, tuple: &AnyTuple, at: SlotSide) {
        let place = self.place(tuple);
        let taken = place
            .buckets
            .iter()
            .filter_map(|number| self.tables.bucket(*number))
            .any(|bucket| bucket.take_out(place.fingerprint, at));
        debug_assert!(taken, "every installed line has its entry");
    }

    /// Checks a side's tuple, and that no session has it but perhaps `own`.
    fn check(&self, tuple: FlowTuple, own: Option<SlotId>) -> Result<AnyTuple, InstallError> {
        check_addresses(tuple).map_err(InstallError::Tuple)?;
        let words = AnyTuple::new(tuple.agent, tuple.relay).ok_or(InstallError::Tuple(TupleFault::Family))?;
        match self.tables.find(&words) {
            Ok(flow) if own != Some(SlotId(flow.at.slot)) => Err(InstallError::Tuple(TupleFault::InUse)),
            _ => Ok(words),
        }
    }

    /// The lines of a session between these two sides' tuples.
    fn lines(&mut self, sides: [AnyTuple; 2]) -> Result<[Line; 2], InstallError> {
        let [connector, target] = sides;
        let locals = [self.local(connector.destination().ip())?, self.local(target.destination().ip())?];
        Ok([self.line([connector, target], locals), self.line([target, connector], [locals[1], locals[0]])])
    }

    /// The line of packets from the first tuple's agent to the second's: the relay's address on the second's side becomes
    /// the source. `locals` are the numbers of the relay's addresses on both sides.
    fn line(&mut self, [from, to]: [AnyTuple; 2], [taken, made]: [u16; 2]) -> Line {
        let hop = self.routes.hop_for(to.source().ip(), to.destination().ip());
        Line {
            tuple: from,
            route: Route::new(&from, &to.reversed(), hop),
            locals: LineLocals { taken, made },
        }
    }

    fn local(&self, address: IpAddr) -> Result<u16, InstallError> {
        match address {
            IpAddr::V4(_) => Ok(0),
            IpAddr::V6(address) => Local::number(&self.tables.locals, address)
                .ok_or(InstallError::Tuple(TupleFault::RelayAddresses)),
        }
    }
}

/// What is written into a slot for one side.
struct Line {
    tuple: AnyTuple,
    route: Route,
    locals: LineLocals,
}

impl Line {
    fn write(&self, slot: &Slot, side: Side) {
        slot.side(side).write(&self.tuple, &self.route, self.locals);
    }
}

fn check_addresses(tuple: FlowTuple) -> Result<(), TupleFault> {
    let FlowTuple { agent, relay } = tuple;
    if agent.port() == 0 || relay.port() == 0 {
        return Err(TupleFault::PortZero);
    }
    let ip = agent.ip();
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    if ip.is_unspecified() || ip.is_multicast() || broadcast || relay.ip().is_unspecified() || agent == relay
    {
        return Err(TupleFault::Address);
    }
    Ok(())
}

impl<R: Routes> Flows for FlowTable<R> {
    fn install(
        &mut self,
        sides: [FlowTuple; 2],
        limit: Limit,
        debt: Debt,
        deadlines: [MonoTime; 2],
        now: MonoTime,
    ) -> Result<SlotId, InstallError> {
        let [connector, target] = [self.check(sides[0], None)?, self.check(sides[1], None)?];
        if connector == target {
            return Err(InstallError::Tuple(TupleFault::InUse));
        }
        let number = self.take_slot(now).ok_or(InstallError::TableFull)?;
        let tables = Arc::clone(&self.tables);
        let Some(slot) = tables.slot(number) else { return Err(InstallError::TableFull) };
        let lines = self.lines([connector, target]).inspect_err(|_| self.free.push(number))?;

        reset(slot, tables.carried.get(number as usize));
        write_limit(slot, limit, now);
        slot.resume(debt.0, now.0);
        for (line, side) in lines.iter().zip(Side::BOTH) {
            line.write(slot, side);
        }
        let at = |side| SlotSide { slot: number, side };
        let entered = self.put(&connector, at(Side::Connector), KEPT_FOR_MOVES);
        if !entered || !self.put(&target, at(Side::Target), KEPT_FOR_MOVES) {
            if entered {
                self.take_out(&connector, at(Side::Connector));
            }
            slot.sides.iter().for_each(SideLine::clear);
            self.release(lines);
            self.resting.push_back((now + QUARANTINE, number));
            return Err(InstallError::TableFull);
        }
        for (word, deadline) in slot.deadline.iter().zip(deadlines) {
            word.store(deadline.0);
        }
        sides.iter().for_each(|tuple| tables.previous.forget(tuple));
        self.installed += 1;
        Ok(SlotId(number))
    }

    fn extend(&mut self, slot: SlotId, side: Side, deadline: MonoTime) {
        if let Some(slot) = self.slot(slot) {
            slot.deadline[side.index()].store(deadline.0);
        }
    }

    fn rebind(
        &mut self,
        id: SlotId,
        side: Side,
        tuple: FlowTuple,
        now: MonoTime,
    ) -> Result<(), InstallError> {
        let new = self.check(tuple, Some(id))?;
        let tables = Arc::clone(&self.tables);
        let Some(slot) = tables.slot(id.0) else { return Err(InstallError::TableFull) };
        let (Some(old), Some(other)) =
            (slot.side(side).tuple(&*tables), slot.side(side.other()).tuple(&*tables))
        else {
            return Err(InstallError::TableFull);
        };
        if new == other {
            return Err(InstallError::Tuple(TupleFault::InUse));
        }
        if new == old {
            return Ok(());
        }
        let lines = self.lines(if side == Side::Connector { [new, other] } else { [other, new] })?;
        let at = SlotSide { slot: id.0, side };
        // The new entry first: until the line is written it describes the old tuple, and the new one's packets miss.
        if !self.put(&new, at, 0) {
            self.release(lines);
            return Err(InstallError::TableFull);
        }
        tables.previous.forget(&tuple);
        tables.previous.keep(FlowTuple { agent: old.source(), relay: old.destination() }, at, now);
        for (line, side) in lines.iter().zip(Side::BOTH) {
            let before = slot.side(side).hop();
            line.write(slot, side);
            self.routes.release(before);
        }
        self.take_out(&old, at);
        Ok(())
    }

    fn set_limit(&mut self, slot: SlotId, limit: Limit, now: MonoTime) {
        if let Some(slot) = self.slot(slot) {
            write_limit(slot, limit, now);
        }
    }

    fn remove(&mut self, id: SlotId, now: MonoTime) -> Debt {
        let tables = Arc::clone(&self.tables);
        let Some(slot) = tables.slot(id.0) else { return Debt::NONE };
        for deadline in &slot.deadline {
            deadline.store(0);
        }
        tables.previous.forget_slot(id.0, now);
        for side in Side::BOTH {
            if let Some(tuple) = slot.side(side).tuple(&*tables) {
                self.take_out(&tuple, SlotSide { slot: id.0, side });
                slot.side(side).clear();
                self.routes.release(slot.side(side).hop());
            }
        }
        self.resting.push_back((now + QUARANTINE, id.0));
        self.installed = self.installed.saturating_sub(1);
        Debt(slot.arrival.load())
    }

    fn proved(&mut self, tuple: FlowTuple) {
        self.tables.previous.forget(&tuple);
    }

    fn traffic(&self, id: SlotId) -> Traffic {
        let (Some(slot), Some(carried)) = (self.slot(id), self.tables.carried.get(id.0 as usize)) else {
            return Traffic::default();
        };
        let side = |side: Side| {
            let (line, carried) = (slot.side(side), &carried.sides[side.index()]);
            SideTraffic {
                packets_kernel: carried.kernel.read(line.packets.load()),
                packets_userspace: carried.packets.load(Ordering::Relaxed),
                bytes: line.bytes.load() + carried.bytes.load(Ordering::Relaxed),
            }
        };
        Traffic {
            sides: [side(Side::Connector), side(Side::Target)],
            limited_packets: carried.limited.read(slot.limited_packets.load()),
            limited_bytes: slot.limited_bytes.load(),
            marked_packets: carried.marked.read(slot.marked_packets.load()),
        }
    }

    fn egress_mtus(&self, id: SlotId) -> [Option<u32>; 2] {
        // What one side sends leaves towards the other.
        Side::BOTH.map(|side| {
            let hop = self.slot(id)?.side(side.other()).hop();
            let hop = self.tables.next_hops.get(usize::from(hop))?.copy().ok()?;
            (hop.egress != Egress::Userspace).then_some(hop.mtu)
        })
    }
}

/// Makes a rested slot fit for the next session.
fn reset(slot: &Slot, carried: Option<&Carried>) {
    for word in [&slot.limited_packets, &slot.marked_packets, &slot.sides[0].packets, &slot.sides[1].packets]
    {
        word.store(0);
    }
    for word in [&slot.limited_bytes, &slot.sides[0].bytes, &slot.sides[1].bytes] {
        word.store(0);
    }
    slot.set_allowance(Allowance::UNLIMITED, 0);
    slot.generation.store(slot.generation.load().wrapping_add(1));
    if let Some(carried) = carried {
        carried.reset();
    }
}

fn write_limit(slot: &Slot, limit: Limit, now: MonoTime) {
    slot.set_allowance(Allowance::new(limit.bytes_per_s, limit.burst_bytes), now.0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::datapath::PREVIOUS_TUPLE_KEPT;
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
        FlowTuple {
            agent: SocketAddr::from((ip, 40_000 + (number % 4) as u16)),
            relay: RELAY.parse().unwrap(),
        }
    }

    fn install(
        table: &mut FlowTable<NoRoutes>,
        a: u32,
        b: u32,
        now: MonoTime,
    ) -> Result<SlotId, InstallError> {
        table.install([agent(a), agent(b)], Limit::UNLIMITED, Debt::NONE, [LATER, LATER], now)
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
            table.install(sides, Limit::UNLIMITED, Debt::NONE, [at(100); 2], at(1))
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
            table.install([agent(1), agent(2)], limit, debt, [LATER, LATER], now).unwrap()
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
    fn new_sessions_leave_a_tenth_of_each_bucket_to_sides_that_move() {
        // Two buckets, so that every tuple has the same two places.
        let sizes = TableSizes { slots: 64, buckets: 2 };
        let tables = Arc::new(Tables::private(sizes, [3, 4], *b"\x01magic!!"));
        let mut table = FlowTable::new(Arc::clone(&tables), NoRoutes);
        let mut sessions = Vec::new();
        for number in 0..64 {
            sessions.extend(install(&mut table, 2 * number, 2 * number + 1, at(1)));
        }
        let entries: u32 = tables.index.iter().map(IndexBucket::used).sum();
        assert!((24..=28).contains(&entries), "{entries} of 32 entries are in use");
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
            let refused = table.install([agent(1), bad], Limit::UNLIMITED, Debt::NONE, [LATER, LATER], at(1));
            assert_eq!(refused, Err(InstallError::Tuple(fault)), "{address}");
        }
    }

    #[test]
    fn nothing_is_relayed_after_a_deadline() {
        let (tables, mut table) = table(4);
        let slot =
            table.install([agent(1), agent(2)], Limit::UNLIMITED, Debt::NONE, [at(5), at(9)], at(1)).unwrap();
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
        let first = table.install([agent(0), agent(4)], Limit::UNLIMITED, Debt::NONE, far, at(1)).unwrap();
        let second = table.install([agent(8), agent(12)], Limit::UNLIMITED, Debt::NONE, far, at(1)).unwrap();
        assert!(table.install([agent(16), agent(20)], Limit::UNLIMITED, Debt::NONE, far, at(1)).is_err());
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
            table.install(sides, Limit::UNLIMITED, Debt::NONE, [LATER, LATER], at(1)).unwrap();
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
            table.install([agent(4), agent(8)], Limit::UNLIMITED, Debt::NONE, [LATER, LATER], at(1)).unwrap();
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
    fn traffic_adds_up_over_wraps_of_the_programs_counter() {
        let (tables, mut table) = table(4);
        let slot = install(&mut table, 1, 2, at(1)).unwrap();
        let line = &tables.slots[slot.0 as usize].sides[0];
        line.packets.store(u32::MAX);
        assert_eq!(table.traffic(slot).sides[0].packets_kernel, u64::from(u32::MAX));
        line.packets.store(4);
        assert_eq!(table.traffic(slot).sides[0].packets_kernel, u64::from(u32::MAX) + 5);
        tables.count(SlotSide { slot: slot.0, side: Side::Connector }, 2, 7);
        assert_eq!(table.traffic(slot).sides[0].packets_userspace, 2);
    }

    #[test]
    fn the_table_fills_to_two_thirds_without_a_refusal() {
        let sessions = 2 * 4096 * 16 / 3 / 2;
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
}
