//! Replays the named seeds, whole, cut short and with bytes changed, through the fuzz targets' invariants.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test a panic is a failure")]

use std::path::Path;

use relay_common::Reason;

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
    replay("frame", |bytes| {
        relay_fuzz::frame(bytes);
    });
}

/// Else a seed would stop being what its name says, and nobody would notice.
#[test]
fn frames_get_the_reason_that_their_name_promises() {
    let reasons: Vec<_> =
        seeds("frame").into_iter().map(|(name, seed)| (name, relay_fuzz::frame(&seed))).collect();
    let promised = [
        ("arp", Reason::NotIp),
        ("ipv4-bind", Reason::Bind),
        ("ipv4-bind-cut-short", Reason::BindMalformed),
        ("ipv4-bytes-behind-the-packet", Reason::LengthMismatch),
        ("ipv4-checksum-left-to-hardware", Reason::UnfinishedChecksum),
        ("ipv4-empty-payload", Reason::Forwarded),
        ("ipv4-first-fragment", Reason::Fragment),
        ("ipv4-last-hop", Reason::TtlExpiring),
        ("ipv4-later-fragment", Reason::Fragment),
        ("ipv4-length-beyond-the-frame", Reason::LengthMismatch),
        ("ipv4-no-udp-checksum", Reason::Forwarded),
        ("ipv4-no-udp-checksum-to-an-ipv6-agent", Reason::ZeroChecksum),
        ("ipv4-of-a-session", Reason::Forwarded),
        ("ipv4-options", Reason::IpOptions),
        ("ipv4-padded-to-sixty", Reason::Forwarded),
        ("ipv4-source-is-the-relay", Reason::NoFlow),
        ("ipv4-source-of-a-group", Reason::NoFlow),
        ("ipv4-stranger", Reason::NoFlow),
        ("ipv4-super-frame", Reason::SuperFrame),
        ("ipv4-to-a-group-station", Reason::OtherStation),
        ("ipv4-to-an-ipv6-agent", Reason::Forwarded),
        ("ipv6-destination-options", Reason::ExtensionHeader),
        ("ipv6-fragment", Reason::ExtensionHeader),
        ("ipv6-hop-by-hop", Reason::ExtensionHeader),
        ("ipv6-last-hop", Reason::TtlExpiring),
        ("ipv6-no-udp-checksum", Reason::ZeroChecksum),
        ("ipv6-of-a-session", Reason::Forwarded),
        ("ipv6-to-an-ipv4-agent", Reason::Forwarded),
        ("vlan-cut-within-the-tag", Reason::Truncated),
        ("vlan-ipv4-to-an-ipv6-agent", Reason::Forwarded),
        ("vlan-ipv6-of-a-session", Reason::Forwarded),
        ("vlan-ipv6-to-an-ipv4-agent", Reason::Forwarded),
        ("vlan-missing", Reason::VlanMissing),
        ("vlan-of-a-session", Reason::Forwarded),
        ("vlan-other-than-the-way-out", Reason::VlanTagged),
        ("vlan-padded-to-sixty-four", Reason::Forwarded),
        ("vlan-priority-only", Reason::VlanTagged),
        ("vlan-service-tag", Reason::VlanTagged),
        ("vlan-two-tags", Reason::VlanTagged),
        ("vlan-where-the-way-out-has-none", Reason::VlanTagged),
    ];
    let promised: Vec<_> = promised.into_iter().map(|(name, reason)| (name.to_owned(), reason)).collect();
    assert_eq!(reasons, promised);
}

#[test]
fn bind_datagrams_hold_the_invariants() {
    replay("bind", relay_fuzz::bind);
}

#[test]
fn control_frames_hold_the_invariants() {
    replay("envelope", relay_fuzz::envelope);
}
