//! The tables of the packet path, as the daemon sees them: one writer (the driver), many readers (program, forwarder).

use std::net::SocketAddr;

use relay_common::flow::{Flow, look_up};
use relay_common::hash::{self, HashKey, HashSeed};
use relay_common::index::{ENTRIES, IndexBucket, MAX_BUCKETS, MAX_SLOTS, SlotSide};
use relay_common::interface::{INTERFACES, Interface};
use relay_common::local::{LOCALS, Local};
use relay_common::maps::NEXT_HOP_ENTRIES;
use relay_common::next_hop::NextHop;
use relay_common::parse::{classify_bind, markable};
use relay_common::slot::Slot;
use relay_common::tuple::AnyTuple;
use relay_common::{BIND_MAGIC_LEN, Reason, tables};

use super::flows::FlowTuple;
use super::mapping::SharedArray;
use super::previous_tuples::PreviousTuples;
use super::record::Record;
use crate::clock::MonoTime;

/// The memory that program, forwarder and daemon share, and a successor may go on with.
pub struct Tables {
    pub(super) index: SharedArray<IndexBucket>,
    pub(super) slots: SharedArray<Slot>,
    pub(super) next_hops: SharedArray<NextHop>,
    pub(super) interfaces: SharedArray<Interface>,
    pub(super) locals: SharedArray<Local>,
    pub(super) records: SharedArray<Record>,
    pub(super) previous: PreviousTuples,
    pub(super) hash_key: HashKey,
    pub(super) bind_magic: u64,
}

/// How large the tables are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSizes {
    /// Sessions.
    pub slots: u32,
    /// Index buckets: a power of two.
    pub buckets: u32,
}

impl TableSizes {
    /// The sizes for `sessions` sessions, between 1 and 2^21: half of the index is filled at most. So full, no bucket refuses
    /// a new session although it keeps places for sides that move, and few entries are in their tuple's second bucket.
    pub fn for_sessions(sessions: u32) -> TableSizes {
        let slots = sessions.clamp(1, MAX_SLOTS);
        let entries = u64::from(slots) * 2 * 2;
        let buckets = entries.div_ceil(ENTRIES as u64).next_power_of_two().max(2);
        TableSizes { slots, buckets: u32::try_from(buckets).unwrap_or(MAX_BUCKETS).min(MAX_BUCKETS) }
    }

    /// Bytes the tables take: in the kernel or, without the program, in the daemon.
    pub fn bytes(self) -> u64 {
        u64::from(self.slots) * (Slot::SIZE + Record::SIZE) as u64
            + u64::from(self.buckets) * size_of::<IndexBucket>() as u64
            + u64::from(NEXT_HOP_ENTRIES) * size_of::<NextHop>() as u64
            + u64::from(INTERFACES) * size_of::<Interface>() as u64
            + u64::from(LOCALS) * size_of::<Local>() as u64
    }
}

/// A datagram that reached one of the relay's sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival<'a> {
    /// Who sent it.
    pub from: SocketAddr,
    /// The relay address it was sent to.
    pub to: SocketAddr,
    /// Its UDP payload.
    pub payload: &'a [u8],
    /// Its TOS or traffic class byte.
    pub tos: u8,
    /// Its TTL or hop limit.
    pub ttl: u8,
}

/// What the forwarder does with a datagram of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relayed {
    /// Whom it is sent to.
    pub to: SocketAddr,
    /// The relay address it is sent from.
    pub from: SocketAddr,
    /// Whether it is marked CE on the way.
    pub mark: bool,
    /// Whose it is: to be given to [`Tables::count`] once it is sent.
    pub at: SlotSide,
}

/// Datagrams of one tuple, whose session has been looked up.
pub struct Run<'t> {
    bind_magic: u64,
    flow: Result<Flow<'t>, Reason>,
}

impl Run<'_> {
    /// Whether their tuple is a session's.
    pub fn is_of_a_flow(&self) -> bool {
        self.flow.is_ok()
    }

    /// Decides on one of them, as [`Tables::decide`] does.
    ///
    /// # Errors
    /// As for [`Tables::decide`].
    pub fn decide(&self, arrival: &Arrival<'_>, now: MonoTime) -> Result<Relayed, Reason> {
        self.decide_if(arrival, now, |_| Ok(()))
    }

    /// As [`Run::decide`], but `permit` is asked about the side that has sent it before anything is charged.
    ///
    /// # Errors
    /// As for [`Tables::decide`], or what `permit` says.
    pub fn decide_if(
        &self,
        arrival: &Arrival<'_>,
        now: MonoTime,
        permit: impl FnOnce(SlotSide) -> Result<(), Reason>,
    ) -> Result<Relayed, Reason> {
        let length = u32::try_from(arrival.payload.len()).unwrap_or(u32::MAX);
        if let Some(head) = arrival.payload.first_chunk::<BIND_MAGIC_LEN>() {
            classify_bind(u64::from_ne_bytes(*head), length, self.bind_magic)?;
        }
        let flow = self.flow.as_ref().map_err(|reason| *reason)?;
        permit(flow.at)?;
        if arrival.ttl <= 1 {
            return Err(Reason::TtlExpired);
        }
        let mark = flow.admit(length, markable(arrival.tos), now.0)?;
        let onward = flow.route.tuple();
        Ok(Relayed { to: onward.destination(), from: onward.source(), mark, at: flow.at })
    }
}

impl Tables {
    /// Tables in memory of this process alone: the userspace datapath, and tests.
    pub fn private(sizes: TableSizes, hash_seed: HashSeed, bind_magic: [u8; BIND_MAGIC_LEN]) -> Tables {
        Tables {
            index: SharedArray::private(sizes.buckets),
            slots: SharedArray::private(sizes.slots),
            next_hops: SharedArray::private(NEXT_HOP_ENTRIES),
            interfaces: SharedArray::private(INTERFACES),
            locals: SharedArray::private(LOCALS),
            records: SharedArray::private(sizes.slots),
            previous: PreviousTuples::default(),
            hash_key: hash::key(hash_seed),
            bind_magic: u64::from_ne_bytes(bind_magic),
        }
    }

    /// Decides on a datagram that reached a socket, as the program does on a frame: it is charged if it is to be sent.
    ///
    /// # Errors
    /// Why it is not relayed. [`Reason::NoFlow`] and [`Reason::ConsentExpired`]: it may be QUIC's.
    /// [`Reason::Bind`]: it is a bind datagram.
    pub fn decide(&self, arrival: &Arrival<'_>, now: MonoTime) -> Result<Relayed, Reason> {
        self.run(arrival.from, arrival.to).decide(arrival, now)
    }

    /// As [`Tables::decide`], for a datagram of no flow: it may be of a side that has just moved away from its tuple.
    ///
    /// # Errors
    /// As for [`Tables::decide`].
    pub fn decide_previous(&self, arrival: &Arrival<'_>, now: MonoTime) -> Result<Relayed, Reason> {
        self.previous_run(arrival.from, arrival.to, now).decide(arrival, now)
    }

    /// The datagrams from `from` to the relay address `to` that are decided on now: their session is looked up once.
    pub fn run(&self, from: SocketAddr, to: SocketAddr) -> Run<'_> {
        let tuple = AnyTuple::new(from, to).ok_or(Reason::NoFlow);
        Run { bind_magic: self.bind_magic, flow: tuple.and_then(|tuple| self.find(&tuple)) }
    }

    /// As [`Tables::run`], for datagrams of no flow: they may be of a side that has just moved away from its tuple.
    pub fn previous_run(&self, from: SocketAddr, to: SocketAddr, now: MonoTime) -> Run<'_> {
        let tuple = FlowTuple { agent: from, relay: to };
        Run { bind_magic: self.bind_magic, flow: self.find_previous(&tuple, now) }
    }

    /// The session that packets of `tuple` belong to.
    ///
    /// # Errors
    /// [`Reason::NoFlow`].
    pub(super) fn find(&self, tuple: &AnyTuple) -> Result<Flow<'_>, Reason> {
        loop {
            let found = match tuple {
                AnyTuple::V4(tuple) => look_up(self, tuple),
                AnyTuple::V6(tuple) => look_up(self, tuple),
            };
            match found {
                // The program leaves a session that changes under it to userspace; here is nobody to leave it to, and
                // the writer is done in a moment.
                Err(Reason::FlowChanged) => std::hint::spin_loop(),
                found => return found,
            }
        }
    }

    /// The session whose side has sent this just before it moved to another tuple.
    pub(super) fn find_previous(&self, tuple: &FlowTuple, now: MonoTime) -> Result<Flow<'_>, Reason> {
        let at = self.previous.find(tuple, now).ok_or(Reason::NoFlow)?;
        let line = tables::Tables::slot(self, at.slot).ok_or(Reason::NoFlow)?.side(at.side);
        // Should it move again at this moment, half of its tuple finds nothing.
        let present = line.tuple(self).ok_or(Reason::NoFlow)?;
        self.find(&present).and_then(|flow| if flow.at == at { Ok(flow) } else { Err(Reason::NoFlow) })
    }

    /// Counts datagrams of a session that userspace has sent, with their payload bytes.
    pub fn count(&self, at: SlotSide, packets: u64, bytes: u64) {
        if let Some(record) = self.records.get(at.slot as usize) {
            record.count(at.side, packets, bytes);
        }
    }

    /// How large they are.
    pub fn sizes(&self) -> TableSizes {
        TableSizes { slots: self.slots.len() as u32, buckets: self.index.len() as u32 }
    }

    /// The next hops, for their one writer.
    pub fn next_hops(&self) -> &[NextHop] {
        &self.next_hops
    }

    /// The slots, for their one writer.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The interfaces, for their one writer.
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }
}

impl tables::Tables for Tables {
    fn hash_key(&self, _: usize) -> HashKey {
        self.hash_key
    }

    fn bucket_mask(&self) -> u32 {
        self.index.len() as u32 - 1
    }

    fn bucket(&self, number: u32) -> Option<&IndexBucket> {
        self.index.get(number as usize)
    }

    fn slot(&self, number: u32) -> Option<&Slot> {
        self.slots.get(number as usize)
    }

    fn next_hop(&self, number: u32) -> Option<&NextHop> {
        self.next_hops.get(number as usize)
    }

    fn local(&self, number: u32) -> Option<&Local> {
        self.locals.get(number as usize)
    }

    fn interface(&self, index: u32) -> Option<&Interface> {
        self.interfaces.get((index % INTERFACES) as usize)
    }

    fn bind_magic(&self) -> u64 {
        self.bind_magic
    }
}
