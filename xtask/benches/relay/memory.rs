//! What this process and its BPF maps take.
#![expect(unsafe_code, reason = "the allocator's statistics are not in std")]

use std::collections::BTreeMap;
use std::fs;

use anyhow::Context as _;

/// Bytes that the program has allocated and not freed, with what the allocator needs to keep account of them.
pub fn allocated() -> usize {
    // SAFETY: it takes nothing and gives numbers.
    let statistics = unsafe { libc::mallinfo2() };
    statistics.uordblks + statistics.hblkhd
}

/// The BPF arrays that can be mapped among the open file descriptors: the bytes of each, by map, as the kernel
/// accounts for them.
///
/// # Errors
/// The kernel does not say.
pub fn mapped_arrays() -> anyhow::Result<BTreeMap<u32, u64>> {
    /// linux/bpf.h: BPF_F_MMAPABLE.
    const MMAPABLE: u64 = 1 << 10;
    let mut arrays = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fdinfo").context("reading /proc/self/fdinfo")? {
        let entry = entry?;
        // The listing's own descriptor is gone by now.
        let Ok(facts) = fs::read_to_string(entry.path()) else { continue };
        let fact = |name: &str| facts.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        let flags =
            fact("map_flags").and_then(|flags| u64::from_str_radix(flags.trim_start_matches("0x"), 16).ok());
        // One array may be open by several descriptors.
        if let (Some(flags), Some(bytes), Some(map)) = (flags, fact("memlock"), fact("map_id"))
            && flags & MMAPABLE != 0
        {
            arrays.insert(map.parse()?, bytes.parse()?);
        }
    }
    Ok(arrays)
}
