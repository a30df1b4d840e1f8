//! The loaded XDP program and the host's build of the same decision, on the same frames, tables and clock: same verdict,
//! reason, bytes, counters and bucket. What either emits is read by another library, with every checksum recomputed.
//!
//! Needs root and a binary built with the BPF program. `RELAY_DIFFERENTIAL_CASES` sets the number of frames.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    unsafe_code,
    reason = "in a test a panic is a failure, the shares are printed, and geteuid is not in std"
)]

mod checks;
mod frames;
#[path = "../skipping/loadable_object.rs"]
mod loadable_object;
mod random;
#[path = "../skipping/mod.rs"]
mod skipping;
mod world;

use relay_common::frame::SliceFrame;
use relay_common::{Action, Reason, Tally, forward};
use relay_userspace::clock::MonoTime;
use relay_userspace::relay::datapath::{Hook, Program, TableSizes, Tables};

use frames::MAGIC;
use random::Random;
use world::{AGENTS, Circumstance, HOPS, LOOPBACK, World};

const KEY: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];

/// Cases between two comparisons of everything.
const BATCH: u64 = 256;

/// Room in front of the host's frames; where there is none, less than translation to IPv6 needs.
const HEADROOM: usize = 64;
const NO_HEADROOM: usize = 16;

/// Metadata that leaves the kernel's frames that little: of the 256 bytes in front of a frame it keeps 40 for itself.
const CROWDING: u8 = 200;

/// What the forwarder alone gives, and the one reason of the program's that no single thread can bring about: another one
/// must win the session's bucket eight times while the packet is charged.
const NEVER: [Reason; 8] = [
    Reason::Contended,
    Reason::QuicQueueFull,
    Reason::BindQueueFull,
    Reason::SendFailed,
    Reason::SendTooBig,
    Reason::SendUnreachable,
    Reason::TtlExpired,
    Reason::ControlShare,
];

#[test]
fn the_program_and_the_host_code_decide_alike() {
    if let Err(why) = loadable_object::loadable_object() {
        return skipping::skip("the_program_and_the_host_code_decide_alike", why);
    }
    let cases: u64 =
        std::env::var("RELAY_DIFFERENTIAL_CASES").map_or(200_000, |cases| cases.parse().expect("a number"));
    let mut pair = Pair::new();
    let mut random = Random(0x5eed);
    for case in 0..cases {
        if case % BATCH == 0 {
            pair.change(random.next());
        }
        if random.one_in(8) {
            pair.pass_time(random.below(200_000) as u64);
        }
        let from = random.below(AGENTS as usize) as u32;
        let circumstance = Circumstance::any(&mut random, from);
        let frame = frames::frame(&mut random, from, circumstance);
        pair.compare(&frame, from, circumstance, &format_args!("case {case}"));
        if case % BATCH == BATCH - 1 {
            pair.compare_everything(&format_args!("case {case}"));
        }
    }
    pair.compare_everything(&"the end");
    assert!(pair.marked.packets >= cases / 1000, "marks come too rarely: {:?}", pair.marked);
    judge_shares(&pair.counts, cases);
}

/// The loaded program and the host code, each with its tables.
struct Pair {
    program: Program,
    kernel: World,
    host: World,
    now: MonoTime,
    /// What the host code has decided, by reason.
    counts: Vec<Tally>,
    /// What it has marked CE.
    marked: Tally,
}

impl Pair {
    fn new() -> Pair {
        let sizes = TableSizes::for_sessions(AGENTS / 2);
        let now = MonoTime(1_000_000_000_000);
        let (mut program, tables, mut egress) =
            Program::load_with_fixed_clock(Hook::Native, sizes, KEY, MAGIC).unwrap();
        program.set_clock(now).unwrap();
        for number in 0..HOPS.len() {
            egress.set(number as u32, LOOPBACK).unwrap();
        }
        let [kernel, host] =
            [tables, Tables::private(sizes, KEY, MAGIC)].map(|tables| World::new(tables, now));
        let counts = vec![Tally::default(); Reason::COUNT];
        Pair { program, kernel, host, now, counts, marked: Tally::default() }
    }

    fn change(&mut self, choice: u64) {
        self.kernel.change(choice, self.now);
        self.host.change(choice, self.now);
    }

    fn pass_time(&mut self, ns: u64) {
        self.now.0 += ns;
        self.program.set_clock(self.now).unwrap();
    }

    /// One frame of agent `from` through both.
    fn compare(&mut self, frame: &[u8], from: u32, circumstance: Circumstance, case: &dyn std::fmt::Display) {
        self.kernel.begin(circumstance, self.now);
        self.host.begin(circumstance, self.now);
        let marked = self.host.marked(from);
        let crowded = circumstance == Circumstance::NoHeadroom;
        let (verdict, bytes) = self.run_kernel(frame, if crowded { CROWDING } else { 0 });
        let (decision, expected) = self.run_host(frame, if crowded { NO_HEADROOM } else { HEADROOM });
        self.kernel.end(circumstance, self.now);
        self.host.end(circumstance, self.now);

        let (reason, redirect) = match decision {
            Ok(departure) => (Reason::Forwarded, departure.redirect),
            Err(reason) => (reason, false),
        };
        let what = format_args!("{case}, {circumstance:?}: {reason:?} for {frame:02x?}");
        let count = &mut self.counts[reason.index() as usize];
        count.packets += 1;
        count.bytes += frame.len() as u64;
        if self.host.marked(from) != marked {
            self.marked.packets += 1;
            self.marked.bytes += checks::payload_bytes(frame);
        }
        assert_eq!(verdict, action(reason, redirect), "{what}");
        assert_eq!(bytes, expected, "{what}");
        assert_eq!(self.program.tally(reason).unwrap(), *count, "{what}");
        assert_eq!(self.kernel.words(from), self.host.words(from), "{what}");
        match reason.action() {
            Action::Forward => checks::emitted_right(frame, &bytes),
            _ => assert_eq!(bytes, frame, "{what}"),
        }
    }

    fn run_kernel(&mut self, frame: &[u8], metadata: u8) -> (u32, Vec<u8>) {
        if metadata == 0 {
            return self.program.run(frame, 0).unwrap();
        }
        let mut input = vec![0; usize::from(metadata)];
        input.extend(frame);
        let (verdict, mut output) = self.program.run(&input, metadata).unwrap();
        output.drain(..usize::from(metadata));
        (verdict, output)
    }

    fn run_host(&self, frame: &[u8], headroom: usize) -> (Result<relay_common::Departure, Reason>, Vec<u8>) {
        let mut room = vec![0; headroom];
        room.extend(frame);
        let mut view = SliceFrame::new(&mut room, headroom, LOOPBACK);
        let decision = forward(&mut view, &*self.host.tables, || self.now.0);
        (decision, view.as_bytes().to_vec())
    }

    /// Every counter and every session.
    fn compare_everything(&self, case: &dyn std::fmt::Display) {
        for (reason, tally) in self.program.tallies().unwrap() {
            assert_eq!(tally, self.counts[reason.index() as usize], "{case}: {reason:?}");
        }
        assert_eq!(self.program.marked().unwrap(), self.marked, "{case}");
        for agent in (0..AGENTS).step_by(2) {
            assert_eq!(self.kernel.words(agent), self.host.words(agent), "{case}: agent {agent}");
        }
    }
}

/// Prints how often each reason came, and checks that none of them came too rarely to be compared.
fn judge_shares(counts: &[Tally], cases: u64) {
    println!("{cases} frames:");
    for (reason, count) in Reason::ALL.iter().zip(counts) {
        let share = 100.0 * count.packets as f64 / cases as f64;
        println!("  {:<18} {:>9} {share:>6.2} %", reason.name(), count.packets);
    }
    for (reason, count) in Reason::ALL.iter().zip(counts) {
        let least = match reason {
            Reason::Forwarded => cases * 40 / 100,
            reason if NEVER.contains(reason) => 0,
            _ => cases / 200,
        };
        assert!(count.packets >= least, "{} comes too rarely", reason.name());
        assert_eq!(count.packets == 0, NEVER.contains(reason), "{}", reason.name());
    }
}

/// The XDP action of a decision (linux/bpf.h, enum xdp_action).
fn action(reason: Reason, redirect: bool) -> u32 {
    match reason.action() {
        Action::Abort => 0,
        Action::Drop => 1,
        Action::Pass => 2,
        Action::Forward if redirect => 4,
        Action::Forward => 3,
    }
}
