//! Who keeps the relay's file descriptors while no daemon runs, so that the next one can go on with them.
//!
//! A descriptor that is kept keeps its object alive: a link the attached program, a map what stands in it, a socket the
//! datagrams that wait in it.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Keeps named descriptors.
#[derive(Debug)]
pub struct Keeper {
    kind: Kind,
}

/// A descriptor that a predecessor has left.
#[derive(Debug)]
pub struct Kept {
    /// What it was given to the keeper as.
    pub name: String,
    /// The descriptor.
    pub descriptor: OwnedFd,
}

#[derive(Debug)]
enum Kind {
    Nobody,
}

impl Keeper {
    /// Nobody keeps anything: what is open is gone with the daemon.
    pub fn nobody() -> Keeper {
        Keeper { kind: Kind::Nobody }
    }

    /// Whether BPF maps and links are kept: flows go on without a daemon.
    pub fn keeps_bpf(&self) -> bool {
        match self.kind {
            Kind::Nobody => false,
        }
    }

    /// Whether sockets and memory files are kept too.
    pub fn keeps_all(&self) -> bool {
        match self.kind {
            Kind::Nobody => false,
        }
    }

    /// Keeps `descriptor` as `name`; what was kept as that before is let go. No effect where that is not kept.
    ///
    /// # Errors
    /// The keeper refuses.
    pub fn keep(&self, _name: &str, _descriptor: BorrowedFd<'_>) -> io::Result<()> {
        match self.kind {
            Kind::Nobody => Ok(()),
        }
    }

    /// Lets go of what is kept as `name`.
    ///
    /// # Errors
    /// The keeper refuses. That nothing is kept as that is no error.
    pub fn let_go(&self, _name: &str) -> io::Result<()> {
        match self.kind {
            Kind::Nobody => Ok(()),
        }
    }
}
