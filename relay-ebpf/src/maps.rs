//! The maps, under the names of `relay_common::maps`. Sizes here are the smallest; the daemon sets the real ones when it
//! loads the program.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, DevMap, PerCpuArray};
use relay_common::PerCpu;
use relay_common::index::IndexBucket;
use relay_common::interface::{INTERFACES as INTERFACE_ENTRIES, Interface};
use relay_common::local::{LOCALS as LOCAL_ENTRIES, Local};
use relay_common::maps::NEXT_HOP_ENTRIES;
use relay_common::next_hop::NextHop;
use relay_common::slot::Slot;

/// Written by the daemon through its mapping, read here.
#[map]
pub static INDEX: Array<IndexBucket> = Array::with_max_entries(2, BPF_F_MMAPABLE);

/// Tuples, routes and limits written by the daemon; buckets and counters written here and by the userspace forwarder.
#[map]
pub static SLOTS: Array<Slot> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Written by the daemon, read here.
#[map]
pub static NEXT_HOPS: Array<NextHop> = Array::with_max_entries(NEXT_HOP_ENTRIES, BPF_F_MMAPABLE);

/// Written by the daemon, read here.
#[map]
pub static INTERFACES: Array<Interface> = Array::with_max_entries(INTERFACE_ENTRIES, BPF_F_MMAPABLE);

/// Written by the daemon, read here.
#[map]
pub static LOCALS: Array<Local> = Array::with_max_entries(LOCAL_ENTRIES, BPF_F_MMAPABLE);

/// Written by the daemon: the egress interface of each next hop.
#[map]
pub static EGRESS: DevMap = DevMap::with_max_entries(NEXT_HOP_ENTRIES, 0);

/// Each CPU's own time, written and read here, and what it counts here and the daemon reads.
#[map]
pub static PER_CPU: PerCpuArray<PerCpu> = PerCpuArray::with_max_entries(1, 0);

/// The time, for tests that set `FIXED_CLOCK`: nanoseconds.
#[map]
pub static CLOCK: Array<u64> = Array::with_max_entries(1, 0);
