//! Who keeps the relay's file descriptors while no daemon runs, so that the next one can go on with them.
//!
//! A descriptor that is kept keeps its object alive: a link the attached program, a map what stands in it, a socket the
//! datagrams that wait in it.

mod object;
mod pins;
mod store;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use self::pins::Pins;
pub use self::pins::is_bpffs;
use self::store::Store;
use crate::identity::NodeId;
use crate::supervision::Supervision;

/// Where pins are unless the configuration says otherwise.
pub const PINS: &str = "/sys/fs/bpf/atlas-relay";

/// Keeps named descriptors.
#[derive(Debug)]
pub struct Keeper {
    kind: Kind,
    why: String,
    foreign: Vec<PathBuf>,
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
    Store(Store),
    Pins(Pins),
}

impl Default for Keeper {
    fn default() -> Keeper {
        Keeper::nobody()
    }
}

impl Keeper {
    /// Nobody keeps anything: what is open is gone with the daemon.
    pub fn nobody() -> Keeper {
        Keeper::of(Kind::Nobody, "nobody was looked for".to_owned())
    }

    /// The keeper of the relay `node`, and what a predecessor has left with it: the supervisor if it keeps descriptors,
    /// else pins of this `layout` below the directory `bpffs` (`None`: never), else nobody.
    pub fn find(
        supervision: &mut Supervision,
        bpffs: Option<&Path>,
        node: &NodeId,
        layout: u32,
    ) -> (Keeper, Vec<Kept>) {
        let given = supervision.take_descriptors();
        let (keeper, kept) = match supervision.store() {
            Some(socket) => {
                let (store, kept) = Store::adopt(socket, given);
                let why = "the supervisor's file descriptor store (NOTIFY_SOCKET)".to_owned();
                let keeper = Keeper::of(Kind::Store(store), why);
                let foreign = bpffs.map(|bpffs| pins::layouts(bpffs, node)).unwrap_or_default();
                (Keeper { foreign, ..keeper }, kept)
            }
            None => match bpffs {
                None => (
                    Keeper::of(Kind::Nobody, "no place for pins: datapath.bpffs is empty".to_owned()),
                    Vec::new(),
                ),
                Some(bpffs) => match Pins::open(bpffs, node, layout) {
                    Ok((pins, kept)) => {
                        let (why, foreign) =
                            (format!("pins in {}", pins.directory().display()), pins.foreign());
                        (Keeper { foreign, ..Keeper::of(Kind::Pins(pins), why) }, kept)
                    }
                    Err(why) => (Keeper::of(Kind::Nobody, why), Vec::new()),
                },
            },
        };
        for directory in &keeper.foreign {
            tracing::warn!(
                directory = %directory.display(),
                "another version of the relay has left pins: they are removed, and with them the sessions that it forwards"
            );
        }
        (keeper, kept)
    }

    fn of(kind: Kind, why: String) -> Keeper {
        Keeper { kind, why, foreign: Vec::new() }
    }

    /// Whether BPF maps and links are kept: flows go on without a daemon.
    pub fn keeps_bpf(&self) -> bool {
        !matches!(self.kind, Kind::Nobody)
    }

    /// Whether sockets and memory files are kept too.
    pub fn keeps_all(&self) -> bool {
        matches!(self.kind, Kind::Store(_))
    }

    /// `supervisor`, `pins` or `nobody`.
    pub fn name(&self) -> &'static str {
        match self.kind {
            Kind::Nobody => "nobody",
            Kind::Store(_) => "supervisor",
            Kind::Pins(_) => "pins",
        }
    }

    /// Who keeps, or why nobody does, for people.
    pub fn why(&self) -> &str {
        &self.why
    }

    /// Pins of this relay that were left in another way than [`Keeper::find`] has looked for: by another layout, or, where
    /// a supervisor keeps, by a daemon without one. Only [`Keeper::clear`] touches them. A link among them holds its
    /// interface.
    pub fn foreign(&self) -> &[PathBuf] {
        &self.foreign
    }

    /// Keeps `descriptor` as `name`; what was kept as that before is let go. What is kept as that already stays as it is.
    /// No effect where that is not kept. A name has letters, digits, `-` and `_`.
    ///
    /// # Errors
    /// The keeper refuses.
    pub fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        check(name)?;
        match &self.kind {
            Kind::Nobody => Ok(()),
            Kind::Store(store) => store.keep(name, descriptor),
            Kind::Pins(pins) => pins.keep(name, descriptor),
        }
    }

    /// Lets go of what is kept as `name`.
    ///
    /// # Errors
    /// The keeper refuses. That nothing is kept as that is no error.
    pub fn let_go(&self, name: &str) -> io::Result<()> {
        check(name)?;
        match &self.kind {
            Kind::Nobody => Ok(()),
            Kind::Store(store) => store.let_go(name),
            Kind::Pins(pins) => pins.let_go(name),
        }
    }

    /// Waits until what was let go is gone, as far as that can be told: systemd does it when it comes to it.
    ///
    /// # Errors
    /// It does not come to it.
    pub fn settle(&self) -> io::Result<()> {
        match &self.kind {
            Kind::Nobody | Kind::Pins(_) => Ok(()),
            Kind::Store(store) => store.settle(),
        }
    }

    /// Lets go of what is [foreign](Keeper::foreign): a program there forwards by tables that this one cannot read.
    ///
    /// # Errors
    /// It cannot be removed. The rest is let go all the same.
    pub fn let_go_foreign(&self) -> io::Result<()> {
        self.foreign.iter().map(|directory| pins::remove(directory)).fold(Ok(()), io::Result::and)
    }

    /// Lets go of everything, what is [foreign](Keeper::foreign) as well, for good: where it was there is nothing to keep
    /// more in.
    ///
    /// # Errors
    /// The keeper refuses. The rest is let go all the same.
    pub fn clear(&self) -> io::Result<()> {
        let kept = match &self.kind {
            Kind::Nobody => Ok(()),
            Kind::Store(store) => store.clear(),
            Kind::Pins(pins) => pins.clear(),
        };
        kept.and(self.let_go_foreign())
    }
}

/// Removes every pin that a relay which is `node` has left below `bpffs`, of whatever layout. False: there was none.
///
/// # Errors
/// One cannot be removed.
pub fn remove_pins(bpffs: &Path, node: &NodeId) -> io::Result<bool> {
    pins::remove_all(bpffs, node)
}

/// The longest name.
const LONGEST: usize = 64;

/// Checks that a name is one in a directory of bpffs (no dots) as well as in a list of LISTEN_FDNAMES (no colons).
fn check(name: &str) -> io::Result<()> {
    match is_name(name) {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "{name:?} is no name to keep something as: expected 1 to {LONGEST} letters, digits, - and _"
            ),
        )),
    }
}

fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    (1..=LONGEST).contains(&name.len()) && name.bytes().all(fits)
}

#[cfg(test)]
mod tests;
