//! A relay's control connections against peers that do not behave, over real QUIC on loopback.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test a panic is a failure")]

#[path = "control/abuse.rs"]
mod abuse;
#[path = "control/amplification.rs"]
mod amplification;
#[path = "control/probes.rs"]
mod probes;
mod relay_on_loopback;
#[path = "control/reload.rs"]
mod reload;

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use relay_userspace::admin::Request;
use relay_userspace::clock::MonoTime;
use relay_userspace::protocol::Message;
use relay_userspace::protocol::byte_fields::Bytes;
use relay_userspace::protocol::envelope;
use relay_userspace::protocol::flow_terms::{Pong, ProbeOutcome, ReadyStatus, RelayAnnounce};
use relay_userspace::protocol::frames::{FrameReader, write_frame};
use relay_userspace::protocol::handshake::{Initiator, Progress};
use relay_userspace::protocol::message::{Hello, Ping, Verify, VerifyStatus};
use relay_userspace::relay::report::Status;
use relay_userspace::relay::stopping::Stopping;
use relay_userspace::tls;

use relay_on_loopback::{TestRelay, key, unix_s};

#[tokio::test(flavor = "multi_thread")]
async fn an_announced_agent_is_listed_and_answered_on_the_stream_it_asked_on() {
    let relay = TestRelay::start("");
    let mut agent = Agent::connected(&relay, 1).await;
    agent.send(&announce(1)).await;
    assert!(
        matches!(agent.receive().await, Message::RelayReady(ready) if ready.status == ReadyStatus::Waiting)
    );
    assert!(relay.peers().await.peers[0].announced);

    let (mut send, receive) = agent.connection.open_bi().await.unwrap();
    write_frame(&mut send, &Ping::new(1_712_150_400).into()).await.unwrap();
    let mut receive = FrameReader::new(receive, 1000);
    let answer = receive.next().await.unwrap().unwrap();
    assert!(matches!(answer, Message::Pong(ref pong) if pong.echo == 1_712_150_400), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_connects_back_to_the_agents_own_address_three_times_and_no_more() {
    let relay = TestRelay::start("");
    let mut agent = Agent::connected(&relay, 1).await;
    let config = tls::server_config(&key(9), tls::ALPN_RELAY).unwrap();
    let there = Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
    let port = there.local_addr().unwrap().port();
    let who_came = tokio::spawn(async move {
        let connection = there.accept().await.unwrap().await.unwrap();
        tls::peer_node(&connection).unwrap()
    });
    let answered = agent.probed(port).await;
    assert_eq!(answered.probed, Some(ProbeOutcome::Answered));
    assert_eq!(answered.probed_at, Some(format!("127.0.0.1:{port}")));
    assert_eq!(answered.probed_node, Some(key(9).node_id().to_string()));
    assert_ne!(
        who_came.await.unwrap(),
        key(0).node_id(),
        "a proof of the relay's own key could be passed on"
    );

    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap();
    let silent = agent.probed(nobody.local_addr().unwrap().port()).await;
    assert_eq!((silent.probed, silent.probed_node), (Some(ProbeOutcome::Silent), None));
    let port_of_relay = relay.address.port();
    assert_eq!(agent.probed(port_of_relay).await.probed_node, Some(key(0).node_id().to_string()));

    let refused = agent.probed(port_of_relay).await;
    assert_eq!((refused.probed, refused.probed_at), (Some(ProbeOutcome::Refused), None));
    relay.has_refused("probe_limit").await;
    agent.send(&Ping::new(7).into()).await;
    let Message::Pong(plain) = agent.receive().await else { panic!("no Pong") };
    assert_eq!((plain.echo, plain.probed), (7, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_are_asked_to_acknowledge_by_their_next_message() {
    let relay = TestRelay::start("");
    let agent = Agent::connected(&relay, 1).await;
    // It comes with the first packet after TLS, and the handshake's last message in a later one.
    assert_eq!(agent.connection.stats().frame_rx.ack_frequency, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_id_that_is_not_the_keys_is_refused_with_1004() {
    let relay = TestRelay::start("");
    let mut agent = Agent::dialled(&relay, 1).await;
    agent.send(&Hello { node_id: key(2).node_id().to_string(), ..hello(1) }.into()).await;
    agent.is_refused(1004).await;
    relay.has_refused("handshake_failed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_not_the_certificates_is_refused_with_1004() {
    let relay = TestRelay::start("");
    let mut agent = Agent::dialled(&relay, 1).await;
    agent.send(&hello(2).into()).await;
    agent.is_refused(1004).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_signature_is_rejected_and_refused_with_1002() {
    let relay = TestRelay::start("");
    let mut agent = Agent::dialled(&relay, 1).await;
    agent.send(&hello(1).into()).await;
    let Message::HelloAck(ack) = agent.receive().await else { panic!() };
    let signature = Bytes(key(2).sign(&ack.challenge.0).to_vec());
    agent.send(&Verify { signature, challenge: ack.challenge }.into()).await;
    let Message::VerifyAck(verdict) = agent.receive().await else { panic!() };
    assert_eq!(verdict.status, VerifyStatus::Rejected);
    agent.is_refused(1002).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_off_by_more_than_is_allowed_is_refused_with_1002() {
    let relay = TestRelay::start("");
    for off in [-302, 302] {
        let mut agent = Agent::dialled(&relay, 1).await;
        agent.send(&Hello { timestamp: unix_s() + off, ..hello(1) }.into()).await;
        agent.is_refused(1002).await;
    }
    relay.has_refused("clock_drift").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_before_the_handshake_is_refused_with_2001() {
    let relay = TestRelay::start("");
    let mut agent = Agent::dialled(&relay, 1).await;
    agent.send(&announce(1)).await;
    agent.is_refused(2001).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_stands_still_is_refused_with_1003_after_ten_seconds() {
    let relay = TestRelay::start("");
    let mut agent = Agent::dialled(&relay, 1).await;
    agent.send(&hello(1).into()).await;
    let Message::HelloAck(_) = agent.receive().await else { panic!() };
    agent.is_refused(1003).await;
    relay.has_refused("handshake_timeout").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_are_not_sound_cost_their_sender_the_connection_and_nobody_else() {
    let relay = TestRelay::start("");
    let mut bystander = Agent::connected(&relay, 1).await;
    let too_large = envelope::MAX_CONTROL_PAYLOAD_LEN as u32 + 1;
    let [a, b, c, d] = too_large.to_be_bytes();
    let cases: [(&[u8], u32, &str); 5] = [
        (&[0xac, 1, 1, 0x77, 0, 0, 0, 1, 0x80], 2003, "unknown_message"),
        (&[0xac, 1, 1, 0x30, a, b, c, d], 2002, "frame_too_large"),
        (&[0xac, 1, 2, 0x30, 0, 0, 0, 1, 0x80], 1001, "bad_frame"),
        (b"GET / HTTP/1.1\r\n", 2003, "bad_frame"),
        (&[0xac, 1, 1, 0x30, 0, 0, 0, 1, 0x80], 2003, "bad_frame"),
    ];
    // Another agent each time: who does that thrice is banned.
    for (seed, (bytes, code, refusal)) in (2..).zip(cases) {
        let mut agent = Agent::connected(&relay, seed).await;
        agent.to_relay.write_all(bytes).await.unwrap();
        agent.is_refused(code).await;
        relay.has_refused(refusal).await;
    }
    bystander.send(&announce(1)).await;
    assert!(matches!(bystander.receive().await, Message::RelayReady(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_relay_does_not_take_is_answered_without_being_read() {
    let relay = TestRelay::start("");
    let mut agent = Agent::connected(&relay, 1).await;
    for type_byte in [0x01, 0x02, 0x03, 0x04, 0x10, 0x11, 0x20, 0x21, 0x22, 0x32, 0x33] {
        // 0xc1 is no MessagePack.
        agent.to_relay.write_all(&[0xac, 1, 1, type_byte, 0, 0, 0, 1, 0xc1]).await.unwrap();
        let Message::Error(error) = agent.receive().await else { panic!("{type_byte:x}") };
        assert_eq!((error.code, error.ref_msg_id), (2003, None));
    }
    relay.has_refused("unexpected_message").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_cut_short_costs_the_connection() {
    let relay = TestRelay::start("");
    let mut agent = Agent::connected(&relay, 1).await;
    agent.to_relay.write_all(&[0xac, 1, 1, 0x30, 0, 0, 0, 9, 0x80]).await.unwrap();
    agent.to_relay.finish().unwrap();
    agent.is_refused(2003).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_unfinished_frames_on_many_streams_cost_the_connection() {
    let relay = TestRelay::start("");
    let agent = Agent::connected(&relay, 1).await;
    let mut streams = Vec::new();
    for _ in 0..5 {
        let (mut send, receive) = agent.connection.open_bi().await.unwrap();
        // All but the last byte of the largest frame.
        let mut frame = vec![0xac, 1, 1, 0x30, 0, 1, 0, 0];
        frame.resize(envelope::MAX_CONTROL_PAYLOAD_LEN + 7, 0);
        let _the_fifth_may_be_stopped = send.write_all(&frame).await;
        streams.push((send, receive));
    }
    let ConnectionError::ApplicationClosed(close) = agent.connection.closed().await else { panic!() };
    assert_eq!(close.error_code, 2002_u32.into());
    relay.has_refused("frame_too_large").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_announce_in_another_nodes_name_is_refused_with_1004() {
    let relay = TestRelay::start("");
    let mut agent = Agent::connected(&relay, 1).await;
    agent.send(&announce(2)).await;
    agent.is_refused(1004).await;
    relay.has_refused("foreign_identity").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_agents_than_are_allowed_are_refused_and_places_become_free_again() {
    let relay = TestRelay::start("max_connections = 1");
    let first = Agent::seated(&relay, 1).await;
    Agent::greets(&relay, 2).await.is_refused(3005).await;
    relay.has_refused("connections_full").await;
    first.connection.close(0_u8.into(), b"");
    first.endpoint.wait_idle().await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    while !Agent::dialled(&relay, 2).await.is_let_in(2).await {
        assert!(tokio::time::Instant::now() < deadline, "the place is free again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_many_handshakes_of_one_source_under_way_addresses_are_validated_and_agents_still_get_in() {
    let relay = TestRelay::start("");
    let mut silent = Vec::new();
    for _ in 0..13 {
        silent.push(Agent::dialled(&relay, 1).await);
    }
    assert_eq!(relay.ask::<Status>(Request::Status).await.control["retry_demanded"], 0);
    let mut agent = Agent::connected(&relay, 2).await;
    relay.has_refused("retry_demanded").await;
    agent.send(&announce(2)).await;
    assert!(matches!(agent.receive().await, Message::RelayReady(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_has_as_many_streams_as_are_configured() {
    let relay = TestRelay::start("max_streams_per_conn = 2");
    // The first is the handshake's.
    let agent = Agent::connected(&relay, 1).await;
    let second = agent.connection.open_bi().await.unwrap();
    let mut third = std::pin::pin!(agent.connection.open_bi());
    tokio::select! {
        biased;
        _ = &mut third => panic!("a third stream"),
        () = std::future::ready(()) => {}
    }
    let (mut send, mut receive) = second;
    write_frame(&mut send, &Ping::new(1).into()).await.unwrap();
    send.finish().unwrap();
    receive.read_to_end(1000).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), third).await.expect("the second has ended").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_may_be_off_by_as_much_as_is_configured() {
    let relay = TestRelay::start("[security]\nmax_clock_drift_secs = 1000");
    let mut agent = Agent::dialled(&relay, 1).await;
    agent.send(&Hello { timestamp: unix_s() - 900, ..hello(1) }.into()).await;
    assert!(matches!(agent.receive().await, Message::HelloAck(_)));
    let mut agent = Agent::dialled(&relay, 2).await;
    agent.send(&Hello { timestamp: unix_s() - 1100, ..hello(2) }.into()).await;
    agent.is_refused(1002).await;
    relay.has_refused("clock_drift").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_source_cannot_take_every_place() {
    let relay = TestRelay::start("max_connections = 40");
    let mut held = Vec::new();
    for _ in 0..32 {
        held.push(Agent::seated(&relay, 1).await);
    }
    Agent::greets(&relay, 2).await.is_refused(3005).await;
    relay.has_refused("prefix_connections_full").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_alpn_is_refused() {
    let relay = TestRelay::start("");
    let mut endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
    endpoint.set_default_client_config(tls::client_config(&key(1), tls::ALPN_PEER, None).unwrap());
    let refused = endpoint.connect(relay.address, tls::SERVER_NAME).unwrap().await;
    assert!(matches!(refused, Err(ConnectionError::ConnectionClosed(_))), "{refused:?}");
    relay.has_refused("tls_failed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn once_a_relay_has_stopped_another_can_have_its_port() {
    let start_on = |port| TestRelay::start_with("", |config| config.network.port = port);
    // Below those that the kernel gives to who asks for any.
    let first = 20_000 + (std::process::id() % 10_000) as u16;
    let mut present = (first..).find_map(|port| start_on(port).ok()).unwrap();
    for _ in 0..20 {
        let (relay, running) = present;
        let _agents = [Agent::connected(&relay, 1).await, Agent::connected(&relay, 2).await];
        relay.stopper.stop(Stopping::End);
        running.stopped().await.unwrap();
        present = start_on(relay.address.port()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_changes_its_address_stays_connected() {
    let relay = TestRelay::start("");
    let mut agent = Agent::connected(&relay, 1).await;
    let before = relay.peers().await.peers[0].address.clone();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let after = socket.local_addr().unwrap().to_string();
    agent.endpoint.rebind(socket).unwrap();
    agent.send(&Ping::new(1).into()).await;
    assert!(matches!(agent.receive().await, Message::Pong(_)));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        let address = relay.peers().await.peers[0].address.clone();
        if address == after {
            break;
        }
        assert_eq!(address, before);
        assert!(tokio::time::Instant::now() < deadline, "the relay has noticed the move");
        tokio::task::yield_now().await;
    }
}

impl TestRelay {
    /// The refusal is counted. The agent may know of it before the driver does.
    async fn has_refused(&self, refusal: &str) {
        let counted = async {
            while self.ask::<Status>(Request::Status).await.control[refusal] == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), counted).await.expect(refusal);
    }
}

/// A connection that says what the test wants.
struct Agent {
    endpoint: Endpoint,
    connection: Connection,
    to_relay: SendStream,
    from_relay: FrameReader<RecvStream>,
}

impl Agent {
    async fn dial(relay: &TestRelay, seed: u8) -> Result<(Endpoint, Connection), ConnectionError> {
        let mut endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
        let config = tls::client_config(&key(seed), tls::ALPN_RELAY, Some(key(0).node_id())).unwrap();
        endpoint.set_default_client_config(config);
        let connection = endpoint.connect(relay.address, tls::SERVER_NAME).unwrap().await?;
        Ok((endpoint, connection))
    }

    /// TLS is done, the handshake is not.
    async fn dialled(relay: &TestRelay, seed: u8) -> Agent {
        let (endpoint, connection) = Agent::dial(relay, seed).await.unwrap();
        let (to_relay, from_relay) = connection.open_bi().await.unwrap();
        let from_relay = FrameReader::new(from_relay, envelope::MAX_CONTROL_PAYLOAD_LEN);
        Agent { endpoint, connection, to_relay, from_relay }
    }

    /// TLS is done and the handshake begun. Before, the relay has no stream to say anything on.
    async fn greets(relay: &TestRelay, seed: u8) -> Agent {
        let mut agent = Agent::dialled(relay, seed).await;
        agent.send(&hello(seed).into()).await;
        agent
    }

    /// The handshake is done.
    async fn connected(relay: &TestRelay, seed: u8) -> Agent {
        let mut agent = Agent::dialled(relay, seed).await;
        assert!(agent.is_let_in(seed).await);
        agent
    }

    /// As [`Agent::connected`], and it has its seat: that is taken after it was let in, and before it is served.
    async fn seated(relay: &TestRelay, seed: u8) -> Agent {
        let mut agent = Agent::connected(relay, seed).await;
        agent.send(&Ping::new(1).into()).await;
        assert!(matches!(agent.receive().await, Message::Pong(_)));
        agent
    }

    /// Does the handshake. False: the relay refuses.
    async fn is_let_in(&mut self, seed: u8) -> bool {
        let name = format!("agent-{seed}");
        let (mut initiator, hello) =
            Initiator::new(&key(seed), &name, key(0).public(), MonoTime::now(), unix_s());
        self.send(&hello).await;
        loop {
            let message = self.receive().await;
            match initiator.handle(message, MonoTime::now()) {
                Ok(Progress::Send(message)) => self.send(&message).await,
                Ok(Progress::Done { .. }) => return true,
                Err(_) => return false,
            }
        }
    }

    /// The answer to a Ping that asks the relay to connect back.
    async fn probed(&mut self, port: u16) -> Pong {
        self.send(&Ping { probe: Some(port), ..Ping::new(5) }.into()).await;
        let Message::Pong(pong) = self.receive().await else { panic!("no Pong") };
        assert_eq!(pong.echo, 5);
        pong
    }

    async fn send(&mut self, message: &Message) {
        write_frame(&mut self.to_relay, message).await.unwrap();
    }

    async fn receive(&mut self) -> Message {
        self.from_relay.next().await.unwrap().unwrap()
    }

    /// The relay answers with an Error of this code and closes the connection with it.
    async fn is_refused(&mut self, code: u32) {
        let Message::Error(error) = self.receive().await else { panic!("no error") };
        assert_eq!(error.code, code, "{}", error.message);
        let ConnectionError::ApplicationClosed(close) = self.connection.closed().await else { panic!() };
        assert_eq!(close.error_code, code.into());
    }
}

fn hello(seed: u8) -> Hello {
    Hello {
        node_id: key(seed).node_id().to_string(),
        name: String::new(),
        skills: Vec::new(),
        operator: None,
        wallet: None,
        public_key: Bytes(key(seed).public().as_bytes().to_vec()),
        protocol_v: 1,
        timestamp: unix_s(),
    }
}

fn announce(seed: u8) -> Message {
    let node_id = key(seed).node_id().to_string();
    RelayAnnounce { node_id, timestamp: unix_s(), flow: None, allow: None }.into()
}
