//! What the kernel makes of the program, against the figures in `relay-ebpf/verifier.toml`: growth is to be seen.
//!
//! `cargo xtask verifier` prints them; `cargo xtask verifier --record` writes the file.

use std::path::PathBuf;

use aya::EbpfLoader;
use aya::programs::Xdp;
use aya_obj::Object;
use aya_obj::generated::{
    BPF_ADD, BPF_ALU, BPF_ALU64, BPF_K, BPF_LD, BPF_LDX, BPF_MOV, BPF_ST, BPF_STX, BPF_X, bpf_insn,
};
use relay_common::maps;
use relay_userspace::relay::datapath::TableSizes;
use serde::{Deserialize, Serialize};

use crate::loadable_object::loadable_object;
use crate::skipping;

/// How much more than recorded is passed over, in percent. Compilers and kernels differ by a little.
const MARGIN_PERCENT: u64 = 10;

const HEADER: &str = "\
# What the kernel makes of the XDP program. Every test run compares: a tenth more fails.
# Written by `cargo xtask verifier --record`.

";

/// The program in figures.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Figures {
    /// Release of the kernel that they are of.
    kernel: String,
    /// Instructions that the verifier has followed on all paths together: a million is its limit.
    verified_instructions: u64,
    /// Instructions of the program as it was loaded, after the kernel's changes to it.
    translated_instructions: u64,
    /// Bytes of machine code.
    machine_code_bytes: u64,
    /// Bytes of stack: 512 is the limit.
    stack_bytes: u64,
}

#[test]
fn the_program_has_not_grown_beyond_what_is_recorded() {
    let name = "the_program_has_not_grown_beyond_what_is_recorded";
    let object = match loadable_object() {
        Ok(object) => object,
        Err(why) => return skipping::skip(name, why),
    };
    let figures = Figures::of(object);
    println!("{figures:#?}");
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../relay-ebpf/verifier.toml");
    if std::env::var_os("RELAY_VERIFIER_RECORD").is_some() {
        let text = HEADER.to_owned() + &toml::to_string(&figures).unwrap();
        std::fs::write(&path, text).unwrap();
        return;
    }
    let recorded: Figures = toml::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    println!("recorded: {recorded:#?}");
    let faults = figures.grown_beyond(&recorded);
    assert!(
        faults.is_empty(),
        "{}\nIf that is worth it: `cargo xtask verifier --record`, and commit relay-ebpf/verifier.toml.",
        faults.join("\n")
    );
}

#[test]
fn growth_beyond_the_margin_is_named() {
    let figures = |verified_instructions, stack_bytes| Figures {
        kernel: "6.18".into(),
        verified_instructions,
        translated_instructions: 100,
        machine_code_bytes: 1000,
        stack_bytes,
    };
    let recorded = figures(1000, 100);
    assert_eq!(figures(1100, 110).grown_beyond(&recorded), [""; 0]);
    let faults = figures(1101, 112).grown_beyond(&recorded);
    assert_eq!(faults.len(), 2);
    assert!(faults[0].contains("verified_instructions: 1101") && faults[0].contains("1000"), "{faults:?}");
}

#[test]
fn the_stack_is_as_deep_as_the_lowest_byte_that_is_touched() {
    let insn = |code: u32, dst: u8, src: u8, off, imm| bpf_insn {
        code: code as u8,
        _bitfield_align_1: [],
        _bitfield_1: bpf_insn::new_bitfield_1(dst, src),
        off,
        imm,
    };
    let store = insn(BPF_STX, 10, 1, -8, 0);
    let load = insn(BPF_LDX, 1, 10, -24, 0);
    let copy = |dst| insn(BPF_ALU64 | BPF_MOV | BPF_X, dst, 10, 0, 0);
    let lower = |dst, by: i32| insn(BPF_ALU64 | BPF_ADD | BPF_K, dst, 0, 0, -by);
    let elsewhere = insn(BPF_ST, 3, 0, -500, 0);
    assert_eq!(stack_bytes(&[elsewhere]), 0);
    assert_eq!(stack_bytes(&[store, elsewhere]), 8);
    assert_eq!(stack_bytes(&[store, load]), 24);
    assert_eq!(stack_bytes(&[load, copy(2), copy(3), lower(2, 40), lower(3, 32), store]), 40);
    assert_eq!(stack_bytes(&[copy(2), insn(BPF_ALU64 | BPF_MOV | BPF_X, 2, 1, 0, 0), lower(2, 40)]), 0);
}

impl Figures {
    fn of(object: &[u8]) -> Figures {
        let mask = TableSizes::for_sessions(65_536).buckets - 1;
        let mut ebpf =
            EbpfLoader::new().override_global(maps::BUCKET_MASK, &mask, true).load(object).unwrap();
        let program: &mut Xdp = ebpf.program_mut("relay").unwrap().try_into().unwrap();
        program.load().unwrap();
        let info = program.info().unwrap();
        let functions = Object::parse(object).unwrap().functions;
        Figures {
            kernel: kernel_release(),
            verified_instructions: info.verified_instruction_count().unwrap().into(),
            translated_instructions: u64::from(info.size_translated().unwrap())
                / size_of::<bpf_insn>() as u64,
            machine_code_bytes: info.size_jitted().into(),
            // Each function that is not inlined has a frame of its own; all of them together are the most.
            stack_bytes: functions.values().map(|function| stack_bytes(&function.instructions)).sum(),
        }
    }

    /// One line for each figure that is more than a margin above what is recorded.
    fn grown_beyond(&self, recorded: &Figures) -> Vec<String> {
        [
            ("verified_instructions", self.verified_instructions, recorded.verified_instructions),
            ("translated_instructions", self.translated_instructions, recorded.translated_instructions),
            ("machine_code_bytes", self.machine_code_bytes, recorded.machine_code_bytes),
            ("stack_bytes", self.stack_bytes, recorded.stack_bytes),
        ]
        .into_iter()
        .filter(|(_, now, recorded)| now * 100 > recorded * (100 + MARGIN_PERCENT))
        .map(|(name, now, before)| {
            let (kernel, of) = (&self.kernel, &recorded.kernel);
            format!("{name}: {now} on Linux {kernel}, {before} recorded on {of}: more than {MARGIN_PERCENT} % growth")
        })
        .collect()
    }
}

/// For example `6.18`.
fn kernel_release() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    release.split('.').take(2).collect::<Vec<_>>().join(".")
}

/// How deep the stack is: the kernel tells it in a log only, but counts it just so. The frame pointer is register 10, and
/// is read only: the stack is reached by an offset from it, or from a copy of it that was lowered.
fn stack_bytes(instructions: &[bpf_insn]) -> u64 {
    const FRAME: u8 = 10;
    const CLASS: u32 = 0x07;
    let mut deepest = 0;
    // One bit for each register that is such a copy.
    let mut copies = 0u16;
    for instruction in instructions {
        let (code, dst, src) = (u32::from(instruction.code), instruction.dst_reg(), instruction.src_reg());
        let offset = match code & CLASS {
            BPF_ST | BPF_STX if dst == FRAME => i64::from(instruction.off),
            BPF_LDX if src == FRAME => i64::from(instruction.off),
            _ if code == BPF_ALU64 | BPF_ADD | BPF_K && copies & 1 << dst != 0 => i64::from(instruction.imm),
            _ => 0,
        };
        deepest = deepest.min(offset);
        if code == BPF_ALU64 | BPF_MOV | BPF_X && src == FRAME {
            copies |= 1 << dst;
        } else if matches!(code & CLASS, BPF_ALU64 | BPF_ALU | BPF_LD | BPF_LDX) {
            copies &= !(1 << dst);
        }
    }
    deepest.unsigned_abs()
}
