//! Who does what no sound agent does is refused, and after some time of that banned; nobody else is disturbed.

use std::sync::Arc;

use quinn::crypto::rustls::QuicClientConfig;
use relay_userspace::protocol::flow_terms::{ErrorMessage, FLOW, RelayConnect};
use relay_userspace::relay::report::{Bans, Lifted};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn three_failed_handshakes_ban_a_node_and_neither_its_connections_nor_its_neighbours() {
    let relay = TestRelay::start("");
    let mut before = Agent::connected(&relay, 1).await;
    for _ in 0..3 {
        fail_a_handshake(&relay, 1).await;
    }

    let text = Agent::greets(&relay, 1).await.is_refused_saying(4001).await;
    assert!(text.contains("banned for 3"), "{text}");
    relay.has_refused("banned_node").await;
    still_serves(&mut before).await;
    still_serves(&mut Agent::connected(&relay, 2).await).await;

    let bans: Bans = relay.ask(Request::Bans).await;
    let [ban] = &bans.bans[..] else { panic!("{bans:?}") };
    assert_eq!((&*ban.subject, &*ban.kind, &*ban.why), (&*id(1), "node", "handshake_failed"));
    assert!((3590..=3600).contains(&ban.left_s), "{ban:?}");

    let subject = id(1).parse().unwrap();
    let lifted: Lifted = relay.ask(Request::LiftBan { subject }).await;
    assert!(lifted.lifted);
    Agent::connected(&relay, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_sound_agent_may_do_bans_nobody() {
    let relay = TestRelay::start("");
    for _ in 0..4 {
        let mut wrong_clock = Agent::dialled(&relay, 1).await;
        wrong_clock.send(&Hello { timestamp: unix_s() - 1000, ..hello(1) }.into()).await;
        wrong_clock.is_refused(1002).await;
        let mut other_version = Agent::dialled(&relay, 1).await;
        other_version.send(&Hello { protocol_v: 2, ..hello(1) }.into()).await;
        other_version.is_refused(1001).await;
        let mut gives_up = Agent::dialled(&relay, 1).await;
        gives_up.send(&hello(1).into()).await;
        gives_up.connection.close(0_u8.into(), b"");
    }
    Agent::connected(&relay, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn abuse_after_the_handshake_bans_a_node_too() {
    let relay = TestRelay::start("");
    Agent::connected(&relay, 1).await.send_unsound_frame().await;
    let mut agent = Agent::connected(&relay, 1).await;
    agent.send(&announce(2)).await;
    agent.is_refused(1004).await;
    Agent::connected(&relay, 1).await.send_unsound_frame().await;
    Agent::greets(&relay, 1).await.is_refused(4001).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ban_is_listed_with_what_was_done_last() {
    let relay = TestRelay::start("");
    for seed in [2, 2, 1] {
        let mut agent = Agent::connected(&relay, 1).await;
        match seed {
            1 => agent.asks_for(1).await,
            other => agent.send(&announce(other)).await,
        }
        agent.is_refused(1004).await;
    }
    relay.until_banned(1).await;
    let bans = relay.ask::<Bans>(Request::Bans).await.bans;
    assert_eq!((&*bans[0].subject, &*bans[0].why), (&*id(1), "connect_to_self"));
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_before_a_key_is_proved_ban_their_address_and_touch_no_connection() {
    let relay = TestRelay::start("");
    let mut before = Agent::connected(&relay, 1).await;
    let nameless = Nameless::new();
    for _ in 0..599 {
        nameless.fails_at(&relay).await;
    }
    Agent::connected(&relay, 2).await;
    assert_eq!(relay.ask::<Bans>(Request::Bans).await.bans, [], "one broken agent behind a NAT bans nobody");
    nameless.fails_at(&relay).await;

    relay.until_banned(1).await;
    let refused = Agent::dial(&relay, 2).await.err();
    assert!(matches!(refused, Some(ConnectionError::ConnectionClosed(_))), "{refused:?}");
    relay.has_refused("banned_prefix").await;
    still_serves(&mut before).await;
    let bans = relay.ask::<Bans>(Request::Bans).await.bans;
    assert_eq!((&*bans[0].subject, &*bans[0].kind, &*bans[0].why), ("127.0.0.1", "prefix", "tls_failed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ban_holds_for_who_is_shaking_hands_when_it_is_given() {
    for (subject, refusal) in [(id(1), "banned_node"), ("127.0.0.1".to_owned(), "banned_prefix")] {
        let relay = TestRelay::start("");
        let mut agent = Agent::greets(&relay, 1).await;
        let Message::HelloAck(ack) = agent.receive().await else { panic!() };
        let subject = subject.parse().unwrap();
        relay.ask::<serde_json::Value>(Request::AddBan { subject, seconds: None }).await;
        let signature = Bytes(key(1).sign(&ack.challenge.0).to_vec());
        agent.send(&Verify { signature, challenge: ack.challenge }.into()).await;
        let Message::VerifyAck(_) = agent.receive().await else { panic!() };
        let text = agent.is_refused_saying(4001).await;
        assert!(text.starts_with("banned for ") && text.contains("operator"), "{text}");
        relay.has_refused(refusal).await;
        assert_eq!(relay.peers().await.peers, []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_banned_agent_that_is_connected_stays_and_cannot_be_told_from_an_absent_one() {
    let relay = TestRelay::start("");
    let mut target = Agent::connected(&relay, 2).await;
    let node_id = id(2);
    target.send(&RelayAnnounce { node_id, timestamp: unix_s(), flow: Some(FLOW), allow: None }.into()).await;
    assert!(matches!(target.receive().await, Message::RelayReady(_)));
    let mut source = Agent::connected(&relay, 1).await;
    let subject = id(2).parse().unwrap();
    relay.ask::<serde_json::Value>(Request::AddBan { subject, seconds: None }).await;

    let banned = source.is_refused_a_session_with(2).await;
    let absent = source.is_refused_a_session_with(3).await;
    assert_eq!(banned.replace(&id(2), "it"), absent.replace(&id(3), "it"));
    relay.has_refused("target_banned").await;
    still_serves(&mut target).await;

    relay.ask::<Lifted>(Request::LiftBan { subject }).await;
    source.asks_for(2).await;
    let Message::RelayReady(offer) = source.receive().await else { panic!("no offer") };
    assert!(offer.session.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_denied_is_refused_after_tls_and_is_not_banned_for_it() {
    let relay = TestRelay::start(&format!("[access]\nallow = ['{}', '{}']\ndeny = ['{1}']", id(1), id(2)));
    Agent::connected(&relay, 1).await;
    for seed in [2, 3] {
        for _ in 0..4 {
            let text = Agent::greets(&relay, seed).await.is_refused_saying(1004).await;
            assert_eq!(text, "this relay does not serve this node");
        }
    }
    relay.has_refused("access_denied").await;
    assert_eq!(relay.ask::<Bans>(Request::Bans).await.bans, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_over_the_limit_are_refused_with_4001_and_going_on_with_them_bans() {
    let relay = TestRelay::start("[rate_limit]\nper_peer_per_minute = 5");
    let mut agent = Agent::connected(&relay, 1).await;
    for _ in 0..5 {
        still_serves(&mut agent).await;
    }
    agent.send(&Ping::new(1).into()).await;
    let Message::Error(ErrorMessage { code: 4001, session: None, .. }) = agent.receive().await else {
        panic!()
    };
    relay.has_refused("message_rate").await;
    // The limit is the agent's, whatever connection it uses, and nobody else's.
    let mut again = Agent::connected(&relay, 1).await;
    again.send(&Ping::new(1).into()).await;
    assert!(matches!(again.receive().await, Message::Error(error) if error.code == 4001));
    still_serves(&mut Agent::connected(&relay, 2).await).await;

    let close = loop {
        let pinged = write_frame(&mut agent.to_relay, &Ping::new(1).into()).await;
        match (pinged, agent.from_relay.next().await) {
            (Ok(()), Ok(Some(Message::Error(error)))) => assert_eq!(error.code, 4001),
            _ => break agent.connection.closed().await,
        }
    };
    let ConnectionError::ApplicationClosed(close) = close else { panic!("{close:?}") };
    assert_eq!(close.error_code, 4001_u32.into());
    Agent::greets(&relay, 1).await.is_refused(4001).await;
    relay.has_refused("banned_node").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_comes_back_has_the_seat_it_has_left_and_another_none() {
    let relay = TestRelay::start("max_connections = 1");
    let left_behind = Agent::seated(&relay, 1).await;
    Agent::greets(&relay, 2).await.is_refused(3005).await;
    let mut back = Agent::connected(&relay, 1).await;
    let ConnectionError::ApplicationClosed(close) = left_behind.connection.closed().await else { panic!() };
    assert_eq!(close.error_code, 3005_u32.into());
    relay.has_refused("gave_way").await;
    still_serves(&mut back).await;
    Agent::greets(&relay, 2).await.is_refused(3005).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_and_connections_are_held_to_the_configured_bytes() {
    let relay = TestRelay::start("[quotas]\nmessage_bytes = 4096\nconnection_bytes = 8192");
    let mut agent = Agent::connected(&relay, 1).await;
    // The length alone is enough: not a byte of it has been sent.
    agent.to_relay.write_all(&[0xac, 1, 1, 0x30, 0, 0, 0x10, 1]).await.unwrap();
    agent.is_refused(2002).await;

    let agent = Agent::connected(&relay, 1).await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        let (mut send, receive) = agent.connection.open_bi().await.unwrap();
        let mut frame = vec![0xac, 1, 1, 0x30, 0, 0, 0x10, 0];
        frame.resize(4096, 0);
        let _the_third_may_be_stopped = send.write_all(&frame).await;
        streams.push((send, receive));
    }
    let ConnectionError::ApplicationClosed(close) = agent.connection.closed().await else { panic!() };
    assert_eq!(close.error_code, 2002_u32.into());
    relay.has_refused("frame_too_large").await;
}

fn id(seed: u8) -> String {
    key(seed).node_id().to_string()
}

/// Signs the challenge with another key.
async fn fail_a_handshake(relay: &TestRelay, seed: u8) {
    let mut agent = Agent::dialled(relay, seed).await;
    agent.send(&hello(seed).into()).await;
    let Message::HelloAck(ack) = agent.receive().await else { panic!() };
    let signature = Bytes(key(seed + 100).sign(&ack.challenge.0).to_vec());
    agent.send(&Verify { signature, challenge: ack.challenge }.into()).await;
    let Message::VerifyAck(_) = agent.receive().await else { panic!() };
    agent.is_refused(1002).await;
}

async fn still_serves(agent: &mut Agent) {
    agent.send(&Ping::new(1).into()).await;
    let answer = agent.receive().await;
    assert!(matches!(answer, Message::Pong(_)), "{answer:?}");
}

impl Agent {
    async fn asks_for(&mut self, target: u8) {
        let (source_id, target_id) = (id(1), id(target));
        let connect = RelayConnect { source_id, target_id, timestamp: Some(unix_s()), flow: Some(FLOW) };
        self.send(&connect.into()).await;
    }

    /// All that it is told, with the code for an absent target.
    async fn is_refused_a_session_with(&mut self, target: u8) -> String {
        self.asks_for(target).await;
        let Message::RelayError(error) = self.receive().await else { panic!("no error") };
        assert_eq!(error.code, 3001, "{}", error.message);
        format!("{error:?}")
    }

    async fn send_unsound_frame(&mut self) {
        self.to_relay.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        self.is_refused(2003).await;
    }

    /// As [`Agent::is_refused`]: what it is told.
    async fn is_refused_saying(&mut self, code: u32) -> String {
        let Message::Error(error) = self.receive().await else { panic!("no error") };
        assert_eq!(error.code, code, "{}", error.message);
        error.message
    }
}

impl TestRelay {
    async fn until_banned(&self, count: usize) {
        let banned = async {
            while self.ask::<Bans>(Request::Bans).await.bans.len() != count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), banned).await.unwrap();
    }
}

/// A client that shows no certificate.
struct Nameless(Endpoint);

impl Nameless {
    fn new() -> Nameless {
        let mut endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Credulous))
            .with_no_client_auth();
        config.alpn_protocols = vec![tls::ALPN_RELAY.to_vec()];
        let config = QuicClientConfig::try_from(config).unwrap();
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(config)));
        Nameless(endpoint)
    }

    /// Its end of TLS is done before the relay's, which refuses it.
    async fn fails_at(&self, relay: &TestRelay) {
        let connection = self.0.connect(relay.address, tls::SERVER_NAME).unwrap().await.unwrap();
        let refused = connection.closed().await;
        assert!(matches!(refused, ConnectionError::ConnectionClosed(_)), "{refused:?}");
    }
}

/// Takes any relay.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}
