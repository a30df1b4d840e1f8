//! How much of joined streams is on its way into the relay.

use std::sync::{Arc, Mutex, PoisonError};

use quinn::{Connection, VarInt};

/// A connection's account of what its agent may send unread: so much for its control streams, and a stream's window more
/// for each joined one. Else joined streams whose readers do not read would take all of it, and the agent could say nothing
/// any more.
#[derive(Clone, Debug)]
pub struct ReceiveWindow {
    connection: Connection,
    /// For control streams, in bytes.
    control: u32,
    /// For each joined stream, in bytes.
    each: u32,
    joined: Arc<Mutex<u32>>,
}

/// A stream's window, until it is dropped.
#[derive(Debug)]
pub struct Widened(ReceiveWindow);

impl ReceiveWindow {
    /// The window of `connection`, which is `control` bytes now.
    pub fn new(connection: Connection, control: u32, each: u32) -> ReceiveWindow {
        ReceiveWindow { connection, control, each, joined: Arc::default() }
    }

    /// Makes room for one more joined stream.
    pub fn widen(&self) -> Widened {
        self.set(|joined| joined.saturating_add(1));
        Widened(self.clone())
    }

    fn set(&self, change: impl FnOnce(u32) -> u32) {
        // Held until it is set, so that the last change is what stays.
        let mut joined = self.joined.lock().unwrap_or_else(PoisonError::into_inner);
        *joined = change(*joined);
        let window = self.control.saturating_add(joined.saturating_mul(self.each));
        self.connection.set_receive_window(VarInt::from_u32(window));
    }
}

impl Drop for Widened {
    fn drop(&mut self) {
        self.0.set(|joined| joined.saturating_sub(1));
    }
}
