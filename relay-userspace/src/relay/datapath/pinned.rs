//! The program attached to an interface without a daemon, kept by a pin in bpffs: for development.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use super::descriptors;
use super::ports::{self, PortError};
use super::program::{Hook, Program, XdpError};
use super::tables::TableSizes;
use crate::relay::keeper::PINS;

/// Loads the program with empty tables, attaches it to the interface, and leaves it there. It passes every packet.
/// Returns the pin that keeps it.
///
/// # Errors
/// The interface or the kernel refuses, something is attached already, or there is no bpffs.
pub fn attach(interface: &str, hook: Hook) -> Result<PathBuf, PinnedError> {
    let mut ports = ports::named(&[interface.to_owned()])?;
    let path = pin_of(interface)?;
    if path.exists() {
        return Err(PinnedError::AttachedAlready { interface: interface.to_owned() });
    }
    let mut magic = [0; relay_common::BIND_MAGIC_LEN];
    getrandom::fill(&mut magic).map_err(|_| PinnedError::NoRandomness)?;
    let (mut program, tables, _egress) = Program::load(hook, TableSizes::for_sessions(1), [0, 0], magic)?;
    let Some(port) = ports.pop() else { return Err(XdpError::NoInterface.into()) };
    program.attach(&tables, port, hook)?;
    let Some((_, _, link)) = program.attached.pop() else { return Err(XdpError::NoInterface.into()) };
    let failed = |fault: String| PinnedError::Pin { path: path.clone(), fault };
    fs::create_dir_all(PINS).map_err(|error| failed(error.to_string()))?;
    descriptors::pin(link.as_fd(), &path).map_err(|error| failed(error.to_string()))?;
    Ok(path)
}

/// Detaches what [`attach`] has attached.
///
/// # Errors
/// Nothing of ours is attached there, or it is not permitted.
pub fn detach(interface: &str) -> Result<(), PinnedError> {
    let path = pin_of(interface)?;
    fs::remove_file(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => PinnedError::NotAttached { interface: interface.to_owned() },
        _ => PinnedError::Pin { path, fault: error.to_string() },
    })
}

/// Why the program was not attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum PinnedError {
    /// The interface.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The program.
    #[error(transparent)]
    Xdp(#[from] XdpError),
    /// It is there already.
    #[error(
        "the program is attached to {interface} already: `atlas-relay xdp unload --interface {interface}` detaches it"
    )]
    AttachedAlready {
        /// The interface.
        interface: String,
    },
    /// It is not there.
    #[error(
        "nothing that `xdp load` has attached is on {interface}; a running relay detaches its own when it stops"
    )]
    NotAttached {
        /// The interface.
        interface: String,
    },
    /// The pin.
    #[error("{}: {fault}; it needs root and bpffs (`mount -t bpf bpf /sys/fs/bpf`)", path.display())]
    Pin {
        /// The pin.
        path: PathBuf,
        /// What the system says.
        fault: String,
    },
    /// The name would lead out of the directory.
    #[error("{0:?} is no name of an interface")]
    Name(String),
    /// The random number generator failed.
    #[error("the operating system gives no random numbers")]
    NoRandomness,
}

fn pin_of(interface: &str) -> Result<PathBuf, PinnedError> {
    // bpffs takes no dots in names.
    let file = interface.replace('.', "_");
    if file.is_empty() || file.contains('/') {
        return Err(PinnedError::Name(interface.to_owned()));
    }
    Ok(Path::new(PINS).join(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_stays_in_its_directory() {
        assert_eq!(pin_of("eth0.5").unwrap(), Path::new("/sys/fs/bpf/atlas-relay/eth0_5"));
        for wrong in ["", "../eth0", "a/b"] {
            assert!(matches!(pin_of(wrong), Err(PinnedError::Name(_))), "{wrong}");
        }
    }

    #[test]
    fn what_is_not_attached_cannot_be_detached() {
        assert!(matches!(detach("no-such-if"), Err(PinnedError::NotAttached { .. })));
    }
}
