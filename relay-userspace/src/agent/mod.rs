//! The agent: a node behind NAT that reaches other agents through relays, as a library.
//!
//! An [`Agent`] keeps a control connection to each of its relays. [`Agent::connect`] asks one of them for a session with
//! another agent, proves its data tuple, and runs QUIC end to end over it, mutually authenticated by node id: the relay
//! sees only encrypted datagrams. [`Agent::connect_raw`] gives the session's datagrams themselves, for a protocol of the
//! application's own that encrypts, WireGuard for one.
//!
//! What an application needs to know:
//!
//! - **Sessions** come and go. [`Agent::session_events`] tells when one is paired, has moved to another path, meets its limit
//!   or ends, and why. What runs over a session need not care for moves.
//! - **Size.** [`RawSession::max_datagram`] may change while a session lives; a datagram that does not fit is refused when it
//!   is sent, not lost on the way.
//! - **Errors** have a text for people and a [`Remedy`] for programs: try again, call the operator, or do something else.
//! - **Nothing is served by default**: `accept` in [`AgentSettings`] says who may connect, `incoming` what their sessions are.
//!
//! Complete programs are in `relay-userspace/examples`; docs/wire.md is what goes over the network.
//!
//! Reading order: `state` decides (pure), `driver` does; `link` is one relay's control connection, `data_socket` one
//! session's UDP socket, `virtual_socket` puts QUIC on top of that, `peer` is the connection between two agents. On its
//! streams `request` asks and `streams` answers: `inbox` takes messages, `forward` carries TCP and UDP.

mod backoff;
mod data_address;
mod data_socket;
mod driver;
mod error;
mod event;
mod forward;
mod inbox;
mod known_relays;
mod link;
mod live_session;
mod pacing;
mod peer;
mod peer_address;
mod peer_endpoint;
mod permitted;
mod probe;
mod raw;
mod reached;
mod refusal;
mod remedy;
mod request;
mod serving;
mod session;
mod session_path;
mod settings;
mod snapshot;
mod splice;
mod state;
mod streams;
mod verification;
mod virtual_socket;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use error::{ConnectError, LinkError, SessionEnd};
pub use event::{SessionEvent, SessionEvents};
pub use forward::{Forward, ForwardError, ForwardEvent, ForwardListener, LocalPort};
pub use inbox::{INBOX_LEN, IncomingMessage};
pub use known_relays::{KnownRelays, PinError};
pub use peer::{PING_TIMEOUT, PeerConnection, PingError, PingSample};
pub use peer_address::peer_address;
pub use raw::{RawSendError, RawSession};
pub use reached::{Path, Reached};
pub use refusal::Refusal;
pub use remedy::Remedy;
pub use request::{Delivery, MessageError, OutgoingMessage};
pub use session::Session;
pub use settings::{AgentSettings, CongestionSettings, Incoming};
pub use snapshot::{
    DeliverySnapshot, PeerSnapshot, PeersSnapshot, RelayPeer, SessionSnapshot, SessionTraffic,
    SessionsSnapshot,
};
pub use splice::ReadableConnection;
pub use state::Whom;

// Registration with bootstrap nodes dials, proves itself and waits as a link does.
pub(crate) use backoff::Backoff;
pub(crate) use data_socket::local_address_towards;
pub(crate) use link::{DIAL_TIMEOUT, dial, drained};
pub(crate) use verification::{initiate, unix_s};

use crate::config::{self, HostPort};
use crate::identity::{NodeId, NodeKey};
use crate::protocol::ErrorCode;
use driver::Driver;
use driver::commands::Command;
use event::SessionEventSender;
use peer::EndToEndPath;
use refusal::RefusalLog;

/// A running agent. Dropping it stops it: sessions end, peers and relays are told, without waiting for them;
/// [`Agent::shutdown`] waits.
#[derive(Debug)]
pub struct Agent {
    dialler: Dialler,
    raw: tokio::sync::Mutex<mpsc::Receiver<RawSession>>,
    session_events: SessionEventSender,
    inbox: tokio::sync::Mutex<mpsc::Receiver<IncomingMessage>>,
    stop: CancellationToken,
    driver: Option<JoinHandle<()>>,
}

impl Agent {
    /// Starts an agent on the present tokio runtime. It connects to its relays in the background; what it needs from
    /// them waits until they are there, or fails saying why they are not.
    pub fn spawn(settings: AgentSettings) -> Agent {
        let stop = CancellationToken::new();
        let (commands, to_do) = mpsc::channel(64);
        let (raw_in, raw_out) = mpsc::channel(16);
        let (inbox_in, inbox_out) = mpsc::channel(INBOX_LEN);
        let refusals = RefusalLog::default();
        let (key, name) = (settings.key.clone(), settings.name.clone());
        let dialler = Dialler { key, name, commands, refusals: refusals.clone() };
        let session_events = SessionEventSender::new();
        let driver =
            Driver::new(settings, to_do, raw_in, session_events.clone(), inbox_in, refusals, stop.clone());
        let (raw, inbox) = (raw_out.into(), inbox_out.into());
        Agent { dialler, raw, session_events, inbox, stop, driver: Some(tokio::spawn(driver.run())) }
    }

    /// This agent's id.
    pub fn node_id(&self) -> NodeId {
        self.dialler.node_id()
    }

    /// Connects to another agent through a relay, end to end. A session that both share already is used again.
    ///
    /// # Errors
    /// No path within 10 seconds, or the peer is not who it should be.
    pub async fn connect(&self, peer: NodeId) -> Result<PeerConnection, ConnectError> {
        self.dialler.connect(peer).await
    }

    /// As [`Agent::connect`]; a peer that knows only the documented messages is reached through a relay that can read what
    /// is sent, if [`AgentSettings::allow_readable_relay`] says so.
    ///
    /// # Errors
    /// As [`Agent::connect`]; [`ConnectError::ReadableRelay`] if it does not.
    pub async fn reach(&self, peer: NodeId) -> Result<Reached, ConnectError> {
        self.dialler.reach(peer).await
    }

    /// A session of its own with another agent, for the application's datagrams. The peer must take it with
    /// [`Incoming::Raw`].
    ///
    /// # Errors
    /// No path within 10 seconds.
    pub async fn connect_raw(&self, peer: NodeId) -> Result<RawSession, ConnectError> {
        let (answer, answered) = oneshot::channel();
        self.dialler.command(Command::ConnectRaw { peer, answer }).await?;
        answered.await.unwrap_or(Err(ConnectError::Stopped))
    }

    /// The next session that a peer has asked for, with [`Incoming::Raw`]; None once the agent is stopped.
    pub async fn accept_raw(&self) -> Option<RawSession> {
        self.raw.lock().await.recv().await
    }

    /// What happens to this agent's sessions from now on, those that others have asked for included.
    pub fn session_events(&self) -> SessionEvents {
        self.session_events.subscribe()
    }

    /// The next message that a peer has sent; None once the agent is stopped. Cancel safe. [`INBOX_LEN`] messages wait
    /// here; after that their senders are told to try later.
    pub async fn accept_message(&self) -> Option<IncomingMessage> {
        self.inbox.lock().await.recv().await
    }

    /// Listens on a local TCP address; each connection comes out at the peer, which connects it to `to`
    /// (`HOST:PORT`, as in its `[[agent.allow]]`).
    ///
    /// # Errors
    /// The address cannot be listened on, or the peer not reached.
    pub async fn forward(
        &self,
        listen: SocketAddr,
        peer: NodeId,
        to: HostPort,
    ) -> Result<Forward, ForwardError> {
        self.forward_from(ForwardListener::bind(listen).await?, peer, to).await
    }

    /// Takes a local UDP address. What a program sends there comes out at the peer, which sends it to `to` from a port of
    /// its own for each program (`HOST:PORT`, as in its `[[agent.allow]]` with `protocol = "udp"`), and carries back what
    /// is answered. A datagram must fit a QUIC datagram of the connection to the peer: some 40 bytes less than the session
    /// carries. Others are dropped and counted, and the first is told as [`ForwardEvent::Failed`].
    ///
    /// # Errors
    /// The address cannot be had, or the peer not reached.
    pub async fn forward_udp(
        &self,
        listen: SocketAddr,
        peer: NodeId,
        to: HostPort,
    ) -> Result<Forward, ForwardError> {
        self.forward_from(ForwardListener::bind_udp(listen).await?, peer, to).await
    }

    /// As [`Agent::forward`] or [`Agent::forward_udp`], from a port that was taken before the agent was started.
    ///
    /// # Errors
    /// The peer cannot be reached.
    pub async fn forward_from(
        &self,
        listener: ForwardListener,
        peer: NodeId,
        to: HostPort,
    ) -> Result<Forward, ForwardError> {
        forward::start(self.dialler.clone(), listener, peer, to).await
    }

    /// As [`Agent::forward_from`], but it connects to the peer only when something is to be carried, and each time anew if
    /// that fails: for a service that outlives its peer and its relays.
    pub fn forward_idle(&self, listener: ForwardListener, peer: NodeId, to: HostPort) -> Forward {
        forward::start_idle(self.dialler.clone(), listener, peer, to)
    }

    /// The relays the agent is connected to.
    pub async fn peers(&self) -> PeersSnapshot {
        self.dialler.peers().await
    }

    /// The sessions it is a side of.
    pub async fn sessions(&self) -> SessionsSnapshot {
        self.dialler.sessions().await
    }

    /// A handle that does not keep the agent alive, for an admin socket.
    pub fn inspector(&self) -> Inspector {
        Inspector { dialler: self.dialler.clone() }
    }

    /// Stops the agent, and waits until peers and relays have been told (at most about half a second).
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        if let Some(driver) = self.driver.take() {
            // The driver does not panic; if it did, it is stopped all the same.
            let _over = driver.await;
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What an admin socket does with a running agent.
#[derive(Clone, Debug)]
pub struct Inspector {
    dialler: Dialler,
}

impl Inspector {
    /// As [`Agent::peers`]; empty once the agent is stopped.
    pub async fn peers(&self) -> PeersSnapshot {
        self.dialler.peers().await
    }

    /// As [`Agent::sessions`]; empty once the agent is stopped.
    pub async fn sessions(&self) -> SessionsSnapshot {
        self.dialler.sessions().await
    }

    /// To how many relays the agent is connected and how many sessions it is a side of. `None` once it is stopped.
    pub async fn counts(&self) -> Option<(usize, usize)> {
        let (answer, answered) = oneshot::channel();
        self.dialler.command(Command::Peers { answer }).await.ok()?;
        let relays = answered.await.ok()?.peers.len();
        Some((relays, self.sessions().await.sessions.len()))
    }

    /// As [`Agent::reach`].
    ///
    /// # Errors
    /// As [`Agent::reach`]; also that the agent is stopped.
    pub async fn reach(&self, peer: NodeId) -> Result<Reached, ConnectError> {
        self.dialler.reach(peer).await
    }

    /// Ends sessions; relays and peers are told. How many there were.
    pub async fn disconnect(&self, whom: Whom) -> usize {
        let (answer, answered) = oneshot::channel();
        let asked = self.dialler.command(Command::Disconnect { whom, answer }).await;
        if asked.is_ok() { answered.await.unwrap_or_default() } else { 0 }
    }

    /// Changes who may connect and what they may reach. Sessions with peers that may not connect any more end; forwards
    /// that run go on.
    pub async fn permit(&self, permitted: config::Agent) {
        // An agent that is being stopped permits nothing.
        let _stopped = self.dialler.command(Command::Permit(permitted)).await;
    }
}

/// What asks the driver.
#[derive(Clone, Debug)]
struct Dialler {
    key: NodeKey,
    name: String,
    commands: mpsc::Sender<Command>,
    refusals: RefusalLog,
}

impl Dialler {
    fn node_id(&self) -> NodeId {
        self.key.node_id()
    }

    async fn connect(&self, peer: NodeId) -> Result<PeerConnection, ConnectError> {
        let (answer, answered) = oneshot::channel();
        self.command(Command::Connect { peer, answer }).await?;
        let path: EndToEndPath = answered.await.unwrap_or(Err(ConnectError::Stopped))?;
        peer::dial(&self.key, &self.name, path).await
    }

    async fn reach(&self, peer: NodeId) -> Result<Reached, ConnectError> {
        match self.connect(peer).await {
            Err(ConnectError::Refused { code, .. }) if code == ErrorCode::DocumentedOnly.number() => {}
            connected => return connected.map(Reached::EndToEnd),
        }
        let (answer, answered) = oneshot::channel();
        self.command(Command::ReadableRelays { peer, answer }).await?;
        let relays = answered.await.unwrap_or(Err(ConnectError::Stopped))?;
        let connection = splice::dial(&self.key, &self.name, peer, relays).await?;
        Ok(Reached::Readable(connection.into()))
    }

    async fn peers(&self) -> PeersSnapshot {
        let (answer, answered) = oneshot::channel();
        let asked = self.command(Command::Peers { answer }).await;
        if asked.is_ok() { answered.await.unwrap_or_default() } else { PeersSnapshot::default() }
    }

    async fn sessions(&self) -> SessionsSnapshot {
        let (answer, answered) = oneshot::channel();
        let asked = self.command(Command::Sessions { answer }).await;
        if asked.is_ok() { answered.await.unwrap_or_default() } else { SessionsSnapshot::default() }
    }

    async fn command(&self, command: Command) -> Result<(), ConnectError> {
        self.commands.send(command).await.map_err(|_| ConnectError::Stopped)
    }
}

/// Locks for a moment. A poisoned lock is used on: what it protects is counters and queues, sound after any step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
