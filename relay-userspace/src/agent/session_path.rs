//! A session's path through one relay.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::data_socket::DataSocket;
use crate::protocol::SessionId;
use crate::protocol::flow_terms::FlowTerms;

/// The data socket, and what the relay has said about the path.
#[derive(Debug)]
pub struct SessionPath {
    id: SessionId,
    socket: Arc<DataSocket>,
    max_datagram_bytes: AtomicU32,
    relay_round_trip: RelayRoundTrip,
}

impl SessionPath {
    /// The path that `terms` describe.
    pub fn new(terms: &FlowTerms, socket: Arc<DataSocket>, relay_round_trip: RelayRoundTrip) -> Arc<Self> {
        Arc::new(SessionPath {
            id: terms.session,
            socket,
            max_datagram_bytes: terms.max_datagram_bytes.into(),
            relay_round_trip,
        })
    }

    /// The session's id at this relay.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Its data socket.
    pub fn socket(&self) -> &Arc<DataSocket> {
        &self.socket
    }

    /// The largest UDP payload that fits, in bytes.
    pub fn max_datagram(&self) -> usize {
        self.max_datagram_bytes.load(Ordering::Relaxed) as usize
    }

    /// The round trip to its relay in microseconds, once it was measured.
    pub fn relay_round_trip_us(&self) -> Option<u64> {
        self.relay_round_trip.us()
    }

    /// The relay has sent the terms again.
    pub fn set_terms(&self, terms: &FlowTerms) {
        self.max_datagram_bytes.store(terms.max_datagram_bytes, Ordering::Relaxed);
        self.socket.set_terms(terms);
    }
}

/// A relay's smoothed round trip, for whoever wants to show it.
#[derive(Clone, Debug, Default)]
pub struct RelayRoundTrip(Arc<AtomicU64>);

impl RelayRoundTrip {
    /// In microseconds, once it was measured.
    pub fn us(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|us| *us > 0)
    }

    /// It is this one now.
    pub fn set(&self, round_trip: Duration) {
        self.0.store(u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX).max(1), Ordering::Relaxed);
    }
}
