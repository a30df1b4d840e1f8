//! What a supervisor is told of the daemon: that it is ready, reads its configuration again, stops, and how it is.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};

use super::NotifySocket;

/// Tells the supervisor, if there is one. Clones tell the same.
#[derive(Clone, Debug, Default)]
pub struct Announcer {
    socket: Option<NotifySocket>,
    /// Readings of the configuration that are under way.
    reloads: Arc<AtomicUsize>,
}

/// How long a supervisor may take to read the last word.
const LAST_WORD: Duration = Duration::from_secs(5);

impl Announcer {
    /// Tells it over `socket`.
    pub(super) fn over(socket: Option<NotifySocket>) -> Announcer {
        Announcer { socket, reloads: Arc::default() }
    }

    /// Where it is told.
    pub(super) fn socket(&self) -> Option<NotifySocket> {
        self.socket.clone()
    }

    /// The daemon does what it is there for.
    pub fn ready(&self) {
        self.tell("READY=1");
    }

    /// The daemon reads its configuration again, until what this returns is dropped.
    pub fn reloading(&self) -> Reloading {
        self.reloads.fetch_add(1, Ordering::Relaxed);
        // systemd tells by the time whether this answers its signal: not by the coarse clock, which is behind by a tick.
        let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Monotonic);
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={}", tv_sec * 1_000_000 + tv_nsec / 1000));
        Reloading { announcer: self.clone() }
    }

    /// The daemon has begun to stop.
    pub fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// Waits until the supervisor has read everything: it no longer does once this process is gone.
    pub fn finish(&self) {
        if let Some(socket) = &self.socket {
            warn(socket.wait_until_read(LAST_WORD));
        }
    }

    /// Sends assignments, one a line.
    pub(super) fn tell(&self, message: &str) {
        if let Some(socket) = &self.socket {
            warn(socket.send(message));
        }
    }
}

/// The configuration is being read again. Once the last of these is dropped, the daemon is ready.
#[derive(Debug)]
pub struct Reloading {
    announcer: Announcer,
}

impl Drop for Reloading {
    fn drop(&mut self) {
        if self.announcer.reloads.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.announcer.ready();
        }
    }
}

/// A supervisor that cannot be told is no reason to stop.
fn warn(told: io::Result<()>) {
    if let Err(error) = told {
        tracing::warn!(%error, "whoever has started this daemon does not hear from it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervision::listener::Listener;

    #[test]
    fn the_daemon_is_ready_again_once_the_last_of_its_readings_is_over() {
        let listener = Listener::open();
        let announcer = Announcer::over(Some(listener.connected()));
        let (first, second) = (announcer.reloading(), announcer.clone().reloading());
        let said = listener.said();
        assert!(said.len() == 2 && said.iter().all(|said| said.starts_with("RELOADING=1 MONOTONIC_USEC=")));
        drop(first);
        assert_eq!(listener.said(), [""; 0]);
        drop(second);
        assert_eq!(listener.said(), ["READY=1"]);
    }

    #[test]
    fn a_reading_is_never_dated_before_the_signal_that_has_asked_for_it() {
        let listener = Listener::open();
        let announcer = Announcer::over(Some(listener.connected()));
        let microseconds = || {
            let now = clock_gettime(ClockId::Monotonic);
            now.tv_sec * 1_000_000 + now.tv_nsec / 1000
        };
        let signalled = microseconds();
        drop(announcer.reloading());
        let said = listener.said();
        let dated: i64 = said[0].strip_prefix("RELOADING=1 MONOTONIC_USEC=").unwrap().parse().unwrap();
        assert!((signalled..=microseconds()).contains(&dated), "{signalled} {dated}");
    }

    #[test]
    fn a_supervisor_that_is_gone_stops_nothing() {
        let listener = Listener::open();
        let announcer = Announcer::over(Some(listener.connected()));
        drop(listener);
        announcer.ready();
        announcer.finish();
    }
}
