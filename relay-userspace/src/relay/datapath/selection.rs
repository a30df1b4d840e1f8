//! Which datapath a relay gets: native XDP, generic XDP, or userspace alone.

use std::sync::Arc;

use relay_common::BIND_MAGIC_LEN;
use relay_common::hash::HashSeed;

use super::program::{EgressMap, Hook, Port, Program, XdpError};
use super::tables::{TableSizes, Tables};
use crate::config::DatapathMode;

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
    /// A sentence for people: what was chosen, and what was refused on the way there.
    pub why: String,
}

impl Selection {
    /// As users write it: `xdp-native`, `xdp-generic` or `userspace`.
    pub fn name(&self) -> &'static str {
        self.hook.map_or("userspace", Hook::name)
    }

    /// Gets the datapath that `mode` asks for; [`DatapathMode::Auto`] takes the first of native, generic and userspace
    /// that can be had. The program is attached to all `ports` or to none.
    ///
    /// # Errors
    /// The datapath that was asked for by name cannot be had, and why.
    pub fn make(
        mode: DatapathMode,
        ports: &[Port],
        sizes: TableSizes,
        hash_seed: HashSeed,
        bind_magic: [u8; BIND_MAGIC_LEN],
    ) -> Result<Selection, XdpError> {
        let hooks: &[Hook] = match mode {
            DatapathMode::Auto => &[Hook::Native, Hook::Generic],
            DatapathMode::XdpNative => &[Hook::Native],
            DatapathMode::XdpGeneric => &[Hook::Generic],
            DatapathMode::Userspace => &[],
        };
        let mut refusals = Vec::new();
        for hook in hooks {
            match attach(*hook, ports, sizes, hash_seed, bind_magic) {
                Ok((program, tables, egress)) => {
                    return Ok(Selection {
                        tables: Arc::new(tables),
                        program: Some(program),
                        egress: Some(egress),
                        hook: Some(*hook),
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
        Ok(Selection {
            tables: Arc::new(Tables::private(sizes, hash_seed, bind_magic)),
            program: None,
            egress: None,
            hook: None,
            why: reason(mode, &refusals),
        })
    }
}

fn attach(
    hook: Hook,
    ports: &[Port],
    sizes: TableSizes,
    hash_seed: HashSeed,
    bind_magic: [u8; BIND_MAGIC_LEN],
) -> Result<(Program, Tables, EgressMap), XdpError> {
    if ports.is_empty() {
        return Err(XdpError::NoInterface);
    }
    let (mut program, tables, egress) = Program::load(sizes, hash_seed, bind_magic)?;
    for port in ports {
        program.attach(&tables, port.clone(), hook)?;
    }
    Ok((program, tables, egress))
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
        Selection::make(mode, &[], TableSizes::for_sessions(1), [1, 2], *b"\x01magic!!")
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
