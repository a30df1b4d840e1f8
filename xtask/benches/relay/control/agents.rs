//! The load: agents that connect, and what they do then.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use quinn::{ClientConfig, Connection, Endpoint, RecvStream, SendStream};
use relay_userspace::clock::MonoTime;
use relay_userspace::control_transport::control_transport;
use relay_userspace::identity::{NodeKey, PublicKey};
use relay_userspace::protocol::Message;
use relay_userspace::protocol::envelope::MAX_CONTROL_PAYLOAD_LEN;
use relay_userspace::protocol::flow_terms::{Disconnect, disconnect_reason};
use relay_userspace::protocol::frames::{FrameReader, write_frame};
use relay_userspace::protocol::handshake::{Initiator, Progress};
use relay_userspace::tls;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// A server that agents connect to.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its key.
    pub key: PublicKey,
    /// What it is.
    pub kind: Kind,
}

/// What agents do once TLS is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Bare,
    /// The four messages of the handshake.
    Relay,
}

/// Agents that connect at once. With more from one address a relay would demand a Retry of each.
const AT_ONCE: u8 = 8;

/// Has agents connect to `server` again and again for `span`, each with a socket of its own, and the same to every kind of
/// server. A connection is closed once the next one is done and the server has said that TLS is done for it too. Returns
/// how many there were.
///
/// # Errors
/// A connection failed, or was not finished by the server.
pub async fn connect_again_and_again(server: Server, span: Duration) -> anyhow::Result<u64> {
    let end = Instant::now() + span;
    let mut agents = JoinSet::new();
    for seed in 1..=AT_ONCE {
        agents.spawn(keep_connecting(server, NodeKey::from_seed(&[seed; 32]), end));
    }
    let mut made = 0;
    while let Some(agent) = agents.join_next().await {
        made += agent??;
    }
    Ok(made)
}

async fn keep_connecting(server: Server, key: NodeKey, end: Instant) -> anyhow::Result<u64> {
    let endpoint = Endpoint::client((Ipv4Addr::UNSPECIFIED, 0).into())?;
    let config = client_config(&key)?;
    let mut made = 0;
    let mut open = VecDeque::new();
    while Instant::now() < end {
        let connection = endpoint.connect_with(config.clone(), server.address, tls::SERVER_NAME)?.await?;
        let streams = match server.kind {
            Kind::Relay => Some(verify(&key, &connection, server.key).await?),
            Kind::Bare => None,
        };
        made += 1;
        // An agent's stream stays open for as long as its connection does.
        open.push_back((connection, streams));
        while open.len() > 1 && open.front().is_some_and(|(connection, _)| is_done(connection)) {
            if let Some((connection, _)) = open.pop_front() {
                connection.close(0_u8.into(), b"");
            }
        }
    }
    let all_done = async {
        while !open.iter().all(|(connection, _)| is_done(connection)) {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(5), all_done).await.context("the server has not finished a handshake")?;
    open.iter().for_each(|(connection, _)| connection.close(0_u8.into(), b""));
    endpoint.wait_idle().await;
    Ok(made)
}

/// Whether the server has taken the client's certificate, and said so.
fn is_done(connection: &Connection) -> bool {
    connection.stats().frame_rx.handshake_done > 0
}

/// What our agents ask of QUIC.
fn client_config(key: &NodeKey) -> anyhow::Result<ClientConfig> {
    let mut config = tls::client_config(key, tls::ALPN_RELAY, None)?;
    config.transport_config(Arc::new(control_transport()));
    Ok(config)
}

/// The four messages.
async fn verify(
    key: &NodeKey,
    connection: &Connection,
    relay: PublicKey,
) -> anyhow::Result<(SendStream, FrameReader<RecvStream>)> {
    let (mut send, receive) = connection.open_bi().await?;
    let mut receive = FrameReader::new(receive, MAX_CONTROL_PAYLOAD_LEN);
    let (mut initiator, mut next) = Initiator::new(key, "bench", relay, MonoTime::now(), unix_s());
    loop {
        write_frame(&mut send, &next).await?;
        let answer = receive.next().await?.context("the relay has closed the stream")?;
        match initiator.handle(answer, MonoTime::now())? {
            Progress::Send(message) => next = message,
            Progress::Done { .. } => return Ok((send, receive)),
        }
    }
}

/// An agent whose handshake is done.
pub struct Agent {
    /// Who it is.
    pub key: NodeKey,
    /// Where the relay is.
    pub relay: SocketAddr,
    to_relay: SendStream,
    from_relay: FrameReader<RecvStream>,
    // Last: they close the socket.
    connection: Connection,
    _endpoint: Endpoint,
}

impl Agent {
    /// Connects to a relay.
    ///
    /// # Errors
    /// It does not let the agent in.
    pub async fn connect(server: Server, key: NodeKey) -> anyhow::Result<Agent> {
        let endpoint = Endpoint::client((Ipv4Addr::UNSPECIFIED, 0).into())?;
        let config = client_config(&key)?;
        let connection = endpoint.connect_with(config, server.address, tls::SERVER_NAME)?.await?;
        let (to_relay, from_relay) = verify(&key, &connection, server.key).await?;
        let relay = server.address;
        Ok(Agent { key, relay, to_relay, from_relay, connection, _endpoint: endpoint })
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The connection is over.
    pub async fn send(&mut self, message: impl Into<Message>) -> anyhow::Result<()> {
        Ok(write_frame(&mut self.to_relay, &message.into()).await?)
    }

    /// The relay's next message.
    ///
    /// # Errors
    /// The connection is over.
    pub async fn next(&mut self) -> anyhow::Result<Message> {
        self.from_relay.next().await?.context("the relay has closed the stream")
    }

    /// Leaves on purpose: the relay ends its sessions, and then the connection.
    ///
    /// # Errors
    /// The connection is over already.
    pub async fn leave(mut self) -> anyhow::Result<()> {
        self.send(Disconnect::new(disconnect_reason::SHUTDOWN, None, None)).await?;
        self.connection.closed().await;
        Ok(())
    }
}

/// The wall clock, in seconds since the Unix epoch.
pub fn unix_s() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
