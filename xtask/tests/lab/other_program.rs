//! A relay like the built one, with another XDP program inside.

use std::path::{Path, PathBuf};

use object::{Object as _, ObjectSection as _};
use serde_json::Value;
use xtask::lab::{Namespace, RELAY_INTERFACE};
use xtask::tool::Tool;

/// The sections that programs for XDP are in begin so.
const XDP: &str = "xdp";

/// A copy of `binary` in `directory` whose program has one instruction written another way. It does the same, but to the
/// kernel it is another program: its tag differs.
pub fn with_other_program(binary: &Path, directory: &Path) -> PathBuf {
    let path =
        std::env::var_os("RELAY_BPF_OBJECT").expect("`cargo xtask test` names the object that was built in");
    let object = std::fs::read(path).unwrap();
    let mut bytes = std::fs::read(binary).unwrap();
    // A build that is not optimised has it twice.
    let places: Vec<usize> = memchr::memmem::find_iter(&bytes, &object).collect();
    assert!(!places.is_empty(), "another object was built in than the one that is named");
    let change = opcode_to_change(&object);
    places.iter().for_each(|place| bytes[place + change] = MOVE_32);
    let other = directory.join("other-relay");
    std::fs::copy(binary, &other).unwrap(); // with its permissions
    std::fs::write(&other, bytes).unwrap();
    other
}

/// `dst = constant`, the constant's sign extended to 64 bits.
const MOVE_64: u8 = 0xb7;
/// The same, extended by zeros.
const MOVE_32: u8 = 0xb4;
/// The one instruction that takes two places.
const LOAD_64: u8 = 0x18;

/// Where in `object` the program's first move of a constant that is not negative begins.
fn opcode_to_change(object: &[u8]) -> usize {
    let elf = object::File::parse(object).unwrap();
    let program =
        elf.sections().find(|section| section.name().is_ok_and(|name| name.starts_with(XDP))).unwrap();
    let (start, size) = program.file_range().unwrap();
    let (start, end) = (start as usize, (start + size) as usize);
    let mut at = start;
    while at < end {
        let [opcode, .., sign] = object[at..at + 8] else { unreachable!("eight bytes") };
        if opcode == MOVE_64 && sign < 0x80 {
            return at;
        }
        at += if opcode == LOAD_64 { 16 } else { 8 };
    }
    panic!("the program moves no constant");
}

/// The tag and the id of the program that is attached to the relay's interface in `host`; none if there is none.
pub fn attached(host: &Namespace) -> Option<(String, u64)> {
    let program = xdp(host)?.get("prog")?.clone();
    Some((program["tag"].as_str()?.to_owned(), program["id"].as_u64()?))
}

/// The hooks of that interface that have a program, as they are written among options.
pub fn hooks(host: &Namespace) -> Vec<&'static str> {
    let Some(xdp) = xdp(host) else { return Vec::new() };
    let attached = xdp["attached"].as_array().unwrap().iter();
    // The kernel's XDP_ATTACHED_DRV and XDP_ATTACHED_SKB.
    let name = |attachment: &Value| match attachment["mode"].as_u64() {
        Some(1) => "xdp-native",
        Some(2) => "xdp-generic",
        _ => panic!("an unknown hook: {xdp}"),
    };
    attached.map(name).collect()
}

/// What `ip` tells of XDP at that interface.
fn xdp(host: &Namespace) -> Option<Value> {
    let shown = host.run(&Tool::new("ip").words("-json link show dev").arg(RELAY_INTERFACE)).unwrap();
    let shown: Value = serde_json::from_str(&shown).unwrap();
    shown[0].get("xdp").cloned()
}
