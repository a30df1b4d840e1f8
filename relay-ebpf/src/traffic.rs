//! Traffic for the benchmark: what makes it, what counts it where it arrives, what sends it back, and the least that a
//! forwarder to another interface can do. The benchmark runs the generator with live frames (BPF_PROG_TEST_RUN): they leave by the
//! interface that they seem to have come by.

use core::ptr::{from_mut, write_unaligned};

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_redirect, bpf_xdp_get_buff_len, bpf_xdp_load_bytes};
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, DevMap, PerCpuArray};
use aya_ebpf::programs::XdpContext;
use relay_common::checksum::fold_wide;

use crate::traffic_layout::{
    Arrived, BATCH, DELAY_BUCKETS, Head, SAMPLE_LEN, SAMPLES as SAMPLE_ENTRIES, Sample, Sent, Stream, Watch,
    delay_bucket,
};

/// One frame of so many is copied: a power of two.
const SAMPLE_STRIDE: u64 = 4096;

/// What to make. Written by the benchmark.
#[map]
static STREAM: Array<Stream> = Array::with_max_entries(1, 0);

/// What was made.
#[map]
static SENT: PerCpuArray<Sent> = PerCpuArray::with_max_entries(1, 0);

/// What to count. Written by the benchmark.
#[map]
static WATCH: Array<Watch> = Array::with_max_entries(1, 0);

/// What has arrived.
#[map]
static ARRIVED: PerCpuArray<Arrived> = PerCpuArray::with_max_entries(1, 0);

/// Copies of some of what has arrived.
#[map]
static SAMPLES: Array<Sample> = Array::with_max_entries(SAMPLE_ENTRIES, 0);

/// How many frames came after which delay, under [`delay_bucket`].
#[map]
static DELAYS: PerCpuArray<u64> = PerCpuArray::with_max_entries(DELAY_BUCKETS, 0);

/// Where `redirect` sends to.
#[map]
static WAY_OUT: DevMap = DevMap::with_max_entries(1, 0);

/// Makes one frame, unless the next one is not due yet.
#[xdp]
pub fn generate(context: XdpContext) -> u32 {
    let (Some(stream), Some(sent)) = (STREAM.get(0), SENT.get_ptr_mut(0)) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: the entry is this CPU's own, and this program is not interrupted by itself on one CPU.
    let sent = unsafe { &mut *sent };
    let Some(head) = head(&context) else { return xdp_action::XDP_ABORTED };
    let mut stamp = 0;
    if stream.interval != 0 {
        let now = now();
        sent.last = now;
        if sent.due == 0 {
            sent.first = now;
            sent.due = now;
        }
        if now < sent.due {
            return xdp_action::XDP_DROP;
        }
        stamp = sent.due;
        sent.due += u64::from(stream.interval);
    } else if sent.frames % u64::from(BATCH) == 0 {
        sent.last = now();
        if sent.frames == 0 {
            sent.first = sent.last;
        }
    }
    sent.frames += 1;
    let flow = sent.flow;
    sent.flow = if flow + 1 < stream.flows { flow + 1 } else { 0 };
    make(head, stream, flow, stamp);
    xdp_action::XDP_TX
}

/// The frame of `flow`.
#[inline(always)]
fn make(head: &mut Head, stream: &Stream, flow: u32, stamp: u64) {
    let of_flow = |[first, step]: [u32; 2]| first.wrapping_add(step.wrapping_mul(flow));
    let source = of_flow(stream.source).to_be();
    let destination = of_flow(stream.destination).to_be();
    let port = (of_flow(stream.source_port) as u16).to_be();
    let number = flow.to_be();
    let addresses = u64::from(source) + u64::from(destination);
    let [ip_sum, udp_sum] = stream.sums;
    let ip = u64::from(ip_sum) + addresses;
    let udp = u64::from(udp_sum)
        + addresses
        + u64::from(port)
        + u64::from(number)
        + (stamp & 0xffff_ffff)
        + (stamp >> 32);
    let udp_check = match !fold_wide(udp) {
        0 => 0xffff,
        check => check,
    };
    // SAFETY: bytes of the same number, without alignment, any of which are a head.
    unsafe { write_unaligned(from_mut(head).cast(), stream.head) };
    head.ip_check = (!fold_wide(ip)).to_ne_bytes();
    head.source = source.to_ne_bytes();
    head.destination = destination.to_ne_bytes();
    head.source_port = port.to_ne_bytes();
    head.udp_check = udp_check.to_ne_bytes();
    head.flow = number.to_ne_bytes();
    head.stamp = stamp.to_ne_bytes();
}

/// Counts what arrives, and keeps it.
#[xdp]
pub fn sink(context: XdpContext) -> u32 {
    let (Some(watch), Some(arrived)) = (WATCH.get(0), ARRIVED.get_ptr_mut(0)) else {
        return xdp_action::XDP_ABORTED;
    };
    let Some(head) = head(&context) else { return xdp_action::XDP_PASS };
    if !is_to(head, watch.port) {
        return xdp_action::XDP_PASS;
    }
    // SAFETY: the entry is this CPU's own, and this program is not interrupted by itself on one CPU.
    let arrived = unsafe { &mut *arrived };
    arrived.frames += 1;
    if watch.timed != 0 {
        arrived.last = now();
        if arrived.frames == 1 {
            arrived.first = arrived.last;
        }
    }
    if watch.delays != 0 {
        let delay = now().saturating_sub(u64::from_ne_bytes(head.stamp));
        if let Some(count) = DELAYS.get_ptr_mut(delay_bucket(delay)) {
            // SAFETY: as for `arrived`.
            unsafe { *count += 1 };
        }
    }
    if arrived.frames % SAMPLE_STRIDE == 1 {
        sample(&context, arrived.frames / SAMPLE_STRIDE);
    }
    xdp_action::XDP_DROP
}

/// Keeps a copy of the frame.
#[inline(always)]
fn sample(context: &XdpContext, number: u64) {
    let Some(sample) = SAMPLES.get_ptr_mut((number % u64::from(SAMPLE_ENTRIES)) as u32) else { return };
    // SAFETY: the context is the one this program was called with.
    let length = unsafe { bpf_xdp_get_buff_len(context.ctx) };
    if length == 0 || length > SAMPLE_LEN as u64 {
        return;
    }
    // SAFETY: the entry has room for `SAMPLE_LEN` bytes, and the helper writes `length` of them. Another CPU may write the
    // entry at the same time; the benchmark would find a sample that is wrong.
    unsafe {
        (*sample).length = length as u32;
        let bytes = (&raw mut (*sample).bytes).cast();
        if bpf_xdp_load_bytes(context.ctx, 0, bytes, length as u32) != 0 {
            (*sample).length = 0;
        }
    }
}

/// Sends what arrives back to where it came from, by the interface it came by.
#[xdp]
pub fn echo(context: XdpContext) -> u32 {
    let Some(watch) = WATCH.get(0) else { return xdp_action::XDP_ABORTED };
    let interface = context.ingress_ifindex() as u32;
    let Some(head) = head(&context) else { return xdp_action::XDP_PASS };
    if !is_to(head, watch.echoed_port) {
        return xdp_action::XDP_PASS;
    }
    swap_stations(head);
    // Checksums do not mind.
    (head.source, head.destination) = (head.destination, head.source);
    (head.source_port, head.destination_port) = (head.destination_port, head.source_port);
    // Not XDP_TX: that would need a program at the other end of a veth.
    // SAFETY: the helper takes two numbers.
    unsafe { bpf_redirect(interface, 0) as u32 }
}

/// The bare redirect: sends the frame on by another interface, as it is.
#[xdp]
pub fn bare_redirect(_: XdpContext) -> u32 {
    match WAY_OUT.redirect(0, u64::from(xdp_action::XDP_ABORTED)) {
        Ok(action) | Err(action) => action,
    }
}

#[inline(always)]
fn swap_stations(head: &mut Head) {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = head.stations;
    head.stations = [g, h, i, j, k, l, a, b, c, d, e, f];
}

#[inline(always)]
fn is_to(head: &Head, port: [u8; 2]) -> bool {
    head.ether_type == [0x08, 0x00] && head.protocol == 17 && head.destination_port == port
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper takes no arguments and cannot fail.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
fn head(context: &XdpContext) -> Option<&mut Head> {
    if context.data() + size_of::<Head>() > context.data_end() {
        return None;
    }
    // SAFETY: the line before has compared its end with `data_end`; it consists of bytes only; each program here asks
    // once, and nothing else has the frame.
    Some(unsafe { &mut *(context.data() as *mut Head) })
}
