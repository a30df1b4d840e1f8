//! The file descriptor store of systemd. It lasts until the service is stopped, across restarts and crashes of the daemon.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::object::Object;
use super::{Kept, is_name};
use crate::supervision::NotifySocket;

/// How long systemd may take to come to what it was sent.
const PATIENCE: Duration = Duration::from_secs(5);

/// The store, and what is known to be in it.
#[derive(Debug)]
pub struct Store {
    socket: NotifySocket,
    /// By name. `None`: what it is cannot be told.
    known: Mutex<BTreeMap<String, Option<Object>>>,
}

impl Store {
    /// The store behind `socket`, out of which `given` was handed over. All of that is in there still. Of a name that
    /// stands for several things nothing is right: it is let go.
    pub fn adopt(socket: NotifySocket, given: Vec<(String, OwnedFd)>) -> (Store, Vec<Kept>) {
        let store = Store { socket, known: Mutex::default() };
        let mut kept: Vec<Kept> = Vec::new();
        let mut ambiguous = Vec::new();
        for (name, descriptor) in given {
            if !is_name(&name) {
                continue; // never ours: a socket unit's, say
            }
            let object = Object::of(descriptor.as_fd()).ok();
            let mut known = store.known();
            match known.get(&name) {
                Some(before) if before.is_none() || *before != object => ambiguous.push(name),
                Some(_same) => {}
                None => {
                    known.insert(name.clone(), object);
                    kept.push(Kept { name, descriptor });
                }
            }
        }
        for name in ambiguous {
            tracing::warn!(name, "several descriptors were kept by one name: all of them are let go");
            kept.retain(|kept| kept.name != name);
            if let Err(error) = store.let_go(&name) {
                tracing::warn!(name, %error, "the supervisor does not let go of a descriptor");
            }
        }
        (store, kept)
    }

    /// See [`super::Keeper::keep`].
    pub fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let object = Object::of(descriptor).ok();
        let mut known = self.known();
        if object.is_some() && known.get(name) == Some(&object) {
            return Ok(());
        }
        // The store has room for several of one name, and may hold one that we were not given.
        self.remove(name)?;
        known.remove(name);
        // Without FDPOLL=0 a socket with an ICMP error that nobody has read yet is thrown out of the store.
        self.socket.send_with(&format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0"), descriptor)?;
        known.insert(name.to_owned(), object);
        Ok(())
    }

    /// See [`super::Keeper::let_go`].
    pub fn let_go(&self, name: &str) -> io::Result<()> {
        let mut known = self.known();
        self.remove(name)?;
        known.remove(name);
        Ok(())
    }

    /// See [`super::Keeper::settle`].
    pub fn settle(&self) -> io::Result<()> {
        self.socket.wait_until_read(PATIENCE)
    }

    /// See [`super::Keeper::clear`].
    pub fn clear(&self) -> io::Result<()> {
        let names: Vec<String> = self.known().keys().cloned().collect();
        names.iter().map(|name| self.let_go(name)).fold(Ok(()), io::Result::and)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.socket.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"))
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Option<Object>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
