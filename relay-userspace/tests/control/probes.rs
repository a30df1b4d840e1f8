//! A relay whose operator has an agent connect to it anew.

use std::net::UdpSocket;

use relay_userspace::admin::{self, AskError, Request};
use relay_userspace::agent::{Agent as RealAgent, AgentSettings};
use relay_userspace::config::AtlasRoot;
use relay_userspace::identity::NodeId;
use relay_userspace::probe::{self, Probed};
use relay_userspace::protocol::Message;
use relay_userspace::protocol::flow_terms::{FLOW, Ping, Pong, RelayAnnounce};

use super::{Agent, TestRelay, key, unix_s};

impl TestRelay {
    /// What is answered to whoever asks at the admin socket.
    async fn probe_from(&self, agent: NodeId) -> Result<Probed, String> {
        let socket = AtlasRoot::at(self.directory.path()).admin_socket();
        let asking = move || admin::ask(&socket, Request::Probe { agent });
        match tokio::task::spawn_blocking(asking).await.unwrap() {
            Ok(answer) => Ok(serde_json::from_value(answer).unwrap()),
            Err(AskError::Refused(why)) => Err(why),
            Err(error) => panic!("{error}"),
        }
    }

    /// An agent of the library that is announced.
    async fn real_agent(&self, seed: u8) -> RealAgent {
        let relay = format!("{}@{}", key(0).node_id(), self.address).parse().unwrap();
        let known_relays = self.directory.path().join("known-relays");
        let agent = RealAgent::spawn(AgentSettings {
            announce: true,
            ..AgentSettings::dialer(key(seed), "real", vec![relay], known_relays)
        });
        while !self.peers().await.peers.iter().any(|peer| peer.announced) {
            tokio::task::yield_now().await;
        }
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
    let _agent = relay.real_agent(1).await;
    let answered = Probed::Answered { at: relay.address, node: key(0).node_id() };
    assert_eq!(relay.probe_from(key(1).node_id()).await, Ok(answered));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_tries_the_advertised_port_at_the_address_that_it_is_connected_to() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = silent.local_addr().unwrap();
    let advertised = format!("192.0.2.77:{}", at.port()).parse().unwrap();
    let (relay, _running) =
        TestRelay::start_with("", |config| config.network.advertise = vec![advertised]).unwrap();
    let _agent = relay.real_agent(1).await;
    assert_eq!(relay.probe_from(key(1).node_id()).await, Ok(Probed::Silent { at }));
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
    let good = |ping: &Ping| probe::answer(unix_s(), ping.ts, at, Some(node));
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
