//! Datagrams of strangers to the relay, which must arrive nowhere.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::steady::mark;
use super::world::{RELAY, World};

/// Strangers, each at an address of its own.
const STRANGERS: usize = 16;

/// All of them send one this often.
const INTERVAL: Duration = Duration::from_millis(5);

/// Strangers that send to the relay until they are stopped. An agent of a steady traffic that gets one of their datagrams
/// fails.
pub struct Strangers {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Strangers {
    /// They are on the world's router.
    pub fn start(world: &World) -> Strangers {
        let open = || (0..STRANGERS).map(|_| UdpSocket::bind("0.0.0.0:0").unwrap()).collect::<Vec<_>>();
        let sockets = world.lab.router.inside(open).unwrap();
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut datagram = [0; 64];
            datagram[..4].copy_from_slice(&mark(STRANGER).to_be_bytes());
            let mut sent = 0;
            while !stopped.load(Ordering::Relaxed) {
                // Where nobody listens, the error of an earlier one comes back.
                sent +=
                    sockets.iter().filter(|socket| socket.send_to(&datagram, RELAY).is_ok()).count() as u64;
                std::thread::sleep(INTERVAL);
            }
            sent
        });
        Strangers { stop, thread: Some(thread) }
    }

    /// Stops them after they have sent something.
    pub fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.thread.take().unwrap().join().unwrap();
        assert!(sent > 0, "strangers have sent nothing");
    }
}

impl Drop for Strangers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _its_panic_was_shown = self.thread.take().map(JoinHandle::join);
    }
}

/// Neither side's.
const STRANGER: usize = 2;
