//! Replays the named seeds, whole, cut short and with bytes changed, through the fuzz targets' invariants.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test a panic is a failure")]

use std::path::Path;

/// Every seed, with its name.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut seeds: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(path).unwrap()))
        .collect();
    seeds.sort();
    seeds
}

/// Runs `check` on every seed, and on every seed with one byte changed to each of a few values or cut short there.
fn replay(target: &str, check: fn(&[u8])) {
    let seeds = seeds(target);
    assert!(seeds.len() >= 4, "{target} has seeds");
    for (_, seed) in seeds {
        check(&seed);
        for at in 0..seed.len().min(200) {
            for byte in [0x00, 0x01, 0x7f, 0x80, 0xff] {
                let mut changed = seed.clone();
                changed[at] = byte;
                check(&changed);
            }
            check(&seed[..at]);
        }
    }
}

#[test]
fn frames_hold_the_invariants() {
    replay("frame", relay_fuzz::frame);
}

#[test]
fn bind_datagrams_hold_the_invariants() {
    replay("bind", relay_fuzz::bind);
}

#[test]
fn control_frames_hold_the_invariants() {
    replay("envelope", relay_fuzz::envelope);
}
