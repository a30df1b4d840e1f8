//! docs/lab.md: a lab by hand, in a checkout.

use std::time::Duration;

use xtask::lab::RELAY_ADDRESSES;

use super::super::world::wait_for;
use super::pages::Pages;
use super::stage::Stage;

const PAGE: &str = "docs/lab.md";

/// What `cargo xtask lab` says once it can be entered.
const UP: &str = "Ctrl-C removes the lab";

const PATIENCE: Duration = Duration::from_secs(60);

/// From `id init` to `net ping`, and what is beside.
pub fn lab(stage: &Stage, pages: &mut Pages) {
    let place = stage.checkout_here();
    let mut lab = place.shell("lab");
    lab.starts(pages, PAGE, "cargo xtask lab", UP);
    let name = lab.said().split_whitespace().find_map(|word| word.strip_suffix("-relay").map(str::to_owned));
    let name = name.unwrap();

    let mut shell = place.shell("by-hand");
    let folder = place.at.display();
    shell.fill("atlas-lab-<number>-0", &name);
    shell.fill("RELAY:4433", format!("{}:4433", RELAY_ADDRESSES.v4));
    shell.fill("/tmp/", format!("{folder}/"));
    shell.runs(pages, PAGE, "export LAB=atlas-lab-<number>-0 PATH=$PWD/target/release:$PATH").succeeds();
    shell
        .runs(
            pages,
            PAGE,
            "for node in r a0 a1; do ATLAS_ROOT=/tmp/$node atlas-relay id init; done; \
             id() { ATLAS_ROOT=/tmp/$1 atlas-relay id show | grep -o 'atlas_.*'; }",
        )
        .succeeds();
    shell
        .runs(
            pages,
            PAGE,
            r"printf '[transport]\nenable_relay = true\noffer_relay = true\n' > /tmp/r/state/config.toml",
        )
        .succeeds();
    let configured = r#"for node in a0 a1; do printf '[network]\nrelays = ["RELAY:4433"]\n[transport]\nenable_relay = true\n[agent]\naccept = ["%s"]\n' $(id a0) > /tmp/$node/state/config.toml; done"#;
    shell.runs(pages, PAGE, configured).succeeds();
    // Nothing of the machine's own is kept: what is below would find it.
    shell.types("printf '[datapath]\\nbpffs = \"\"\\n' >> /tmp/r/state/config.toml").succeeds();
    let line = "ip netns exec $LAB-relay env ATLAS_ROOT=/tmp/r atlas-relay net listen --datapath xdp-native \
                --interface r0 & sleep 1";
    shell.runs(pages, PAGE, line).succeeds();
    // A reader on a busy machine would take another moment before going on.
    let until = |shell: &mut super::shell::Shell, what: &str, line: &str, sign: &str| {
        wait_for(what, PATIENCE, || {
            let said = shell.types(line).ends_with(&[0, 1]);
            said.contains(sign).then_some(())
        });
    };
    until(&mut shell, "the relay", "ATLAS_ROOT=/tmp/r atlas-relay xdp status", "xdp-native");
    shell
        .runs(
            pages,
            PAGE,
            "ip netns exec $LAB-agent1 env ATLAS_ROOT=/tmp/a1 atlas-relay net listen & sleep 1",
        )
        .succeeds();
    until(&mut shell, "the agent", "ATLAS_ROOT=/tmp/r atlas-relay net peers --json", "\"announced\": true");
    let line = "ip netns exec $LAB-agent0 env ATLAS_ROOT=/tmp/a0 atlas-relay net ping $(id a1)";
    shell.runs(pages, PAGE, line).says(" of 4");

    // Where a program is already, none is loaded.
    shell.types("ATLAS_ROOT=/tmp/r atlas-relay stop; wait %1").succeeds();
    let line = "nsenter --net=/run/netns/$LAB-relay target/release/atlas-relay xdp load --interface r0";
    shell.runs(pages, PAGE, line).says("r0");
    let line = "nsenter --net=/run/netns/$LAB-relay target/release/atlas-relay xdp unload --interface r0";
    shell.types(line).succeeds();
    lab.interrupts().succeeds();

    lab.starts(pages, PAGE, "cargo xtask lab --delay 20ms --jitter 2ms --loss 0.1%", UP);
    lab.interrupts().succeeds();
}
