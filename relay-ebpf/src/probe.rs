//! The probe: programs that test the relay's on a real kernel. An object of its own, which the daemon never loads.
//!
//! `probe` drives the relay's program as fast as one CPU can, as it was loaded and without a change to it. The kernel runs
//! a program many times in one system call (BPF_PROG_TEST_RUN with `repeat`), but hands it its own output again, with
//! rewritten addresses and a shorter life. So the probe stands before it: it looks at what the run before has made of the
//! frame, counts that, writes a fresh frame, and calls the relay's program in its own place.
//!
//! `words` does to words of shared memory what the relay's program does to its own.
#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the attribute macro of an entry makes an undocumented function")]

mod probe_layout;
mod program;

use aya_ebpf::Global;
use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, PerCpuArray, ProgramArray};
use aya_ebpf::programs::XdpContext;

use crate::probe_layout::{Case, Outcome, ProbedFrame, Words};

/// The frames to send in turn. Written by the test.
#[map]
static CASES: Array<Case> = Array::with_max_entries(1, 0);

/// How many frames of a case came to each outcome, under [`Outcome::place`].
#[map]
static OUTCOMES: PerCpuArray<u64> = PerCpuArray::with_max_entries(3, 0);

/// The relay's program.
#[map]
static RELAY: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// What `words` works on.
#[map]
static WORDS: Array<Words> = Array::with_max_entries(1, 0);

/// Number of cases.
#[unsafe(no_mangle)]
static CASE_COUNT: Global<u32> = Global::new(1);

/// `frags`: a program may call another one in its place only if both accept frames in several buffers.
#[xdp(frags)]
pub fn probe(context: XdpContext) -> u32 {
    if context.data() + size_of::<ProbedFrame>() > context.data_end() {
        return xdp_action::XDP_ABORTED;
    }
    // SAFETY: the line before has compared its end with `data_end`; it consists of numbers only; this program alone has
    // the frame.
    let frame = unsafe { &mut *(context.data() as *mut ProbedFrame) };
    let Some(sent) = CASES.get(frame.case) else { return xdp_action::XDP_ABORTED };
    let outcome = Outcome::of(&frame.head, sent);
    let Some(count) = OUTCOMES.get_ptr_mut(outcome.place(frame.case)) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: the entry is this CPU's own, and this program is not interrupted by itself on one CPU.
    unsafe { *count += 1 };

    frame.chance = frame.chance.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    frame.case = (frame.chance >> 8).checked_rem(CASE_COUNT.load()).unwrap_or(0);
    let Some(next) = CASES.get(frame.case) else { return xdp_action::XDP_ABORTED };
    frame.head = next.fresh;
    // SAFETY: nothing is to be dropped here, and no reference outlives the call.
    unsafe { RELAY.tail_call(&context, 0) };
    // The call returns only if it failed. The frame stays fresh then, which is an outcome, too.
    xdp_action::XDP_ABORTED
}

/// See [`Words`].
#[xdp]
pub fn words(_: XdpContext) -> u32 {
    match WORDS.get(0) {
        Some(words) => {
            words.exercise();
            xdp_action::XDP_PASS
        }
        None => xdp_action::XDP_ABORTED,
    }
}

impl Words {
    /// Every operation on words once, with each result that an operation has used.
    #[inline(always)]
    fn exercise(&self) {
        let seen = self.raised.load();
        match self.raised.replace(seen, seen.wrapping_add(1)) {
            Ok(()) => self.won.add(1),
            Err(found) if found > seen => self.lost.add(1),
            Err(_) => self.absurd.add(1),
        }
        let present = self.constant.load();
        match self.constant.replace(present ^ 1, u64::MAX) {
            Err(found) if found == present => self.refused.add(1),
            _ => self.absurd.add(1),
        }
        self.narrow.add(3);
        self.stored.store(self.narrow.load().wrapping_add(1));
    }
}
