//! An agent written by hand, message by message, so that it can misbehave.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use relay_common::BIND_LEN;
use relay_userspace::clock::MonoTime;
use relay_userspace::identity::{NodeId, NodeKey};
use relay_userspace::protocol::bind::{BindDatagram, BindKind, Cookie, UnverifiedBind};
use relay_userspace::protocol::envelope::MAX_CONTROL_PAYLOAD_LEN;
use relay_userspace::protocol::flow_terms::{FLOW, FlowTerms, ReadyStatus, RelayAnnounce, RelayConnect};
use relay_userspace::protocol::frames::{FrameReader, write_frame};
use relay_userspace::protocol::handshake::{Initiator, Progress};
use relay_userspace::protocol::message::{Hello, Message, Verify};
use relay_userspace::tls;

use super::world::RELAY;

/// A control connection to the world's relay.
pub struct HandAgent {
    pub key: NodeKey,
    pub to_relay: quinn::SendStream,
    from_relay: FrameReader<quinn::RecvStream>,
    connection: quinn::Connection,
    handshake: Initiator,
    hello: Hello,
    // Last: it closes the socket.
    _endpoint: quinn::Endpoint,
}

impl HandAgent {
    /// Connects and proves `key` in TLS; says nothing yet. Must be called inside a namespace, on a runtime.
    pub async fn dial(key: NodeKey) -> HandAgent {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let mut config = quinn::EndpointConfig::default();
        config.grease_quic_bit(false);
        let endpoint = quinn::Endpoint::new(config, None, socket, Arc::new(quinn::TokioRuntime)).unwrap();
        let mut client = tls::client_config(&key, tls::ALPN_RELAY, None).unwrap();
        let mut transport = quinn::TransportConfig::default();
        transport.keep_alive_interval(Some(Duration::from_secs(5)));
        client.transport_config(Arc::new(transport));
        let connection = endpoint.connect_with(client, RELAY, tls::SERVER_NAME).unwrap().await.unwrap();
        let (to_relay, from_relay) = connection.open_bi().await.unwrap();
        let relay_key = tls::peer_key(&connection).unwrap();
        let (handshake, hello) = Initiator::new(&key, "by hand", relay_key, MonoTime::now(), unix_s());
        let Message::Hello(hello) = hello else { panic!("a handshake begins with Hello") };
        let from_relay = FrameReader::new(from_relay, MAX_CONTROL_PAYLOAD_LEN);
        HandAgent { key, to_relay, from_relay, connection, handshake, hello, _endpoint: endpoint }
    }

    /// Connects and does the whole handshake.
    pub async fn verified(key: NodeKey) -> HandAgent {
        let mut agent = HandAgent::dial(key).await;
        agent.say_hello(|_| {}).await;
        agent.verify(|_| {}).await;
        let ack = agent.next().await.unwrap();
        assert!(matches!(agent.handshake.handle(ack, MonoTime::now()), Ok(Progress::Done { .. })));
        agent
    }

    /// Sends Hello after `change` was made to it.
    pub async fn say_hello(&mut self, change: impl FnOnce(&mut Hello)) {
        let mut hello = self.hello.clone();
        change(&mut hello);
        self.send(hello).await;
    }

    /// Waits for HelloAck and sends Verify after `change` was made to it.
    pub async fn verify(&mut self, change: impl FnOnce(&mut Verify)) {
        let ack = self.next().await.unwrap();
        let answer = self.handshake.handle(ack, MonoTime::now()).unwrap();
        let Progress::Send(Message::Verify(mut verify)) = answer else {
            panic!("HelloAck leads to {answer:?}")
        };
        change(&mut verify);
        self.send(verify).await;
    }

    pub async fn send(&mut self, message: impl Into<Message>) {
        write_frame(&mut self.to_relay, &message.into()).await.unwrap();
    }

    /// The relay's next message that is no Ping; `None` once the connection or stream is over.
    pub async fn next(&mut self) -> Option<Message> {
        loop {
            match tokio::time::timeout(Duration::from_secs(5), self.from_relay.next()).await.unwrap() {
                Ok(Some(Message::Ping(_))) => {}
                Ok(message) => return message,
                Err(_) => return None,
            }
        }
    }

    /// The code that the relay refuses with: in a message, or as it closes the connection.
    pub async fn refusal(&mut self) -> u32 {
        while let Some(message) = self.next().await {
            match message {
                Message::Error(error) => return error.code,
                Message::RelayError(error) => return error.code,
                _ => {}
            }
        }
        match self.connection.closed().await {
            quinn::ConnectionError::ApplicationClosed(close) => close.error_code.into_inner() as u32,
            other => panic!("the connection ended otherwise: {other}"),
        }
    }

    /// Announces this agent to anyone and waits until the relay has it.
    pub async fn announce(&mut self) {
        let node_id = self.key.node_id().to_string();
        self.send(RelayAnnounce { node_id, timestamp: unix_s(), flow: Some(FLOW), allow: None }).await;
        let Some(Message::RelayReady(ready)) = self.next().await else {
            panic!("no answer to the announcement")
        };
        assert_eq!(ready.status, ReadyStatus::Waiting);
    }

    /// Asks for a session.
    pub async fn connect(&mut self, target: NodeId) {
        let source_id = self.key.node_id().to_string();
        let target_id = target.to_string();
        self.send(RelayConnect { source_id, target_id, timestamp: Some(unix_s()), flow: Some(FLOW) }).await;
    }

    /// The terms of the session that was offered.
    pub async fn terms(&mut self) -> FlowTerms {
        let message = self.next().await;
        let Some(Message::RelayReady(ready)) = message else { panic!("no offer but {message:?}") };
        ready.terms().unwrap()
    }
}

/// The data socket of a session, and the bind exchange by hand.
pub struct HandBind {
    pub socket: UdpSocket,
    terms: FlowTerms,
    counter: u64,
}

impl HandBind {
    pub fn new(terms: FlowTerms) -> HandBind {
        HandBind { socket: HandBind::socket(), terms, counter: 0 }
    }

    /// The same side, from now on at another socket.
    pub fn moved_to(self, socket: UdpSocket) -> HandBind {
        HandBind { socket, ..self }
    }

    /// A socket of the namespace this is called in. Its reads end after 300 ms.
    pub fn socket() -> UdpSocket {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        socket
    }

    /// The id of its session, as listings have it.
    pub fn session(&self) -> String {
        self.terms.session.to_string()
    }

    /// The counter that was used last.
    pub fn counter(&self) -> u64 {
        self.counter
    }

    /// Binds, answers the challenge and waits for the relay's word.
    pub fn prove(&mut self) {
        self.prove_with(self.counter + 1);
    }

    /// As [`HandBind::prove`], with this counter.
    pub fn prove_with(&mut self, counter: u64) {
        self.counter = counter;
        let challenge = self.answer(&self.datagram(BindKind::Bind, self.counter, Cookie::NONE)).unwrap();
        let proof = self.datagram(BindKind::Proof, self.counter, self.read(&challenge).cookie);
        let bound = self.answer(&proof).unwrap();
        assert!(matches!(self.read(&bound).kind, BindKind::Bound { .. }));
    }

    /// A datagram of this side.
    pub fn datagram(&self, kind: BindKind, counter: u64, cookie: Cookie) -> [u8; BIND_LEN] {
        let datagram =
            BindDatagram { kind, side: self.terms.side, session: self.terms.session, counter, cookie };
        datagram.seal(&self.terms.bind_magic, &self.terms.bind_key)
    }

    /// What the relay says, whose MAC must be right.
    pub fn read(&self, datagram: &[u8; BIND_LEN]) -> BindDatagram {
        let datagram = UnverifiedBind::parse(datagram, &self.terms.bind_magic).unwrap();
        datagram.verify(&self.terms.bind_key).unwrap()
    }

    /// Sends `datagram` to the relay and gives the answer, if there is one within 300 ms.
    pub fn answer(&self, datagram: &[u8]) -> Option<[u8; BIND_LEN]> {
        answer(&self.socket, datagram)
    }
}

/// Two new agents with a session that both have proved, connector first. Must be called as [`HandAgent::dial`].
pub async fn paired() -> [(HandAgent, HandBind); 2] {
    let mut target = HandAgent::verified(NodeKey::generate().unwrap()).await;
    target.announce().await;
    let mut connector = HandAgent::verified(NodeKey::generate().unwrap()).await;
    connector.connect(target.key.node_id()).await;
    let mut near = HandBind::new(connector.terms().await);
    let mut far = HandBind::new(target.terms().await);
    near.prove();
    far.prove();
    [(connector, near), (target, far)]
}

/// Sends `datagram` to the relay from `socket` and gives the answer, if there is one before its time-out.
pub fn answer(socket: &UdpSocket, datagram: &[u8]) -> Option<[u8; BIND_LEN]> {
    socket.send_to(datagram, RELAY).unwrap();
    let mut answer = [0; BIND_LEN];
    socket.recv(&mut answer).ok().map(|_| answer)
}

/// Whether a datagram sent by `from` arrives at `to`.
pub fn carries(from: &HandBind, to: &HandBind) -> bool {
    carries_bytes(from, to, 0)
}

/// Whether a datagram of `len` bytes (at least what tells it from others) sent by `from` arrives at `to`.
pub fn carries_bytes(from: &HandBind, to: &HandBind, len: usize) -> bool {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let mut datagram = format!("datagram {}", NUMBER.fetch_add(1, Ordering::Relaxed)).into_bytes();
    datagram.resize(datagram.len().max(len), 0);
    from.socket.send_to(&datagram, RELAY).unwrap();
    let mut buffer = [0; 16 << 10];
    while let Ok(length) = to.socket.recv(&mut buffer) {
        if buffer[..length] == datagram {
            return true;
        }
    }
    false
}

/// The wall clock as the protocol has it.
pub fn unix_s() -> i64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64
}
