//! The demo of a user without root: as much as works, and what the rest needs.

use std::path::Path;

use xtask::test::privileged_or_skip;
use xtask::tool::Tool;

use super::nobody::as_nobody;

#[test]
fn without_root_the_demo_shows_the_userspace_datapath_and_says_what_the_rest_needs() {
    let name = "without_root_the_demo_shows_the_userspace_datapath_and_says_what_the_rest_needs";
    let Some(folder) = folder_with_relay(name) else { return };
    let report = folder.path().join("report.json");

    let shown = demo(folder.path()).arg("--report").arg(&report).output().unwrap();

    let report = std::fs::read_to_string(report).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let [run] = &report["runs"].as_array().unwrap()[..] else { panic!("one run: {report}") };
    assert_eq!((&run["datapath"], &run["addresses"]), (&"userspace".into(), &"ipv4".into()));
    assert_eq!(run["sha256_match"], true, "{run}");
    assert!(run["packets_userspace"].as_u64() > Some(40_000) && run["packets_kernel"] == 0, "{run}");
    for part in ["on loopback, without NAT", "sudo cargo xtask demo", "CAP_NET_ADMIN", "CAP_BPF"] {
        assert!(shown.contains(part), "says `{part}`: {shown}");
    }
}

#[test]
fn without_root_the_demo_of_an_xdp_datapath_is_refused_with_what_it_needs() {
    let name = "without_root_the_demo_of_an_xdp_datapath_is_refused_with_what_it_needs";
    let Some(folder) = folder_with_relay(name) else { return };

    let error = demo(folder.path()).words("--datapath xdp-native").output().unwrap_err().to_string();

    for part in ["error: without root only `--datapath userspace` can run", "CAP_NET_ADMIN", "CAP_BPF"] {
        assert!(error.contains(part), "says `{part}`: {error}");
    }
}

/// A folder with the built relay, or `None` after the test `name` said why it cannot run.
fn folder_with_relay(name: &str) -> Option<tempfile::TempDir> {
    let binary = privileged_or_skip(name)?.relay_binary;
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(binary, folder.path().join("atlas-relay")).unwrap();
    Some(folder)
}

/// `cargo xtask demo` as nobody.
fn demo(folder: &Path) -> Tool {
    as_nobody(Path::new(env!("CARGO_BIN_EXE_xtask")), folder)
        .arg("demo")
        .env("RELAY_BIN", folder.join("atlas-relay"))
        .in_directory(folder)
}
