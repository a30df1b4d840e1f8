//! The readers: one thread per socket takes datagrams in batches and forwards, hands on or drops each.

use std::io::{self, PipeReader};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use relay_common::{BIND_LEN, Reason};
use tokio::sync::mpsc;

use super::batch_io::{Batch, Datagram, Headers, wait_readable};
use super::counters::Counters;
use super::quic_socket::{MAX_DATAGRAM, QuicSocket};
use super::steering::{Class, Marks};

/// A bind datagram on its way to the rendezvous: it has the magic and the length, nothing else is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindDatagram {
    /// Where it came from.
    pub from: SocketAddr,
    /// The relay address it came to.
    pub to: SocketAddr,
    /// The datagram.
    pub bytes: [u8; BIND_LEN],
}

/// What the decision is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Where the datagram came from.
    pub from: SocketAddr,
    /// The relay address it came to.
    pub to: SocketAddr,
    /// UDP payload length in bytes.
    pub payload_len: usize,
    /// TOS or traffic class.
    pub tos: u8,
    /// TTL or hop limit.
    pub ttl: u8,
}

/// The flow tables as the readers use them.
pub trait Decide: Send + Sync + 'static {
    /// Decides about a datagram; charges and counts in its session what is to be sent on.
    ///
    /// # Errors
    /// [`Reason::NoFlow`] if no session has its tuple, else why a datagram of a session is not sent on.
    fn decide(&self, arrival: &Arrival) -> Result<Headers, Reason>;
}

/// What one reader thread works with.
pub struct Reader<D> {
    /// The socket it reads and forwards through.
    pub socket: UdpSocket,
    /// The relay's port: control messages report addresses without it.
    pub port: u16,
    /// What tells control datagrams.
    pub marks: Marks,
    /// The flow tables.
    pub tables: Arc<D>,
    /// Where bind datagrams go.
    pub binds: mpsc::Sender<BindDatagram>,
    /// Where datagrams of no flow go.
    pub quic: Arc<QuicSocket>,
    /// What became of the datagrams; this reader's own.
    pub counters: Arc<Counters>,
    /// Closed at its other end when the reader is to stop.
    pub stop: Arc<PipeReader>,
}

impl<D: Decide> Reader<D> {
    /// Works until `stop` is closed.
    pub fn run(self) {
        let mut batch = Batch::new();
        while self.wait() {
            let count = match batch.receive(&self.socket) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    self.pause_after(&error);
                    continue;
                }
            };
            for index in 0..count {
                self.counters.count(self.take(&mut batch, index));
            }
            batch.flush(&self.socket, |fault| self.counters.count(fault));
        }
    }

    /// One datagram: bind datagrams first, then flows by their tuple, then QUIC. Relayed datagrams may look like QUIC.
    fn take(&self, batch: &mut Batch, index: usize) -> Reason {
        let Some(datagram) = batch.datagram(index) else { return Reason::Truncated };
        let Some(arrival) = self.arrival(&datagram) else { return Reason::Truncated };
        let class = self.marks.class(datagram.payload);
        match class {
            Class::Bind(bytes) => return self.pass_bind(&arrival, bytes),
            Class::BindLength => return Reason::BindMalformed,
            Class::Quic | Class::Other => {}
        }
        match self.tables.decide(&arrival) {
            Ok(headers) => {
                batch.forward(index, headers);
                Reason::Forwarded
            }
            Err(Reason::NoFlow) if class == Class::Quic => self.pass_quic(&arrival, datagram.payload),
            Err(reason) => reason,
        }
    }

    fn arrival(&self, datagram: &Datagram<'_>) -> Option<Arrival> {
        Some(Arrival {
            from: datagram.from,
            to: SocketAddr::new(datagram.ancillary.to?, self.port),
            payload_len: datagram.payload.len(),
            tos: datagram.ancillary.tos,
            ttl: datagram.ancillary.ttl?,
        })
    }

    fn pass_bind(&self, arrival: &Arrival, bytes: &[u8; BIND_LEN]) -> Reason {
        let datagram = BindDatagram { from: arrival.from, to: arrival.to, bytes: *bytes };
        if self.binds.try_send(datagram).is_ok() { Reason::Bind } else { Reason::BindQueueFull }
    }

    /// What is larger than any QUIC datagram of ours is nobody's.
    fn pass_quic(&self, arrival: &Arrival, payload: &[u8]) -> Reason {
        if payload.len() > MAX_DATAGRAM
            || self.quic.deliver(arrival.from, arrival.to.ip(), arrival.tos, payload)
        {
            return Reason::NoFlow;
        }
        Reason::QuicQueueFull
    }

    /// Waits for datagrams; false when the reader is to stop.
    fn wait(&self) -> bool {
        loop {
            match wait_readable(&self.socket, self.stop.as_fd()) {
                Ok(wake) => return wake,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.pause_after(&error),
            }
        }
    }

    /// An error of the socket as a whole: rare, and not a reason to stop, nor to spin.
    fn pause_after(&self, error: &io::Error) {
        tracing::warn!(%error, "receiving from the relay's port failed; trying again");
        std::thread::sleep(Duration::from_millis(10));
    }
}
