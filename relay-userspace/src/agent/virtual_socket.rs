//! The socket that QUIC between two agents runs on: one made-up peer address above, the present data sockets below.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, RwLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use super::data_socket::{DataSocket, Pace};
use super::{lock, peer_address::peer_address};
use crate::identity::NodeId;
use crate::protocol::SessionId;

/// Whatever path there is to one peer. Sends on the first, receives on all.
#[derive(Debug)]
pub struct VirtualSocket {
    local: SocketAddr,
    peer: SocketAddr,
    paths: RwLock<Vec<(SessionId, Arc<DataSocket>)>>,
    /// Whoever waits for datagrams, to be told when there is another path.
    reader: Mutex<Option<Waker>>,
    max_segments: (usize, usize),
}

impl VirtualSocket {
    /// A socket between two nodes with a first path.
    pub fn new(me: &NodeId, peer: &NodeId, session: SessionId, path: Arc<DataSocket>) -> Arc<Self> {
        let max_segments = (path.max_transmit_segments(), path.max_receive_segments());
        Arc::new(VirtualSocket {
            local: peer_address(me),
            peer: peer_address(peer),
            paths: vec![(session, path)].into(),
            reader: None.into(),
            max_segments,
        })
    }

    /// Another path, received on from now on.
    pub fn add(&self, session: SessionId, path: Arc<DataSocket>) {
        self.with_paths(|paths| paths.push((session, path)));
        if let Some(reader) = lock(&self.reader).take() {
            reader.wake();
        }
    }

    /// Sends on that session's path from now on.
    pub fn prefer(&self, session: SessionId) {
        self.with_paths(|paths| {
            if let Some(at) = paths.iter().position(|(id, _)| *id == session)
                && let Some(head) = paths.get_mut(..=at)
            {
                head.rotate_right(1);
            }
        });
    }

    /// Drops a path. Gives how many are left.
    pub fn remove(&self, session: SessionId) -> usize {
        self.with_paths(|paths| {
            paths.retain(|(id, _)| *id != session);
            paths.len()
        })
    }

    /// The session that is sent on.
    pub fn session(&self) -> Option<SessionId> {
        self.read_paths(|paths| paths.first().map(|(id, _)| *id))
    }

    fn sending_path(&self) -> Option<Arc<DataSocket>> {
        self.read_paths(|paths| paths.first().map(|(_, path)| path.clone()))
    }

    fn with_paths<T>(&self, change: impl FnOnce(&mut Vec<(SessionId, Arc<DataSocket>)>) -> T) -> T {
        change(&mut self.paths.write().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn read_paths<T>(&self, read: impl FnOnce(&[(SessionId, Arc<DataSocket>)]) -> T) -> T {
        read(&self.paths.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

impl AsyncUdpSocket for VirtualSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller { socket: self, wait: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        // Without a path the datagram is lost, and QUIC sends its content again.
        let sent = self.sending_path().map_or(Ok(()), |path| {
            path.try_send(transmit.contents, transmit.segment_size, transmit.ecn, Pace::AtRate)
        });
        REFUSED.set(sent.is_err());
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
            for (_, path) in paths {
                // An error is of one path, and its session will end for it; an Err here would end the whole endpoint.
                if let Poll::Ready(Ok(count)) = path.poll_recv(cx, buffers, metas) {
                    for meta in metas.iter_mut().take(count) {
                        meta.addr = self.peer;
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
        self.sending_path().map_or(self.max_segments.0, |path| path.max_transmit_segments())
    }

    fn max_receive_segments(&self) -> usize {
        self.max_segments.1
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

thread_local! {
    /// Whether this thread's last send was refused.
    ///
    /// A connection asks its poller before each send, and again right after a refused one, on the same thread. Only the
    /// latter is to wait: small datagrams are sent while larger ones of another connection have to be held back, and
    /// before the send nobody knows how large it will be.
    static REFUSED: Cell<bool> = const { Cell::new(false) };
}

/// Waits, after a `WouldBlock`, for the pace and for the socket. One for each connection.
struct Poller {
    socket: Arc<VirtualSocket>,
    wait: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>>,
}

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let refused = REFUSED.take();
        if !refused && self.wait.is_none() {
            return Poll::Ready(Ok(()));
        }
        let socket = self.socket.clone();
        let wait = self.wait.get_or_insert_with(|| Box::pin(writable(socket)));
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

async fn writable(socket: Arc<VirtualSocket>) -> io::Result<()> {
    let Some(path) = socket.sending_path() else { return Ok(()) };
    while let Some(delay) = path.pacing_delay(usize::MAX) {
        tokio::time::sleep(delay.max(Duration::from_millis(1))).await;
    }
    path.writable().await
}
