//! A session's datagrams for the application itself: any protocol over UDP that encrypts end to end.

use std::io::IoSliceMut;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use quinn::udp::{BATCH_SIZE, RecvMeta};
use tokio::sync::mpsc;

use super::data_socket::{DataSocket, Pace};
use super::error::SessionEnd;
use super::lock;
use super::session::{Session, SessionUser};

/// Unencrypted, unpaced access to a session's datagrams. What is sent arrives as it is, or not at all.
///
/// **What is sent must be encrypted end to end**: anyone who can send from the address of either side's NAT can put
/// datagrams into the session. Dropping it ends a session that was asked for here.
#[derive(Debug)]
pub struct RawSession {
    session: Session,
    received: mpsc::Receiver<Bytes>,
    _user: SessionUser,
}

impl RawSession {
    pub(super) fn new(session: Session, received: mpsc::Receiver<Bytes>, user: SessionUser) -> Self {
        RawSession { session, received, _user: user }
    }

    /// The session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The largest datagram that fits the whole path, in bytes.
    pub fn max_datagram(&self) -> usize {
        self.session.max_datagram()
    }

    /// Sends one datagram at once, whatever the session's rate: what is above it the relay drops.
    ///
    /// # Errors
    /// The datagram does not fit, or the session has ended.
    pub async fn send(&self, datagram: &[u8]) -> Result<(), RawSendError> {
        let max = self.max_datagram();
        if datagram.len() > max {
            return Err(RawSendError::TooLarge { len: datagram.len(), max });
        }
        loop {
            if let Some(end) = self.session.end() {
                return Err(RawSendError::Ended(end));
            }
            let socket = self.session.socket();
            if socket.try_send(datagram, None, None, Pace::Free).is_ok() {
                return Ok(());
            }
            // An error shows up in the next attempt.
            let _ready = socket.writable().await;
        }
    }

    /// The next datagram from the peer; None once the session has ended. Cancel safe.
    ///
    /// Datagrams that nobody takes are kept up to [`RawSession::QUEUE`]; after that new ones are dropped and counted.
    pub async fn recv(&mut self) -> Option<Bytes> {
        self.received.recv().await
    }

    /// How many received datagrams are kept.
    pub const QUEUE: usize = 1024;
}

/// Why a datagram was not sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RawSendError {
    /// It does not fit the path.
    #[error("the datagram has {len} bytes, the path carries at most {max}")]
    TooLarge {
        /// Its length in bytes.
        len: usize,
        /// What fits.
        max: usize,
    },
    /// There is no session any more.
    #[error("{0}")]
    Ended(SessionEnd),
}

/// Where a path's datagrams go. The paths of a session that moves have one in common.
#[derive(Clone, Debug)]
pub(super) struct RawQueue(Arc<Mutex<mpsc::Sender<Bytes>>>);

impl RawQueue {
    /// A queue, and the end that the application takes from.
    pub fn new() -> (Self, mpsc::Receiver<Bytes>) {
        let (queue, taken) = mpsc::channel(RawSession::QUEUE);
        (RawQueue(Arc::new(queue.into())), taken)
    }

    /// What comes from now on, and what has come and was `kept`, goes into `other`.
    pub fn join(&self, other: &RawQueue, mut kept: mpsc::Receiver<Bytes>) {
        let queue = lock(&other.0).clone();
        *lock(&self.0) = queue.clone();
        while let Ok(datagram) = kept.try_recv() {
            // Into a full queue it is lost, as it would be had it come by the other path.
            let _taken = queue.try_send(datagram);
        }
    }

    fn put(&self, datagram: &[u8], socket: &DataSocket) {
        match lock(&self.0).try_send(Bytes::copy_from_slice(datagram)) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => socket.count_untaken(1),
            Err(mpsc::error::TrySendError::Closed(_)) => {}
        }
    }
}

/// Reads a data socket for an application. Reading also keeps the tuple bound, so it goes on whether or not datagrams
/// are taken.
pub(super) async fn receive_all(socket: Arc<DataSocket>, queue: RawQueue) {
    let mut buffers = vec![vec![0; MAX_RECEIVE]; BATCH_SIZE];
    let mut metas = [RecvMeta::default(); BATCH_SIZE];
    loop {
        let mut slices: Vec<IoSliceMut<'_>> =
            buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
        let received = std::future::poll_fn(|cx| socket.poll_recv(cx, &mut slices, &mut metas)).await;
        let Ok(count) = received else { return };
        for (buffer, meta) in slices.iter().zip(&metas).take(count) {
            let filled = buffer.get(..meta.len).unwrap_or_default();
            for datagram in filled.chunks(meta.stride.max(1)) {
                queue.put(datagram, &socket);
            }
        }
    }
}

/// The system coalesces datagrams into at most one IP packet's length.
const MAX_RECEIVE: usize = 1 << 16;
