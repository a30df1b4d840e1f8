//! What a predecessor has left, sorted: tables, attachments, sockets.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::thread;
use std::time::Duration;

use relay_common::BIND_MAGIC_LEN;

use super::datapath::descriptors::interface_of_link;
use super::datapath::{Backing, BackingFault, Hook, Netlink};
use super::keeper::{Keeper, Kept};

/// All of it.
#[derive(Debug, Default)]
pub struct Legacy {
    /// The tables, if they can be gone on with.
    pub tables: Option<Backing>,
    /// Why they cannot, if there are some.
    pub fault: Option<BackingFault>,
    /// The attachments of its program, by the index of the interface.
    pub links: BTreeMap<u32, OldLink>,
    /// The sockets of the relay's port, by name.
    pub sockets: BTreeMap<String, OwnedFd>,
    /// The names of everything that the keeper has.
    names: Vec<String>,
}

/// An attachment of a predecessor's program.
#[derive(Debug)]
pub struct OldLink {
    /// Closed everywhere, it is detached.
    pub descriptor: OwnedFd,
    /// Where the program runs.
    pub hook: Hook,
}

/// What an attachment to the interface with this index is kept as.
pub fn name_of_link(interface: u32) -> String {
    format!("{LINK}{interface}")
}

const LINK: &str = "link-";

impl Legacy {
    /// Sorts what was kept for the relay with this bind magic.
    pub fn of(kept: Vec<Kept>, bind_magic: [u8; BIND_MAGIC_LEN]) -> Legacy {
        let mut legacy =
            Legacy { names: kept.iter().map(|kept| kept.name.clone()).collect(), ..Legacy::default() };
        let mut tables = Vec::new();
        for Kept { name, descriptor } in kept {
            if Backing::is_part(&name) {
                tables.push(Kept { name, descriptor });
            } else if name.starts_with(LINK) {
                legacy.add_link(&name, descriptor);
            } else {
                legacy.sockets.insert(name, descriptor);
            }
        }
        match Backing::check(tables, bind_magic) {
            Ok(tables) => legacy.tables = tables,
            Err(fault) => legacy.fault = Some(fault),
        }
        legacy
    }

    /// Gives up the attachments that are `unwanted`, by their hooks, and waits until the interfaces are free. From then on
    /// packets go up to the sockets.
    pub fn detach(&mut self, unwanted: impl Fn(Hook) -> bool, keeper: &Keeper) {
        let of = |(index, link): (&u32, &OldLink)| unwanted(link.hook).then_some(*index);
        let indexes: Vec<u32> = self.links.iter().filter_map(of).collect();
        for index in indexes {
            self.links.remove(&index);
            let let_go = keeper.let_go(&name_of_link(index)).and_then(|()| keeper.settle());
            if let Err(error) = let_go {
                tracing::warn!(index, %error, "an attachment that is not wanted any more cannot be given up");
            }
            wait_until_free(index);
        }
    }

    /// Has the keeper let go of what is not among `present`.
    ///
    /// # Errors
    /// The keeper refuses.
    pub fn let_go_but(&self, present: &[String], keeper: &Keeper) -> io::Result<()> {
        let mut old = self.names.iter().filter(|name| !present.contains(name));
        old.try_for_each(|name| keeper.let_go(name))
    }

    fn add_link(&mut self, name: &str, descriptor: OwnedFd) {
        let interface = match interface_of_link(descriptor.as_fd()) {
            Ok(Some(index)) if index != 0 => index,
            // Its interface is gone, and with it the attachment.
            _ => return tracing::info!(name, "an attachment that was left is to no interface any more"),
        };
        let held = Netlink::open().and_then(|mut netlink| netlink.link(interface));
        match held.ok().flatten().and_then(|link| link.xdp) {
            Some(program) => {
                self.links.insert(interface, OldLink { descriptor, hook: program.hook });
            }
            None => tracing::warn!(
                name,
                interface,
                "the kernel does not say at which hook an attachment is: it is given up"
            ),
        }
    }
}

/// Waits until no program is attached to an interface: the kernel detaches a little after the last descriptor is closed.
pub fn wait_until_free(interface: u32) {
    let Ok(mut netlink) = Netlink::open() else { return };
    for _ in 0..FREE_WITHIN.as_millis() / BETWEEN_LOOKS.as_millis() {
        match netlink.link(interface) {
            Ok(Some(link)) if link.xdp.is_some() => thread::sleep(BETWEEN_LOOKS),
            _ => return,
        }
    }
}

/// The kernel waits for readers of the program to be done.
const FREE_WITHIN: Duration = Duration::from_secs(2);
const BETWEEN_LOOKS: Duration = Duration::from_millis(5);
