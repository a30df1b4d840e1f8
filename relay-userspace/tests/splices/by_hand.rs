//! Agents made by hand that say only what is documented.

use std::sync::Arc;
use std::time::Duration;

use quinn::{
    Connection, ConnectionError, Endpoint, ReadError, RecvStream, SendStream, TransportConfig, VarInt,
};
use relay_userspace::clock::MonoTime;
use relay_userspace::protocol::Message;
use relay_userspace::protocol::envelope::MAX_CONTROL_PAYLOAD_LEN;
use relay_userspace::protocol::flow_terms::{ReadyStatus, RelayAnnounce, RelayConnect, RelayReady};
use relay_userspace::protocol::frames::{FrameReader, write_frame};
use relay_userspace::protocol::handshake::{Initiator, Known, Peer, Progress, Responder};
use relay_userspace::protocol::message::{Ping, Pong};
use relay_userspace::tls;
use tokio::time::timeout;

use super::PATIENCE;
use super::relay_on_loopback::{TestRelay, key, unix_s};

/// An agent made by hand.
pub struct Agent {
    pub endpoint: Endpoint,
    pub connection: Connection,
    /// The stream of the handshake.
    pub first: Stream,
}

/// One of its streams.
pub struct Stream {
    pub send: SendStream,
    pub receive: Option<FrameReader<RecvStream>>,
}

impl Agent {
    /// The handshake with the relay is done.
    pub async fn connected(relay: &TestRelay, seed: u8) -> Agent {
        let mut endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
        let mut config = tls::client_config(&key(seed), tls::ALPN_RELAY, Some(key(0).node_id())).unwrap();
        let mut transport = TransportConfig::default();
        transport
            .keep_alive_interval(Some(Duration::from_millis(300)))
            .stream_receive_window(16_384_u32.into());
        config.transport_config(Arc::new(transport));
        endpoint.set_default_client_config(config);
        let connection = endpoint.connect(relay.address, tls::SERVER_NAME).unwrap().await.unwrap();
        let mut first = Stream::open(&connection).await.unwrap();
        let (mut initiator, hello) =
            Initiator::new(&key(seed), "agent", key(0).public(), MonoTime::now(), unix_s());
        first.send(&hello).await;
        loop {
            match initiator.handle(first.receive().await, MonoTime::now()).unwrap() {
                Progress::Send(message) => first.send(&message).await,
                Progress::Done { .. } => return Agent { endpoint, connection, first },
            }
        }
    }

    pub async fn open(&self) -> Stream {
        Stream::open(&self.connection).await.unwrap()
    }
}

impl Stream {
    pub async fn open(connection: &Connection) -> Result<Stream, ConnectionError> {
        let (send, receive) = connection.open_bi().await?;
        Ok(Stream { send, receive: Some(FrameReader::new(receive, MAX_CONTROL_PAYLOAD_LEN)) })
    }

    pub async fn send(&mut self, message: &Message) {
        write_frame(&mut self.send, message).await.unwrap();
    }

    #[track_caller]
    pub fn receive(&mut self) -> impl Future<Output = Message> {
        let asked_at = std::panic::Location::caller();
        async move {
            let next = timeout(PATIENCE, self.receive.as_mut().unwrap().next()).await;
            next.unwrap_or_else(|_elapsed| panic!("no message for {asked_at}")).unwrap().unwrap()
        }
    }

    /// Everything to the stream's end.
    pub async fn rest(&mut self) -> Result<Vec<u8>, ReadError> {
        let (mut receive, begun) = self.receive.take().unwrap().into_parts();
        let mut all = begun.to_vec();
        while let Some(chunk) =
            timeout(PATIENCE, receive.read_chunk(usize::MAX, true)).await.expect("an end")?
        {
            all.extend_from_slice(&chunk.bytes);
        }
        Ok(all)
    }

    pub fn stop(&mut self, code: u32) {
        let (mut receive, _) = self.receive.take().unwrap().into_parts();
        receive.stop(VarInt::from_u32(code)).unwrap();
    }

    /// The relay answers a Ping on it.
    pub async fn pings(&mut self, ts: i64) {
        self.send(&Ping::new(ts).into()).await;
        let answer = self.receive().await;
        assert!(matches!(answer, Message::Pong(Pong { echo, .. }) if echo == ts), "{answer:?}");
    }

    /// Announces node `seed` on it.
    pub async fn waits(&mut self, seed: u8) {
        let node_id = key(seed).node_id().to_string();
        self.send(&RelayAnnounce { node_id, timestamp: unix_s(), flow: None, allow: None }.into()).await;
        assert_eq!(self.receive().await, RelayReady::documented(ReadyStatus::Waiting, None).into());
    }

    /// `source` asks on it for `target`, and gets it.
    pub async fn is_paired_with(&mut self, source: u8, target: u8) {
        self.send(&connect(source, target)).await;
        self.is_ready(target).await;
    }

    /// As [`Stream::is_paired_with`]; the target may need a moment until it waits.
    pub async fn is_paired_in_time_with(&mut self, source: u8, target: u8) {
        let paired = async {
            loop {
                self.send(&connect(source, target)).await;
                match self.receive().await {
                    Message::RelayReady(ready) => return ready,
                    Message::RelayError(error) => {
                        assert!([3001, 3003, 3005].contains(&error.code), "{error:?}")
                    }
                    other => panic!("{other:?}"),
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let ready = timeout(PATIENCE, paired).await.expect("the target waits");
        assert_eq!(ready, RelayReady::documented(ReadyStatus::Ready, Some(key(target).node_id())));
    }

    pub async fn is_ready(&mut self, target: u8) {
        let ready = RelayReady::documented(ReadyStatus::Ready, Some(key(target).node_id()));
        assert_eq!(self.receive().await, ready.into());
    }
}

/// The documented handshake between two agents, the connector as initiator, and a Ping after it.
pub async fn handshake(from: &mut Stream, initiator: u8, to: &mut Stream, responder: u8) {
    let (target, connector) =
        tokio::join!(dial_handshake(from, initiator, responder), answer_handshake(to, responder));
    assert_eq!([connector.node_id, target.node_id], [initiator, responder].map(|seed| key(seed).node_id()));
    from.send(&Ping::new(5).into()).await;
    assert_eq!(to.receive().await, Ping::new(5).into());
    to.send(&Pong::new(6, 5).into()).await;
    assert_eq!(from.receive().await, Pong::new(6, 5).into());
}

/// The connector's part: whom it has found.
pub async fn dial_handshake(stream: &mut Stream, seed: u8, peer: u8) -> Peer {
    let known = Known::Node(key(peer).node_id());
    let (mut initiator, hello) = Initiator::new(&key(seed), "by hand", known, MonoTime::now(), unix_s());
    stream.send(&hello).await;
    loop {
        match initiator.handle(stream.receive().await, MonoTime::now()).unwrap() {
            Progress::Send(message) => stream.send(&message).await,
            Progress::Done { peer, .. } => return *peer,
        }
    }
}

/// The target's part: who has come.
pub async fn answer_handshake(stream: &mut Stream, seed: u8) -> Peer {
    let (drift, now) = (Duration::from_secs(300), MonoTime::now());
    let mut responder = Responder::new(&key(seed), "by hand", Known::Nothing, [3; 32], drift, now);
    loop {
        match responder.handle(stream.receive().await, MonoTime::now(), unix_s()).unwrap() {
            Progress::Send(answer) => stream.send(&answer).await,
            Progress::Done { send, peer } => {
                stream.send(&send.unwrap()).await;
                return *peer;
            }
        }
    }
}

pub fn connect(source: u8, target: u8) -> Message {
    let [source_id, target_id] = [source, target].map(|seed| key(seed).node_id().to_string());
    RelayConnect { source_id, target_id, timestamp: Some(unix_s()), flow: None }.into()
}
