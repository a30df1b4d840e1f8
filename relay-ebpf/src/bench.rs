//! Programs for the benchmark: what the relay's program is compared with, and what drives either. An object of its own,
//! which the daemon never loads.
//!
//! `prologue` writes a fresh frame of a flow chosen at random and calls the program under test in its own place: the kernel
//! runs it many times in one system call (BPF_PROG_TEST_RUN with `repeat`) and hands it its own output again. Every program
//! is measured behind the same prologue. `bare` is the least a reflector can do.
#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the attribute macro of an entry makes an undocumented function")]

mod bench_layout;
mod program;
mod traffic;
mod traffic_layout;

use core::ptr::{read_unaligned, write_unaligned};

use aya_ebpf::Global;
use aya_ebpf::bindings::xdp_action;
use aya_ebpf::helpers::{bpf_ktime_get_coarse_ns, bpf_xdp_adjust_head};
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, ProgramArray};
use aya_ebpf::programs::XdpContext;

use crate::bench_layout::{MIN_FRAME, Template};

/// Written by the benchmark.
#[map]
static TEMPLATE: Array<Template> = Array::with_max_entries(1, 0);

/// The program under test.
#[map]
static SUBJECT: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// When the last frame was written, if `IS_TIMED`: nanoseconds of the clock that buckets use.
#[map]
static LAST_FRAME: Array<u64> = Array::with_max_entries(1, 0);

// Read-only data, set by the benchmark before it loads the programs.

/// Number of flows to choose from.
#[unsafe(no_mangle)]
static FLOWS: Global<u32> = Global::new(1);
/// The difference between the numbers of two flows next to each other.
#[unsafe(no_mangle)]
static FLOW_STEP: Global<u32> = Global::new(1);
/// Whether frames are IPv6.
#[unsafe(no_mangle)]
static IS_V6: Global<u32> = Global::new(0);
/// Whether the time of each frame is kept.
#[unsafe(no_mangle)]
static IS_TIMED: Global<u32> = Global::new(0);

/// `frags`: a program may call another one in its place only if both accept frames in several buffers.
#[xdp(frags)]
pub fn prologue(context: XdpContext) -> u32 {
    if undo_translation(&context).is_none() || write_frame(&context).is_none() {
        return xdp_action::XDP_ABORTED;
    }
    if IS_TIMED.load() != 0
        && let Some(last) = LAST_FRAME.get_ptr_mut(0)
    {
        // SAFETY: the prologue alone writes it, on one CPU; the helper takes no arguments and cannot fail.
        unsafe { *last = bpf_ktime_get_coarse_ns() };
    }
    // SAFETY: nothing is to be dropped here, and no reference outlives the call.
    unsafe { SUBJECT.tail_call(&context, 0) };
    // The call returns only if it failed.
    xdp_action::XDP_ABORTED
}

/// The bare reflector: swaps the MAC addresses and sends the frame back.
#[xdp(frags)]
pub fn bare(context: XdpContext) -> u32 {
    let Some(start) = window::<12>(&context, 0) else { return xdp_action::XDP_ABORTED };
    // SAFETY: `window` has compared the end with `data_end`.
    unsafe {
        let stations = start.cast::<[u16; 6]>();
        let [a, b, c, d, e, f] = read_unaligned(stations);
        write_unaligned(stations, [d, e, f, a, b, c]);
    }
    xdp_action::XDP_TX
}

/// The first `N` bytes from `offset` on, if the frame has them.
#[inline(always)]
fn window<const N: usize>(context: &XdpContext, offset: usize) -> Option<*mut u8> {
    let start = context.data() + offset;
    if start + N > context.data_end() { None } else { Some(start as *mut u8) }
}

/// A frame that the program under test has made one of the other family has moved its start; it is moved back.
#[inline(always)]
fn undo_translation(context: &XdpContext) -> Option<()> {
    /// What the IPv6 header is longer by.
    const EXTRA: i32 = 20;
    const ETHER_TYPE: usize = 12;
    const V6: u16 = 0x86ddu16.to_be();
    let ether_type = window::<2>(context, ETHER_TYPE)?;
    // SAFETY: `window` has compared the end with `data_end`.
    let is_v6 = unsafe { read_unaligned(ether_type.cast::<u16>()) } == V6;
    let sends_v6 = IS_V6.load() != 0;
    if is_v6 == sends_v6 {
        return Some(());
    }
    // SAFETY: the context is the one this program was called with.
    let moved = unsafe { bpf_xdp_adjust_head(context.ctx, if is_v6 { EXTRA } else { -EXTRA }) };
    (moved == 0).then_some(())
}

/// Writes the headers of a flow chosen at random.
#[inline(always)]
fn write_frame(context: &XdpContext) -> Option<()> {
    let start = window::<MIN_FRAME>(context, 0)?;
    let template = TEMPLATE.get(0)?;
    // SAFETY: `window` has compared the end of all that is read and written here with `data_end`; bytes have no alignment.
    unsafe {
        let state = start.add(MIN_FRAME - 4).cast::<u32>();
        let chance = read_unaligned(state).wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        write_unaligned(state, chance);
        let number = ((chance as u64 * FLOWS.load() as u64) >> 32) as u32 * FLOW_STEP.load();
        let source = template.source.wrapping_add(number);
        let halves = (source >> 16) + (source & 0xffff);
        let [a, b, c, d, e, f, g, h] = template.head;
        let udp_check = fold(template.udp_sum + halves).to_be();
        write_unaligned(start.cast::<[u64; 5]>(), [a, b, c, d, e]);
        if IS_V6.load() != 0 {
            write_unaligned(start.add(40).cast::<[u64; 2]>(), [f, g]);
            // The last six bytes of the headers: destination port, length, checksum.
            let [i, j, k, l, ..] = h.to_ne_bytes();
            write_unaligned(start.add(56).cast::<[u8; 4]>(), [i, j, k, l]);
            write_unaligned(start.add(60).cast::<u16>(), udp_check);
            write_unaligned(start.add(34).cast::<u32>(), source.to_be());
        } else {
            let ip_check = (!fold(template.ip_sum + halves)).to_be();
            write_unaligned(start.add(24).cast::<u16>(), ip_check);
            write_unaligned(start.add(26).cast::<u32>(), source.to_be());
            write_unaligned(start.add(40).cast::<u16>(), udp_check);
        }
    }
    Some(())
}

/// The one's complement sum of 16-bit words that has the sum `sum`.
#[inline(always)]
fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}
