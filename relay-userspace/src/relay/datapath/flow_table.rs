//! The one writer of the flow tables: installs, moves and removes sessions while others read.
//!
//! Order matters, since readers take no lock. Install: the slot's lines, then the index, then the deadlines. Removal:
//! the reverse, and the slot rests before another session gets it, because a reader past its last check may still
//! charge it.

mod adoption;
mod trial;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use relay_common::Side;
use relay_common::bucket::Allowance;
use relay_common::index::SlotSide;
use relay_common::local::Local;
use relay_common::next_hop::Egress;
use relay_common::route::Route;
use relay_common::slot::{LineLocals, SideLine, Slot};
use relay_common::tables::Tables as _;
use relay_common::tuple::AnyTuple;

use super::flows::{Debt, FlowTuple, Flows, InstallError, Limit, Origin, SlotId, Traffic, TupleFault};
use super::record::Record;
use super::slot_pool::SlotPool;
use super::tables::Tables;
use crate::clock::MonoTime;

pub use adoption::{Inheritance, Left, sessions_of};
pub use trial::TrialError;

/// Sessions whose next hops are asked for at once: a fraction of a millisecond of the driver's time. Binds wait for no more
/// than one such portion.
const REROUTED_AT_ONCE: u32 = 16;

/// A new session's entry leaves so many of a bucket's places free: a sixth, for sides that move.
const KEPT_FOR_MOVES: u32 = 2;

/// Which next hop leads to an agent.
pub trait Routes {
    /// The number of the next hop for packets from the relay's address `relay` to `agent`, for one more user of it.
    fn hop_for(&mut self, agent: IpAddr, relay: IpAddr) -> u16;

    /// One user less of a hop.
    fn release(&mut self, hop: u16);

    /// Before anything else: these hops of a predecessor are in use, each by so many, until they are released. They are as
    /// they stand; no other is in use.
    fn hold(&mut self, _users: &BTreeMap<u16, u32>) {}
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

    fn hold(&mut self, users: &BTreeMap<u16, u32>) {
        if let Some(routes) = self {
            routes.hold(users);
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
    pool: SlotPool,
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
        let pool = SlotPool::new(tables.sizes().slots);
        FlowTable { tables, routes, pool, installed: 0, rerouting: Rerouting::Done }
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
        self.pool.capacity()
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
        let end = first.saturating_add(REROUTED_AT_ONCE).min(self.pool.touched());
        let tables = Arc::clone(&self.tables);
        for slot in (first..end).filter_map(|number| tables.slot(number)) {
            self.reroute_slot(slot, &tables);
        }
        self.rerouting = match (end < self.pool.touched(), again) {
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
        let Ok(lines) = Line::of_session([connector, target], tables, &mut self.routes) else { return };
        for (line, side) in lines.iter().zip(Side::BOTH) {
            let before = slot.side(side).hop();
            if before != line.route.hop {
                line.write(slot, side);
            }
            self.routes.release(before);
        }
    }

    fn slot(&self, id: SlotId) -> Option<&Slot> {
        self.tables.slot(id.0)
    }
}

/// A side's tuple, if packets could be forwarded from and to it.
fn words(tuple: FlowTuple) -> Result<AnyTuple, InstallError> {
    check_addresses(tuple).map_err(InstallError::Tuple)?;
    AnyTuple::new(tuple.agent, tuple.relay).ok_or(InstallError::Tuple(TupleFault::Family))
}

/// Whether a session has `tuple`, other than perhaps `own`.
fn is_anothers(tables: &Tables, tuple: &AnyTuple, own: Option<SlotId>) -> bool {
    tables.find(tuple).is_ok_and(|flow| own != Some(SlotId(flow.at.slot)))
}

/// What is written into a slot for one side.
struct Line {
    tuple: AnyTuple,
    route: Route,
    locals: LineLocals,
}

impl Line {
    /// The lines of a session between these two sides' tuples.
    fn of_session(
        sides: [AnyTuple; 2],
        tables: &Tables,
        routes: &mut impl Routes,
    ) -> Result<[Line; 2], InstallError> {
        let [connector, target] = sides;
        let near = number_of_local(tables, connector.destination().ip())?;
        let far = number_of_local(tables, target.destination().ip())?;
        Ok([
            Line::between([connector, target], LineLocals { taken: near, made: far }, routes),
            Line::between([target, connector], LineLocals { taken: far, made: near }, routes),
        ])
    }

    /// The line of packets from the first tuple's agent to the second's: the relay's address on the second's side becomes
    /// the source.
    fn between([from, to]: [AnyTuple; 2], locals: LineLocals, routes: &mut impl Routes) -> Line {
        let hop = routes.hop_for(to.source().ip(), to.destination().ip());
        Line { tuple: from, route: Route::new(&from, &to.reversed(), hop), locals }
    }

    fn write(&self, slot: &Slot, side: Side) {
        slot.side(side).write(&self.tuple, &self.route, self.locals);
    }
}

fn number_of_local(tables: &Tables, address: IpAddr) -> Result<u16, InstallError> {
    match address {
        IpAddr::V4(_) => Ok(0),
        IpAddr::V6(address) => {
            Local::number(&tables.locals, address).ok_or(InstallError::Tuple(TupleFault::RelayAddresses))
        }
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
        origin: &Origin,
        deadlines: [MonoTime; 2],
        now: MonoTime,
    ) -> Result<SlotId, InstallError> {
        let FlowTable { tables, routes, pool, .. } = self;
        let tables: &Tables = tables;
        let [connector, target] = [words(sides[0])?, words(sides[1])?];
        tables.fetch(&[connector, target]);
        if connector == target || is_anothers(tables, &connector, None) || is_anothers(tables, &target, None)
        {
            return Err(InstallError::Tuple(TupleFault::InUse));
        }
        let number = pool.take(now).ok_or(InstallError::TableFull)?;
        let Some(slot) = tables.slot(number) else { return Err(InstallError::TableFull) };
        let lines =
            Line::of_session([connector, target], tables, routes).inspect_err(|_| pool.give_back(number))?;

        reset(slot);
        if let Some(record) = tables.records.get(number as usize) {
            record.begin(&origin.identity, &origin.carried, slot.generation.load());
            let [limited, marked] = record.counters_of_slot();
            slot.limited_packets.store(limited);
            slot.marked_packets.store(marked);
            slot.limited_bytes.store(origin.carried.limited_bytes);
        }
        write_limit(slot, limit, now);
        slot.resume(origin.debt.0, now.0);
        for (line, side) in lines.iter().zip(Side::BOTH) {
            line.write(slot, side);
        }
        let at = |side| SlotSide { slot: number, side };
        let entered = tables.enter(&connector, at(Side::Connector), KEPT_FOR_MOVES);
        if !entered || !tables.enter(&target, at(Side::Target), KEPT_FOR_MOVES) {
            if entered {
                tables.withdraw(&connector, at(Side::Connector));
            }
            slot.sides.iter().for_each(SideLine::clear);
            tables.records.get(number as usize).into_iter().for_each(Record::clear);
            lines.iter().for_each(|line| routes.release(line.route.hop));
            pool.rest(number, now);
            return Err(InstallError::TableFull);
        }
        for (word, deadline) in slot.deadline.iter().zip(deadlines) {
            word.store(deadline.0);
        }
        sides.iter().for_each(|tuple| tables.previous.forget(tuple));
        self.installed += 1;
        Ok(SlotId(number))
    }

    fn accepted(&mut self, slot: SlotId, side: Side, counter: u64) {
        if let Some(record) = self.tables.records.get(slot.0 as usize) {
            record.accepted(side, counter);
        }
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
        let FlowTable { tables, routes, .. } = self;
        let tables: &Tables = tables;
        let new = words(tuple)?;
        if is_anothers(tables, &new, Some(id)) {
            return Err(InstallError::Tuple(TupleFault::InUse));
        }
        let Some(slot) = tables.slot(id.0) else { return Err(InstallError::TableFull) };
        let (Some(old), Some(other)) = (slot.side(side).tuple(tables), slot.side(side.other()).tuple(tables))
        else {
            return Err(InstallError::TableFull);
        };
        if new == other {
            return Err(InstallError::Tuple(TupleFault::InUse));
        }
        if new == old {
            return Ok(());
        }
        let sides = if side == Side::Connector { [new, other] } else { [other, new] };
        let lines = Line::of_session(sides, tables, routes)?;
        let at = SlotSide { slot: id.0, side };
        // The new entry first: until the line is written it describes the old tuple, and the new one's packets miss.
        if !tables.enter(&new, at, 0) {
            lines.iter().for_each(|line| routes.release(line.route.hop));
            return Err(InstallError::TableFull);
        }
        tables.previous.forget(&tuple);
        tables.previous.keep(FlowTuple { agent: old.source(), relay: old.destination() }, at, now);
        for (line, side) in lines.iter().zip(Side::BOTH) {
            let before = slot.side(side).hop();
            line.write(slot, side);
            routes.release(before);
        }
        tables.withdraw(&old, at);
        Ok(())
    }

    fn set_limit(&mut self, slot: SlotId, limit: Limit, now: MonoTime) {
        if let Some(slot) = self.slot(slot) {
            write_limit(slot, limit, now);
        }
    }

    fn remove(&mut self, id: SlotId, now: MonoTime) -> Debt {
        let FlowTable { tables, routes, pool, .. } = self;
        let tables: &Tables = tables;
        let Some(slot) = tables.slot(id.0) else { return Debt::NONE };
        for deadline in &slot.deadline {
            deadline.store(0);
        }
        tables.previous.forget_slot(id.0, now);
        for side in Side::BOTH {
            if let Some(tuple) = slot.side(side).tuple(tables) {
                tables.withdraw(&tuple, SlotSide { slot: id.0, side });
                slot.side(side).clear();
                routes.release(slot.side(side).hop());
            }
        }
        tables.records.get(id.0 as usize).into_iter().for_each(Record::clear);
        pool.rest(id.0, now);
        self.installed = self.installed.saturating_sub(1);
        Debt(slot.arrival.load())
    }

    fn proved(&mut self, tuple: FlowTuple) {
        self.tables.previous.forget(&tuple);
    }

    fn traffic(&self, id: SlotId) -> Traffic {
        let record = self.tables.records.get(id.0 as usize);
        self.slot(id).zip(record).map_or(Traffic::NOTHING, |(slot, record)| record.traffic(slot))
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
fn reset(slot: &Slot) {
    slot.limited_packets.store(0);
    slot.marked_packets.store(0);
    slot.limited_bytes.store(0);
    slot.sides.iter().for_each(|line| line.traffic.reset());
    slot.set_allowance(Allowance::UNLIMITED, 0);
    slot.generation.store(slot.generation.load().wrapping_add(1));
}

fn write_limit(slot: &Slot, limit: Limit, now: MonoTime) {
    slot.set_allowance(Allowance::new(limit.bytes_per_s, limit.burst_bytes), now.0);
}

#[cfg(test)]
mod tests;
