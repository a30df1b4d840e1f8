//! Ports through a peer: a local one on one side, what the peer permits on the other.
//!
//! Each TCP connection and each UDP client has a QUIC stream of its own. Its first frame is a Message with the topic of its
//! protocol and the body `{"to": "HOST:PORT"}`; the answer is MessageAck(accepted), or an Error. After that a TCP
//! connection's stream carries its bytes, each direction to its own end; a reset on either side resets the other. A UDP
//! flow's stream carries nothing and lasts as long as the flow; its datagrams are QUIC datagrams ([`datagrams`]).

pub(super) mod datagrams;
mod peer_line;
pub(super) mod tcp;
pub(super) mod udp_far;
mod udp_near;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use self::peer_line::{Carried, PeerLine};
use super::Dialler;
use super::error::ConnectError;
use super::peer::PeerConnection;
use super::permitted::Permitted;
use super::refusal::Refusal;
use super::request::{Accepted, OutgoingMessage, ask};
use super::session::Session;
use super::snapshot::SessionTraffic;
use super::streams::Refused;
use crate::config::{ForwardProtocol, HostPort};
use crate::identity::NodeId;
use crate::protocol::body::Body;
use crate::protocol::message::AckStatus;

/// The topic of a request to forward a TCP connection.
pub const TCP_TOPIC: &str = "net/forward";

/// The topic of a request to forward the datagrams of one UDP client. A topic of its own: whoever does not know it refuses
/// it.
pub const UDP_TOPIC: &str = "net/forward-udp";

/// A local port whose connections or datagrams come out at the peer. Dropping it closes everything.
#[derive(Debug)]
pub struct Forward {
    local: SocketAddr,
    carried: Arc<Carried>,
    events: mpsc::Receiver<ForwardEvent>,
    _stop: DropGuard,
}

/// What happens to a forward.
#[derive(Clone, Debug)]
pub enum ForwardEvent {
    /// It runs over this session from now on.
    Session(Session),
    /// The connection to the peer is gone; the next TCP connection or datagram makes a new one.
    Lost {
        /// Why.
        why: String,
    },
    /// One TCP connection was not carried to its end, or a datagram of a UDP client not at all.
    Failed {
        /// The local program's address.
        client: SocketAddr,
        /// Why.
        why: String,
    },
}

impl Forward {
    /// The address it listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The next thing that happens; None once the agent is stopped. Whoever does not ask misses some.
    pub async fn next_event(&mut self) -> Option<ForwardEvent> {
        self.events.recv().await
    }

    /// What went through the data sockets of all its sessions so far.
    pub fn traffic(&self) -> SessionTraffic {
        self.carried.traffic()
    }
}

/// Why a forward was not set up.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// Another program has it.
    #[error("{0} is in use: stop what uses it (`{shown}` shows it) or choose another port", shown = .0.shown_by())]
    InUse(LocalPort),
    /// It cannot be opened.
    #[error("cannot listen on {port}: {source}")]
    Listen {
        /// What was asked for.
        port: LocalPort,
        /// The system's reason.
        source: io::Error,
    },
    /// The peer.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

/// A local port, in one of its name spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalPort {
    /// Which.
    pub protocol: ForwardProtocol,
    /// Where.
    pub address: SocketAddr,
}

impl LocalPort {
    /// The command that shows what uses it.
    fn shown_by(&self) -> String {
        let sockets = match self.protocol {
            ForwardProtocol::Tcp => "-tlpn",
            ForwardProtocol::Udp => "-ulpn",
        };
        format!("ss {sockets} sport = :{}", self.address.port())
    }
}

impl fmt::Display for LocalPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            ForwardProtocol::Tcp => "TCP",
            ForwardProtocol::Udp => "UDP",
        };
        write!(f, "{protocol} {}", self.address)
    }
}

/// The local end of a forward to be: a port that is taken, before anybody is asked for anything.
#[derive(Debug)]
pub struct ForwardListener {
    socket: ListeningSocket,
    local: SocketAddr,
}

#[derive(Debug)]
enum ListeningSocket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl ForwardListener {
    /// Listens on a local TCP address; port 0: any.
    ///
    /// # Errors
    /// It cannot be listened on.
    pub async fn bind(address: SocketAddr) -> Result<ForwardListener, ForwardError> {
        let port = LocalPort { protocol: ForwardProtocol::Tcp, address };
        let tcp = TcpListener::bind(address).await.map_err(|source| port.failed(source))?;
        let local = tcp.local_addr().map_err(|source| port.failed(source))?;
        Ok(ForwardListener { socket: ListeningSocket::Tcp(tcp), local })
    }

    /// Takes a local UDP address; port 0: any.
    ///
    /// # Errors
    /// It cannot be had.
    pub async fn bind_udp(address: SocketAddr) -> Result<ForwardListener, ForwardError> {
        let port = LocalPort { protocol: ForwardProtocol::Udp, address };
        let udp = UdpSocket::bind(address).await.map_err(|source| port.failed(source))?;
        let local = udp.local_addr().map_err(|source| port.failed(source))?;
        Ok(ForwardListener { socket: ListeningSocket::Udp(udp), local })
    }

    /// The address it has.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

impl LocalPort {
    fn failed(self, source: io::Error) -> ForwardError {
        match source.kind() {
            io::ErrorKind::AddrInUse => ForwardError::InUse(self),
            _ => ForwardError::Listen { port: self, source },
        }
    }
}

/// Starts a forward once the peer is there.
pub(super) async fn start(
    dialler: Dialler,
    listener: ForwardListener,
    peer: NodeId,
    to: HostPort,
) -> Result<Forward, ForwardError> {
    let (line, events) = PeerLine::new(dialler, peer);
    line.connected().await?;
    Ok(run(line, events, listener, to))
}

/// Starts a forward that connects to the peer when something is to be carried.
pub(super) fn start_idle(dialler: Dialler, listener: ForwardListener, peer: NodeId, to: HostPort) -> Forward {
    let (line, events) = PeerLine::new(dialler, peer);
    run(line, events, listener, to)
}

fn run(
    line: PeerLine,
    events: mpsc::Receiver<ForwardEvent>,
    ForwardListener { socket, local }: ForwardListener,
    to: HostPort,
) -> Forward {
    let (stop, carried) = (CancellationToken::new(), line.carried());
    let stopped = stop.clone();
    tokio::spawn(async move {
        stopped
            .run_until_cancelled(async {
                match socket {
                    ListeningSocket::Tcp(listener) => tcp::listen(line, to, listener).await,
                    ListeningSocket::Udp(socket) => udp_near::listen(line, to, socket).await,
                }
            })
            .await
    });
    Forward { local, carried, events, _stop: stop.drop_guard() }
}

/// What a request to forward says.
#[derive(Serialize, Deserialize)]
struct Destination {
    to: String,
}

/// Asks the peer to forward to `to`.
async fn ask_for(connection: &PeerConnection, topic: &str, to: &HostPort) -> Result<Accepted, String> {
    let body = Body::of(&Destination { to: to.to_string() }).map_err(|error| error.to_string())?;
    let request = OutgoingMessage { topic: Some(topic.to_owned()), reply_to: None, body };
    let accepted = ask(connection, request).await.map_err(|error| error.to_string())?;
    match accepted.delivery.status {
        AckStatus::Accepted => Ok(accepted),
        other => Err(format!("the peer answers with {other}")),
    }
}

/// Where a peer's request to forward may go.
pub(super) fn permitted(
    peer: NodeId,
    protocol: ForwardProtocol,
    body: &Body,
    permitted: &Permitted,
) -> Result<HostPort, Refused> {
    let refused = |refusal, why| Err(Refused { refusal, why });
    let asked: Option<Destination> = body.read();
    let Some(to): Option<HostPort> = asked.and_then(|Destination { to }| to.parse().ok()) else {
        return refused(Refusal::MalformedRequest, "the body must be {\"to\": \"HOST:PORT\"}".to_owned());
    };
    if permitted.allows(peer, protocol, &to) {
        return Ok(to);
    }
    let of_protocol = match protocol {
        ForwardProtocol::Tcp => String::new(),
        ForwardProtocol::Udp => format!("\nprotocol = \"{protocol}\""),
    };
    let why = format!(
        "not permitted; to permit it, the agent that was asked needs in its configuration:\n\
         [[agent.allow]]\npeer = \"{peer}\"\nto = \"{to}\"{of_protocol}"
    );
    refused(Refusal::ForwardNotPermitted, why)
}

#[cfg(test)]
mod tests {
    use super::super::request::printable_lines;
    use super::*;
    use crate::config::Allow;

    const PEER: NodeId = NodeId::from_bytes([1; 32]);

    fn rules() -> Permitted {
        let to: HostPort = "127.0.0.1:1".parse().unwrap();
        let tcp = Allow { peer: PEER, to: to.clone(), protocol: ForwardProtocol::Tcp };
        let udp = Allow { to: "127.0.0.1:3".parse().unwrap(), protocol: ForwardProtocol::Udp, ..tcp.clone() };
        Permitted { accept: vec![PEER], allow: vec![tcp, udp] }
    }

    fn body(to: &str) -> Body {
        Body::of(&Destination { to: to.to_owned() }).unwrap()
    }

    #[test]
    fn only_a_listed_peer_protocol_and_destination_is_permitted_and_the_refusal_names_the_lines() {
        let stranger = NodeId::from_bytes([2; 32]);
        for (peer, protocol, to) in [
            (PEER, ForwardProtocol::Tcp, "127.0.0.1:2"),
            (PEER, ForwardProtocol::Tcp, "127.0.0.1:3"),
            (PEER, ForwardProtocol::Udp, "127.0.0.1:1"),
            (stranger, ForwardProtocol::Tcp, "127.0.0.1:1"),
        ] {
            let refusal = permitted(peer, protocol, &body(to), &rules()).err().unwrap();
            assert_eq!(refusal.refusal, Refusal::ForwardNotPermitted);
            // What is to be written is TOML, also as it is shown at the other end.
            let shown = printable_lines(&refusal.why);
            let lines = shown.split_once('\n').unwrap().1;
            let own = if protocol == ForwardProtocol::Udp { "protocol = \"udp\"\n" } else { "" };
            let expected = format!("[[agent.allow]]\npeer = \"{peer}\"\nto = \"{to}\"\n{own}");
            let table = |text: &str| text.parse::<toml::Table>().unwrap();
            assert_eq!(table(lines), table(&expected));
        }
        for (protocol, to) in [(ForwardProtocol::Tcp, "127.0.0.1:1"), (ForwardProtocol::Udp, "127.0.0.1:3")] {
            assert_eq!(permitted(PEER, protocol, &body(to), &rules()).ok().unwrap().to_string(), to);
        }
    }

    #[test]
    fn a_request_that_does_not_say_where_to_is_refused() {
        for wrong in [Body::default(), body("x"), Body::of(&"127.0.0.1:1").unwrap(), Body::of(&[7]).unwrap()]
        {
            let refused = permitted(PEER, ForwardProtocol::Tcp, &wrong, &rules()).err().unwrap();
            assert_eq!(refused.refusal, Refusal::MalformedRequest, "{wrong:?}");
        }
    }
}
