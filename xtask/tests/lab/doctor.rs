//! `doctor` on a host with rules of its own: what they do with the relay's port, and what mends it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use xtask::deployment::relay_configuration_with;
use xtask::interrupt;
use xtask::tool::Tool;

use super::world::{NATIVE, RELAY, World, wait_for};

/// A chain that drops what no rule accepts, as hosts have it.
const RULES: &str = "table inet filter {
    set services { type inet_service; elements = { 22, 443 } }
    chain input {
        type filter hook input priority filter; policy drop;
        ct state vmap { established : accept, related : accept, invalid : drop }
        iifname lo accept
        tcp dport @services accept
        meta l4proto { icmp, ipv6-icmp } accept
        udp dport 53 accept
    }
}
";

#[test]
fn a_firewall_that_keeps_the_port_out_is_found_and_the_command_that_is_told_opens_it() {
    let name = "a_firewall_that_keeps_the_port_out_is_found_and_the_command_that_is_told_opens_it";
    let Some(world) = World::new(name) else { return };
    let datapath = "mode = \"xdp-native\"\ninterfaces = [\"r0\"]\n";
    world.deployment.relay.configure(&relay_configuration_with(0, datapath)).unwrap();
    let open = finding(&world, "firewall");
    assert_eq!((&*open["level"], &*open["found"]), ("ok", "no chain of nftables for packets to this host"));

    let file = world.lab.directory().join("rules.nft");
    std::fs::write(&file, RULES).unwrap();
    run(&world, &format!("nft -f {}", file.display()));
    let closed = finding(&world, "firewall");
    assert_eq!(closed["level"], "warning", "{closed:?}");
    assert!(closed["found"].starts_with("chain input of table inet filter keeps the port out"), "{closed:?}");

    run(&world, &closed["mend"]);
    let open = finding(&world, "firewall");
    assert_eq!(open["level"], "ok", "{open:?}");
    assert!(open["found"].ends_with("the port is let in"), "{open:?}");
}

#[test]
fn a_port_that_is_tracked_is_found_and_the_rules_that_are_told_of_leave_it_alone() {
    let name = "a_port_that_is_tracked_is_found_and_the_rules_that_are_told_of_leave_it_alone";
    let Some(world) = World::new(name) else { return };
    // A rule that asks for the state of connections has the kernel track them.
    let file = world.lab.directory().join("rules.nft");
    std::fs::write(&file, RULES).unwrap();
    run(&world, &format!("nft -f {}", file.display()));
    let tracked = finding(&world, "conntrack");
    assert_eq!(tracked["level"], "note", "{tracked:?}");
    assert!(tracked["found"].ends_with("each stranger that sends to the port takes one"), "{tracked:?}");

    // As the package installs it; here it is where the package takes it from.
    let installed = "/usr/share/doc/atlas-relay/deploy";
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    assert!(tracked["mend"].contains(installed), "{tracked:?}");
    run(&world, &tracked["mend"].replace(installed, &source.display().to_string()));
    let untracked = finding(&world, "conntrack");
    assert_eq!(untracked["level"], "ok", "{untracked:?}");
    assert!(untracked["found"].ends_with("the port is not tracked"), "{untracked:?}");
}

#[test]
fn a_firewall_that_lets_in_only_who_is_connected_is_found_by_an_agent_and_the_command_that_is_told_opens_it()
{
    let name = "a_firewall_that_lets_in_only_who_is_connected_is_found_by_an_agent_and_the_command_that_is_told_opens_it";
    let Some(world) = World::new(name) else { return };
    let _relay = world.deployment.start_relay(None, NATIVE).unwrap();
    let _agent = world.deployment.start_target().unwrap();
    let from = format!("--from {}", world.deployment.target.id());
    // The agent does one at a time, and one that nobody answers takes thirteen seconds altogether.
    let reachable = || {
        wait_for("the agent's answer", Duration::from_secs(60), || {
            let finding = finding_of(&world, &from, "reachable");
            (!finding["found"].contains("ask again")).then_some(finding)
        })
    };
    let open = reachable();
    let connected = format!("{RELAY}: the agent has connected to this node there");
    assert_eq!((&*open["level"], &*open["found"]), ("ok", &*connected));

    let file = world.lab.directory().join("rules.nft");
    std::fs::write(&file, RULES).unwrap();
    run(&world, &format!("nft -f {}", file.display()));
    let closed = reachable();
    assert_eq!(closed["level"], "error", "{closed:?}");
    assert!(closed["found"].starts_with(&format!("{RELAY}: nobody has answered the agent")), "{closed:?}");

    run(&world, &closed["mend"]);
    let open = reachable();
    assert_eq!((&*open["level"], &*open["found"]), ("ok", &*connected));
}

/// Runs a command line on the relay's host.
fn run(world: &World, line: &str) {
    world.deployment.relay.host().run(&Tool::new("sh").args(["-ec", line])).unwrap();
}

/// What `doctor` says there of one check: its texts by their names.
fn finding(world: &World, check: &str) -> BTreeMap<String, String> {
    finding_of(world, "", check)
}

/// The same, of `doctor` with more options.
fn finding_of(world: &World, options: &str, check: &str) -> BTreeMap<String, String> {
    // It exits with the code of the worst finding, whichever that is.
    let mut doctor = world.deployment.relay.start(&format!("doctor --json {options}")).unwrap();
    interrupt::wait_for("the report", Duration::from_secs(60), || doctor.ended()).unwrap();
    // Earlier runs have written there as well.
    finding_in(&doctor.output(), check)
}

/// What the last of some reports says of one check: its texts by their names.
pub fn finding_in(said: &str, check: &str) -> BTreeMap<String, String> {
    let reports = serde_json::Deserializer::from_str(said).into_iter::<Value>().map(Result::unwrap);
    let report = reports.last().unwrap();
    let findings = report["findings"].as_array().unwrap();
    let of_check: Vec<&Value> = findings.iter().filter(|finding| finding["check"] == check).collect();
    let [finding] = of_check[..] else { panic!("{check}: {report}") };
    let texts = finding.as_object().unwrap().iter();
    texts.map(|(name, text)| (name.clone(), text.as_str().unwrap_or_default().to_owned())).collect()
}
