//! The socket quinn sees: it receives what the readers give it and sends through the control socket of either family.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::amplification::Amplification;
use super::socket_options;
use crate::clock::MonoTime;
use crate::relay::family::{Family, PerFamily};

/// Datagrams that may wait for quinn. What comes faster than it can take them would be late anyway.
pub const QUEUE_LEN: usize = 1024;

/// The part of it that is open to what did not come by control's sockets: strangers' datagrams, which many readers bring at
/// once and nobody needs to be answered.
pub const STRANGERS_LEN: usize = QUEUE_LEN / 4;

/// The largest datagram taken for QUIC, in bytes: what an Ethernet frame carries. It bounds the queue's memory.
pub const MAX_DATAGRAM: usize = 1500;

/// How long to wait for a full socket whose events cannot be had.
const WITHOUT_EVENTS: Duration = Duration::from_millis(1);

/// quinn's view of the relay's port: a bounded queue that every reader feeds, so that neither a relayed datagram nor one
/// that waits for the kernel is touched by quinn's one driver task.
pub struct QuicSocket {
    senders: PerFamily<Sender>,
    address: SocketAddr,
    inbox: Mutex<Inbox>,
    amplification: Mutex<Amplification>,
    gone: CancellationToken,
    /// The last to be dropped.
    _gone: DropGuard,
}

/// What sends to one family.
struct Sender {
    socket: UdpSocket,
    state: UdpSocketState,
    /// The socket as the runtime knows it, for as long as somebody waits until it takes datagrams again. Known all the
    /// time, it would wake the runtime for each datagram that has left.
    waited_for: Mutex<Weak<AsyncFd<UdpSocket>>>,
}

/// How far a task of quinn is with sending. It asks its poller, sends, and asks again if that was refused, all in one
/// call; but a poller is not told where the task sends, nor a sender which task it is that does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Turn {
    /// No task is sending on this thread. What is sent now is one of quinn's answers to strangers: nobody asks again.
    #[default]
    Nobodys,
    /// A task was told that it can send.
    Granted,
    /// It could not: this family's sender is full.
    Refused(Family),
}

thread_local! {
    static TURN: Cell<Turn> = const { Cell::new(Turn::Nobodys) };
}

struct Inbox {
    queue: VecDeque<Waiting>,
    receiver: Option<Waker>,
}

struct Waiting {
    from: SocketAddr,
    to: Option<IpAddr>,
    ecn: Option<EcnCodepoint>,
    payload: Box<[u8]>,
}

impl QuicSocket {
    /// Sends through `control`, whose sockets become non-blocking. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// A socket option or the runtime refuses.
    pub fn new(control: &PerFamily<Arc<UdpSocket>>) -> io::Result<QuicSocket> {
        let address = control.v4.local_addr()?;
        let senders = control.clone().try_map(|socket| Sender::new(socket.try_clone()?))?;
        let inbox = Mutex::new(Inbox { queue: VecDeque::with_capacity(QUEUE_LEN), receiver: None });
        let (amplification, gone) = (Mutex::new(Amplification::new()), CancellationToken::new());
        let _gone = gone.clone().drop_guard();
        Ok(QuicSocket { senders, address, inbox, amplification, gone, _gone })
    }

    /// Cancelled once this is dropped, and the port let go of. quinn keeps it in tasks of its own, which end some time after
    /// the last endpoint is dropped.
    pub fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }

    /// Gives quinn a datagram: its source, the local address it came to, its TOS byte, its payload. False if `most`
    /// datagrams wait already and it was dropped.
    pub fn deliver(&self, from: SocketAddr, to: IpAddr, tos: u8, payload: &[u8], most: usize) -> bool {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        if inbox.queue.len() >= most {
            return false;
        }
        // Before QUIC can take it and answer.
        self.amplification().received(from, payload, MonoTime::now());
        inbox.queue.push_back(Waiting {
            from,
            to: Some(to),
            ecn: EcnCodepoint::from_bits(tos),
            payload: payload.into(),
        });
        let receiver = inbox.receiver.take();
        drop(inbox);
        if let Some(receiver) = receiver {
            receiver.wake();
        }
        true
    }
}

impl QuicSocket {
    fn amplification(&self) -> MutexGuard<'_, Amplification> {
        self.amplification.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sender {
    fn new(socket: UdpSocket) -> io::Result<Sender> {
        let state = UdpSocketState::new((&socket).into())?;
        Ok(Sender { socket, state, waited_for: Mutex::default() })
    }

    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        // `send` and not `try_send`: a datagram the system refuses is a lost datagram, not the end of the connection.
        let send = |socket: &UdpSocket| self.state.send(socket.into(), transmit);
        let waited_for = self.lock().upgrade();
        match waited_for {
            Some(registered) => registered.try_io(Interest::WRITABLE, send),
            None => send(&self.socket),
        }
    }

    /// Waits until the socket takes datagrams again.
    async fn writable(&self) -> io::Result<()> {
        match self.registered() {
            Ok(registered) => registered.writable().await.map(|_| ()),
            // No file descriptor to spare. What is sent next may be lost or not.
            Err(_) => {
                tokio::time::sleep(WITHOUT_EVENTS).await;
                Ok(())
            }
        }
    }

    /// The socket as the runtime knows it, one for all who wait.
    fn registered(&self) -> io::Result<Arc<AsyncFd<UdpSocket>>> {
        let mut waited_for = self.lock();
        if let Some(registered) = waited_for.upgrade() {
            return Ok(registered);
        }
        let registered = Arc::new(socket_options::register(self.socket.try_clone()?, Interest::WRITABLE)?);
        *waited_for = Arc::downgrade(&registered);
        Ok(registered)
    }

    fn lock(&self) -> MutexGuard<'_, Weak<AsyncFd<UdpSocket>>> {
        self.waited_for.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl QuicSocket {
    /// Datagrams that wait for quinn.
    pub fn waiting(&self) -> usize {
        self.inbox.lock().unwrap().queue.len()
    }

    /// Makes the sender to `family` look full until the kernel says again that it is not. For as long as what is returned
    /// lives: it waits for that.
    pub fn fill(&self, family: Family) -> Arc<AsyncFd<UdpSocket>> {
        self.senders.get(family).unwrap().registered().unwrap()
    }
}

impl AsyncUdpSocket for QuicSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable { socket: self, wait: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let granted = TURN.take() == Turn::Granted;
        let family = Family::of(transmit.destination);
        let Some(sender) = self.senders.get(family) else { return Ok(()) };
        if !self.amplification().permits(transmit.destination, transmit.contents) {
            return Ok(());
        }
        let sent = sender.send(transmit);
        let full = sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        if granted && full {
            TURN.set(Turn::Refused(family));
        }
        sent
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = 0;
        for (buffer, meta) in buffers.iter_mut().zip(metas) {
            let Some(waiting) = inbox.queue.pop_front() else { break };
            // A datagram that quinn left no room for becomes an empty one, which it skips.
            let len = match buffer.get_mut(..waiting.payload.len()) {
                Some(room) => {
                    room.copy_from_slice(&waiting.payload);
                    room.len()
                }
                None => 0,
            };
            *meta = RecvMeta { addr: waiting.from, len, stride: len, ecn: waiting.ecn, dst_ip: waiting.to };
            taken += 1;
        }
        if taken > 0 {
            return Poll::Ready(Ok(taken));
        }
        inbox.receiver = Some(cx.waker().clone());
        Poll::Pending
    }

    /// IPv4's. Only clients make use of it.
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn max_transmit_segments(&self) -> usize {
        self.senders.iter().map(|sender| sender.state.max_gso_segments()).min().unwrap_or(1)
    }

    /// One: the readers take single datagrams.
    fn max_receive_segments(&self) -> usize {
        1
    }

    /// False on Linux, so quinn may discover the path's MTU.
    fn may_fragment(&self) -> bool {
        self.senders.iter().any(|sender| sender.state.may_fragment())
    }
}

impl fmt::Debug for QuicSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicSocket").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Waits until the sender that has refused a datagram takes datagrams again: a full one holds up nobody who sends to the
/// other family. Each task of quinn has its own.
struct Writable {
    socket: Arc<QuicSocket>,
    wait: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>>,
}

impl UdpPoller for Writable {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Turn::Refused(family) = TURN.take() {
            let socket = Arc::clone(&self.socket);
            self.wait = Some(Box::pin(async move {
                match socket.senders.get(family) {
                    Some(sender) => sender.writable().await,
                    None => Ok(()),
                }
            }));
        }
        if let Some(wait) = &mut self.wait {
            let result = ready!(wait.as_mut().poll(cx));
            self.wait = None;
            result?;
        }
        TURN.set(Turn::Granted);
        Poll::Ready(Ok(()))
    }
}

impl fmt::Debug for Writable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writable").finish_non_exhaustive()
    }
}
