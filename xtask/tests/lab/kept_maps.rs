//! The BPF maps of a daemon, seen from outside: whether they are there, and what stands in them.

use std::time::{Duration, Instant};

use aya::maps::{Array, Map, MapData, MapInfo};
use relay_common::slot::Slot;
use rustix::time::{ClockId, clock_gettime};
use xtask::lab::Process;

/// The ids of the BPF maps that a process has open.
pub fn maps_of(process: &Process) -> Vec<u32> {
    let descriptors = std::fs::read_dir(format!("/proc/{}/fdinfo", process.id())).unwrap();
    let mut maps: Vec<u32> = descriptors
        .flatten()
        .filter_map(|descriptor| std::fs::read_to_string(descriptor.path()).ok())
        .filter_map(|info| info.lines().find_map(|line| line.strip_prefix("map_id:")?.trim().parse().ok()))
        .collect();
    maps.sort_unstable();
    maps.dedup();
    maps
}

/// Whether there still is a map of this id.
pub fn exists(map: u32) -> bool {
    aya::maps::loaded_maps().flatten().any(|loaded| loaded.id() == map)
}

/// A slot as words.
type Words = [u64; Slot::SIZE / 8];

/// Where in it the deadlines of its sides stand.
const DEADLINES: std::ops::Range<usize> =
    std::mem::offset_of!(Slot, deadline) / 8..std::mem::offset_of!(Slot, deadline) / 8 + 2;

/// Makes the deadlines of every session in the slots among `maps` come after `left`, whoever had them extended. No packet
/// may be on its way: what was counted meanwhile would be lost. Gives the deadline.
pub fn set_deadlines(maps: &[u32], left: Duration) -> Instant {
    let named = |id: &&u32| MapInfo::from_id(**id).is_ok_and(|map| map.name_as_str() == Some("SLOTS"));
    let slots = *maps.iter().find(named).expect("a daemon has slots");
    let mut slots: Array<_, Words> = Map::Array(MapData::from_id(slots).unwrap()).try_into().unwrap();
    // The coarse clock is never ahead.
    let (now, moment) = (clock_gettime(ClockId::MonotonicCoarse), Instant::now());
    let now = Duration::new(now.tv_sec as u64, now.tv_nsec as u32);
    let deadline = (now + left).as_nanos() as u64;
    let mut found = 0;
    for number in 0..slots.len() {
        let mut words = slots.get(&number, 0).unwrap();
        if words[DEADLINES].iter().all(|deadline| *deadline > 0) {
            words[DEADLINES].fill(deadline);
            slots.set(number, words, 0).unwrap();
            found += 1;
        }
    }
    assert!(found > 0, "no session has deadlines");
    moment + left
}
