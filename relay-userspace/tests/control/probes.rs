//! A relay whose operator has an agent connect to it anew.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use relay_userspace::admin::{self, AskError, Request};
use relay_userspace::agent::{Agent as RealAgent, AgentSettings};
use relay_userspace::config::AtlasRoot;
use relay_userspace::identity::NodeId;
use relay_userspace::probe::{Probed, ProbedRelay};
use relay_userspace::protocol::Message;
use relay_userspace::protocol::flow_terms::{FLOW, Ping, Pong, RelayAnnounce};
use relay_userspace::relay::bans::BanSubject;
use relay_userspace::relay::prefix::Prefix;
use relay_userspace::relay::report::{Ban, Status};
use tokio::net::UdpSocket;

use super::{Agent, TestRelay, key, unix_s};

impl TestRelay {
    /// What is answered to whoever asks at the admin socket.
    async fn probe_from(&self, agent: NodeId) -> Result<Probed, String> {
        let socket = AtlasRoot::at(self.directory.path()).admin_socket();
        let asking = move || admin::ask(&socket, Request::Probe { agent });
        match tokio::task::spawn_blocking(asking).await.unwrap() {
            Ok(answer) => {
                let ProbedRelay { relay, probed } = serde_json::from_value(answer).unwrap();
                assert_eq!(relay, key(0).node_id());
                Ok(probed)
            }
            Err(AskError::Refused(why)) => Err(why),
            Err(error) => panic!("{error}"),
        }
    }

    /// An agent of the library that is announced, and that knows the relay at `address`.
    async fn real_agent(&self, seed: u8, address: SocketAddr) -> RealAgent {
        let relay = format!("{}@{address}", key(0).node_id()).parse().unwrap();
        let known_relays = self.directory.path().join("known-relays");
        let agent = RealAgent::spawn(AgentSettings {
            announce: true,
            ..AgentSettings::dialer(key(seed), "real", vec![relay], known_relays)
        });
        let announced = async {
            while !self.peers().await.peers.iter().any(|peer| peer.announced) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), announced).await.expect("no agent is announced");
        agent
    }
}

impl Agent {
    /// As one that knows what is beyond the documented messages.
    async fn announced_with_flow(relay: &TestRelay, seed: u8) -> Agent {
        let mut agent = Agent::connected(relay, seed).await;
        let node_id = key(seed).node_id().to_string();
        let announce = RelayAnnounce { node_id, timestamp: unix_s(), flow: Some(FLOW), allow: None };
        agent.send(&announce.into()).await;
        assert!(matches!(agent.receive().await, Message::RelayReady(_)));
        agent
    }

    /// Waits for the relay's question, and answers it.
    async fn answers(&mut self, answer: impl FnOnce(&Ping) -> Pong) -> Ping {
        let Message::Ping(ping) = self.receive().await else { panic!("no Ping") };
        self.send(&answer(&ping).into()).await;
        ping
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_connects_anew_and_tells_the_relays_operator_who_answers() {
    let relay = TestRelay::start("");
    let _agent = relay.real_agent(1, relay.address).await;
    let answered = Probed::Answered { at: relay.address, node: key(0).node_id() };
    assert_eq!(relay.probe_from(key(1).node_id()).await, Ok(answered));

    // It is counted as what it was, and not as a handshake that failed. One that fails comes after it.
    relay.has_refused("only_probed").await;
    let (endpoint, connection) = Agent::dial(&relay, 2).await.unwrap();
    connection.close(0_u8.into(), b"");
    endpoint.wait_idle().await;
    relay.has_refused("handshake_failed").await;
    let refused = relay.ask::<Status>(Request::Status).await.control;
    assert_eq!(["only_probed", "handshake_failed"].map(|reason| refused[reason]), [1, 1]);
}

/// Another port at which the relay at `relay` is reached, as through a router that translates.
async fn translated(relay: SocketAddr) -> SocketAddr {
    let outside = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let at = outside.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut inside, mut buffer) = (BTreeMap::new(), [0; 2048]);
        while let Ok((length, from)) = outside.recv_from(&mut buffer).await {
            let socket = match inside.entry(from) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => {
                    let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                    socket.connect(relay).await.unwrap();
                    tokio::spawn(send_back(Arc::clone(&socket), Arc::clone(&outside), from));
                    new.insert(socket)
                }
            };
            let _sent = socket.send(&buffer[..length]).await;
        }
    });
    at
}

async fn send_back(inside: Arc<UdpSocket>, outside: Arc<UdpSocket>, to: SocketAddr) {
    let mut buffer = [0; 2048];
    while let Ok(length) = inside.recv(&mut buffer).await {
        let _sent = outside.send_to(&buffer[..length], to).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_connects_to_where_it_has_reached_the_relay_and_not_to_the_port_that_the_relay_has_or_advertises()
 {
    let advertised = "[2001:db8::1]:9".parse().unwrap();
    let (relay, _running) =
        TestRelay::start_with("", |config| config.network.advertise = vec![advertised]).unwrap();
    let outside = translated(relay.address).await;
    let _agent = relay.real_agent(1, outside).await;
    let answered = Probed::Answered { at: outside, node: key(0).node_id() };
    assert_eq!(relay.probe_from(key(1).node_id()).await, Ok(answered));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_prefix_is_banned_is_not_asked_to_connect_anew() {
    let relay = TestRelay::start("");
    let mut agent = Agent::announced_with_flow(&relay, 1).await;
    let subject = BanSubject::Prefix(Prefix::of(relay.address.ip()));
    let _banned: Ban = relay.ask(Request::AddBan { subject, seconds: Some(60) }).await;
    let why = relay.probe_from(key(1).node_id()).await.unwrap_err();
    assert!(why.contains("no new connection from 127.0.0.1") && why.contains("`bans` says why"), "{why}");
    agent.send(&Ping::new(7).into()).await;
    let next = agent.receive().await;
    assert!(matches!(next, Message::Pong(ref pong) if pong.echo == 7), "it was asked: {next:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_agents_answer_is_told_as_far_as_it_makes_sense() {
    let relay = TestRelay::start("");
    let node = key(1).node_id();
    assert_eq!(relay.probe_from(node).await, Ok(Probed::NotConnected));

    let mut documented = Agent::seated(&relay, 1).await;
    assert_eq!(relay.probe_from(node).await, Ok(Probed::NotKnown));
    documented.send(&Ping::new(7).into()).await;
    let Message::Pong(pong) = documented.receive().await else {
        panic!("it was sent what is not documented")
    };
    assert_eq!(pong.echo, 7);

    let mut agent = Agent::announced_with_flow(&relay, 1).await;
    let at = "192.0.2.1:4433".parse().unwrap();
    let good = |ping: &Ping| Probed::Answered { at, node }.answer(unix_s(), ping.ts);
    let (told, ping) = tokio::join!(relay.probe_from(node), agent.answers(good));
    assert_eq!(told, Ok(Probed::Answered { at, node }));
    assert_eq!(ping.probe, Some(relay.address.port()));
    let (told, _) = tokio::join!(relay.probe_from(node), agent.answers(|ping| Pong::new(1, ping.ts)));
    assert_eq!(told, Ok(Probed::NotKnown));
    let escape = |ping: &Ping| Pong { probed_node: Some("\u{1b}[2J".to_owned()), ..good(ping) };
    let (told, _) = tokio::join!(relay.probe_from(node), agent.answers(escape));
    assert_eq!(told, Err("the agent's answer makes no sense".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_does_not_answer_keeps_nobody_from_asking_something_else_and_is_given_up() {
    let relay = TestRelay::start("");
    let node = key(1).node_id();
    let mut agent = Agent::announced_with_flow(&relay, 1).await;
    let others = async {
        assert!(matches!(agent.receive().await, Message::Ping(_)));
        assert_eq!(relay.peers().await.peers.len(), 1);
        relay.probe_from(node).await.unwrap_err()
    };
    let (given_up, meanwhile) = tokio::join!(relay.probe_from(node), others);
    assert!(meanwhile.contains("being asked already"), "{meanwhile}");
    let given_up = given_up.unwrap_err();
    assert!(given_up.contains("has not answered within"), "{given_up}");

    let leaves = async {
        assert!(matches!(agent.receive().await, Message::Ping(_)));
        agent.connection.close(0_u8.into(), b"");
    };
    let (told, ()) = tokio::join!(relay.probe_from(node), leaves);
    assert!(told.as_ref().is_err_and(|why| why.contains("ended before it answered")), "{told:?}");
}
