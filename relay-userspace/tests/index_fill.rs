//! How full the flow index gets before it refuses a session.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "in a test a panic is a failure, and the figures are printed"
)]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use relay_common::index::ENTRIES;
use relay_userspace::clock::MonoTime;
use relay_userspace::relay::datapath::{
    FlowTable, FlowTuple, Flows, InstallError, Limit, NoRoutes, Origin, TableSizes, Tables,
};

/// The share of its entries that an index is sized for, one of two: see [`TableSizes::for_sessions`].
const SIZED_FOR: [u64; 2] = [1, 2];

/// Tuples of one family of ports and addresses, as those of agents behind few NATs are.
fn agent(number: u32) -> FlowTuple {
    let ip = Ipv4Addr::from(0x0a01_0000 + number / 1000);
    FlowTuple {
        agent: SocketAddr::from((ip, 40_000 + (number % 1000) as u16)),
        relay: SocketAddr::from((Ipv4Addr::new(10, 9, 0, 2), 4433)),
    }
}

/// Installs until 95 % of the index is used: the share in percent at the first refusal, and how many were refused.
fn fill(buckets: u32, key: [u64; 2]) -> (f64, u32) {
    let entries = u64::from(buckets) * ENTRIES as u64;
    let sessions = (entries * 95 / 100 / 2) as u32;
    // A slot for each try, so that only the index refuses.
    let sizes = TableSizes { slots: sessions, buckets };
    let mut table = FlowTable::new(Arc::new(Tables::private(sizes, key, [0x2a; 8])), NoRoutes);
    let (mut first, mut refused) = (None, 0);
    for number in 0..sessions {
        let sides = [agent(2 * number), agent(2 * number + 1)];
        match table.install(sides, Limit::UNLIMITED, &Origin::NONE, [MonoTime(u64::MAX); 2], MonoTime(1)) {
            Ok(_) => {}
            Err(InstallError::TableFull) => {
                let used = 100.0 * f64::from(2 * table.installed()) / entries as f64;
                first.get_or_insert(used);
                refused += 1;
            }
            Err(other) => panic!("{other}"),
        }
    }
    (first.unwrap_or(95.0), refused)
}

#[test]
fn the_index_refuses_nobody_up_to_what_it_is_sized_for() {
    for buckets in [256, 4096, 65_536] {
        for seed in 0..4 {
            let (first, refused) = fill(buckets, [seed, !seed]);
            println!(
                "{buckets} buckets: first refusal at {first:.1} %, {refused} sessions refused up to 95 %"
            );
            let [used, of] = SIZED_FOR.map(|share| share as f64);
            assert!(first > 100.0 * used / of, "{buckets} buckets, key {seed}: refused at {first:.1} %");
        }
    }
}

#[test]
fn tables_of_any_size_fill_their_index_no_further() {
    for sessions in [1, 2, 10, 100, 1_000, 65_536, 100_000, 1 << 20, 1 << 21] {
        let TableSizes { slots, buckets } = TableSizes::for_sessions(sessions);
        let [used, entries] = [2 * u64::from(slots), u64::from(buckets) * ENTRIES as u64];
        assert!(SIZED_FOR[1] * used <= SIZED_FOR[0] * entries, "{sessions} sessions: {used} of {entries}");
    }
}
