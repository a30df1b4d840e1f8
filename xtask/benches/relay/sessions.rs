//! The relay's program with tables full of sessions, as the daemon would have them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use relay_common::Reason;
use relay_common::next_hop::{Egress, Hop, station_words};
use relay_userspace::clock::MonoTime;
use relay_userspace::relay::datapath::{
    FlowTable, FlowTuple, Flows as _, Hook, Limit, NoRoutes, Origin, Program, SlotId, TableSizes, Tables,
};

use crate::frames::{Family, GATEWAY, MAGIC, STATION};

/// TEST_RUN runs a program as if the frame came by the loopback interface.
const LOOPBACK: u32 = 1;

/// Key of the index's hash.
pub const KEY: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];

/// Longer than any run.
const CONSENT: Duration = Duration::from_secs(3600);

/// The program and its tables. Session `n` is between the agents of flows `2n` and `2n + 1`.
pub struct Sessions {
    /// The program.
    pub program: Program,
    /// Its tables' writer.
    pub flows: FlowTable<NoRoutes>,
    /// Its tables.
    pub tables: Arc<Tables>,
    /// Where each session lies.
    pub slots: Vec<SlotId>,
}

impl Sessions {
    /// Loads the program with `count` sessions between agents of `families`, all under `limit`.
    ///
    /// # Errors
    /// The kernel refuses the program, or the tables a session.
    pub fn load(count: u32, families: [Family; 2], limit: Limit) -> anyhow::Result<Sessions> {
        Sessions::load_with(count, families, |_| limit)
    }

    /// As [`Sessions::load`], each session with a limit of its own.
    ///
    /// # Errors
    /// As for [`Sessions::load`].
    pub fn load_with(
        count: u32,
        families: [Family; 2],
        limit: impl Fn(u32) -> Limit,
    ) -> anyhow::Result<Sessions> {
        let (program, tables, _egress) =
            Program::load(Hook::Native, TableSizes::for_sessions(count), KEY, MAGIC)?;
        let tables = Arc::new(tables);
        tables.interfaces()[LOOPBACK as usize].write(LOOPBACK, STATION, 1500);
        let stations = station_words(GATEWAY, STATION);
        let hop = Hop { egress: Egress::Transmit, interface: LOOPBACK, mtu: 1500, stations, vlan: 0 };
        tables.next_hops()[0].write(&hop);
        let mut flows = FlowTable::new(Arc::clone(&tables), NoRoutes);
        let now = MonoTime::now();
        let mut slots = Vec::with_capacity(count as usize);
        for session in 0..count {
            let side = |side: u32| {
                let family = families[side as usize];
                FlowTuple { agent: family.agent(2 * session + side), relay: family.relay() }
            };
            let slot = flows
                .install([side(0), side(1)], limit(session), &Origin::NONE, [now + CONSENT; 2], now)
                .with_context(|| format!("session {session} of {count}"))?;
            slots.push(slot);
        }
        Ok(Sessions { program, flows, tables, slots })
    }

    /// Makes every session's bucket as full as `share` of its burst, now.
    ///
    /// # Errors
    /// A session is gone.
    pub fn fill_buckets(&self, share: f64) -> anyhow::Result<()> {
        /// The bucket's unit of time: see `relay_common::bucket`.
        const TICKS_PER_NS: u64 = 64;
        for id in &self.slots {
            let slot = self.tables.slots().get(id.0 as usize).context("no such slot")?;
            let level = (slot.burst.load() as f64 * share) as u64;
            let now = MonoTime::now().0;
            slot.resume(now.wrapping_mul(TICKS_PER_NS) + level, now);
        }
        Ok(())
    }

    /// Packets that the program has counted for `reason`.
    ///
    /// # Errors
    /// The counters cannot be read.
    pub fn counted(&self, reason: Reason) -> anyhow::Result<u64> {
        Ok(self.program.tally(reason)?.packets)
    }
}
