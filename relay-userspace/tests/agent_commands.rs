//! What an agent's user does, with real daemons on loopback: messages, forwards, ended sessions, another identity.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "in a test a panic is a failure"
)]

mod node;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use node::{Finished, Node, free_port, signal, terminate, wait};
use serde_json::{Value, json};

/// How long what is under way may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_connection_says_who_is_there_and_by_which_path() {
    let net = Network::start();
    let [asking, asked] = net.pair("");
    assert_eq!(asked.run("id set-name bob").code, 0);
    let _listening = net.listen(&asked);
    let connected = asking.run(&format!("net connect {}", asked.id()));
    assert_eq!(connected.stdout, format!("Connected to {}\nbob [unknown via relay]\n", short(&asked)));
    let connected = asking.run(&format!("net connect {} --json", asked.id()));
    let expected = json!({ "node_id": asked.id(), "name": "bob", "trust": "unknown", "path": "relay" });
    assert_eq!(read(&connected), expected);
}

#[test]
fn a_ping_in_json_has_path_and_latency() {
    let net = Network::start();
    let [asking, asked] = net.pair("");
    let _listening = net.listen(&asked);
    let pings = read(&asking.run(&format!("net ping {} --count 3 --interval-ms 1 --json", asked.id())));
    assert_eq!((&pings["peer"], &pings["path"]), (&json!(asked.id()), &json!("relay")));
    assert_eq!((&pings["sent"], &pings["received"]), (&json!(3), &json!(3)));
    let [min, avg, max] = ["min", "avg", "max"].map(|of| pings["rtt_us"][of].as_u64().unwrap());
    assert!(0 < min && min <= avg && avg <= max, "{pings}");
}

#[test]
fn a_message_goes_by_itself_or_through_the_daemon_with_the_documented_lines() {
    let net = Network::start();
    let [asking, asked] = net.pair("");
    let _listening = net.listen(&asked);
    let to = asked.id();
    let whom = format!("{} [unknown via relay]", short(&asked));

    let sent = asking.run_words(&["net", "send", &to, r#"{"question": 42}"#, "--topic", "tasks"]);
    let lines: Vec<&str> = sent.stdout.lines().collect();
    let [to_whom, id, ack] = lines[..] else { panic!("{sent:?}") };
    assert_eq!((to_whom, ack), (&*format!("Sent to  : {whom}"), "Ack      : accepted"));
    let id = id.strip_prefix("Msg ID   : ").unwrap();
    assert!(id.starts_with("msg_") && id.len() == 40, "{id}");
    asked.until_logged(id);
    let log = fs::read_to_string(asked.path("log")).unwrap();
    let line = log.lines().find(|line| line.contains(id)).unwrap();
    for part in [&asking.id(), "topic=\"tasks\"", "body_bytes=15"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert!(!log.contains("question"), "what it says is not in the log: {log}");

    let _daemon = net.listen(&asking);
    let sent = asking.run_words(&["net", "send", &to, "{}", "--topic", "two\nlines\u{1b}[2J\u{202e}"]);
    let lines: Vec<&str> = sent.stdout.lines().collect();
    let [id, target, ack] = lines[..] else { panic!("{sent:?}") };
    assert_eq!((target, ack), (&*format!("Target   : {whom}"), "Ack      : accepted"));
    let id = id.strip_prefix("Queued   : ").unwrap();
    asked.until_logged(id);
    let log = fs::read_to_string(asked.path("log")).unwrap();
    let line = log.lines().find(|line| line.contains(id)).unwrap();
    assert!(line.contains("two") && line.contains("lines"), "one line has it all: {line}");
    assert!(!line.contains('\u{1b}') && !line.contains('\u{202e}'), "and controls no terminal: {line:?}");

    let sent = read(&asking.run_words(&["net", "send", &to, "null", "--json"]));
    assert!(sent["msg_id"].as_str().unwrap().starts_with("msg_"), "{sent}");
    let expected = json!({ "queued": true, "msg_id": sent["msg_id"], "ack": "accepted", "node_id": to,
                           "name": "unnamed", "trust": "unknown", "path": "relay" });
    assert_eq!(sent, expected);

    // As large as a message may be, less what stands around the body; each quotation mark is two bytes of JSON.
    let large = "é\"".repeat(16_000);
    assert_eq!(read(&asking.run_words(&["net", "send", &to, &large, "--json"]))["ack"], "accepted");
    let too_large = "x".repeat(65_535);
    asking.run_words(&["net", "send", &to, &too_large]).fails_with(&["longer than 65536 bytes"]);

    let own = asking.run_words(&["net", "send", &to, "{}", "--topic", "net/forward"]);
    own.fails_with(&["the agents' own"]);
    // It is there, and does not accept this node.
    asked.run_words(&["net", "send", &asking.id(), "x"]).fails_with(&["3001", "[agent] accept"]);
    let relays_own = net.relay.run_words(&["net", "send", &to, "x"]);
    relays_own.fails_with(&["this daemon is a relay", "an agent's ATLAS_ROOT"]);
}

#[test]
fn what_is_no_target_of_a_disconnect_is_refused_with_what_is_expected() {
    let node = Node::with_identity();
    for target in ["bob", "atlas_12", &"0".repeat(31)] {
        let refused = node.run(&format!("net disconnect {target}"));
        assert_eq!(refused.code, 2, "{refused:?}");
        assert!(
            refused.stderr.contains("64 ") && refused.stderr.contains("hexadecimal digits"),
            "{refused:?}"
        );
    }
    node.run(&format!("net disconnect {}", "0".repeat(32))).fails_with(&["no daemon is running"]);
}

#[test]
fn an_agent_ends_its_sessions_with_a_peer_when_told_and_the_peer_connects_again() {
    let net = Network::start();
    let echo = echo_over_tcp();
    let [asking, asked] = net.pair(&permit(echo, "tcp"));
    let _listening = net.listen(&asked);
    let mut forward = Forward::start(&asking, &asked, echo, "");
    let session = forward.until("session")["session"].as_str().unwrap().to_owned();
    let nobody = format!("atlas_{}", "0".repeat(64));
    for node in [&asked, &net.relay] {
        for json in ["", " --json"] {
            let none = node.run(&format!("net disconnect {nobody}{json}"));
            none.fails_with(&[&format!("{nobody} has no session here"), "net sessions"]);
        }
        assert_eq!(node.run(&format!("net disconnect {}", "0".repeat(32))).code, 1);
    }
    let ended = asked.run(&format!("net disconnect {}", asking.id()));
    assert_eq!(ended.stdout, "Ended    : 1 session\n", "{ended:?}");
    forward.until("lost");
    assert_eq!(echoed_over_tcp(forward.address, b"again"), Some(b"again".to_vec()));
    let second = forward.until("session")["session"].as_str().unwrap().to_owned();
    assert_ne!(second, session);
    let ended = read(&asked.run(&format!("net disconnect {second} --json")));
    assert_eq!(ended, json!({ "sessions": 1 }));
    forward.until("lost");
}

#[test]
fn a_relay_ends_the_sessions_of_a_node_or_one_session_when_told() {
    let net = Network::start();
    let echo = echo_over_tcp();
    let [asking, asked] = net.pair(&permit(echo, "tcp"));
    let _listening = net.listen(&asked);
    let mut forward = Forward::start(&asking, &asked, echo, "");
    let mut ids = vec![forward.until("session")["session"].as_str().unwrap().to_owned()];
    // Of the two nodes either may be named, or the session.
    for target in [Some(asking.id()), Some(asked.id()), None] {
        let target = target.unwrap_or_else(|| ids.last().unwrap().clone());
        assert_eq!(net.relay.run(&format!("net disconnect {target}")).stdout, "Ended    : 1 session\n");
        forward.until("lost");
        assert_eq!(echoed_over_tcp(forward.address, b"again"), Some(b"again".to_vec()));
        ids.push(forward.until("session")["session"].as_str().unwrap().to_owned());
    }
    ids.dedup();
    assert_eq!(ids.len(), 4, "each time another session: {ids:?}");
    let none = net.relay.run(&format!("net disconnect {}", "0".repeat(32)));
    none.fails_with(&["no session 0000", "net sessions"]);
}

#[test]
fn a_drain_tells_the_agents_shows_what_is_left_and_ends_at_the_deadline_with_what_still_is() {
    let net = Network::start();
    let echo = echo_over_tcp();
    let [asking, asked] = net.pair(&permit(echo, "tcp"));
    let _listening = net.listen(&asked);
    let mut forward = Forward::start(&asking, &asked, echo, "");
    forward.until("session");
    assert!(!net.relay.run("xdp status").stdout.contains("Draining"));
    let mut earlier = net.relay.start("drain --deadline 10m");
    net.relay.until_logged("draining: no new sessions from now on");
    let status = net.relay.run("xdp status");
    assert!(status.stdout.contains("\nDraining     : 1 session left; it stops in "), "{status:?}");
    let drained = net.relay.run("drain --deadline 2s");
    assert_eq!(drained.code, 0, "{drained:?}");
    assert_eq!(wait(&mut earlier, PATIENCE), Some(0), "the later deadline counts");
    let lines: Vec<&str> = drained.stdout.lines().collect();
    let first = "Draining : 1 session left; it stops in 2 s at the latest";
    assert_eq!((lines[0], lines[lines.len() - 1]), (first, "Drained  : the relay has stopped"));
    asked.until_logged("the relay is about to stop: moving away");
    net.relay.run("net peers").fails_with(&["no daemon is running here"]);
}

#[test]
fn a_udp_port_is_forwarded_and_what_was_dropped_is_told_at_the_end() {
    let net = Network::start();
    let echo = echo_over_udp();
    let [asking, asked] = net.pair(&permit(echo, "udp"));
    let _listening = net.listen(&asked);
    let mut forward = Forward::start(&asking, &asked, echo, "--udp");
    for client in ["one", "two"] {
        assert_eq!(echoed_over_udp(forward.address, client.as_bytes()), client.as_bytes());
    }
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.send_to(&[1; 4000], forward.address).unwrap();
    let failed = forward.until("failed");
    assert_eq!(failed["client"], json!(client.local_addr().unwrap()));
    assert!(failed["why"].as_str().unwrap().contains("4000 bytes"), "{failed}");
    signal(&forward.process, "INT");
    let ended = forward.until("ended");
    assert_eq!(ended["refused"], json!({ "datagram_too_large": 1 }));
    assert!(ended["bytes_sent"].as_u64().unwrap() > 0, "{ended}");
}

#[test]
fn a_daemon_forwards_what_its_configuration_says_while_relay_and_peer_come_and_go() {
    let (over_tcp, over_udp) = (echo_over_tcp(), echo_over_udp());
    let relay = Node::relay();
    let port = free_port();
    let [asking, asked] = [Node::with_identity(), Node::with_identity()];
    let [tcp, udp] = [free_port(), free_port()].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let forward = |listen: SocketAddr, to: SocketAddr, protocol: &str| {
        let peer = asked.id();
        format!(
            "[[agent.forward]]\nlisten = \"{listen}\"\npeer = \"{peer}\"\nto = \"{to}\"\nprotocol = \"{protocol}\"\n"
        )
    };
    let forwards = forward(tcp, over_tcp, "tcp") + &forward(udp, over_udp, "udp");
    asking.configure(&format!("{}{forwards}", relays(port)));
    let rules = permit(over_tcp, "tcp") + &permit(over_udp, "udp");
    asked.configure(&accepting(&asking, port, &rules));
    let checked = asking.run("config check");
    assert!(checked.code == 0 && !checked.stdout.contains("agent.forward"), "{checked:?}");

    // First of all: there is no relay to be reached.
    let _asking = Daemon(asking.start("net listen"));
    asking.until_logged("forwarding protocol=tcp");
    asking.until_logged("forwarding protocol=udp");
    let relay_words = format!("net listen --port {port} --datapath userspace");
    let relaying = Daemon(relay.start(&relay_words));
    let listening = Daemon(asked.start("net listen"));
    let both = || {
        until(|| echoed_over_tcp(tcp, b"over TCP").filter(|back| back == b"over TCP"));
        assert_eq!(echoed_over_udp(udp, b"over UDP"), b"over UDP");
    };
    both();
    asking.until_logged("the forward is connected");
    drop(listening);
    let listening = Daemon(asked.start("net listen"));
    both();
    drop(relaying);
    let relaying = Daemon(relay.start(&relay_words));
    both();
    drop((listening, relaying));
}

#[test]
fn a_daemon_whose_forward_has_no_port_says_which_key_to_change() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let agent = Node::with_identity();
    let rule = format!("listen = \"{address}\"\npeer = \"{}\"\nto = \"127.0.0.1:80\"\n", agent.id());
    agent.configure(&format!("{}[[agent.forward]]\n{rule}", relays(free_port())));
    agent
        .run("net listen")
        .fails_with(&[&format!("agent.forward.listen = \"{address}\""), &format!("TCP {address} is in use")]);
}

#[test]
fn an_identity_is_rotated_only_when_that_is_meant_and_the_old_key_is_kept() {
    let agent = Node::with_identity();
    let old = agent.id();
    agent.configure(&relays(free_port()));
    let asked = agent.run("id rotate");
    assert_eq!(asked.code, 1, "{asked:?}");
    assert!(asked.stderr.contains("id rotate --yes"), "{asked:?}");
    for broken in [&old, "[agent] accept", "[[agent.allow]]", "[access]"] {
        assert!(asked.stdout.contains(broken), "{broken}: {asked:?}");
    }
    assert_eq!(agent.id(), old);

    let running = Daemon(agent.start("net listen"));
    agent.until_it_answers("net peers");
    agent.run("id rotate --yes").fails_with(&[
        "a daemon runs with this key",
        "a service: `systemctl stop`",
        "--force",
    ]);
    assert_eq!(agent.id(), old);
    let rotated = read(&agent.run("id rotate --yes --force --json"));
    assert_eq!((&rotated["old_node_id"], &rotated["node_id"]), (&json!(old), &json!(agent.id())));
    let breaks: Vec<String> = serde_json::from_value(rotated["breaks"].clone()).unwrap();
    assert!(breaks.iter().any(|what| what.contains("until it is restarted")), "{breaks:?}");
    drop(running);

    let kept = rotated["kept"].as_str().unwrap();
    assert!(kept.starts_with(&agent.path("keys/node-key.2")), "{kept}");
    assert_eq!(fs::metadata(kept).unwrap().permissions().mode() & 0o777, 0o600);
    let second = agent.id();
    assert_ne!(second, old);
    // The old one put back is the old identity.
    fs::rename(kept, agent.path("keys/node-key.pem")).unwrap();
    assert_eq!(agent.id(), old);

    let relay = Node::relay();
    let told = relay.run("id rotate --yes");
    assert_eq!(told.code, 0, "{told:?}");
    for part in
        ["Old ID   : atlas_", &format!("Node ID  : {}", relay.id()), "Kept     : ", "state/known_relays"]
    {
        assert!(told.stdout.contains(part), "{part}: {told:?}");
    }
}

/// A relay that runs.
struct Network {
    relay: Node,
    port: u16,
    _relaying: Daemon,
}

impl Network {
    fn start() -> Network {
        let relay = Node::relay();
        let port = free_port();
        let relaying = Daemon(relay.start(&format!("net listen --port {port} --datapath userspace")));
        relay.until_it_answers("net peers");
        Network { relay, port, _relaying: relaying }
    }

    /// Two agents of which the second accepts the first, which is PEER in the rules.
    fn pair(&self, rules: &str) -> [Node; 2] {
        let [asking, asked] = [Node::with_identity(), Node::with_identity()];
        asking.configure(&relays(self.port));
        asked.configure(&accepting(&asking, self.port, rules));
        [asking, asked]
    }

    /// The node's daemon, announced.
    fn listen(&self, agent: &Node) -> Daemon {
        let daemon = Daemon(agent.start("net listen"));
        agent.until_logged("announced: other agents can find this one there");
        daemon
    }
}

fn relays(port: u16) -> String {
    format!("[network]\nrelays = [\"127.0.0.1:{port}\"]\n[transport]\nenable_relay = true\n")
}

/// A rule by which PEER may reach `to`.
fn permit(to: SocketAddr, protocol: &str) -> String {
    format!("[[agent.allow]]\npeer = \"PEER\"\nto = \"{to}\"\nprotocol = \"{protocol}\"\n")
}

/// The configuration of an agent that accepts `peer`, which is PEER in the rules.
fn accepting(peer: &Node, port: u16, rules: &str) -> String {
    format!("{}[agent]\naccept = [\"PEER\"]\n{rules}", relays(port)).replace("PEER", &peer.id())
}

/// A daemon that is stopped at the end.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        terminate(&self.0);
        wait(&mut self.0, Duration::from_secs(10));
    }
}

/// `net forward --json` from one node to the other.
struct Forward {
    process: Child,
    events: std::io::Lines<BufReader<ChildStdout>>,
    address: SocketAddr,
}

impl Forward {
    fn start(from: &Node, to: &Node, destination: SocketAddr, options: &str) -> Forward {
        let (peer, destination) = (to.id(), destination.to_string());
        let mut words = vec!["net", "forward", "--listen", "127.0.0.1:0", "--json"];
        words.extend(["--peer", &peer, "--to", &destination]);
        words.extend(options.split_whitespace());
        let mut process = from.command().args(words).stdout(Stdio::piped()).spawn().unwrap();
        let events = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut forward = Forward { process, events, address: SocketAddr::from(([0; 4], 0)) };
        let listening = forward.until("listening");
        forward.address = listening["address"].as_str().unwrap().parse().unwrap();
        forward
    }

    /// The next event of that name.
    fn until(&mut self, name: &str) -> Value {
        loop {
            let line = self.events.next().expect("more events").unwrap();
            let event: Value = serde_json::from_str(&line).unwrap();
            if event["event"] == name {
                return event;
            }
        }
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        terminate(&self.process);
        wait(&mut self.process, Duration::from_secs(10));
    }
}

fn short(node: &Node) -> String {
    format!("{}...", &node.id()[..22])
}

fn read(finished: &Finished) -> Value {
    assert_eq!(finished.code, 0, "{finished:?}");
    serde_json::from_str(&finished.stdout).unwrap()
}

fn until<T>(mut tried: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(done) = tried() {
            return done;
        }
        assert!(Instant::now() < deadline, "it has not come about");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn echo_over_tcp() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut back = stream.try_clone().unwrap();
                let _client_gone = std::io::copy(&mut stream, &mut back);
                let _client_gone = back.shutdown(std::net::Shutdown::Write);
            });
        }
    });
    address
}

fn echo_over_udp() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 65_535];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..len], from).unwrap();
        }
    });
    address
}

/// What comes back, if the connection is carried to its end.
fn echoed_over_tcp(address: SocketAddr, sent: &[u8]) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.write_all(sent).ok()?;
    stream.shutdown(std::net::Shutdown::Write).ok()?;
    let mut back = Vec::new();
    stream.read_to_end(&mut back).ok()?;
    Some(back)
}

/// What comes back, asked for until it does: UDP may lose it.
fn echoed_over_udp(address: SocketAddr, sent: &[u8]) -> Vec<u8> {
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(address).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut buffer = [0; 2000];
    until(|| {
        client.send(sent).unwrap();
        client.recv(&mut buffer).ok().map(|len| buffer[..len].to_vec())
    })
}
