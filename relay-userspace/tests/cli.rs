//! The command line, as a user meets it: exit codes, and one line that says what to do.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is a failure")]

#[path = "cli/access.rs"]
mod access;
#[path = "cli/bans.rs"]
mod bans;
#[path = "cli/configuration.rs"]
mod configuration;
#[path = "cli/doctor.rs"]
mod doctor;
#[path = "cli/explain.rs"]
mod explain;
#[path = "cli/identity.rs"]
mod identity;
#[path = "cli/logs.rs"]
mod logs;
mod node;
#[path = "cli/secrets.rs"]
mod secrets;
mod skipping;
#[path = "cli/stopping.rs"]
mod stopping;
mod terminal;
#[path = "cli/top.rs"]
mod top;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use node::{BINARY, Finished, Node, free_port, signal, terminate, wait};

const OTHER: &str = "atlas_70b499d01e2464e370b499d01e2464e370b499d01e2464e370b499d01e2464e3";

#[test]
fn an_agent_without_relays_is_told_which_key_to_set() {
    let node = Node::with_identity();
    node.configure("");
    node.run("net listen").fails_with(&["transport.enable_relay = true"]);
    node.configure("[transport]\nenable_relay = true\n");
    node.run("net listen").fails_with(&["network.relays"]);
    node.run(&format!("net ping {OTHER}")).fails_with(&["network.relays"]);
}

#[test]
fn a_relays_own_root_is_no_place_to_connect_from() {
    let node = Node::relay();
    let forward = format!("net forward --listen 127.0.0.1:0 --peer {OTHER} --to 127.0.0.1:80");
    for words in [format!("net ping {OTHER}"), format!("net connect {OTHER}"), forward] {
        node.run(&words).fails_with(&["makes a relay", "an agent's ATLAS_ROOT"]);
    }
}

#[test]
fn a_shortened_id_is_refused_with_where_the_whole_one_is() {
    let refused = Node::new().run("net ping atlas_70b499d01e2464e3...");
    assert_eq!(refused.code, 2);
    assert!(refused.stderr.contains("the full id (atlas-relay id show, or --json)"), "{refused:?}");
}

#[test]
fn without_a_daemon_listings_say_how_to_start_one() {
    let node = Node::with_identity();
    for words in ["net peers", "net sessions --json", "xdp status", "config show --running"] {
        let parts = ["no daemon is running", "another ATLAS_ROOT", "sudo -u", "atlas-relay net listen"];
        node.run(words).fails_with(&parts);
    }
    for words in ["config reload", "stop", "drain", "bans", &format!("net disconnect {OTHER}")] {
        let refused = node.run(words);
        refused.fails_with(&["no daemon is running", "another ATLAS_ROOT"]);
        assert!(!refused.stderr.contains("net listen"), "{refused:?}");
    }
}

#[test]
fn a_command_line_that_is_not_understood_exits_with_2() {
    let node = Node::new();
    for words in [
        "",
        "net",
        "net listen --port 70000",
        "net listen --datapath fast",
        "net ping bob",
        "net ping",
        "net forward --listen 127.0.0.1:1 --peer x --to y",
        "frobnicate",
    ] {
        let refused = node.run(words);
        assert_eq!(refused.code, 2, "{words}: {refused:?}");
        assert!(refused.stdout.is_empty());
    }
}

#[test]
fn a_port_alone_is_no_address_to_listen_on_and_an_example_is_given() {
    let refused = Node::new().run(&format!("net forward --listen 8083 --peer {OTHER} --to 127.0.0.1:80"));
    assert_eq!(refused.code, 2);
    assert!(refused.stderr.contains("expected ADDR:PORT, such as 127.0.0.1:8080"), "{refused:?}");
}

#[test]
fn the_version_names_the_datapaths() {
    let version = Node::new().run("--version").stdout;
    let both = [
        "atlas-relay 0.1.0 (datapaths: xdp-native, xdp-generic, userspace)\n",
        "atlas-relay 0.1.0 (datapaths: userspace; built without the BPF program)\n",
    ];
    assert!(both.contains(&version.as_str()), "{version}");
}

#[test]
fn a_relay_serves_until_sigterm_and_a_second_one_is_told_the_port_is_in_use() {
    let first = Node::relay();
    let port = free_port();
    let mut running = first.start(&format!("net listen --port {port} --datapath userspace"));
    let status = first.until_it_answers("xdp status --json");
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!((status["datapath"].as_str(), status["why"].as_str()), (Some("userspace"), Some("asked for")));
    assert_eq!(first.run("net peers").stdout, "no peers are connected\n");
    assert_eq!(first.run("net sessions --json").stdout, "{\n  \"sessions\": []\n}\n");

    let second = Node::relay();
    let words = format!("net listen --port {port} --datapath userspace");
    second.run(&words).fails_with(&[&format!("0.0.0.0:{port} is in use"), "choose another port"]);
    first
        .run("net listen --port 0 --datapath userspace")
        .fails_with(&["another daemon has the admin socket"]);

    terminate(&running);
    let ended = wait(&mut running, Duration::from_secs(5));
    assert_eq!(ended, Some(0), "an orderly stop");
    assert!(!Path::new(&first.path("state/admin.sock")).exists());
    let log = fs::read_to_string(first.path("log")).unwrap();
    assert!(log.contains("relay listening") && log.contains("relay stopped"), "{log}");
}

#[test]
fn a_relays_port_datapath_tables_readers_and_admin_socket_are_those_of_its_configuration() {
    let node = Node::with_identity();
    let (port, socket) = (free_port(), node.path("elsewhere.sock"));
    node.configure(&format!(
        "[network]\nport = {port}\n[transport]\nenable_relay = true\noffer_relay = true\n\
         [datapath]\nmode = \"userspace\"\nmax_sessions = 100\nreaders = 3\n[admin]\nsocket = \"{socket}\"\n"
    ));
    let mut running = node.start("net listen");
    let status: serde_json::Value =
        serde_json::from_str(&node.until_it_answers("xdp status --json")).unwrap();
    assert_eq!((&status["datapath"], &status["why"]), (&"userspace".into(), &"asked for".into()));
    assert_eq!(status["table"]["max_sessions"], 100);
    assert!(Path::new(&socket).exists() && !Path::new(&node.path("state/admin.sock")).exists());
    let taken = UdpSocket::bind(("0.0.0.0", port)).unwrap_err();
    assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse);
    let families = if UdpSocket::bind("[::]:0").is_ok() { 2 } else { 1 };
    let threads = fs::read_dir(format!("/proc/{}/task", running.id())).unwrap();
    let is_reader = |thread: std::io::Result<fs::DirEntry>| {
        fs::read_to_string(thread.unwrap().path().join("comm")).is_ok_and(|name| name.starts_with("reader-"))
    };
    assert_eq!(threads.filter_map(|thread| is_reader(thread).then_some(())).count(), 3 * families);
    terminate(&running);
    assert_eq!(wait(&mut running, Duration::from_secs(5)), Some(0));
}

#[test]
fn a_killed_relay_leaves_nothing_in_the_way_of_the_next() {
    let node = Node::relay();
    let port = free_port();
    let words = format!("net listen --port {port} --datapath userspace");
    let mut killed = node.start(&words);
    node.until_it_answers("net peers");
    killed.kill().unwrap();
    killed.wait().unwrap();
    node.run("net peers").fails_with(&["no daemon is running"]);
    let mut next = node.start(&words);
    node.until_it_answers("net peers");
    terminate(&next);
    assert_eq!(wait(&mut next, Duration::from_secs(5)), Some(0));
}

#[test]
fn an_interface_that_cannot_take_the_program_is_refused_by_name() {
    let node = Node::relay();
    let port = free_port();
    node.run(&format!("net listen --port {port} --datapath xdp-native --interface no-such-if"))
        .fails_with(&["there is no interface \"no-such-if\""]);
    // Loopback is no Ethernet, so there is nothing to attach to.
    node.run(&format!("net listen --port {port} --datapath xdp-generic --interface lo"))
        .fails_with(&["there is no interface \"lo\" that speaks Ethernet"]);
}

#[test]
fn a_ping_shows_each_answer_as_it_comes_and_sums_up_when_interrupted() {
    let relay = Node::relay();
    let port = free_port();
    let mut relaying = relay.start(&format!("net listen --port {port} --datapath userspace"));
    relay.until_it_answers("net peers");
    let relays = format!("[network]\nrelays = [\"127.0.0.1:{port}\"]\n[transport]\nenable_relay = true\n");
    let (asking, asked) = (Node::with_identity(), Node::with_identity());
    asking.configure(&relays);
    asked.configure(&format!("{relays}[agent]\naccept = [\"{}\"]\n", asking.id()));
    let mut listening = asked.start("net listen");
    relay.until_logged("agent announced");

    let mut pinging = asking
        .command()
        .args(["net", "ping", &asked.id(), "--count", "100000", "--interval-ms", "10"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(pinging.stdout.take().unwrap()).lines().map(Result::unwrap);
    let first: Vec<String> = lines.by_ref().take(6).collect();
    signal(&pinging, "INT");
    let last = lines.last().unwrap();

    let seconds = |line: &str, title: &str| line.strip_prefix(title).unwrap().parse::<u64>().unwrap();
    assert_eq!(first[0], format!("Peer : {}...", &asked.id()[..22]));
    assert_eq!(first[1], "Path : relay");
    assert!(seconds(&first[2], "Ping : ") > 1_712_150_400, "{first:?}");
    assert!(seconds(&first[3], "Pong : ") > 1_712_150_400, "{first:?}");
    assert!(first[4].starts_with("1 of 100000: ") && first[4].ends_with(" ms"), "{first:?}");
    assert!(first[5].starts_with("2 of 100000: "), "{first:?}");
    for part in [" sent, ", "; round trip min ", ", avg ", ", max "] {
        assert!(last.contains(part), "{last}");
    }
    assert_eq!(wait(&mut pinging, Duration::from_secs(5)), Some(0));
    for daemon in [&mut listening, &mut relaying] {
        terminate(daemon);
        assert_eq!(wait(daemon, Duration::from_secs(5)), Some(0));
    }
}

#[test]
fn a_forward_whose_port_is_in_use_says_so_and_dials_nobody() {
    let relay = UdpSocket::bind("127.0.0.1:0").unwrap();
    let agent = Node::with_identity();
    agent.configure(&format!(
        "[network]\nrelays = [\"{}\"]\n[transport]\nenable_relay = true\n",
        relay.local_addr().unwrap()
    ));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    agent
        .run(&format!("net forward --listen 127.0.0.1:{port} --peer {OTHER} --to 127.0.0.1:80"))
        .fails_with(&[&format!("127.0.0.1:{port} is in use"), &format!("ss -tlpn sport = :{port}")]);
    relay.set_nonblocking(true).unwrap();
    let heard = relay.recv_from(&mut [0; 2000]).unwrap_err();
    assert_eq!(heard.kind(), std::io::ErrorKind::WouldBlock, "the relay was dialled");
}

#[test]
fn an_agent_daemon_answers_too_and_stops_on_sigint() {
    let agent = Node::with_identity();
    // Nobody listens there: the agent keeps trying.
    agent.configure(&format!(
        "[network]\nrelays = [\"127.0.0.1:{}\"]\n[transport]\nenable_relay = true\n",
        free_port()
    ));
    let mut running = agent.start("net listen --port 0");
    agent.until_it_answers("net peers --json");
    let sessions = agent.run("net sessions").stdout;
    assert!(sessions.contains("no sessions") && sessions.contains("of their own"), "{sessions}");
    agent.run("xdp status").fails_with(&["this daemon is an agent"]);
    signal(&running, "INT");
    assert_eq!(wait(&mut running, Duration::from_secs(5)), Some(0));
}
