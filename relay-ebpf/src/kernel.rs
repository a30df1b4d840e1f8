//! Maps, clock, counters and redirects: what the decision needs of the kernel.

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::{Global, helpers};
use relay_common::frame::Frame;
use relay_common::hash::HashKey;
use relay_common::index::IndexBucket;
use relay_common::interface::{INTERFACES as INTERFACE_ENTRIES, Interface};
use relay_common::local::Local;
use relay_common::next_hop::NextHop;
use relay_common::slot::Slot;
use relay_common::tables::Tables;
use relay_common::{CoarseTime, Reason};

use crate::maps::{CLOCK, EGRESS, INDEX, INTERFACES, LOCALS, NEXT_HOPS, PER_CPU, SLOTS};

// Read-only data, set by the daemon before it loads the program: the verifier knows the values.

/// Word 0 of the index's hash key.
#[unsafe(no_mangle)]
static HASH_KEY_0: Global<u64> = Global::new(0);
/// Word 1 of the index's hash key.
#[unsafe(no_mangle)]
static HASH_KEY_1: Global<u64> = Global::new(0);
/// Word 2 of the index's hash key.
#[unsafe(no_mangle)]
static HASH_KEY_2: Global<u64> = Global::new(0);
/// Word 3 of the index's hash key.
#[unsafe(no_mangle)]
static HASH_KEY_3: Global<u64> = Global::new(0);
/// Word 4 of the index's hash key.
#[unsafe(no_mangle)]
static HASH_KEY_4: Global<u64> = Global::new(0);
/// Word 5 of the index's hash key.
#[unsafe(no_mangle)]
static HASH_KEY_5: Global<u64> = Global::new(0);
/// Word 6 of the index's hash key.
#[unsafe(no_mangle)]
static HASH_KEY_6: Global<u64> = Global::new(0);
/// Number of index buckets less one.
#[unsafe(no_mangle)]
static BUCKET_MASK: Global<u32> = Global::new(1);
/// The bind magic.
#[unsafe(no_mangle)]
static BIND_MAGIC: Global<u64> = Global::new(0);
/// Not 0: read the time from the map `CLOCK`, for tests that compare with the host code.
#[unsafe(no_mangle)]
static FIXED_CLOCK: Global<u32> = Global::new(0);
/// 0: generic mode. The stack keeps beside a frame whether its checksum is to be finished, and finishes it on the way out,
/// whatever stands there by then. So what looks unfinished must not leave, even if it is as good as finished. In a driver what
/// leaves is the bytes alone.
#[unsafe(no_mangle)]
static BARE_FRAMES: Global<u32> = Global::new(1);

/// Whether frames leave as their bytes and nothing beside them.
#[inline(always)]
pub fn frames_are_bare() -> bool {
    BARE_FRAMES.load() != 0
}

/// The tables, in BPF maps.
pub struct KernelTables;

impl Tables for KernelTables {
    #[inline(always)]
    fn hash_key(&self, words: usize) -> HashKey {
        let word = |place: usize, word: &Global<u64>| if place <= words { word.load() } else { 0 };
        [
            word(0, &HASH_KEY_0),
            word(1, &HASH_KEY_1),
            word(2, &HASH_KEY_2),
            word(3, &HASH_KEY_3),
            word(4, &HASH_KEY_4),
            word(5, &HASH_KEY_5),
            word(6, &HASH_KEY_6),
        ]
    }

    #[inline(always)]
    fn bucket_mask(&self) -> u32 {
        BUCKET_MASK.load()
    }

    #[inline(always)]
    fn bucket(&self, number: u32) -> Option<&IndexBucket> {
        INDEX.get(number)
    }

    #[inline(always)]
    fn slot(&self, number: u32) -> Option<&Slot> {
        SLOTS.get(number)
    }

    #[inline(always)]
    fn next_hop(&self, number: u32) -> Option<&NextHop> {
        NEXT_HOPS.get(number)
    }

    #[inline(always)]
    fn local(&self, number: u32) -> Option<&Local> {
        LOCALS.get(number)
    }

    #[inline(always)]
    fn interface(&self, index: u32) -> Option<&Interface> {
        INTERFACES.get(index % INTERFACE_ENTRIES)
    }

    #[inline(always)]
    fn bind_magic(&self) -> u64 {
        BIND_MAGIC.load()
    }

    #[inline(always)]
    fn marked(&self, payload: u32) {
        if let Some(own) = PER_CPU.get_ptr_mut(0) {
            // SAFETY: the entry is this CPU's own, and the program is not preempted by itself on one CPU.
            let marked = unsafe { &mut (*own).marked };
            marked.packets += 1;
            marked.bytes += u64::from(payload);
        }
    }
}

/// The time in nanoseconds of the coarse monotonic clock: the same clock as the daemon's.
///
/// It changes with each tick of the kernel, so it is asked only when the tick has changed: the tick's number is a word that
/// the program reads directly (the verifier puts the read in the place of the call), asking is a call.
#[inline(always)]
pub fn now() -> u64 {
    if FIXED_CLOCK.load() != 0 {
        return CLOCK.get(0).copied().unwrap_or(0);
    }
    let Some(own) = PER_CPU.get_ptr_mut(0) else { return u64::MAX };
    // SAFETY: the helpers take no arguments and cannot fail; the entry is this CPU's own, and the program is not preempted
    // by itself on one CPU.
    unsafe {
        let known = &raw mut (*own).coarse;
        let tick = helpers::bpf_jiffies64();
        if (*known).tick != tick {
            let now = helpers::bpf_ktime_get_coarse_ns();
            // Counting ticks and setting the clock are two steps of the kernel: in between, the time is still to come.
            if (*known).now != now {
                *known = CoarseTime { tick, now };
            }
        }
        (*known).now
    }
}

/// Counts the outcome of a frame.
#[inline(always)]
pub fn count(reason: Reason, packet: &impl Frame) {
    if let Some(own) = PER_CPU.get_ptr_mut(0) {
        // SAFETY: the entry is this CPU's own, and the program is not preempted by itself on one CPU.
        let tallies = unsafe { &mut (*own).tallies };
        if let Some(tally) = tallies.get_mut(reason.index() as usize) {
            tally.packets += 1;
            tally.bytes += u64::from(packet.length());
        }
    }
}

/// Sends the frame through the device map; aborts if the entry is empty, which is visible as a tracepoint.
#[inline(always)]
pub fn redirect(hop: u32) -> u32 {
    match EGRESS.redirect(hop, u64::from(xdp_action::XDP_ABORTED)) {
        Ok(action) | Err(action) => action,
    }
}
