//! The examples in the help of each command.

use etherparse::PacketBuilder;
use xtask::lab::RELAY_INTERFACE;

use super::super::world::{NOTICED_WITHIN, RELAY, wait_for};
use super::pages::Pages;
use super::readme::{Reader, assert_forwarded};
use super::shell::{Answer, Shell};
use super::stage::Stage;

/// The node of the examples, as it is written out.
const NODE: &str = "atlas_70b499d01e2464e370b499d01e2464e370b499d01e2464e370b499d01e2464e3";

/// A shell in which examples are typed.
struct Examples<'a> {
    shell: Shell,
    pages: &'a mut Pages,
}

impl Examples<'_> {
    /// Types `atlas-relay COMMAND MORE`, which the help of that command shows.
    fn runs(&mut self, command: &str, more: &str) -> Answer {
        let line = format!("atlas-relay {command} {more}");
        self.shell.runs(self.pages, &format!("atlas-relay {command} --help"), line.trim())
    }

    /// As [`Examples::runs`], for what runs until Ctrl-C.
    fn starts(&mut self, command: &str, more: &str, sign: &str) {
        let line = format!("atlas-relay {command} {more}");
        self.shell.starts(self.pages, &format!("atlas-relay {command} --help"), line.trim(), sign);
    }

    /// In each of the forms of a node's id, short ones too, it is this one.
    fn fill_node(&mut self, id: &str) {
        for form in [NODE, "atlas_70b499d01e2464e3...", "atlas_70b499d0...", "atlas_70b4..."] {
            self.shell.fill(form, id);
        }
    }
}

/// All of them. The relay runs at the end.
pub fn examples(stage: &mut Stage, pages: &mut Pages, reader: &mut Reader) {
    reader.forward.interrupts().succeeds();
    let target = stage.world.deployment.target.id();
    wait_for("the target, back at the relay", NOTICED_WITHIN, || {
        stage.world.deployment.is_announced(target).then_some(())
    });
    of_a_pair(stage, pages, reader);
    of_a_relay(stage, pages, reader);
    doctor(stage, pages);
    of_a_new_node(stage, pages);
    ends(stage, pages);
}

/// Those of an agent, and at the relay those about its session.
fn of_a_pair(stage: &Stage, pages: &mut Pages, reader: &Reader) {
    let place = stage.agents_place("reader");
    let mut agent = Examples { shell: place.shell("help"), pages };
    agent.fill_node(stage.world.deployment.target.id());
    let forwarding = "Forwarding 127.0.0.1:";
    agent.starts("net forward", "--listen 127.0.0.1:8080 --peer atlas_70b4... --to 127.0.0.1:80", forwarding);
    of_a_session(stage, agent.pages, reader);
    agent.shell.interrupts().succeeds();
    let udp = "--udp --listen 127.0.0.1:5300 --peer atlas_70b4... --to 127.0.0.1:53";
    agent.starts("net forward", udp, forwarding);
    agent.shell.interrupts().succeeds();
    agent.runs("net connect", NODE).says("via relay");
    agent.runs("net ping", &format!("{NODE} --count 10")).says(" of 10");
    let message = format!("{NODE} '{{\"question\": 42}}' --topic tasks");
    agent.runs("net send", &message).says("Ack      : accepted");
}

fn of_a_session(stage: &Stage, pages: &mut Pages, reader: &Reader) {
    let session = stage.session();
    let [side, _] = &session.sides;
    let (from, at) = (side.agent.unwrap(), side.relay.unwrap());
    let place = stage.relays_place();
    let mut relay = Examples { shell: place.shell("help-session"), pages };
    relay.runs("net sessions", "").says("paired");
    relay.shell.fill("198.51.100.7:40001", from);
    relay.shell.fill("192.0.2.1:4433", at);
    relay.runs("explain", "198.51.100.7:40001 192.0.2.1:4433").says("forward: forwarded:");
    std::fs::write(place.at.join("captured.pcap"), frame(from, at)).unwrap();
    let packet = "198.51.100.7:40001 192.0.2.1:4433 --packet captured.pcap";
    relay.runs("explain", packet).says(&session.session);
    let of_nobody = "[2001:db8::7]:40001 [2001:db8::1]:4433 --payload 1453 --json";
    // One byte more than the link takes.
    relay.runs("explain", of_nobody).says("super_frame");
    relay.fill_node(&reader.id);
    relay.runs("net disconnect", NODE).says("Ended    : 1 session");
    // The next client has a new one.
    assert_forwarded(stage);
    relay.shell.fill("0f1e2d3c4b5a69788796a5b4c3d2e1f0", stage.session().session);
    relay.runs("net disconnect", "0f1e2d3c4b5a69788796a5b4c3d2e1f0").says("Ended    : 1 session");
}

/// A frame with a datagram between the two, as a file may have it: its bytes.
fn frame(from: std::net::SocketAddr, to: std::net::SocketAddr) -> Vec<u8> {
    let (std::net::IpAddr::V4(source), std::net::IpAddr::V4(destination)) = (from.ip(), to.ip()) else {
        panic!("{from} and {to} are of IPv4")
    };
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4(source.octets(), destination.octets(), 64)
        .udp(from.port(), to.port());
    let payload = [0x40; 100];
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut frame, &payload).unwrap();
    frame
}

/// Those that ask a relay that runs.
fn of_a_relay(stage: &Stage, pages: &mut Pages, reader: &Reader) {
    let place = stage.relays_place();
    let page = "atlas-relay net top --help";
    place.draws(pages, page, "atlas-relay net top", "xdp-native");
    let mut relay = Examples { shell: place.shell("help-relay"), pages };
    for more in ["--once", "--once --json"] {
        relay.runs("net top", more).says("xdp-native");
    }
    relay.fill_node(&reader.id);
    relay.runs("net peers", "--json").says(&reader.id);
    relay.runs("xdp status", "").says("xdp-native");
    relay.runs("id show", "--json").says(stage.world.deployment.relay.id());
    relay.runs("config show", "").says("datapath.mode");
    relay.runs("config show", "--running --json").says("datapath.mode");
    relay.runs("config reload", "").succeeds();
    relay.runs("bans add", "192.0.2.1 --for 30m").says("may not connect for");
    relay.runs("bans", "").says("192.0.2.1");
    relay.runs("bans", "lift 192.0.2.1").says("may connect again");
    relay.runs("bans", "add atlas_70b499d01e2464e3... --for 12h").says("may not connect for");
    relay.shell.types("atlas-relay bans lift atlas_70b4...").succeeds();
    relay.shell.types("atlas-relay bans add 2001:db8::1").succeeds();
    relay.runs("bans lift", "2001:db8::/56").says("may connect again");
}

/// The host is looked at, and another from an agent's.
fn doctor(stage: &Stage, pages: &mut Pages) {
    let mut relay = Examples { shell: stage.relays_place().shell("help-doctor"), pages };
    relay.shell.fill("eth0", RELAY_INTERFACE);
    for more in ["", "--interface eth0 --json"] {
        let looked = relay.runs("doctor", more).ends_with(&[0, 1]);
        assert!(looked.contains(RELAY_INTERFACE), "{looked}");
    }
    let mut agent =
        Examples { shell: stage.agents_place("reader").shell("help-doctor-agent"), pages: relay.pages };
    agent.fill_node(stage.world.deployment.relay.id());
    agent.shell.fill("198.51.100.7:4433", RELAY);
    let looked = agent.runs("doctor", "--from atlas_70b499d0...@198.51.100.7:4433").ends_with(&[0, 1]);
    assert!(looked.contains("reachable from here"), "{looked}");
    relay.fill_node(stage.world.deployment.target.id());
    let looked = relay.runs("doctor", "--from atlas_70b499d0...").ends_with(&[0, 1]);
    assert!(looked.contains("the agent has connected to this node there"), "{looked}");
    relay.runs("doctor", "--list").says("self_test");
}

/// Those of a node that begins: a relay, on an agent's host.
fn of_a_new_node(stage: &Stage, pages: &mut Pages) {
    let another = stage.agents_place("another");
    let mut new = Examples { shell: another.shell("help-another"), pages };
    new.runs("id init", "").says("atlas_");

    let place = stage.agents_place("new");
    let mut new = Examples { shell: place.shell("help-new"), pages: new.pages };
    let page = "atlas-relay --help";
    new.shell.runs(new.pages, page, "atlas-relay id init").says("atlas_");
    let line =
        r"printf '[transport]\nenable_relay = true\noffer_relay = true\n' > ~/.atlas/state/config.toml";
    new.shell.runs(new.pages, page, line).succeeds();
    // What it keeps is not to be the machine's.
    new.shell.types("printf '[datapath]\\nbpffs = \"\"\\n' >> ~/.atlas/state/config.toml").succeeds();
    new.shell.starts(new.pages, page, "atlas-relay net listen", "relay listening");
    new.shell.interrupts().succeeds();
    new.starts("net listen", "--port 4433 --datapath auto", "relay listening");
    new.shell.interrupts().succeeds();
    new.starts("net listen", "--log-format json", "\"relay listening\"");
    new.shell.interrupts().succeeds();
    new.runs("id set-name", "relay-01").succeeds();
    new.shell.types("atlas-relay id show").says("relay-01");
    new.shell.types("cp ~/.atlas/state/config.toml .").succeeds();
    new.runs("config check", "./config.toml").says("a relay");
    let asked = new.runs("id rotate", "").ends_with(&[1]);
    assert!(asked.contains("nothing was changed"), "{asked}");
    new.runs("id rotate", "--yes").says("Node ID");
}

/// Those that end a relay, and those that there is none for.
fn ends(stage: &mut Stage, pages: &mut Pages) {
    let mut relay = Examples { shell: stage.relays_place().shell("help-end"), pages };
    relay.fill_node(stage.world.deployment.target.id());
    for more in ["", "--deadline 10m", "--deadline 10m --hint atlas_70b499d0...@198.51.100.7:4433"] {
        relay.runs("drain", more).succeeds();
        stage.wait_for_the_relays_end();
        stage.start_relay();
    }
    relay.runs("stop", "").succeeds();
    stage.wait_for_the_relays_end();
    relay.shell.fill("eth0", RELAY_INTERFACE);
    relay.runs("xdp load", "--interface eth0 --mode generic").says(RELAY_INTERFACE);
    relay.runs("xdp unload", "--interface eth0").succeeds();
    relay.runs("xdp unload", "").succeeds();
    stage.start_relay();
}
