//! One session's UDP socket: datagrams to and from the relay, with bind datagrams taken out.

use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit, UdpSocketState};
use relay_common::BIND_LEN;
use tokio::io::Interest;
use tokio::sync::Notify;
use tokio::time::Sleep;

use super::lock;
use super::pacing::Pacer;
use super::settings::CongestionSettings;
use super::snapshot::SessionTraffic;
use crate::clock::MonoTime;
use crate::protocol::bind::{BindClient, BindEvent, BindMagic, BindOutput};
use crate::protocol::flow_terms::FlowTerms;
use crate::socket_queue::{queue_drops, set_buffer_sizes};

/// The socket, the binding of its tuple, the pace of its sending, and the count of what went through.
#[derive(Debug)]
pub struct DataSocket {
    io: tokio::net::UdpSocket,
    state: UdpSocketState,
    relay: SocketAddr,
    magic: BindMagic,
    bind: std::sync::Mutex<BindClient>,
    bind_changed: Notify,
    congestion: CongestionSettings,
    pacer: std::sync::Mutex<Pacer>,
    /// Until receiving is tried again after an error.
    receive_pause: std::sync::Mutex<Option<Pin<Box<Sleep>>>>,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    datagrams_sent: AtomicU64,
    datagrams_received: AtomicU64,
    bytes_sent: AtomicU64,
    bytes_received: AtomicU64,
    /// The system refused to send.
    unsent: AtomicU64,
    /// From elsewhere than the relay's data address, or with the magic but no bind datagrams.
    strange: AtomicU64,
    /// The application was too slow to take them.
    untaken: AtomicU64,
}

/// A burst of a fast path fits: 4 MiB are 30 ms at 1 Gbit/s.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// An error of receiving may persist, and the socket is still said to be ready: without a pause the task would spin.
const RECEIVE_PAUSE: Duration = Duration::from_millis(10);

/// The binding looks at its clock at least this often, so that notes of sending and hearing need not wake it.
const BIND_TICK: Duration = Duration::from_secs(1);

impl DataSocket {
    /// Opens a socket on any local port towards `relay`'s data address.
    ///
    /// # Errors
    /// The system's.
    pub fn open(
        relay: SocketAddr,
        terms: &FlowTerms,
        congestion: CongestionSettings,
        now: MonoTime,
    ) -> io::Result<Arc<Self>> {
        let any: IpAddr = match relay {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = std::net::UdpSocket::bind((any, 0))?;
        let receive_buffer_bytes = set_buffer_sizes(&socket, SOCKET_BUFFER_BYTES)?;
        tracing::debug!(%relay, receive_buffer_bytes, "a data socket is open");
        let state = UdpSocketState::new((&socket).into())?;
        let io = tokio::net::UdpSocket::from_std(socket)?;
        Ok(Arc::new(DataSocket {
            io,
            state,
            relay,
            magic: terms.bind_magic,
            bind: BindClient::new(terms, now).into(),
            bind_changed: Notify::new(),
            congestion,
            pacer: Pacer::new(paced_rate(terms, congestion), terms.burst_bytes, Instant::now()).into(),
            receive_pause: None.into(),
            counters: Counters::default(),
        }))
    }

    /// The relay's data address.
    pub fn relay(&self) -> SocketAddr {
        self.relay
    }

    /// Keeps the tuple bound until the session is lost; never returns before that.
    pub async fn keep_bound(&self, mut tell: impl FnMut(BindEvent)) {
        loop {
            let output = lock(&self.bind).poll(MonoTime::now(), unix_us());
            match output {
                BindOutput::Send(datagram) => {
                    if let Err(error) = self.io.send_to(&datagram, self.relay).await {
                        tracing::debug!(relay = %self.relay, %error, "a bind datagram could not be sent");
                    }
                }
                BindOutput::Event(event) => {
                    tell(event);
                    if event == BindEvent::Lost {
                        return;
                    }
                }
                BindOutput::Idle(deadline) => {
                    let wait = deadline.map_or(BIND_TICK, |at| at.since(MonoTime::now()).min(BIND_TICK));
                    // The coarse clock may still be before the deadline when the timer is not.
                    let wait = wait.max(Duration::from_millis(1));
                    let _either = tokio::time::timeout(wait, self.bind_changed.notified()).await;
                }
            }
        }
    }

    /// Binds at once: the local address has changed.
    pub fn bind_now(&self) {
        lock(&self.bind).bind_now();
        self.bind_changed.notify_one();
    }

    /// The relay has sent the session's terms again.
    pub fn set_terms(&self, terms: &FlowTerms) {
        lock(&self.bind).set_terms(terms);
        let rate = paced_rate(terms, self.congestion);
        lock(&self.pacer).set_limit(rate, terms.burst_bytes, Instant::now());
        self.bind_changed.notify_one();
    }

    /// Sends `contents` as datagrams of `segment_size` bytes (the last may be shorter; None: one datagram).
    ///
    /// # Errors
    /// Only `WouldBlock`: the socket is full, or it is too early at the relay's rate. Whatever else goes wrong is a
    /// lost datagram, as it would be further down the path.
    pub fn try_send(
        &self,
        contents: &[u8],
        segment_size: Option<usize>,
        ecn: Option<EcnCodepoint>,
        pace: Pace,
    ) -> io::Result<()> {
        if pace == Pace::AtRate && self.pacing_delay(contents.len()).is_some() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let ecn = ecn.filter(|_| self.congestion.ecn);
        let transmit = Transmit { destination: self.relay, ecn, contents, segment_size, src_ip: None };
        let sent = self.io.try_io(Interest::WRITABLE, || self.state.try_send((&self.io).into(), &transmit));
        let datagrams = match segment_size {
            Some(size @ 1..) => contents.len().div_ceil(size) as u64,
            _ => 1,
        };
        match sent {
            Ok(()) => {
                let bytes = contents.len() as u64;
                add(&self.counters.datagrams_sent, datagrams);
                add(&self.counters.bytes_sent, bytes);
                lock(&self.pacer).charge(datagrams, bytes, Instant::now());
                lock(&self.bind).note_sent(MonoTime::now());
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            Err(error) => {
                add(&self.counters.unsent, datagrams);
                tracing::debug!(relay = %self.relay, bytes = contents.len(), %error, "datagrams could not be sent");
                Ok(())
            }
        }
    }

    /// How long a sender of `bytes` has to wait at the relay's rate.
    pub fn pacing_delay(&self, bytes: usize) -> Option<Duration> {
        lock(&self.pacer).delay(bytes, Instant::now())
    }

    /// Waits until the socket takes datagrams.
    pub fn writable(&self) -> impl Future<Output = io::Result<()>> + Send + Sync + '_ {
        self.io.writable()
    }

    /// Receives what is not for the binding. Like the system call below: each buffer holds one datagram, or several of
    /// `stride` bytes. Only one task may wait here.
    pub fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.poll_recv_with(cx, buffers, metas, |buffers, metas| {
            self.io.try_io(Interest::READABLE, || self.state.recv((&self.io).into(), buffers, metas))
        })
    }

    fn poll_recv_with(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
        mut receive: impl FnMut(&mut [IoSliceMut<'_>], &mut [RecvMeta]) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_receive_pause(cx));
            ready!(self.io.poll_recv_ready(cx))?;
            let count = match receive(buffers, metas) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => {
                    tracing::debug!(relay = %self.relay, %error, "receiving failed");
                    *lock(&self.receive_pause) = Some(Box::pin(tokio::time::sleep(RECEIVE_PAUSE)));
                    continue;
                }
            };
            let mut heard = false;
            for (buffer, meta) in buffers.iter_mut().zip(metas.iter_mut()).take(count) {
                self.take_own(buffer, meta);
                heard |= meta.len > 0;
            }
            if heard {
                lock(&self.bind).note_heard(MonoTime::now());
                return Poll::Ready(Ok(count));
            }
        }
    }

    fn poll_receive_pause(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut pause = lock(&self.receive_pause);
        if let Some(over) = pause.as_mut() {
            ready!(over.as_mut().poll(cx));
            *pause = None;
        }
        Poll::Ready(())
    }

    /// What went through so far, bind datagrams not counted.
    pub fn traffic(&self) -> SessionTraffic {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SessionTraffic {
            datagrams_sent: read(&self.counters.datagrams_sent),
            datagrams_received: read(&self.counters.datagrams_received),
            bytes_sent: read(&self.counters.bytes_sent),
            bytes_received: read(&self.counters.bytes_received),
            unsent: read(&self.counters.unsent),
            strange: read(&self.counters.strange),
            untaken: read(&self.counters.untaken),
            queue_full: queue_drops(self.io.as_fd()).unwrap_or(0).into(),
        }
    }

    /// Counts datagrams that were received but that nobody took.
    pub fn count_untaken(&self, datagrams: u64) {
        add(&self.counters.untaken, datagrams);
    }

    /// How many datagrams one send may carry.
    pub fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    /// How many datagrams one receive buffer may carry.
    pub fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }

    /// Takes bind datagrams and what is not from the relay out of a buffer: what is left is closed up to its front.
    fn take_own(&self, buffer: &mut [u8], meta: &mut RecvMeta) {
        let stride = meta.stride.max(1);
        let len = meta.len.min(buffer.len());
        let datagrams = len.div_ceil(stride) as u64;
        if meta.addr != self.relay {
            add(&self.counters.strange, datagrams);
            meta.len = 0;
            return;
        }
        let mut kept = len;
        // Only a datagram of a bind datagram's length can be one: all of them, or the last, which alone may be shorter.
        if stride == BIND_LEN {
            kept = 0;
            for from in (0..len).step_by(stride) {
                let to = (from + stride).min(len);
                if !self.take_if_bind(buffer.get(from..to).unwrap_or_default()) {
                    buffer.copy_within(from..to, kept);
                    kept += to - from;
                }
            }
        } else {
            let last = len - len.checked_rem(stride).filter(|rest| *rest > 0).unwrap_or(stride.min(len));
            if self.take_if_bind(buffer.get(last..len).unwrap_or_default()) {
                kept = last;
            }
        }
        meta.len = kept;
        if kept > 0 {
            let (datagrams, bytes) = (kept.div_ceil(stride) as u64, kept as u64);
            add(&self.counters.datagrams_received, datagrams);
            add(&self.counters.bytes_received, bytes);
            lock(&self.pacer).charge(datagrams, bytes, Instant::now());
        }
    }

    /// Whether the datagram was for the binding: it has the relay's magic, with which nothing else may begin.
    fn take_if_bind(&self, datagram: &[u8]) -> bool {
        let Ok(datagram) = <&[u8; BIND_LEN]>::try_from(datagram) else { return false };
        if !datagram.starts_with(&self.magic.0) {
            return false;
        }
        match lock(&self.bind).handle(datagram, MonoTime::now()) {
            Ok(()) => self.bind_changed.notify_one(),
            Err(fault) => {
                add(&self.counters.strange, 1);
                tracing::debug!(relay = %self.relay, %fault, "a bind datagram was not sound");
            }
        }
        true
    }
}

/// Whether a sender is held to the relay's rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// It is.
    AtRate,
    /// It sends when it likes, and what the relay drops is its loss.
    Free,
}

/// The rate that sending is held to; 0: none.
fn paced_rate(terms: &FlowTerms, congestion: CongestionSettings) -> u64 {
    if congestion.pacing { terms.rate_bytes_per_s } else { 0 }
}

/// The local address from which datagrams to `remote` would be sent now.
pub fn local_address_towards(remote: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match remote {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let probe = std::net::UdpSocket::bind((any, 0)).ok()?;
    // Connecting a UDP socket only looks the route up; nothing is sent.
    probe.connect(remote).ok()?;
    Some(probe.local_addr().ok()?.ip())
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

fn unix_us() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use relay_common::Side;

    use super::*;
    use crate::protocol::bind::{BindDatagram, BindKind, Cookie};

    #[tokio::test]
    async fn bind_datagrams_are_taken_out_wherever_they_stand() {
        let socket = socket();
        let bind = bind();
        let data = |len: usize| vec![0x40; len];
        let cases: [(Vec<Vec<u8>>, usize, usize); 6] = [
            (vec![data(1200), data(1200), bind.clone()], 1200, 2400),
            (vec![data(1200), data(1200), data(96)], 1200, 2496),
            (vec![data(96), bind.clone(), data(96), bind.clone(), data(50)], 96, 242),
            (vec![bind.clone(), bind.clone()], 96, 0),
            (vec![bind.clone()], 96, 0),
            (vec![data(1200)], 1200, 1200),
        ];
        let mut datagrams = 0;
        for (parts, stride, left) in cases {
            let mut buffer = parts.concat();
            let mut meta = meta(&socket, buffer.len(), stride);
            socket.take_own(&mut buffer, &mut meta);
            assert_eq!(meta.len, left);
            assert!(buffer[..left].iter().all(|byte| *byte == 0x40), "what is left is data");
            datagrams += left.div_ceil(stride) as u64;
        }
        assert_eq!(socket.traffic().datagrams_received, datagrams);
    }

    #[tokio::test]
    async fn datagrams_from_elsewhere_are_dropped_and_counted() {
        let socket = socket();
        let mut buffer = [0x40; 100];
        let mut stranger = meta(&socket, 100, 50);
        stranger.addr.set_port(1);
        socket.take_own(&mut buffer, &mut stranger);
        assert_eq!((stranger.len, socket.traffic().strange, socket.traffic().datagrams_received), (0, 2, 0));
    }

    #[tokio::test]
    async fn datagrams_and_bytes_sent_are_counted_by_segment() {
        let socket = socket();
        socket.io.writable().await.unwrap();
        socket.try_send(&[0x40; 2500], Some(1000), None, Pace::Free).unwrap();
        socket.try_send(&[0x40; 10], None, None, Pace::Free).unwrap();
        let traffic = socket.traffic();
        assert_eq!((traffic.datagrams_sent, traffic.bytes_sent, traffic.unsent), (4, 2510, 0));
    }

    #[tokio::test]
    async fn without_pacing_nothing_waits_for_the_limit_and_a_new_limit_changes_nothing() {
        let limited = FlowTerms { rate_bytes_per_s: 1_000, burst_bytes: 1_000, ..terms() };
        let relay = "127.0.0.1:9".parse().unwrap();
        for (pacing, waits) in [(true, true), (false, false)] {
            let congestion = CongestionSettings { pacing, ..CongestionSettings::default() };
            let socket = socket_to(relay, limited.clone(), congestion);
            socket.io.writable().await.unwrap();
            socket.try_send(&[0x40; 60_000], Some(1_200), None, Pace::AtRate).unwrap();
            assert_eq!(socket.pacing_delay(1_200).is_some(), waits, "pacing = {pacing}");
            socket.set_terms(&FlowTerms { rate_bytes_per_s: 500, ..limited.clone() });
            assert_eq!(socket.pacing_delay(1_200).is_some(), waits, "pacing = {pacing}, new terms");
        }
    }

    #[tokio::test]
    async fn a_mark_on_the_way_reaches_quic_and_without_ecn_none_can_be_made() {
        let relay = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let relay_state = UdpSocketState::new((&relay).into()).unwrap();
        for (ecn, sent) in [(true, Some(EcnCodepoint::Ect0)), (false, None)] {
            let congestion = CongestionSettings { ecn, ..CongestionSettings::default() };
            let socket = socket_to(relay.local_addr().unwrap(), terms(), congestion);
            socket.io.writable().await.unwrap();
            socket.try_send(&[0x40; 100], None, Some(EcnCodepoint::Ect0), Pace::Free).unwrap();
            let mut meta = [RecvMeta::default()];
            let mut buffer = [0; 2_000];
            relay_state.recv((&relay).into(), &mut [IoSliceMut::new(&mut buffer)], &mut meta).unwrap();
            assert_eq!(meta[0].ecn, sent, "ecn = {ecn}");

            let marked = Transmit {
                destination: (Ipv4Addr::LOCALHOST, socket.io.local_addr().unwrap().port()).into(),
                ecn: Some(EcnCodepoint::Ce),
                contents: &[0x40; 100],
                segment_size: None,
                src_ip: None,
            };
            relay_state.try_send((&relay).into(), &marked).unwrap();
            let mut slices = [IoSliceMut::new(&mut buffer)];
            let received = std::future::poll_fn(|cx| socket.poll_recv(cx, &mut slices, &mut meta)).await;
            assert_eq!((received.unwrap(), meta[0].len, meta[0].ecn), (1, 100, Some(EcnCodepoint::Ce)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_of_receiving_that_persists_is_met_again_only_after_a_pause() {
        let socket = socket();
        let port = socket.io.local_addr().unwrap().port();
        socket.io.send_to(b"ready", (Ipv4Addr::LOCALHOST, port)).await.unwrap();
        socket.io.readable().await.unwrap();
        let mut attempts = 0;
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for pauses in 1..=3 {
            for _ in 0..2 {
                let polled = socket.poll_recv_with(&mut cx, &mut [], &mut [], |_, _| {
                    attempts += 1;
                    Err(io::ErrorKind::NetworkDown.into())
                });
                assert!(polled.is_pending());
                assert_eq!(attempts, pauses);
            }
            tokio::time::advance(RECEIVE_PAUSE).await;
        }
    }

    fn socket() -> Arc<DataSocket> {
        socket_to("127.0.0.1:9".parse().unwrap(), terms(), CongestionSettings::default())
    }

    fn socket_to(relay: SocketAddr, terms: FlowTerms, congestion: CongestionSettings) -> Arc<DataSocket> {
        DataSocket::open(relay, &terms, congestion, MonoTime::now()).unwrap()
    }

    fn meta(socket: &DataSocket, len: usize, stride: usize) -> RecvMeta {
        RecvMeta { addr: socket.relay, len, stride, ecn: None, dst_ip: None }
    }

    fn bind() -> Vec<u8> {
        let terms = terms();
        let (side, session) = (terms.side, terms.session);
        BindDatagram { kind: BindKind::Challenge, side, session, counter: 0, cookie: Cookie([1; 16]) }
            .seal(&terms.bind_magic, &terms.bind_key)
            .to_vec()
    }

    fn terms() -> FlowTerms {
        FlowTerms::example(Side::Target)
    }
}
