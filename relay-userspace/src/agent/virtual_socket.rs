//! The socket that QUIC between two agents runs on: made-up peer addresses above, the present data sockets below.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use relay_common::Side;

use super::data_socket::{DataSocket, Pace};
use super::{lock, peer_address::peer_address};
use crate::identity::NodeId;
use crate::protocol::SessionId;

/// Whatever path there is to one peer. Receives on all.
///
/// Sessions that this agent asked for are one address: it sends on the one it prefers, and the application does not
/// notice which. Each session that the peer asked for is an address of its own, since another process of the same
/// identity may be behind it: what came by it is answered on it. So a session that moves to another relay stays what it is
/// for whoever has asked for it, and looks to the other side like a client that has got another address.
#[derive(Debug)]
pub struct VirtualSocket {
    local: SocketAddr,
    peer: SocketAddr,
    paths: RwLock<Vec<Path>>,
    /// The port that the next session of the peer's is given.
    next_port: AtomicU16,
    /// Whoever waits for datagrams, to be told when there is another path.
    reader: Mutex<Option<Waker>>,
    max_segments: (usize, usize),
}

/// One session's path.
#[derive(Debug)]
struct Path {
    session: SessionId,
    socket: Arc<DataSocket>,
    /// The address that QUIC knows its far end by.
    address: SocketAddr,
}

impl VirtualSocket {
    /// A socket between two nodes with a first path, on which this agent is `side`.
    pub fn new(
        me: &NodeId,
        peer: &NodeId,
        session: SessionId,
        side: Side,
        path: Arc<DataSocket>,
    ) -> Arc<Self> {
        let max_segments = (path.max_transmit_segments(), path.max_receive_segments());
        let socket = VirtualSocket {
            local: peer_address(me),
            peer: peer_address(peer),
            paths: Vec::new().into(),
            next_port: FIRST_PORT.into(),
            reader: None.into(),
            max_segments,
        };
        socket.add(session, side, path);
        Arc::new(socket)
    }

    /// Another path, received on from now on, on which this agent is `side`.
    pub fn add(&self, session: SessionId, side: Side, path: Arc<DataSocket>) {
        let mut address = self.peer;
        if side == Side::Target {
            // Never the peer's own port, and after 2^15 sessions an old one's, which is long gone.
            address.set_port(FIRST_PORT | self.next_port.fetch_add(1, Ordering::Relaxed));
        }
        self.with_paths(|paths| paths.push(Path { session, socket: path, address }));
        if let Some(reader) = lock(&self.reader).take() {
            reader.wake();
        }
    }

    /// Sends on that session's path from now on.
    pub fn prefer(&self, session: SessionId) {
        self.with_paths(|paths| {
            if let Some(at) = paths.iter().position(|path| path.session == session)
                && let Some(head) = paths.get_mut(..=at)
            {
                head.rotate_right(1);
            }
        });
    }

    /// Drops a path. Gives how many are left.
    pub fn remove(&self, session: SessionId) -> usize {
        self.with_paths(|paths| {
            paths.retain(|path| path.session != session);
            paths.len()
        })
    }

    /// The session that `far_end` comes by.
    pub fn session_of(&self, far_end: SocketAddr) -> Option<SessionId> {
        self.read_paths(|paths| paths.iter().find(|path| path.address == far_end).map(|path| path.session))
    }

    /// The preferred of the paths to `destination`.
    fn path_to(&self, destination: SocketAddr) -> Option<Arc<DataSocket>> {
        self.read_paths(|paths| {
            paths.iter().find(|path| path.address == destination).map(|path| path.socket.clone())
        })
    }

    fn with_paths<T>(&self, change: impl FnOnce(&mut Vec<Path>) -> T) -> T {
        change(&mut self.paths.write().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn read_paths<T>(&self, read: impl FnOnce(&[Path]) -> T) -> T {
        read(&self.paths.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

impl AsyncUdpSocket for VirtualSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller { wait: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        // Without a path the datagram is lost, and QUIC sends its content again.
        let Some(path) = self.path_to(transmit.destination) else { return Ok(()) };
        let sent = path.try_send(transmit.contents, transmit.segment_size, transmit.ecn, Pace::AtRate);
        REFUSED.set(sent.is_err().then_some(path));
        sent
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        *lock(&self.reader) = Some(cx.waker().clone());
        self.read_paths(|paths| {
            for path in paths {
                // An error is of one path, and its session will end for it; an Err here would end the whole endpoint.
                if let Poll::Ready(Ok(count)) = path.socket.poll_recv(cx, buffers, metas) {
                    for meta in metas.iter_mut().take(count) {
                        meta.addr = path.address;
                        meta.dst_ip = None;
                    }
                    return Poll::Ready(Ok(count));
                }
            }
            Poll::Pending
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }

    fn max_transmit_segments(&self) -> usize {
        self.max_segments.0
    }

    fn max_receive_segments(&self) -> usize {
        self.max_segments.1
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

thread_local! {
    /// The path that refused this thread's last send.
    ///
    /// A connection asks its poller before each send, and again right after a refused one, on the same thread. Only the
    /// latter is to wait: small datagrams are sent while larger ones of another connection have to be held back, and
    /// before the send nobody knows how large it will be.
    static REFUSED: Cell<Option<Arc<DataSocket>>> = const { Cell::new(None) };
}

/// Waits, after a `WouldBlock`, for the pace and for the socket. One for each connection.
struct Poller {
    wait: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>>,
}

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(path) = REFUSED.take() {
            self.wait = Some(Box::pin(writable(path)));
        }
        let Some(wait) = &mut self.wait else { return Poll::Ready(Ok(())) };
        let polled = wait.as_mut().poll(cx);
        if polled.is_ready() {
            self.wait = None;
        }
        polled
    }
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poller").finish_non_exhaustive()
    }
}

async fn writable(path: Arc<DataSocket>) -> io::Result<()> {
    while let Some(delay) = path.pacing_delay(usize::MAX) {
        tokio::time::sleep(delay.max(Duration::from_millis(1))).await;
    }
    path.writable().await
}

/// The ports of the peer's sessions are this and above.
const FIRST_PORT: u16 = 1 << 15;
