//! The datagrams of UDP flows on one connection: QUIC datagrams (RFC 9221), each with its flow's number before it.
//!
//! The number is four bytes, big-endian: how many bidirectional streams the dialler of the connection had opened before
//! the flow's own.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::net::UdpSocket;
use tokio::time::Instant;

use crate::agent::lock;
use crate::agent::refusal::{Refusal, RefusalLog};
use crate::identity::NodeId;

/// A flow that carries nothing for this long is over: what RFC 4787 (REQ-5) asks of a NAT.
pub const IDLE: Duration = Duration::from_secs(120);

/// The largest payload that UDP has room for, in bytes.
pub const MAX_PAYLOAD_LEN: usize = 65_535;

/// Bytes of datagrams that wait to be sent, or to be taken, on one connection.
pub const QUEUE_BYTES: usize = 256 * 1024;

const NUMBER_LEN: usize = size_of::<u32>();

/// One flow of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowNumber(u32);

impl FlowNumber {
    /// The flow of a stream; None once a connection has had more streams than there are numbers.
    pub fn of(stream: quinn::StreamId) -> Option<FlowNumber> {
        stream.index().try_into().ok().map(FlowNumber)
    }
}

/// A datagram with room for its flow's number.
pub fn with_room(payload: &[u8]) -> BytesMut {
    let mut datagram = BytesMut::with_capacity(NUMBER_LEN + payload.len());
    datagram.put_bytes(0, NUMBER_LEN);
    datagram.extend_from_slice(payload);
    datagram
}

/// A payload that does not fit the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a datagram of {len} bytes does not fit the path to the peer, on which at most {max} bytes do: send smaller ones"
)]
pub struct TooLarge {
    len: usize,
    max: usize,
}

/// The flows of one connection that are open.
#[derive(Debug)]
pub struct Flows {
    connection: quinn::Connection,
    peer: NodeId,
    refusals: RefusalLog,
    open: Mutex<HashMap<FlowNumber, Outlet>>,
}

/// Where the datagrams go that come from the peer.
#[derive(Clone, Debug)]
pub struct Outlet {
    /// Whose writability was awaited.
    pub socket: Arc<UdpSocket>,
    /// None: where the socket is connected to.
    pub to: Option<SocketAddr>,
    /// Of the flow.
    pub activity: Arc<Activity>,
}

impl Flows {
    pub fn new(connection: quinn::Connection, peer: NodeId, refusals: RefusalLog) -> Arc<Flows> {
        Arc::new(Flows { connection, peer, refusals, open: Mutex::default() })
    }

    pub fn connection(&self) -> &quinn::Connection {
        &self.connection
    }

    /// Delivers what the peer sends until the connection is gone.
    pub async fn deliver_all(self: Arc<Self>) {
        while let Ok(datagram) = self.connection.read_datagram().await {
            self.deliver(&datagram);
        }
    }

    /// Lets a flow's datagrams out at `outlet` until the result is dropped.
    pub fn open(self: &Arc<Self>, flow: FlowNumber, outlet: Outlet) -> OpenFlow {
        lock(&self.open).insert(flow, outlet.clone());
        OpenFlow { flows: self.clone(), flow, activity: outlet.activity }
    }

    fn deliver(&self, datagram: &Bytes) {
        let split =
            datagram.split_first_chunk().map(|(number, payload)| (u32::from_be_bytes(*number), payload));
        let outlet = split.and_then(|(number, payload)| {
            lock(&self.open).get(&FlowNumber(number)).cloned().map(|outlet| (outlet, payload))
        });
        let Some((outlet, payload)) = outlet else {
            return self.refuse(Refusal::FlowNotOpen, &"a datagram of a flow that is not open, or over");
        };
        outlet.activity.now();
        let sent = match outlet.to {
            Some(to) => outlet.socket.try_send_to(payload, to),
            None => outlet.socket.try_send(payload),
        };
        match sent {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                self.refuse(Refusal::DatagramQueueFull, &"the local socket takes no more at the moment");
            }
            // The program is not there (any more), as its host says. UDP tells nobody.
            Err(error) => tracing::debug!(peer = %self.peer, %error, "a datagram was not delivered"),
        }
    }

    fn refuse(&self, refusal: Refusal, why: &dyn std::fmt::Display) {
        self.refusals.refuse(refusal, &self.peer, why);
    }
}

/// A flow whose datagrams are delivered.
#[derive(Debug)]
pub struct OpenFlow {
    flows: Arc<Flows>,
    flow: FlowNumber,
    activity: Arc<Activity>,
}

impl OpenFlow {
    /// Sends a datagram that was made [`with_room`]. What the path does not carry at the moment is dropped and counted.
    ///
    /// # Errors
    /// It does not fit, now or later. It was counted.
    pub fn send(&self, mut datagram: BytesMut) -> Result<(), TooLarge> {
        self.activity.now();
        let Flows { connection, .. } = &*self.flows;
        // None: the peer takes no datagrams at all.
        let max = connection.max_datagram_size().unwrap_or(0);
        if datagram.len() > max {
            let less = |len: usize| len.saturating_sub(NUMBER_LEN);
            let too_large = TooLarge { len: less(datagram.len()), max: less(max) };
            self.flows.refuse(Refusal::DatagramTooLarge, &too_large);
            return Err(too_large);
        }
        if connection.datagram_send_buffer_space() < datagram.len() {
            // Otherwise QUIC would drop an older one, and count nothing.
            self.flows
                .refuse(Refusal::DatagramQueueFull, &"datagrams come faster than the path carries them");
            return Ok(());
        }
        if let Some(number) = datagram.first_chunk_mut() {
            *number = self.flow.0.to_be_bytes();
        }
        // The connection may just be gone: then the flow ends next.
        let _queued = connection.send_datagram(datagram.freeze());
        Ok(())
    }

    /// Waits until the flow is over: its stream has ended, it was idle for too long, or the connection is gone.
    pub async fn over(&self, from_peer: &mut quinn::RecvStream) -> &'static str {
        let stream_ended = async {
            // A flow's stream carries nothing.
            while let Ok(Some(_)) = from_peer.read_chunk(1024, true).await {}
        };
        tokio::select! {
            () = stream_ended => "the peer has ended it",
            () = self.activity.idle() => "nothing was sent for too long",
            _ = self.flows.connection.closed() => "the connection is gone",
        }
    }
}

impl Drop for OpenFlow {
    fn drop(&mut self) {
        lock(&self.flows.open).remove(&self.flow);
    }
}

/// When a flow has last carried something.
#[derive(Debug)]
pub struct Activity(Mutex<Instant>);

impl Activity {
    pub fn begin() -> Arc<Activity> {
        Arc::new(Activity(Mutex::new(Instant::now())))
    }

    pub fn now(&self) {
        *lock(&self.0) = Instant::now();
    }

    pub fn last(&self) -> Instant {
        *lock(&self.0)
    }

    /// Waits until there was none for [`IDLE`].
    async fn idle(&self) {
        loop {
            let due = self.last() + IDLE;
            if due <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(due).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flow_is_idle_two_minutes_after_it_has_last_carried_something() {
        let (activity, begun) = (Activity::begin(), Instant::now());
        let other = activity.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(100)).await;
            other.now();
        });
        activity.idle().await;
        let idle = begun.elapsed();
        assert!((Duration::from_secs(220)..Duration::from_secs(221)).contains(&idle), "{idle:?}");
    }
}
