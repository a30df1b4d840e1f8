//! README.md: an agent as its first ten minutes have it, and what it says of a relay in passing.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use xtask::deployment::Node;
use xtask::lab::{Process, RELAY_ADDRESSES};

use super::super::page::blocks_of;
use super::super::world::{RELAY, wait_for};
use super::pages::Pages;
use super::shell::Shell;
use super::stage::Stage;

const PAGE: &str = "README.md";

const PATIENCE: Duration = Duration::from_secs(60);

/// The agent of who reads the page.
pub struct Reader {
    pub id: String,
    daemon: Shell,
    /// Its session lasts as long as it.
    pub forward: Shell,
    _target: Process,
}

/// What is run while all is well.
pub fn begin(stage: &Stage, pages: &mut Pages) -> Reader {
    let world = &stage.world;
    let target = &world.deployment.target;
    let place = stage.checkout_of_agent("reader");
    let open = |name: &str, pages: &mut Pages| {
        let mut shell = place.shell(name);
        shell.fill("NODE", target.id());
        if name == "first" {
            shell.runs(pages, PAGE, "export PATH=$PWD/target/release:$PATH").succeeds();
        } else {
            shell.types("export PATH=$PWD/target/release:$PATH").succeeds();
        }
        shell
    };
    let mut first = open("first", pages);
    let made = first.runs(pages, PAGE, "atlas-relay id init").succeeds();
    let shown = first.runs(pages, PAGE, "atlas-relay id show").says("atlas_");
    let id = node_id(&shown);
    assert!(made.contains(&id), "{made}");
    let mut blocks = blocks_of(PAGE).into_iter();
    let configuration = blocks
        .find(|block| block.language == "toml")
        .unwrap()
        .text()
        .replace("<relay_ip>", &RELAY_ADDRESSES.v4.to_string())
        .replace("atlas_<id of a peer>", target.id());
    std::fs::write(place.home.join(".atlas/state/config.toml"), configuration).unwrap();
    permit(target, &[&id, world.deployment.connector.id()]);
    let _target = world.deployment.start_target().unwrap();

    first.runs(pages, PAGE, "atlas-relay config check").says("an agent");
    let mut daemon = open("daemon", pages);
    daemon.starts(pages, PAGE, "atlas-relay net listen", "agent starting");
    wait_for("the reader's announcement", PATIENCE, || world.deployment.is_announced(&id).then_some(()));
    first.runs(pages, PAGE, "atlas-relay net peers").says(&RELAY.to_string());
    first.runs(pages, PAGE, "atlas-relay net ping NODE").says(" of 4");
    first.runs(pages, PAGE, "atlas-relay net send NODE '{\"question\": 42}'").says("Ack      : accepted");
    let mut forward = open("forward", pages);
    let line = "atlas-relay net forward --listen 127.0.0.1:8080 --peer NODE --to 127.0.0.1:80";
    forward.starts(pages, PAGE, line, "Forwarding 127.0.0.1:8080");
    assert_forwarded(stage);
    // Its session is that process's own here, and the daemon's at the peer.
    let mut peer = stage.targets_place().shell("disconnect");
    peer.fill("NODE", &id);
    peer.runs(pages, PAGE, "atlas-relay net disconnect NODE").says("Ended    : 1 session");
    assert_forwarded(stage);

    let mut relay = stage.relays_place().shell("readme");
    relay.runs(pages, PAGE, "atlas-relay bans").says("nobody is banned");
    first.runs(pages, PAGE, "atlas-relay config show").says("agent.pacing");
    first.runs(pages, PAGE, "atlas-relay config reload").succeeds();
    let [side, _] = stage.session().sides;
    relay.fill("203.0.113.7:40000", side.agent.unwrap());
    relay.fill("198.51.100.1:4433", side.relay.unwrap());
    let line = "atlas-relay explain 203.0.113.7:40000 198.51.100.1:4433";
    relay.runs(pages, PAGE, line).says("forward: forwarded:");
    let looked = relay.runs(pages, PAGE, "atlas-relay doctor").ends_with(&[0, 1]);
    assert!(looked.contains("r0"), "{looked}");
    stage.relays_place().draws(pages, PAGE, "atlas-relay net top", "xdp-native");
    relay.fill("IF", "r0");
    relay.runs(pages, PAGE, "ethtool -K IF rxvlan off").succeeds();
    let mut router = stage.routers_place().shell("router");
    router.fill("PEER", xtask::lab::RELAY_GATEWAY_DEVICE);
    router.runs(pages, PAGE, "ethtool -K PEER gro on tx off").succeeds();
    Reader { id, daemon, forward, _target }
}

/// How the relay is brought to an end.
pub fn end(stage: &mut Stage, pages: &mut Pages, mut reader: Reader) {
    reader.daemon.interrupts().succeeds();
    let mut relay = stage.relays_place().shell("readme-end");
    relay.runs(pages, PAGE, "atlas-relay drain").succeeds();
    stage.wait_for_the_relays_end();
    stage.start_relay();
    relay.runs(pages, "docs/fields.md", "drain --json").says("\"stopped\":true");
    stage.wait_for_the_relays_end();
    stage.start_relay();
    relay.runs(pages, PAGE, "atlas-relay stop").succeeds();
    stage.wait_for_the_relays_end();
}

/// The first id in a text.
pub fn node_id(text: &str) -> String {
    let (_, id) = text.split_once("atlas_").unwrap();
    format!("atlas_{}", id.get(..64).unwrap())
}

/// The target serves its peers what the page's forward asks for, and the world's.
fn permit(target: &Node, peers: &[&str]) {
    let config = target.directory().join("state/config.toml");
    let relay = std::fs::read_to_string(config).unwrap();
    let (relay, _) = relay.split_once("[agent]").unwrap();
    let accept: Vec<String> = peers.iter().map(|peer| format!("\"{peer}\"")).collect();
    let mut configuration = format!("{relay}[agent]\naccept = [{}]\n", accept.join(", "));
    for peer in peers {
        configuration += &format!("\n[[agent.allow]]\npeer = \"{peer}\"\nto = \"127.0.0.1:80\"\n");
    }
    target.configure(&configuration).unwrap();
}

/// What goes into the forward at the connector comes back from a server at the target.
pub fn assert_forwarded(stage: &Stage) {
    let [connector, target, ..] = &stage.world.lab.agents[..] else { panic!("two agents") };
    let listener = target.inside(|| TcpListener::bind("127.0.0.1:80").unwrap()).unwrap();
    let server = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut asked = [0; 5];
        client.read_exact(&mut asked).unwrap();
        client.write_all(&asked).unwrap();
    });
    let answer = connector.inside(|| {
        let mut stream = TcpStream::connect("127.0.0.1:8080").unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"hello").unwrap();
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).unwrap();
        answer
    });
    assert_eq!(&answer.unwrap(), b"hello");
    server.join().unwrap();
}
