//! Registration with bootstrap nodes (`network.bootstrap`), which tell others where this node is.
//!
//! Each is dialled, told this node's address, and left again; and once more well before it would forget. Nothing that a
//! bootstrap node says is made use of, so it does not matter who it is.

mod schedule;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;

use self::schedule::Schedule;
use crate::agent::{DIAL_TIMEOUT, LinkError, dial, drained, initiate, local_address_towards, unix_s};
use crate::clock::MonoTime;
use crate::config::HostPort;
use crate::identity::NodeKey;
use crate::protocol::Message;
use crate::protocol::envelope::MAX_CONTROL_PAYLOAD_LEN;
use crate::protocol::flow_terms::{Disconnect, ErrorMessage};
use crate::protocol::frames::{FrameError, FrameReader, write_frame};
use crate::protocol::handshake::{HandshakeError, Initiator, printable};
use crate::protocol::message::{AckStatus, BootstrapRegistration, MessageAck};
use crate::tls::{self, TlsError};

/// The node that is registered.
#[derive(Clone, Debug)]
pub struct Registrant {
    /// Who it is.
    pub key: NodeKey,
    /// Its name for humans.
    pub name: String,
    /// Where it says it is.
    pub address: OwnAddress,
}

/// Where a node says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnAddress {
    /// Here.
    Known(SocketAddr),
    /// Where it dials the bootstrap node from: that is all a node knows of itself.
    OfConnection {
        /// The port it listens on; else the one it dials from.
        port: Option<u16>,
    },
}

/// Registrations that are kept up until this is dropped.
#[derive(Debug)]
pub struct Registrations {
    _tasks: JoinSet<()>,
}

impl Registrations {
    /// Registers with each of `nodes`, again and again. Must be called within a tokio runtime.
    pub fn keep(registrant: Registrant, nodes: Vec<HostPort>) -> Registrations {
        let registrant = Arc::new(registrant);
        let keep = |node| keep_registered(node, Arc::clone(&registrant));
        Registrations { _tasks: nodes.into_iter().map(keep).collect() }
    }
}

/// How long the answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// So many characters of a bootstrap node's own words go to the log.
const MAX_WORDS: usize = 200;

async fn keep_registered(node: HostPort, registrant: Arc<Registrant>) {
    let mut schedule = Schedule::default();
    loop {
        let outcome = register(&node, &registrant).await.map_err(|error| error.to_string());
        let next = schedule.after(&outcome, getrandom::u64().unwrap_or(0));
        if next.is_news {
            match &outcome {
                Ok(address) => tracing::info!(%node, %address, "registered with the bootstrap node"),
                Err(error) => tracing::warn!(
                    %node, error, retry_ms = next.wait.as_millis() as u64,
                    "not registered with the bootstrap node: trying again until it is"
                ),
            }
        }
        tokio::time::sleep(next.wait).await;
    }
}

/// Registers once. Gives the address that the node is registered with.
async fn register(node: &HostPort, registrant: &Registrant) -> Result<SocketAddr, RegistrationError> {
    let resolving = tokio::net::lookup_host((node.host(), node.port()));
    let resolved = timeout(DIAL_TIMEOUT, resolving).await.map_err(|_| std::io::ErrorKind::TimedOut.into());
    let mut last = RegistrationError::Resolve(std::io::ErrorKind::NotFound.into());
    for remote in resolved.and_then(|resolved| resolved).map_err(RegistrationError::Resolve)? {
        match dial(&registrant.key, remote).await {
            Ok((endpoint, connection)) => {
                let local_port = endpoint.local_addr().map_err(RegistrationError::Socket)?.port();
                let registered = register_over(&connection, local_port, registrant).await;
                let code = match &registered {
                    Err(RegistrationError::Handshake(error)) => error.code().number(),
                    _ => 0,
                };
                connection.close(code.into(), b"");
                drained(&endpoint).await;
                return registered;
            }
            Err(LinkError::DialTimeout) => last = RegistrationError::Unanswered,
            Err(error) => last = RegistrationError::Connection(error.to_string()),
        }
    }
    Err(last)
}

async fn register_over(
    connection: &quinn::Connection,
    local_port: u16,
    registrant: &Registrant,
) -> Result<SocketAddr, RegistrationError> {
    let broken = |error: quinn::ConnectionError| RegistrationError::Connection(error.to_string());
    let Registrant { key, name, address } = registrant;
    let (mut to_node, from_node) = connection.open_bi().await.map_err(broken)?;
    let mut from_node = FrameReader::new(from_node, MAX_CONTROL_PAYLOAD_LEN);
    let initiator = Initiator::new(key, name, tls::peer_key(connection)?, MonoTime::now(), unix_s());
    initiate(initiator, &mut to_node, &mut from_node).await?;
    let address = match *address {
        OwnAddress::Known(address) => address,
        OwnAddress::OfConnection { port } => {
            let remote = connection.remote_address();
            let ip = local_address_towards(remote).ok_or(RegistrationError::NoRoute(remote))?;
            SocketAddr::new(ip, port.unwrap_or(local_port))
        }
    };
    let registration = BootstrapRegistration {
        node_id: key.node_id().to_string(),
        address: address.to_string(),
        timestamp: unix_s(),
    };
    let exchange = async {
        write_frame(&mut to_node, &registration.into()).await?;
        while let Some(message) = from_node.next().await? {
            if let Some(answer) = verdict(message) {
                return answer;
            }
        }
        Err(RegistrationError::Refused("it has closed the stream".to_owned()))
    };
    timeout(ANSWER_TIMEOUT, exchange).await.unwrap_or(Err(RegistrationError::Silent))?;
    Ok(address)
}

/// What a message says to a registration; None if it does not concern it.
fn verdict(message: Message) -> Option<Result<(), RegistrationError>> {
    let refused = |words: String| Some(Err(RegistrationError::Refused(printable(&words, MAX_WORDS))));
    match message {
        Message::MessageAck(MessageAck { status: AckStatus::Registered, .. }) => Some(Ok(())),
        Message::MessageAck(MessageAck { status, .. }) => {
            refused(format!("it answers {status}, not {}", AckStatus::Registered))
        }
        Message::Error(ErrorMessage { code, message, .. }) => refused(format!("{code} {message}")),
        Message::Disconnect(Disconnect { reason, .. }) => refused(format!("it disconnects: {reason}")),
        _ => None,
    }
}

/// Why a node is not registered.
#[derive(Debug, thiserror::Error)]
enum RegistrationError {
    #[error("the name does not resolve: {0}")]
    Resolve(std::io::Error),
    #[error("no local UDP socket: {0}")]
    Socket(std::io::Error),
    #[error("no route to {0}")]
    NoRoute(SocketAddr),
    #[error(
        "no answer within {} s: it is down, or UDP to it is blocked, or the address is wrong",
        DIAL_TIMEOUT.as_secs()
    )]
    Unanswered,
    #[error("{0}")]
    Connection(String),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("it does not register this node: {0}")]
    Refused(String),
    #[error("it has not answered the registration within {} s", ANSWER_TIMEOUT.as_secs())]
    Silent,
}
