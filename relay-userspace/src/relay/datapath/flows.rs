//! The orders the rendezvous gives to the packet path.

use std::net::SocketAddr;
use std::time::Duration;

use relay_common::Side;

use super::record::Identity;
use crate::clock::MonoTime;

/// What the rendezvous asks of the packet path. Every call takes effect before it returns.
pub trait Flows {
    /// Puts both flows of a session in place: when this returns, packets from either tuple are forwarded to the other
    /// until the earlier of `deadlines` (indexed by [`Side`]).
    ///
    /// # Errors
    /// The table or both buckets of a tuple are full, or a tuple cannot be forwarded. Nothing is installed then.
    fn install(
        &mut self,
        sides: [FlowTuple; 2],
        limit: Limit,
        origin: &Origin,
        deadlines: [MonoTime; 2],
        now: MonoTime,
    ) -> Result<SlotId, InstallError>;

    /// A bind datagram of `side` with this counter was accepted: no other with this one or a lower one is to be.
    fn accepted(&mut self, slot: SlotId, side: Side, counter: u64);

    /// Moves the time until which packets from and to `side` are forwarded.
    fn extend(&mut self, slot: SlotId, side: Side, deadline: MonoTime);

    /// `side`'s agent has proved another tuple. What still comes from the old one is forwarded for
    /// [`PREVIOUS_TUPLE_KEPT`](super::PREVIOUS_TUPLE_KEPT); nothing is sent there any more.
    ///
    /// # Errors
    /// As for [`Flows::install`]; the old tuple stays in place then.
    fn rebind(
        &mut self,
        slot: SlotId,
        side: Side,
        tuple: FlowTuple,
        now: MonoTime,
    ) -> Result<(), InstallError>;

    /// Changes the session's limit. What is left of the burst stays left, in bytes, at most a whole new burst.
    fn set_limit(&mut self, slot: SlotId, limit: Limit, now: MonoTime);

    /// Stops forwarding at once. The slot is reused only after a quarantine. Returns what the session's bucket owes, for
    /// the next slot of the same session.
    fn remove(&mut self, slot: SlotId, now: MonoTime) -> Debt;

    /// Somebody has proved `tuple`, whether its flows are in place or not: it is nobody's previous tuple any more.
    fn proved(&mut self, tuple: FlowTuple);

    /// What the session has carried so far, in earlier slots too.
    fn traffic(&self, slot: SlotId) -> Traffic;

    /// The largest IP packets that leave the relay towards each side, indexed by [`Side`]; none where that is not known.
    fn egress_mtus(&self, slot: SlotId) -> [Option<u32>; 2];
}

/// One side's addresses as the packet path sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowTuple {
    /// Where the agent's datagrams come from, after all NAT: proved by the bind exchange.
    pub agent: SocketAddr,
    /// The relay address and port they arrive at.
    pub relay: SocketAddr,
}

/// A session's bandwidth limit: UDP payload bytes, both directions together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Bytes per second; 0 is unlimited.
    pub bytes_per_s: u64,
    /// Bytes that may pass at once after a pause.
    pub burst_bytes: u64,
}

impl Limit {
    /// No limit.
    pub const UNLIMITED: Limit = Limit { bytes_per_s: 0, burst_bytes: 0 };

    /// The smallest burst in bytes: seven eighths of it, which is what large packets may use, hold the largest datagram.
    pub const MIN_BURST_BYTES: u64 = 80 * 1024;

    /// The time's worth of bytes in a default burst.
    pub const BURST: Duration = Duration::from_millis(250);

    /// A limit of `bytes_per_s` (0: unlimited) with the default burst: 250 ms of the rate, at least 80 KiB.
    pub fn per_second(bytes_per_s: u64) -> Limit {
        Limit { bytes_per_s, burst_bytes: (bytes_per_s / 4).max(Limit::MIN_BURST_BYTES) }
    }
}

/// What a session's bucket was charged and has not earned again: its word (see [`relay_common::bucket`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Debt(pub(super) u64);

impl Debt {
    /// Of a session that is new.
    pub const NONE: Debt = Debt(0);
}

/// Where the session comes from that a slot is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Whose it is.
    pub identity: Identity,
    /// What its last slot was left with.
    pub debt: Debt,
    /// What its earlier slots have carried: the new one goes on counting from there.
    pub carried: Traffic,
}

impl Origin {
    /// Of no session that anybody would go on with.
    pub const NONE: Origin =
        Origin { identity: Identity::NOBODYS, debt: Debt::NONE, carried: Traffic::NOTHING };
}

/// A session's place in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub u32);

/// Why flows were not put in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InstallError {
    /// Every slot is taken, or both index buckets of a tuple are full.
    #[error("the flow table is full: raise datapath.max_sessions, or let sessions end")]
    TableFull,
    /// The tuple is not one that packets could be forwarded from or to.
    #[error("the tuple is refused: {0}")]
    Tuple(TupleFault),
}

/// What is wrong with a tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TupleFault {
    /// Port 0 cannot be sent to.
    #[error("port 0")]
    PortZero,
    /// Loopback, multicast, broadcast, unspecified or one of the relay's own addresses.
    #[error("the address is not a unicast address of another host")]
    Address,
    /// Both sides have the same tuple, or the tuple belongs to another session.
    #[error("the tuple is in use")]
    InUse,
    /// The two addresses of a tuple are of different families.
    #[error("the address families differ")]
    Family,
    /// The relay's address is one more than the tables can have: binds have come to too many of its IPv6 addresses.
    #[error("the relay forwards at as many of its IPv6 addresses as it can: bind to one that is in use")]
    RelayAddresses,
}

/// What a session has carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// By sending side, indexed by [`Side`].
    pub sides: [SideTraffic; 2],
    /// Packets dropped for the limit.
    pub limited_packets: u64,
    /// Their UDP payload bytes.
    pub limited_bytes: u64,
    /// Packets marked CE.
    pub marked_packets: u64,
}

impl Traffic {
    /// Not a packet.
    pub const NOTHING: Traffic =
        Traffic { sides: [SideTraffic::NOTHING; 2], limited_packets: 0, limited_bytes: 0, marked_packets: 0 };

    /// Packets of both sides.
    pub fn packets(&self) -> u64 {
        self.sides.iter().map(SideTraffic::packets).sum()
    }

    /// UDP payload bytes of both sides.
    pub fn bytes(&self) -> u64 {
        self.sides.iter().map(|side| side.bytes).sum()
    }
}

/// What one side has sent through the relay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SideTraffic {
    /// Packets forwarded by the XDP program.
    pub packets_kernel: u64,
    /// Packets forwarded by the userspace forwarder.
    pub packets_userspace: u64,
    /// UDP payload bytes of both.
    pub bytes: u64,
}

impl SideTraffic {
    /// Not a packet.
    pub const NOTHING: SideTraffic = SideTraffic { packets_kernel: 0, packets_userspace: 0, bytes: 0 };

    /// Packets that were forwarded in either place.
    pub fn packets(&self) -> u64 {
        self.packets_kernel + self.packets_userspace
    }
}
