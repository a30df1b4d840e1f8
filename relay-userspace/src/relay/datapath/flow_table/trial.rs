//! Whether the daemon, as it is now, can use the tables: tried before it says that it is ready.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use relay_common::Reason;

use super::{FlowTable, Routes};
use crate::clock::MonoTime;
use crate::relay::datapath::flows::{FlowTuple, Flows as _, InstallError, Limit, Origin};
use crate::relay::datapath::tables::Arrival;

/// Addresses of documentation (RFC 5737) and a port that no relay has: no packet has these tuples.
const SIDES: [FlowTuple; 2] = [from([192, 0, 2, 1]), from([198, 51, 100, 1])];

const fn from(agent: [u8; 4]) -> FlowTuple {
    FlowTuple { agent: at(agent), relay: at([203, 0, 113, 1]) }
}

const fn at([a, b, c, d]: [u8; 4]) -> SocketAddr {
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), 1))
}

/// Both sides' deadlines: past since the host was started, so that nothing would be forwarded.
const PAST: MonoTime = MonoTime(0);

/// The tables do not work.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// They did not take a session.
    #[error("a flow cannot be installed: {0:?}")]
    Install(InstallError),
    /// They do not hold what they were given.
    #[error("a flow that was {done} is found as {found:?}, where {expected:?} was expected")]
    Found {
        /// `installed` or `removed`.
        done: &'static str,
        /// What a packet of its tuple met with.
        found: Option<Reason>,
        /// What it had to.
        expected: Reason,
    },
}

impl<R: Routes> FlowTable<R> {
    /// Installs a session, finds it and removes it. Nothing can be forwarded by it. A full table proves itself.
    ///
    /// # Errors
    /// See [`TrialError`].
    pub fn prove(&mut self, now: MonoTime) -> Result<(), TrialError> {
        let slot = match self.install(SIDES, Limit::UNLIMITED, &Origin::NONE, [PAST; 2], now) {
            Ok(slot) => slot,
            // Taken or resting: who has filled it has written to it.
            Err(InstallError::TableFull) => return Ok(()),
            Err(error) => return Err(TrialError::Install(error)),
        };
        let installed = self.expect("installed", Reason::ConsentExpired, now);
        // No packet was ever let through by this slot: it is free at once, as if it had rested.
        self.remove(slot, PAST);
        installed?;
        self.expect("removed", Reason::NoFlow, now)
    }

    /// Looks both sides up as the forwarder does.
    fn expect(&self, done: &'static str, expected: Reason, now: MonoTime) -> Result<(), TrialError> {
        for FlowTuple { agent, relay } in SIDES {
            let found = self
                .tables
                .decide(&Arrival { from: agent, to: relay, payload: &[], tos: 0, ttl: 64 }, now)
                .err();
            if found != Some(expected) {
                return Err(TrialError::Found { done, found, expected });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::relay::datapath::flow_table::NoRoutes;
    use crate::relay::datapath::tables::{TableSizes, Tables};

    const NOW: MonoTime = MonoTime(3_600_000_000_000);
    const LATER: MonoTime = MonoTime(u64::MAX);

    fn table() -> (Arc<Tables>, FlowTable<NoRoutes>) {
        let tables = Arc::new(Tables::private(TableSizes::for_sessions(1), [3, 4], *b"\x01magic!!"));
        (Arc::clone(&tables), FlowTable::new(tables, NoRoutes))
    }

    fn install(table: &mut FlowTable<NoRoutes>, sides: [FlowTuple; 2]) -> Result<(), InstallError> {
        table.install(sides, Limit::UNLIMITED, &Origin::NONE, [LATER; 2], NOW).map(drop)
    }

    #[test]
    fn tables_that_work_prove_it_and_have_room_for_as_many_sessions_as_before() {
        let (_tables, mut table) = table();
        for _ in 0..3 {
            table.prove(NOW).unwrap();
            assert_eq!(table.installed(), 0);
        }
        install(&mut table, [from([10, 0, 0, 1]), from([10, 0, 0, 2])]).unwrap();
        table.prove(NOW).unwrap();
        assert_eq!(table.installed(), 1, "a full table is left as it is");
    }

    #[test]
    fn tables_that_hold_something_else_are_found_out() {
        let (tables, mut table) = table();
        // Nobody's tuples are somebody's: what was written there before cannot be told from what is written now.
        install(&mut table, SIDES).unwrap();
        assert!(matches!(
            table.expect("installed", Reason::ConsentExpired, NOW),
            Err(TrialError::Found { found: None, .. })
        ));
        // An index that lost its entries finds nothing.
        let words = crate::relay::datapath::flow_table::words(SIDES[0]).unwrap();
        let at = tables.find(&words).unwrap().at;
        tables.withdraw(&words, at);
        let error = table.expect("installed", Reason::ConsentExpired, NOW).unwrap_err();
        assert!(error.to_string().contains("installed") && error.to_string().contains("NoFlow"), "{error}");
    }
}
