//! Daemons that register with a bootstrap node. That one is the test's own: it knows the documented messages, over real
//! QUIC on loopback.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test a panic is a failure")]

use std::fs;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quinn::{Endpoint, Incoming};
use relay_userspace::clock::MonoTime;
use relay_userspace::identity::{NodeId, NodeKey};
use relay_userspace::protocol::Message;
use relay_userspace::protocol::flow_terms::ErrorMessage;
use relay_userspace::protocol::frames::{FrameReader, write_frame};
use relay_userspace::protocol::handshake::{Progress, Responder};
use relay_userspace::protocol::message::{AckStatus, BootstrapRegistration, MessageAck};
use relay_userspace::tls;
use tempfile::TempDir;
use tokio::sync::mpsc;

const RELAY: &str =
    "[transport]\nenable_relay = true\noffer_relay = true\n[datapath]\nmode = \"userspace\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_registers_where_it_listens() {
    let mut bootstrap = BootstrapNode::start(Vec::new());
    let relay =
        Daemon::start(&format!("{RELAY}[network]\nbootstrap = [\"{}\"]\n", bootstrap.address), "--port 0");
    let Registered { node, registration, .. } = bootstrap.next().await;
    assert_eq!((&registration.node_id, node), (&relay.id, relay.id.parse().unwrap()));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    assert!((now - registration.timestamp).abs() < 60, "{registration:?} at {now}");
    // Whoever is told this address finds this relay there.
    let dialler = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let config = tls::client_config(&NodeKey::from_seed(&[7; 32]), tls::ALPN_RELAY, Some(node)).unwrap();
    let address: SocketAddr = registration.address.parse().unwrap();
    dialler.connect_with(config, address, tls::SERVER_NAME).unwrap().await.unwrap();
    relay.until_logged("INFO registered with the bootstrap node").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_advertises_an_address_registers_that() {
    let mut bootstrap = BootstrapNode::start(Vec::new());
    let advertise = "[network]\nadvertise = [\"198.51.100.7:4433\", \"[2001:db8::7]:4433\"]\n";
    let options = format!("--port 0 --bootstrap {}", bootstrap.address);
    let _relay = Daemon::start(&format!("{RELAY}{advertise}"), &options);
    assert_eq!(bootstrap.next().await.registration.address, "198.51.100.7:4433");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_registers_where_it_dials_from() {
    let mut bootstrap = BootstrapNode::start(Vec::new());
    let agent = Daemon::start(
        &format!(
            "[network]\nrelays = [\"127.0.0.1:9\"]\nbootstrap = [\"{}\"]\n[transport]\nenable_relay = true\n",
            bootstrap.address
        ),
        "",
    );
    let Registered { node, registration, from } = bootstrap.next().await;
    assert_eq!((node.to_string(), &registration.node_id), (agent.id.clone(), &agent.id));
    assert_eq!(registration.address, from.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_registration_is_told_once_and_tried_again_until_it_is_taken() {
    let full = || ErrorMessage {
        code: 2003,
        message: "full\u{1b}[2J".to_owned(),
        ref_msg_id: None,
        session: None,
        packets: None,
        bytes: None,
    };
    let waiting = MessageAck { msg_id: String::new(), status: AckStatus::Waiting };
    let mut bootstrap = BootstrapNode::start(vec![full().into(), full().into(), waiting.into()]);
    let relay =
        Daemon::start(&format!("{RELAY}[network]\nbootstrap = [\"{}\"]\n", bootstrap.address), "--port 0");
    for _ in 0..4 {
        bootstrap.next().await;
    }
    relay.until_logged("INFO registered with the bootstrap node").await;
    let log = relay.log();
    let told = |words: &str| log.lines().filter(|line| line.contains(words)).count();
    assert_eq!(told("it does not register this node: 2003 full[2J"), 1, "{log}");
    assert_eq!(told("it does not register this node: it answers waiting, not registered"), 1, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_is_no_bootstrap_node() {
    let mut bootstrap = BootstrapNode::start(Vec::new());
    let _relay =
        Daemon::start(&format!("{RELAY}[network]\nbootstrap = [\"{}\"]\n", bootstrap.address), "--port 0");
    let relay = bootstrap.next().await.registration.address;
    let agent = Daemon::start(
        &format!("[network]\nrelays = [\"{relay}\"]\n[transport]\nenable_relay = true\n"),
        &format!("--bootstrap {relay}"),
    );
    agent.until_logged("it does not register this node: 2003").await;
}

/// Answers registrations as told, then with `registered`.
struct BootstrapNode {
    address: SocketAddr,
    registered: mpsc::UnboundedReceiver<Registered>,
}

struct Registered {
    /// Who has proved to be it.
    node: NodeId,
    registration: BootstrapRegistration,
    from: SocketAddr,
}

impl BootstrapNode {
    /// The first registrations get `answers`.
    fn start(answers: Vec<Message>) -> BootstrapNode {
        let key = NodeKey::from_seed(&[9; 32]);
        let server = tls::server_config(&key, tls::ALPN_RELAY).unwrap();
        let endpoint = Endpoint::server(server, "127.0.0.1:0".parse().unwrap()).unwrap();
        let address = endpoint.local_addr().unwrap();
        let (told, registered) = mpsc::unbounded_channel();
        let (answers, key) = (Arc::new(std::sync::Mutex::new(answers.into_iter())), Arc::new(key));
        tokio::spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let next = || answers.lock().unwrap().next();
                let answer = next().unwrap_or_else(|| {
                    MessageAck { msg_id: String::new(), status: AckStatus::Registered }.into()
                });
                tokio::spawn(take_registration(incoming, Arc::clone(&key), answer, told.clone()));
            }
        });
        BootstrapNode { address, registered }
    }

    async fn next(&mut self) -> Registered {
        let registered = tokio::time::timeout(Duration::from_secs(60), self.registered.recv()).await;
        registered.expect("nobody registers").unwrap()
    }
}

async fn take_registration(
    incoming: Incoming,
    key: Arc<NodeKey>,
    answer: Message,
    told: mpsc::UnboundedSender<Registered>,
) {
    let connection = incoming.await.unwrap();
    let (mut send, receive) = connection.accept_bi().await.unwrap();
    let mut receive = FrameReader::new(receive, 65_536);
    let peer = tls::peer_key(&connection).unwrap();
    let drift = Duration::from_secs(300);
    let mut responder = Responder::new(&key, "bootstrap", peer, [3; 32], drift, MonoTime::now());
    loop {
        let message = receive.next().await.unwrap().unwrap();
        let unix_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        match responder.handle(message, MonoTime::now(), unix_s).unwrap() {
            Progress::Send(message) => write_frame(&mut send, &message).await.unwrap(),
            Progress::Done { send: last, .. } => {
                write_frame(&mut send, &last.unwrap()).await.unwrap();
                break;
            }
        }
    }
    let Message::BootstrapRegister(registration) = receive.next().await.unwrap().unwrap() else { panic!() };
    let from = connection.remote_address();
    write_frame(&mut send, &answer).await.unwrap();
    let _test_is_over = told.send(Registered { node: peer.node_id(), registration, from });
    // The answer arrives before the registrant leaves.
    connection.closed().await;
}

/// A `net listen` of its own, ended with the test.
struct Daemon {
    root: TempDir,
    process: Child,
    id: String,
}

impl Daemon {
    fn start(configuration: &str, options: &str) -> Daemon {
        let root = tempfile::tempdir().unwrap();
        let command = || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_atlas-relay"));
            command.env("ATLAS_ROOT", root.path()).env_remove("RUST_LOG").stdin(Stdio::null());
            command
        };
        assert!(command().args(["id", "init"]).stdout(Stdio::null()).status().unwrap().success());
        fs::create_dir_all(root.path().join("state")).unwrap();
        fs::write(root.path().join("state/config.toml"), configuration).unwrap();
        let shown = command().args(["id", "show", "--json"]).output().unwrap().stdout;
        let shown: serde_json::Value = serde_json::from_slice(&shown).unwrap();
        let id = shown["node_id"].as_str().unwrap().to_owned();
        let log = fs::File::create(root.path().join("log")).unwrap();
        let listen = ["net", "listen"].into_iter().chain(options.split_whitespace());
        let process = command().args(listen).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Daemon { root, process, id }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.root.path().join("log")).unwrap()
    }

    async fn until_logged(&self, words: &str) {
        let logged = async {
            while !self.log().contains(words) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let logged = tokio::time::timeout(Duration::from_secs(60), logged).await;
        assert!(logged.is_ok(), "{words:?} is missing: {}", self.log());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _it_has_ended = self.process.kill();
        let _reaped = self.process.wait();
    }
}
