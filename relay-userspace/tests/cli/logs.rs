//! The forms of the log.

use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixDatagram;
use std::process::Child;

use serde_json::Value;

use super::*;

#[test]
fn a_log_in_json_is_an_object_a_line_and_a_session_can_be_followed_by_its_id() {
    let relay = Node::relay();
    let port = free_port();
    let mut relaying =
        relay.start(&format!("net listen --port {port} --datapath userspace --log-format json"));
    relay.until_it_answers("net peers");
    let [asking, asked] = [Node::with_identity(), Node::with_identity()];
    let relays = format!("[network]\nrelays = [\"127.0.0.1:{port}\"]\n[transport]\nenable_relay = true\n");
    asking.configure(&relays);
    asked.configure(&format!("{relays}[agent]\naccept = [\"{}\"]\n", asking.id()));
    let mut waiting = asked.start("net listen --log-format json");
    relay.until_logged("agent announced");
    assert!(
        asking.run(&format!("net ping {} --count 2 --interval-ms 1", asked.id())).stdout.contains("2 of 2")
    );
    relay.until_logged("session ended");
    for daemon in [&mut waiting, &mut relaying] {
        terminate(daemon);
        assert_eq!(wait(daemon, Duration::from_secs(10)), Some(0));
    }

    let lines: Vec<Value> = log_of(&relay);
    assert!(lines.iter().all(|line| line["timestamp"].is_string() && line["level"].is_string()), "{lines:?}");
    let of = |message: &str| lines.iter().find(|line| line["message"] == message).unwrap();
    let offered = of("session offered");
    assert_eq!((&offered["connector"], &offered["target"]), (&asking.id().into(), &asked.id().into()));
    let session = offered["session"].as_str().unwrap();
    let of_session = lines.iter().filter(|line| line["session"] == session);
    let said: Vec<&str> = of_session.map(|line| line["message"].as_str().unwrap()).collect();
    assert_eq!(said, ["session offered", "side bound", "side bound", "session paired", "session ended"]);
    let ended = of("session ended");
    assert!(ended["duration_ms"].is_u64() && ended["connector_bytes"].as_u64() > Some(0), "{ended}");
    // The agent's, too.
    let of_agent = log_of(&asked);
    assert!(
        of_agent.iter().any(|line| line["session"] == session && line["message"] == "paired"),
        "{of_agent:?}"
    );
}

#[test]
fn a_log_for_the_journal_goes_there_with_its_fields_and_nowhere_else() {
    const NAME: &str = "a_log_for_the_journal_goes_there_with_its_fields_and_nowhere_else";
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return skipping::skip(NAME, "needs root, for a journal of its own");
    }
    let node = Node::relay();
    let journal = node.path("journal");
    fs::create_dir(&journal).unwrap();
    let socket = UnixDatagram::bind(Path::new(&journal).join("socket")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let listen = format!("net listen --port {} --datapath userspace --log-format journald", free_port());
    let there = format!("mkdir -p /run/systemd/journal && mount --bind '{journal}' /run/systemd/journal");
    let mut relaying = apart(&node, &there, &listen);
    let mut entry = vec![0; 65_536];
    let entry = loop {
        let len = socket.recv(&mut entry).unwrap();
        let text = String::from_utf8_lossy(&entry[..len]).into_owned();
        if text.contains("relay listening") {
            break text;
        }
    };
    // A field is its name on a line, its length, and its value.
    let fields: Vec<&str> = entry.lines().collect();
    for field in ["PRIORITY", "SYSLOG_IDENTIFIER", "ATLAS_NODE", "ATLAS_DATAPATH"] {
        assert!(fields.contains(&field), "{field} in {entry}");
    }
    assert!(entry.contains(&node.id()), "{entry}");
    terminate(&relaying);
    assert_eq!(wait(&mut relaying, Duration::from_secs(10)), Some(0));
    assert_eq!(fs::read_to_string(node.path("log")).unwrap(), "");
    let mut without = apart(&node, "true", &listen);
    assert_eq!(wait(&mut without, Duration::from_secs(10)), Some(1));
    let log = fs::read_to_string(node.path("log")).unwrap();
    assert!(log.starts_with("error: --log-format journald: there is no systemd journal here"), "{log}");
}

/// Runs the program where no journal is but what a script has put there; what it says on stderr is the node's log.
fn apart(node: &Node, script: &str, words: &str) -> Child {
    let script = &format!("mount -t tmpfs none /run && {script} && exec {BINARY} {words}");
    let log = fs::File::create(node.path("log")).unwrap();
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", script])
        .env("ATLAS_ROOT", node.path(""))
        .stdout(Stdio::null())
        .stderr(log);
    command.spawn().unwrap()
}

fn log_of(node: &Node) -> Vec<Value> {
    let text = fs::read_to_string(node.path("log")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
}
