//! TCP through a peer: a local listener on one side, a connection to what the peer permits on the other.
//!
//! Each connection has a QUIC stream of its own. Its first frame is a Message with topic `net/forward` and body
//! `{"to": "HOST:PORT"}`; the answer is MessageAck(accepted), or an Error. After that it carries the TCP bytes, each
//! direction to its own end; a reset on either side resets the other.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::error::Elapsed;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::error::ConnectError;
use super::peer::{PeerConnection, Serving};
use super::refusal::Refusal;
use super::session::Session;
use super::snapshot::SessionTraffic;
use super::verification::unix_s;
use super::{Dialler, lock};
use crate::config::{Allow, HostPort};
use crate::identity::NodeId;
use crate::protocol::envelope::MAX_CONTROL_PAYLOAD_LEN;
use crate::protocol::flow_terms::ErrorMessage;
use crate::protocol::frames::{FrameError, FrameReader, write_frame};
use crate::protocol::handshake::printable;
use crate::protocol::message::{AckStatus, AtlasMessage, Body, MessageAck};
use crate::protocol::{ErrorCode, Message};

/// The topic of a request to forward.
pub const TOPIC: &str = "net/forward";

/// A local TCP listener whose connections come out at the peer. Dropping it closes everything.
#[derive(Debug)]
pub struct Forward {
    local: SocketAddr,
    sessions: Arc<Mutex<Vec<Session>>>,
    events: mpsc::Receiver<ForwardEvent>,
    _stop: DropGuard,
}

/// What happens to a forward.
#[derive(Clone, Debug)]
pub enum ForwardEvent {
    /// It runs over this session from now on.
    Session(Session),
    /// The connection to the peer is gone; the next TCP connection makes a new one.
    Lost {
        /// Why.
        why: String,
    },
    /// One TCP connection was not carried to its end.
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

    /// The next thing that happens.
    pub async fn next_event(&mut self) -> Option<ForwardEvent> {
        self.events.recv().await
    }

    /// What went through the data sockets of all its sessions so far.
    pub fn traffic(&self) -> SessionTraffic {
        lock(&self.sessions).iter().map(Session::traffic).fold(SessionTraffic::default(), |sum, one| {
            SessionTraffic {
                datagrams_sent: sum.datagrams_sent + one.datagrams_sent,
                datagrams_received: sum.datagrams_received + one.datagrams_received,
                bytes_sent: sum.bytes_sent + one.bytes_sent,
                bytes_received: sum.bytes_received + one.bytes_received,
                unsent: sum.unsent + one.unsent,
                strange: sum.strange + one.strange,
                queue_full: sum.queue_full + one.queue_full,
                untaken: sum.untaken + one.untaken,
            }
        })
    }
}

/// Why a forward was not set up.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// Another program listens there.
    #[error(
        "TCP {0} is in use: stop what uses it (`ss -tlpn sport = :{port}` shows it) or choose another port",
        port = .0.port()
    )]
    InUse(SocketAddr),
    /// The listener.
    #[error("cannot listen on TCP {address}: {source}")]
    Listen {
        /// The address that was asked for.
        address: SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The peer.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

/// The local end of a forward to be: a TCP port that is taken, before anybody is asked for anything.
#[derive(Debug)]
pub struct ForwardListener {
    tcp: TcpListener,
    local: SocketAddr,
}

impl ForwardListener {
    /// Listens on a local TCP address; port 0: any.
    ///
    /// # Errors
    /// It cannot be listened on.
    pub async fn bind(address: SocketAddr) -> Result<ForwardListener, ForwardError> {
        let failed = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::AddrInUse => ForwardError::InUse(address),
            _ => ForwardError::Listen { address, source },
        };
        let tcp = TcpListener::bind(address).await.map_err(failed)?;
        let local = tcp.local_addr().map_err(failed)?;
        Ok(ForwardListener { tcp, local })
    }
}

pub(super) async fn start(
    dialler: Dialler,
    listener: ForwardListener,
    peer: NodeId,
    to: HostPort,
) -> Result<Forward, ForwardError> {
    let ForwardListener { tcp: listener, local } = listener;
    let connection = dialler.connect(peer).await?;
    let stop = CancellationToken::new();
    let (tell, events) = mpsc::channel(64);
    let sessions = Arc::new(Mutex::new(vec![connection.session().clone()]));
    // There is room for the first event.
    let _told = tell.try_send(ForwardEvent::Session(connection.session().clone()));
    let carrier = Carrier {
        dialler,
        peer,
        to,
        tell,
        sessions: sessions.clone(),
        connection: tokio::sync::Mutex::new(Some(connection)),
    };
    let stopped = stop.clone();
    tokio::spawn(async move { stopped.run_until_cancelled(carrier.listen(listener)).await });
    Ok(Forward { local, sessions, events, _stop: stop.drop_guard() })
}

struct Carrier {
    dialler: Dialler,
    peer: NodeId,
    to: HostPort,
    tell: mpsc::Sender<ForwardEvent>,
    sessions: Arc<Mutex<Vec<Session>>>,
    connection: tokio::sync::Mutex<Option<PeerConnection>>,
}

impl Carrier {
    async fn listen(self, listener: TcpListener) {
        let carrier = Arc::new(self);
        let mut carrying = tokio::task::JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_done) = carrying.join_next() => continue,
                () = carrier.watch() => continue,
            };
            match accepted {
                Ok((tcp, client)) => {
                    reset_unless_done(&tcp);
                    let carrier = carrier.clone();
                    carrying.spawn(async move {
                        if let Err(why) = carrier.carry(tcp).await {
                            tracing::warn!(%client, to = %carrier.to, why, "a TCP connection was not carried to its end");
                            carrier.tell(ForwardEvent::Failed { client, why });
                        }
                    });
                }
                Err(error) => {
                    // Most likely too many open files: wait for some to close.
                    tracing::warn!(%error, "a TCP connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Waits until the present connection is gone, and says so once.
    async fn watch(&self) {
        let connection = self.connection.lock().await.clone();
        let Some(connection) = connection else { return std::future::pending().await };
        let why = connection.closed().await;
        let mut present = self.connection.lock().await;
        if present.as_ref().is_some_and(|now| now.quic().stable_id() == connection.quic().stable_id()) {
            *present = None;
            self.tell(ForwardEvent::Lost { why });
        }
    }

    async fn carry(&self, tcp: TcpStream) -> Result<(), String> {
        let connection = match self.connected().await {
            Ok(connection) => connection,
            Err(error) => return Err(error.to_string()),
        };
        match ask(&connection, self.dialler.node_id(), self.peer, &self.to).await {
            Ok((to_peer, from_peer)) => splice(tcp, to_peer, from_peer, connection.quic()).await,
            Err(why) => Err(why),
        }
    }

    /// The present connection, or a new one. Those who come meanwhile wait for the same.
    async fn connected(&self) -> Result<PeerConnection, ConnectError> {
        let mut present = self.connection.lock().await;
        match &*present {
            Some(connection) if connection.quic().close_reason().is_none() => Ok(connection.clone()),
            _ => {
                let connection = self.dialler.connect(self.peer).await?;
                lock(&self.sessions).push(connection.session().clone());
                self.tell(ForwardEvent::Session(connection.session().clone()));
                *present = Some(connection.clone());
                Ok(connection)
            }
        }
    }

    fn tell(&self, event: ForwardEvent) {
        // Whoever does not listen to the events misses some.
        let _told = self.tell.try_send(event);
    }
}

/// A peer has this long to answer a request, its own dialling included.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Documented: dialling one address takes at most this long.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// The code of a reset stream.
const RESET: u32 = 1;

async fn ask(
    connection: &PeerConnection,
    me: NodeId,
    peer: NodeId,
    to: &HostPort,
) -> Result<(quinn::SendStream, quinn::RecvStream), String> {
    let exchange = async {
        let (mut to_peer, from_peer) =
            connection.quic().open_bi().await.map_err(|error| error.to_string())?;
        let request = AtlasMessage {
            id: message_id(),
            from: me.to_string(),
            to: peer.to_string(),
            timestamp: unix_s(),
            reply_to: None,
            topic: Some(TOPIC.to_owned()),
            body: Body { to: Some(to.to_string()) },
        };
        write_frame(&mut to_peer, &request.into()).await.map_err(|error| error.to_string())?;
        let mut from_peer = FrameReader::new(from_peer, MAX_CONTROL_PAYLOAD_LEN);
        match from_peer.next().await.map_err(|error| error.to_string())? {
            Some(Message::MessageAck(MessageAck { status: AckStatus::Accepted, .. })) => {
                Ok((to_peer, from_peer.into_inner()))
            }
            Some(Message::Error(error)) => {
                Err(format!("the peer refuses: {} {}", error.code, printable_lines(&error.message)))
            }
            Some(other) => Err(format!("the peer answers with {}", other.name())),
            None => Err("the peer has closed the stream".to_owned()),
        }
    };
    tokio::time::timeout(ANSWER_TIMEOUT, exchange)
        .await
        .unwrap_or_else(|_| Err(format!("the peer has not answered within {} s", ANSWER_TIMEOUT.as_secs())))
}

/// What a peer says, in the lines it says it in: they may be for copying. All but the first are indented, so that none
/// of them can be taken for one of ours.
fn printable_lines(text: &str) -> String {
    let lines: Vec<String> = text.lines().take(8).map(|line| printable(line, 256)).collect();
    lines.join("\n  ")
}

/// Serves one stream that a peer has opened.
pub(super) async fn answer(
    peer: NodeId,
    serving: &Serving,
    connection: &quinn::Connection,
    mut to_peer: quinn::SendStream,
    from_peer: quinn::RecvStream,
) {
    let mut from_peer = FrameReader::new(from_peer, MAX_CONTROL_PAYLOAD_LEN);
    let request = match first_message(&mut from_peer).await {
        Ok(Ok(Some(message))) => message,
        Ok(Ok(None)) => return,
        Err(_elapsed) => {
            let why = format!("no whole message within {} s", ANSWER_TIMEOUT.as_secs());
            serving.refusals.refuse(Refusal::StreamSilent, &peer, &why);
            return;
        }
        Ok(Err(error)) => {
            if let Some(code) = error.code() {
                serving.refusals.refuse(Refusal::BadFrame, &peer, &error);
                refuse(&mut to_peer, code, &error.to_string(), None).await;
            }
            return;
        }
    };
    let allow = serving.allow.borrow().clone();
    match open(peer, &allow, request).await {
        Ok((message_id, to, tcp)) => {
            let accepted = MessageAck { msg_id: message_id, status: AckStatus::Accepted };
            if let Err(error) = write_frame(&mut to_peer, &accepted.into()).await {
                tracing::debug!(%peer, %error, "the peer did not wait for its answer");
                return;
            }
            tracing::info!(%peer, %to, "a forward begins");
            match splice(tcp, to_peer, from_peer.into_inner(), connection).await {
                Ok(()) => tracing::info!(%peer, %to, "a forward is done"),
                Err(why) => tracing::warn!(%peer, %to, why, "a forward was cut off"),
            }
        }
        Err(Refused { refusal, why, message_id }) => {
            // One line in the log.
            serving.refusals.refuse(refusal, &peer, &why.replace('\n', " "));
            let code = match refusal {
                Refusal::ForwardUnreachable => ErrorCode::Refused,
                _ => ErrorCode::MessageRejected,
            };
            refuse(&mut to_peer, code, &why, message_id).await;
        }
    }
}

/// What a stream begins with; None if it has ended instead. Whoever opens streams and says nothing does not keep them.
async fn first_message<R: AsyncRead + Unpin>(
    from_peer: &mut FrameReader<R>,
) -> Result<Result<Option<Message>, FrameError>, Elapsed> {
    tokio::time::timeout(ANSWER_TIMEOUT, from_peer.next()).await
}

/// A request that was refused.
struct Refused {
    refusal: Refusal,
    why: String,
    message_id: Option<String>,
}

/// Connects to what is asked for. The request, as large as the peer likes, is not kept for as long as the forward lives.
async fn open(
    peer: NodeId,
    allow: &[Allow],
    request: Message,
) -> Result<(String, HostPort, TcpStream), Refused> {
    let Message::Message(request) = request else {
        let why = format!("a stream begins with a Message, not with {}", request.name());
        return Err(Refused { refusal: Refusal::UnexpectedMessage, why, message_id: None });
    };
    let message_id = request.id.clone();
    let refused = |refusal, why| Refused { refusal, why, message_id: Some(message_id.clone()) };
    if request.topic.as_deref() != Some(TOPIC) {
        return Err(refused(Refusal::UnknownTopic, format!("the only topic served here is {TOPIC}")));
    }
    let to = request.body.to.as_deref().and_then(|to| to.parse().ok());
    let Some(to): Option<HostPort> = to else {
        let why = "the body must be {\"to\": \"HOST:PORT\"}".to_owned();
        return Err(refused(Refusal::MalformedRequest, why));
    };
    drop(request);
    if !allow.iter().any(|rule| rule.peer == peer && rule.to == to) {
        // The peer reads it too.
        let why = format!(
            "not permitted; to permit it, the agent that was asked needs in its configuration:\n\
             [[agent.allow]]\npeer = \"{peer}\"\nto = \"{to}\""
        );
        return Err(refused(Refusal::ForwardNotPermitted, why));
    }
    let unreachable =
        |why: String| refused(Refusal::ForwardUnreachable, format!("{to} cannot be reached: {why}"));
    match tokio::time::timeout(DIAL_TIMEOUT, TcpStream::connect((to.host(), to.port()))).await {
        Ok(Ok(tcp)) => {
            reset_unless_done(&tcp);
            Ok((message_id, to, tcp))
        }
        Ok(Err(error)) => Err(unreachable(error.to_string())),
        Err(_elapsed) => Err(unreachable(format!("no answer within {} s", DIAL_TIMEOUT.as_secs()))),
    }
}

async fn refuse(to_peer: &mut quinn::SendStream, code: ErrorCode, why: &str, message_id: Option<String>) {
    let error = ErrorMessage { ref_msg_id: message_id, ..ErrorMessage::new(code, why) };
    if write_frame(to_peer, &error.into()).await.is_ok() && to_peer.finish().is_ok() {
        // Dropping the stream before it is delivered would reset it.
        let _delivered = tokio::time::timeout(ANSWER_TIMEOUT, to_peer.stopped()).await;
    }
}

/// Carries bytes both ways until both directions have ended. What is on its way is bounded by one buffer here and the
/// stream's windows.
async fn splice(
    mut tcp: TcpStream,
    mut to_peer: quinn::SendStream,
    mut from_peer: quinn::RecvStream,
    connection: &quinn::Connection,
) -> Result<(), String> {
    // Interactive programs write little and wait for the answer.
    let _faster = tcp.set_nodelay(true);
    let (mut tcp_read, mut tcp_write) = tcp.split();
    let out = async {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let count = tcp_read.read(&mut buffer).await.map_err(|error| format!("TCP: {error}"))?;
            if count == 0 {
                return to_peer.finish().map_err(|error| error.to_string());
            }
            let filled = buffer.get(..count).unwrap_or_default();
            to_peer.write_all(filled).await.map_err(|error| format!("to the peer: {error}"))?;
        }
    };
    let back = async {
        loop {
            match from_peer.read_chunk(BUFFER_BYTES, true).await {
                Ok(Some(chunk)) => {
                    tcp_write.write_all(&chunk.bytes).await.map_err(|error| format!("TCP: {error}"))?;
                }
                Ok(None) => return tcp_write.shutdown().await.map_err(|error| format!("TCP: {error}")),
                Err(error) => return Err(format!("from the peer: {error}")),
            }
        }
    };
    let done = tokio::select! {
        done = async { tokio::try_join!(out, back) } => done.map(|_| ()),
        error = connection.closed() => Err(error.to_string()),
    };
    match done {
        Ok(()) => {
            // The default again: what the program has not read yet is still delivered after closing.
            let _set = socket2::SockRef::from(&tcp).set_linger(None);
            // What was written is delivered, or the other side has said that it wants no more.
            to_peer.stopped().await.map(|_| ()).map_err(|error| format!("to the peer: {error}"))
        }
        Err(why) => {
            // Both may have ended already.
            let _reset = to_peer.reset(RESET.into());
            let _stopped = from_peer.stop(RESET.into());
            Err(why)
        }
    }
}

const BUFFER_BYTES: usize = 64 * 1024;

/// Closing will be a reset, however it comes about, until both directions have ended in order: the program on the other
/// end must not take a connection that was cut off for one that is complete.
fn reset_unless_done(tcp: &TcpStream) {
    // A linger of no time: closing discards what is unsent and sends RST.
    let _set = socket2::SockRef::from(tcp).set_linger(Some(Duration::ZERO));
}

/// `msg_` and a UUID of version 7 (RFC 9562, section 5.7): milliseconds since the Unix epoch, then random bits.
fn message_id() -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (high, low) = (getrandom::u64().unwrap_or(0), getrandom::u64().unwrap_or(0));
    uuid_v7(u64::try_from(since.as_millis()).unwrap_or(0), high, low)
}

fn uuid_v7(unix_ms: u64, high: u64, low: u64) -> String {
    format!(
        "msg_{:08x}-{:04x}-7{:03x}-{:04x}-{:012x}",
        (unix_ms >> 16) as u32,
        unix_ms & 0xffff,
        high & 0xfff,
        0x8000 | (high >> 12) & 0x3fff,
        low & 0xffff_ffff_ffff
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_ids_are_uuids_of_version_7() {
        assert_eq!(uuid_v7(0x0192_4f8a_7b3c, 0, 0), "msg_01924f8a-7b3c-7000-8000-000000000000");
        assert_eq!(uuid_v7(u64::MAX, u64::MAX, u64::MAX), "msg_ffffffff-ffff-7fff-bfff-ffffffffffff");
    }

    #[tokio::test]
    async fn only_a_listed_peer_and_target_is_permitted_and_the_refusal_names_the_line() {
        let peer = NodeId::from_bytes([1; 32]);
        let allow = [Allow { peer, to: "127.0.0.1:1".parse().unwrap() }];
        for (peer, to) in [(peer, "127.0.0.1:2"), (NodeId::from_bytes([2; 32]), "127.0.0.1:1")] {
            let refusal = open(peer, &allow, request(to)).await.err().unwrap();
            assert_eq!(refusal.refusal, Refusal::ForwardNotPermitted);
            // What is to be written is TOML, also as it is shown at the other end.
            let shown = printable_lines(&refusal.why);
            let lines = shown.split_once('\n').unwrap().1;
            let expected = format!("[[agent.allow]]\npeer = \"{peer}\"\nto = \"{to}\"\n");
            let table = |text: &str| text.parse::<toml::Table>().unwrap();
            assert_eq!(table(lines), table(&expected));
            assert_eq!(refusal.message_id.as_deref(), Some("msg_1"));
        }
    }

    #[tokio::test]
    async fn other_requests_are_refused() {
        let peer = NodeId::from_bytes([1; 32]);
        let Message::Message(good) = request("127.0.0.1:1") else { panic!() };
        let nowhere = AtlasMessage { body: Body { to: Some("x".into()) }, ..good.clone() };
        let wrong = [
            (AtlasMessage { topic: None, ..good.clone() }.into(), Refusal::UnknownTopic),
            (AtlasMessage { body: Body::default(), ..good }.into(), Refusal::MalformedRequest),
            (nowhere.into(), Refusal::MalformedRequest),
            (crate::protocol::message::Ping { ts: 0 }.into(), Refusal::UnexpectedMessage),
        ];
        for (message, expected) in wrong {
            let message: Message = message;
            let shown = format!("{message:?}");
            let refused = open(peer, &[], message).await.err().unwrap();
            assert_eq!(refused.refusal, expected, "{shown}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_does_not_say_what_it_wants_is_given_up_in_time() {
        let (mut near, far) = tokio::io::duplex(64);
        let begun = tokio::time::Instant::now();
        let dripping = tokio::spawn(async move {
            // Enough of a frame to look like one, again and again a little more.
            for byte in [0xac, 1, 1, 0x10, 0, 0, 0, 60, 0x85] {
                near.write_all(&[byte]).await.unwrap();
                tokio::time::sleep(Duration::from_secs(4)).await;
            }
        });
        assert!(first_message(&mut FrameReader::new(far, MAX_CONTROL_PAYLOAD_LEN)).await.is_err());
        assert_eq!(begun.elapsed(), ANSWER_TIMEOUT);
        dripping.abort();
    }

    fn request(to: &str) -> Message {
        AtlasMessage {
            id: "msg_1".into(),
            from: String::new(),
            to: String::new(),
            timestamp: 0,
            reply_to: None,
            topic: Some(TOPIC.into()),
            body: Body { to: Some(to.into()) },
        }
        .into()
    }
}
