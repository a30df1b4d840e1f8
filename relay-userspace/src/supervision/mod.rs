//! What whoever has started the daemon is told of it, and gives it: the notify protocol and the watchdog of systemd, with
//! the file descriptors that it has kept for us.
//!
//! Own code instead of the crate `sd-notify`: that one reads the environment at each message, so that children inherit it,
//! knows no socket of an abstract name, and cannot wait until what was sent has been read.

mod announcer;
mod environment;
#[cfg(test)]
pub(crate) mod listener;
mod notify_socket;
mod pulse;

use std::os::fd::OwnedFd;
use std::time::Duration;

pub use self::announcer::{Announcer, Reloading};
pub use self::notify_socket::NotifySocket;
pub use self::pulse::{Ask, keep_telling};

/// The daemon's supervisor as the environment describes it.
#[derive(Debug, Default)]
pub struct Supervision {
    announcer: Announcer,
    /// Whether what is sent to be kept is kept.
    keeps: bool,
    watchdog: Option<Duration>,
    descriptors: Vec<(String, OwnedFd)>,
}

impl Supervision {
    /// Nobody has to be told anything.
    pub fn none() -> Supervision {
        Supervision::default()
    }

    /// Takes what the environment says, once; later calls find nothing. To be called first in `main`: the variables are
    /// taken out of the environment, for no child is meant, and that needs that no other thread runs.
    pub fn of_environment() -> Supervision {
        let given = environment::take();
        let socket = given.notify_socket.and_then(|name| match NotifySocket::connect(&name) {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::warn!(
                    socket = ?name, %error,
                    "no word to whoever has started this: NOTIFY_SOCKET cannot be connected to"
                );
                None
            }
        });
        Supervision {
            // Before systemd 254 nothing says how much it keeps.
            keeps: socket.is_some() && given.store != Some(0),
            announcer: Announcer::over(socket),
            watchdog: given.watchdog,
            descriptors: given.descriptors,
        }
    }

    /// Under a supervisor that is reached by `socket` and keeps descriptors, and has kept these by name.
    pub fn keeping(socket: NotifySocket, descriptors: Vec<(String, OwnedFd)>) -> Supervision {
        Supervision { announcer: Announcer::over(Some(socket)), keeps: true, watchdog: None, descriptors }
    }

    /// What tells the supervisor how the daemon is.
    pub fn announcer(&self) -> Announcer {
        self.announcer.clone()
    }

    /// How often it wants a sign of life, if it does.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Where descriptors are kept, if they are.
    pub fn store(&self) -> Option<NotifySocket> {
        self.announcer.socket().filter(|_| self.keeps)
    }

    /// The descriptors that it has handed over, by name. They are given once.
    pub fn take_descriptors(&mut self) -> Vec<(String, OwnedFd)> {
        std::mem::take(&mut self.descriptors)
    }
}
