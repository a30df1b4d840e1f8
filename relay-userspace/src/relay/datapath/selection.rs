//! Which datapath a relay gets: native XDP, generic XDP, or userspace alone.

use std::sync::Arc;

use relay_common::BIND_MAGIC_LEN;
use relay_common::hash::HashSeed;

use super::backing::{Backing, BackingKind};
use super::next_hops::USERSPACE;
use super::program::{EgressMap, Hook, Port, Program, XdpError};
use super::tables::{TableSizes, Tables};
use crate::config::DatapathMode;
use crate::relay::keeper::Keeper;
use crate::relay::legacy::{Legacy, OldLink};

/// The datapath that was got, and why not a better one.
pub struct Selection {
    /// What the rendezvous writes and the forwarder reads.
    pub tables: Arc<Tables>,
    /// The attached program; none for the userspace datapath.
    pub program: Option<Program>,
    /// The program's device map.
    pub egress: Option<EgressMap>,
    /// Where the program runs.
    pub hook: Option<Hook>,
    /// The tables are the predecessor's, with whatever stands in them.
    pub adopted: bool,
    /// What the tables lie in, if that can be kept and is not the program's.
    pub memory: Option<Backing>,
    /// A sentence for people: what was chosen, and what was refused on the way there.
    pub why: String,
}

/// What tables are to be like if they are new.
#[derive(Clone, Copy, Debug)]
pub struct NewTables {
    /// How large.
    pub sizes: TableSizes,
    /// The key of their index.
    pub hash_seed: HashSeed,
    /// What bind datagrams begin with.
    pub bind_magic: [u8; BIND_MAGIC_LEN],
    /// Whether those without a program are to lie in memory that can be kept.
    pub in_memory_files: bool,
}

impl Selection {
    /// As users write it: `xdp-native`, `xdp-generic` or `userspace`.
    pub fn name(&self) -> &'static str {
        self.hook.map_or("userspace", Hook::name)
    }

    /// Gets the datapath that `mode` asks for; [`DatapathMode::Auto`] takes the first of native, generic and userspace
    /// that can be had. The program is attached to all `ports` or to none. Of what a predecessor has left it uses what
    /// suits; the attachments that it uses are taken out of `legacy`.
    ///
    /// # Errors
    /// The datapath that was asked for by name cannot be had, and why.
    pub fn make(
        mode: DatapathMode,
        ports: &[Port],
        new: NewTables,
        legacy: &mut Legacy,
        keeper: &Keeper,
    ) -> Result<Selection, XdpError> {
        let hooks: &[Hook] = match mode {
            DatapathMode::Auto => &[Hook::Native, Hook::Generic],
            DatapathMode::XdpNative => &[Hook::Native],
            DatapathMode::XdpGeneric => &[Hook::Generic],
            DatapathMode::Userspace => &[],
        };
        let mut refusals = Vec::new();
        for (number, hook) in hooks.iter().enumerate() {
            let is_last = number + 1 == hooks.len();
            match attach(*hook, ports, new, legacy, keeper, is_last) {
                Ok(Attached { program, tables, egress, adopted }) => {
                    return Ok(Selection {
                        tables: Arc::new(tables),
                        program: Some(program),
                        egress: Some(egress),
                        hook: Some(*hook),
                        adopted,
                        memory: None,
                        why: reason(mode, &refusals),
                    });
                }
                Err(error) if mode == DatapathMode::Auto => {
                    // What keeps the program from being loaded at all would keep it from the next hook too.
                    let is_final = !matches!(error, XdpError::Attach { .. });
                    refusals.push(error);
                    if is_final {
                        break;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        let (tables, memory, adopted) = in_userspace(new, legacy);
        Ok(Selection {
            tables: Arc::new(tables),
            program: None,
            egress: None,
            hook: None,
            adopted,
            memory,
            why: reason(mode, &refusals),
        })
    }
}

struct Attached {
    program: Program,
    tables: Tables,
    egress: EgressMap,
    adopted: bool,
}

fn attach(
    hook: Hook,
    ports: &[Port],
    new: NewTables,
    legacy: &mut Legacy,
    keeper: &Keeper,
    is_last: bool,
) -> Result<Attached, XdpError> {
    if ports.is_empty() {
        return Err(XdpError::NoInterface);
    }
    // Where the program before goes on at a hook that is yet to be tried, this one takes its place there.
    for port in ports.iter().filter(|_| !is_last) {
        if let Some(old) = legacy.links.get(&port.index).filter(|old| old.hook != hook) {
            let fault = format!("the relay before has left it at {} and goes on there", old.hook.name());
            return Err(XdpError::Attach { interface: port.name.clone(), hook, fault });
        }
    }
    let ((mut program, tables, egress), adopted) = load(hook, new, legacy)?;
    if is_last {
        // The operator wants another hook, or the one before cannot be had on all interfaces. Until here, for loading takes its
        // time, the program before goes on at its own.
        legacy.detach(|at| at != hook, keeper);
    }
    if adopted {
        let goes_on = |port: &Port| legacy.links.contains_key(&port.index);
        forget_other_interfaces(&tables, ports, ports.iter().all(goes_on));
    }
    if let Err(error) = attach_to_all(&mut program, &tables, hook, ports, legacy, keeper) {
        // They hold their interfaces until they are given up.
        let attached = program.attached.drain(..);
        legacy
            .links
            .extend(attached.map(|(port, hook, descriptor)| (port.index, OldLink { descriptor, hook })));
        return Err(error);
    }
    Ok(Attached { program, tables, egress, adopted })
}

fn attach_to_all(
    program: &mut Program,
    tables: &Tables,
    hook: Hook,
    ports: &[Port],
    legacy: &mut Legacy,
    keeper: &Keeper,
) -> Result<(), XdpError> {
    for port in ports {
        let Some(OldLink { descriptor, hook: at }) = legacy.links.remove(&port.index) else {
            program.attach(tables, port.clone(), hook)?;
            continue;
        };
        // Where it cannot take the place of the one before, that one has to go first.
        let again = descriptor.try_clone();
        if let Err(error) = program.succeed(tables, port.clone(), hook, descriptor) {
            tracing::warn!(interface = port.name, %error, "attaching anew, which loses packets for a moment");
            let again = again.map(|descriptor| OldLink { descriptor, hook: at });
            legacy.links.extend(again.ok().map(|old| (port.index, old)));
            legacy.detach(|_| true, keeper);
            program.attach(tables, port.clone(), hook)?;
        }
    }
    Ok(())
}

/// Puts tables in order that were used with the program on other interfaces: packets by those that are not among `ports` any
/// more are passed, and next hops, which may be right only for packets that came by one of the old ones, or at another hook,
/// are nobody's, unless the program before `goes_on` where this one will.
fn forget_other_interfaces(tables: &Tables, ports: &[Port], goes_on: bool) {
    let indexes = || tables.interfaces().iter().map(|entry| entry.index.load()).filter(|index| *index != 0);
    let is_present = |index: u32| ports.iter().any(|port| port.index == index);
    if goes_on && indexes().all(is_present) && indexes().count() == ports.len() {
        return;
    }
    for entry in tables.interfaces().iter().filter(|entry| !is_present(entry.index.load())) {
        entry.index.store(0);
    }
    tables.next_hops().iter().for_each(|hop| hop.write(&USERSPACE));
}

/// Loads the program, over the tables that were left if that can be; whether it can.
fn load(
    hook: Hook,
    new: NewTables,
    legacy: &Legacy,
) -> Result<((Program, Tables, EgressMap), bool), XdpError> {
    let left = legacy.tables.as_ref().filter(|left| left.kind() == BackingKind::Bpf);
    if let Some(left) = left.and_then(|left| left.try_clone().ok()) {
        match Program::load_over(hook, left) {
            Ok(loaded) => return Ok((loaded, true)),
            Err(error) => {
                tracing::warn!(%error, "the tables that were left cannot be used with this program: they are copied");
            }
        }
    }
    Ok((Program::load(hook, new.sizes, new.hash_seed, new.bind_magic)?, false))
}

/// Tables without a program, what they lie in if they can be kept, and whether they are those that were left.
fn in_userspace(new: NewTables, legacy: &Legacy) -> (Tables, Option<Backing>, bool) {
    let NewTables { sizes, hash_seed, bind_magic, in_memory_files } = new;
    let left = legacy.tables.as_ref().filter(|left| left.kind() == BackingKind::Memory);
    if let Some(left) = left.and_then(|left| left.try_clone().ok())
        && let Ok(tables) = left.tables()
    {
        return (tables, Some(left), true);
    }
    if in_memory_files {
        let made = Backing::in_memory(sizes, hash_seed, bind_magic);
        match made.and_then(|memory| Ok((memory.tables()?, memory))) {
            Ok((tables, memory)) => return (tables, Some(memory), false),
            Err(error) => {
                tracing::warn!(%error, "no memory that can be kept: a restart will end all sessions");
            }
        }
    }
    (Tables::private(sizes, hash_seed, bind_magic), None, false)
}

fn reason(mode: DatapathMode, refusals: &[XdpError]) -> String {
    match refusals {
        _ if mode != DatapathMode::Auto => "asked for".to_owned(),
        [] => "the best there is".to_owned(),
        // The same twice is said once.
        [
            XdpError::Attach { interface, hook: first, fault },
            XdpError::Attach { interface: again, hook: second, fault: same },
        ] if interface == again && fault == same => {
            format!("attaching to {interface} as {} or {}: {fault}", first.name(), second.name())
        }
        refusals => refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(mode: DatapathMode) -> Result<Selection, XdpError> {
        let new = NewTables {
            sizes: TableSizes::for_sessions(1),
            hash_seed: [1, 2],
            bind_magic: *b"\x01magic!!",
            in_memory_files: false,
        };
        Selection::make(mode, &[], new, &mut Legacy::default(), &Keeper::nobody())
    }

    #[test]
    fn without_an_interface_auto_is_userspace_and_says_why() {
        let selection = make(DatapathMode::Auto).unwrap();
        assert_eq!(selection.name(), "userspace");
        assert!(selection.why.contains("no interface"), "{}", selection.why);
    }

    #[test]
    fn a_reason_that_holds_for_both_hooks_is_said_once() {
        let refused = |hook, fault: &str| XdpError::Attach {
            interface: "eth0".to_owned(),
            hook,
            fault: fault.to_owned(),
        };
        let same = [refused(Hook::Native, "taken"), refused(Hook::Generic, "taken")];
        let why = reason(DatapathMode::Auto, &same);
        assert_eq!(why, "attaching to eth0 as xdp-native or xdp-generic: taken");
        let two = [refused(Hook::Native, "no support"), refused(Hook::Generic, "taken")];
        let why = reason(DatapathMode::Auto, &two);
        assert_eq!(
            why,
            "attaching to eth0 as xdp-native: no support; attaching to eth0 as xdp-generic: taken"
        );
    }

    #[test]
    fn a_datapath_asked_for_by_name_is_had_or_refused() {
        assert!(matches!(make(DatapathMode::XdpNative), Err(XdpError::NoInterface)));
        assert!(matches!(make(DatapathMode::XdpGeneric), Err(XdpError::NoInterface)));
        assert_eq!(make(DatapathMode::Userspace).unwrap().why, "asked for");
    }
}
