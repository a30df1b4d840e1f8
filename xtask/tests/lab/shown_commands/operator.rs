//! The operators' pages, on the host of a relay that is installed as a service.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use xtask::lab::{RELAY_GATEWAY_DEVICE, RELAY_INTERFACE};

use super::super::world::RELAY;
use super::pages::Pages;
use super::readme::Reader;
use super::shell::{Answer, Shell};
use super::stage::Stage;

/// docs/troubleshoot.md.
pub fn troubleshoot(stage: &Stage, pages: &mut Pages) {
    const PAGE: &str = "docs/troubleshoot.md";
    let mut relay = stage.operators_shell("troubleshoot");
    let [side, _] = stage.session().sides;
    relay.fill("198.51.100.7:40001", side.agent.unwrap());
    relay.fill("192.0.2.1:4433", side.relay.unwrap());
    let line = "sudo -u atlas-relay atlas explain 198.51.100.7:40001 192.0.2.1:4433";
    relay.runs(pages, PAGE, line).says("forward: forwarded:");
    looked_at(&mut relay, pages, PAGE, "sudo ATLAS_ROOT=/var/lib/atlas-relay/.atlas atlas doctor");
    let mut agent = stage.agents_place("reader").shell("troubleshoot-agent");
    agent.fill("atlas_<id>", stage.world.deployment.relay.id());
    agent.fill("198.51.100.7:4433", RELAY);
    let line = "atlas doctor --from atlas_<id>@198.51.100.7:4433";
    let looked = agent.runs(pages, PAGE, line).ends_with(&[0, 1]);
    assert!(looked.contains("reachable from here"), "{looked}");
    relay.fill("atlas_<id>", stage.world.deployment.target.id());
    let line = "sudo ATLAS_ROOT=/var/lib/atlas-relay/.atlas atlas doctor --from atlas_<id>";
    let looked = relay.runs(pages, PAGE, line).ends_with(&[0, 1]);
    assert!(looked.contains("the agent has connected to this node there"), "{looked}");

    relay.fill("IF", RELAY_INTERFACE);
    relay.fill("ADDRESS", side.agent.unwrap().ip());
    for line in [
        "ethtool -S IF",
        "ethtool -i IF",
        "ethtool -K IF gro off lro off rx-gro-hw off",
        "ethtool -K IF rxvlan off",
        "ip route get ADDRESS",
        "ip neigh show dev IF",
        "ip link set IF mtu 1500",
        "uname -r",
        "date -u",
    ] {
        relay.runs(pages, PAGE, line).succeeds();
    }
    refused_by_driver(relay.runs(pages, PAGE, "ethtool -N IF rx-flow-hash udp4 sdfn"));
    let mut router = stage.routers_place().shell("troubleshoot-router");
    router.fill("PEER", RELAY_GATEWAY_DEVICE);
    router.runs(pages, PAGE, "ethtool -K PEER tx off gro on").succeeds();
}

/// What shows and changes nothing: docs/top.md, docs/fields.md, docs/configuration.md, docs/logs.md.
pub fn look(stage: &Stage, pages: &mut Pages) {
    let place = stage.relays_place();
    let mut relay = place.shell("look");
    let page = "docs/top.md";
    for line in ["atlas-relay net top", "atlas-relay net top --every 5"] {
        place.draws(pages, page, line, "xdp-native");
    }
    relay.runs(pages, page, "atlas-relay net top --once").says("Sessions : ");
    json(relay.runs(pages, page, "atlas-relay net top --once --json").succeeds());

    for line in ["net peers --json", "xdp status --json", "bans --json"] {
        json(relay.runs(pages, "docs/fields.md", line).succeeds());
    }
    let config = stage.world.deployment.relay.directory().join("state/config.toml");
    relay.fill("[FILE]", config.display());
    for line in ["atlas-relay config check [FILE]", "atlas-relay config show [FILE]"] {
        relay.runs(pages, "docs/configuration.md", line).says("relay");
    }
    logs(stage, pages);
}

fn logs(stage: &Stage, pages: &mut Pages) {
    const PAGE: &str = "docs/logs.md";
    let line = "atlas-relay net listen";
    let place = stage.agents_place("logging");
    let mut shell = place.shell("logs");
    shell.types("atlas-relay id init").succeeds();
    let config = format!("[network]\nrelays = [\"{RELAY}\"]\n[transport]\nenable_relay = true\n");
    std::fs::write(place.home.join(".atlas/state/config.toml"), config).unwrap();
    shell.starts(pages, PAGE, line, "INFO agent starting node=atlas_");
    shell.interrupts().succeeds();
    shell.starts(pages, PAGE, &format!("{line} --log-format json"), "\"agent starting\"");
    json(shell.interrupts().succeeds().lines().next().unwrap().to_owned());
    // A journal of the test's own, on a machine that has none.
    let folder = place.at.join("journal");
    std::fs::create_dir(&folder).unwrap();
    let journal = UnixDatagram::bind(folder.join("socket")).unwrap();
    journal.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mounts = "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && \
                  mount --bind journal /run/systemd/journal";
    let mut shell = place.shell_after("journal", mounts);
    shell.starts(pages, PAGE, &format!("{line} --log-format journald"), "");
    let mut entry = vec![0; 65_536];
    let mut has_come = || {
        let len = journal.recv(&mut entry).unwrap();
        String::from_utf8_lossy(&entry[..len]).contains("agent starting")
    };
    while !has_come() {}
    shell.interrupts().succeeds();
}

/// docs/operate.md.
pub fn operate(stage: &mut Stage, pages: &mut Pages, reader: &Reader) {
    const PAGE: &str = "docs/operate.md";
    let mut relay = stage.operators_shell("operate");
    let ours = stage.world.deployment.relay.id().to_owned();
    relay.runs(pages, PAGE, "sudo -u atlas-relay atlas id show").says(&ours);
    relay.runs(pages, PAGE, "sudo -u atlas-relay atlas net peers").says("yes");
    relay.runs(pages, PAGE, "sudo -u atlas-relay atlas config check").says("a relay");
    relay.runs(pages, PAGE, "sudo -u atlas-relay atlas config reload").succeeds();
    json(relay.runs(pages, PAGE, "sudo -u atlas-relay atlas config show --running --json").succeeds());
    relay.runs(pages, PAGE, "sudo -u atlas-relay atlas xdp status").says("xdp-native");
    looked_at(&mut relay, pages, PAGE, "sudo ATLAS_ROOT=/var/lib/atlas-relay/.atlas atlas doctor");
    tune(stage, pages, PAGE);
    relay.runs(pages, PAGE, "sudo -u atlas-relay atlas net sessions").says("paired");
    json(relay.runs(pages, PAGE, "sudo -u atlas-relay atlas net sessions --json").succeeds());
    relay.runs(pages, PAGE, "sudo -u atlas-relay atlas bans").says("nobody is banned");

    let mut agent = stage.agents_place("reader").shell("operate-agent");
    // There it is the user's own.
    agent.fill("sudo -u atlas-agent ", "");
    agent.fill("atlas_<id>", stage.world.deployment.target.id());
    agent.runs(pages, PAGE, "sudo -u atlas-agent atlas net connect atlas_<id>").says("via relay");
    let line = "sudo -u atlas-agent atlas net ping atlas_<id> --count 100 --interval-ms 100";
    agent.runs(pages, PAGE, line).says(" of 100");

    relay.fill("atlas_<id>", &reader.id);
    relay.runs(pages, PAGE, "sudo -u atlas-relay atlas net disconnect atlas_<id>").says("Ended    : ");
    relay
        .runs(pages, PAGE, "sudo -u atlas-relay atlas bans add atlas_<id> --for 7d")
        .says("may not connect for");
    relay.types("sudo -u atlas-relay atlas bans add 192.0.2.1").succeeds();
    relay.runs(pages, PAGE, "sudo -u atlas-relay atlas bans lift 192.0.2.1").says("may connect again");
    relay.types("sudo -u atlas-relay atlas bans lift atlas_<id>").succeeds();
    let asked = relay.runs(pages, PAGE, "sudo -u atlas-relay atlas id rotate").ends_with(&[1]);
    assert!(asked.contains("nothing was changed"), "{asked}");
    relay.types("sudo -u atlas-relay atlas id show").says(&ours);

    relay.runs(pages, PAGE, "sudo -u atlas-relay atlas stop").succeeds();
    stage.wait_for_the_relays_end();
    assert!(!stage.has_pins(), "a relay that was stopped leaves nothing");
    stage.start_relay();
    stage.kill_relay();
    assert!(stage.has_pins(), "a relay that was killed leaves what forwards");
    relay.runs(pages, PAGE, "sudo -u atlas-relay atlas xdp unload").succeeds();
    assert!(!stage.has_pins());

    relay.fill("eth0", RELAY_INTERFACE);
    relay.runs(pages, PAGE, "atlas xdp load --interface eth0 --mode native").says(RELAY_INTERFACE);
    relay.types("ip link show eth0").says("xdp");
    relay.runs(pages, PAGE, "atlas xdp unload --interface eth0").succeeds();
    let link = relay.types("ip link show eth0").succeeds();
    assert!(!link.contains("xdp"), "{link}");
    stage.start_relay();
}

/// What its table has an operator set.
fn tune(stage: &Stage, pages: &mut Pages, page: &str) {
    let place = stage.operators_place();
    let setting = place.at.join("rmem_max");
    std::fs::write(&setting, "212992\n").unwrap();
    // The setting is the whole machine's: what is set is a file in its place.
    let mut shell = stage.here().shell_after("tune", "mount --bind rmem_max /proc/sys/net/core/rmem_max");
    shell.runs(pages, page, "sysctl -w net.core.rmem_max=4194304").succeeds();
    assert_eq!(std::fs::read_to_string(&setting).unwrap().trim(), "4194304");
    let mut relay = place.shell("tune-relay");
    relay.fill("eth0", RELAY_INTERFACE);
    relay.fill("combined N", "combined 1");
    refused_by_driver(relay.runs(pages, page, "ethtool -N eth0 rx-flow-hash udp4 sdfn"));
    refused_by_driver(relay.runs(pages, page, "ethtool -L eth0 combined N"));
}

/// What only cards have, the driver of a virtual pair refuses. ethtool has understood it: of what it does not, it says otherwise.
fn refused_by_driver(answer: Answer) {
    let said = answer.ends_with(&[0, 1]);
    assert!(["Operation not supported", "Invalid argument"].iter().any(|why| said.contains(why)), "{said}");
}

/// Runs `doctor` as root: some of the machine's it may complain of.
fn looked_at(shell: &mut Shell, pages: &mut Pages, page: &str, line: &str) {
    let looked = shell.runs(pages, page, line).ends_with(&[0, 1]);
    assert!(looked.contains(RELAY_INTERFACE) && looked.contains("xdp-native"), "{looked}");
}

fn json(said: String) {
    let said = said.trim();
    let read: Result<serde_json::Value, _> = serde_json::from_str(said);
    assert!(read.is_ok(), "no JSON: {said}");
}
