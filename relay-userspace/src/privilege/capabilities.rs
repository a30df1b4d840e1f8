//! Capabilities: given up for good once they have served.

use std::fmt;
use std::fs;
use std::io;

use rustix::system::uname;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

/// Some of the kernel's capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities(CapabilitySet);

impl Capabilities {
    /// Their names, such as `cap_bpf`.
    pub fn names(self) -> Vec<String> {
        each(self.0).map(name).collect()
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.names()[..] {
            [] => f.write_str("none"),
            ref names => f.write_str(&names.join(" ")),
        }
    }
}

/// Sees to it that the calling thread and all that it starts from now on, programs too, can only lose privilege: nothing
/// that is executed gains any (`no_new_privs`), and nothing is handed down (ambient and inheritable sets are emptied, and
/// with CAP_SETPCAP the bounding set). What the thread has it keeps, until [`drop_all`].
///
/// # Errors
/// The kernel refuses, which it has no reason for.
pub fn renounce() -> io::Result<()> {
    set_no_new_privs(true)?;
    clear_ambient_capability_set()?;
    let held = capabilities(None)?;
    if held.effective.contains(CapabilitySet::SETPCAP) {
        // Those beyond the kernel's last one are no error: it does not know them.
        let mut bounding =
            each(CapabilitySet::all()).filter(|one| capability_is_in_bounding_set(*one) == Ok(true));
        bounding.try_for_each(remove_capability_from_bounding_set)?;
    }
    Ok(set_capabilities(None, CapabilitySets { inheritable: CapabilitySet::empty(), ..held })?)
}

/// Takes all capabilities from the calling thread that the daemon can do without from now on, and says which that leaves it.
///
/// # Errors
/// The kernel refuses, which it has no reason for.
pub fn drop_all() -> io::Result<Capabilities> {
    let kept = capabilities(None)?.permitted & needed(&uname().release().to_string_lossy());
    // Before the sets that it is a part of: those would take it along, but then it could not be seen to fail.
    clear_ambient_capability_set()?;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets)?;
    Ok(Capabilities(kept))
}

/// [`drop_all`] at a thread's start, where there is nobody to return an error to.
pub fn drop_in_thread() {
    if let Err(error) = drop_all() {
        tracing::error!(%error, "a thread keeps capabilities that it does not need");
    }
}

/// The capabilities that are in effect for the calling thread.
///
/// # Errors
/// The kernel refuses, which it has no reason for.
pub fn of_caller() -> io::Result<Capabilities> {
    Ok(Capabilities(capabilities(None)?.effective))
}

/// The capabilities that any thread of this process has or could make use of, as the kernel says.
///
/// # Errors
/// There is no /proc.
pub fn of_process() -> io::Result<Capabilities> {
    let mut held = CapabilitySet::empty();
    for thread in fs::read_dir("/proc/self/task")? {
        match fs::read_to_string(thread?.path().join("status")) {
            Ok(status) => held |= permitted(&status)?,
            // It has ended since.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Capabilities(held))
}

/// The permitted set in a /proc/PID/status: the effective one is a part of it.
fn permitted(status: &str) -> io::Result<CapabilitySet> {
    let digits = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
    let bits = digits.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    bits.map(CapabilitySet::from_bits_retain)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no CapPrm in /proc/self/task/TID/status"))
}

/// What is still needed once all is open, by a kernel of this release: before 5.19 a map is read and written through its
/// descriptor with CAP_BPF only, where unprivileged BPF is off.
fn needed(release: &str) -> CapabilitySet {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (5, 19) => CapabilitySet::empty(),
        _ => CapabilitySet::BPF,
    }
}

fn each(set: CapabilitySet) -> impl Iterator<Item = CapabilitySet> {
    (0..u64::BITS)
        .map(|bit| CapabilitySet::from_bits_retain(1 << bit))
        .filter(move |one| set.intersects(*one))
}

fn name(one: CapabilitySet) -> String {
    match one.iter_names().next() {
        Some((name, _)) => format!("cap_{}", name.to_ascii_lowercase()),
        // Newer than this program.
        None => format!("cap_{}", one.bits().trailing_zeros()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `test` in a thread of its own, so that the others keep what they have.
    fn in_thread<T: Send>(test: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| scope.spawn(test).join()).unwrap()
    }

    #[test]
    fn nothing_is_needed_of_a_kernel_that_lets_a_map_be_used_by_its_descriptor() {
        for release in ["5.19.0", "6.1.0-13-amd64", "6.18.44-fc-v509", "10.0"] {
            assert_eq!(needed(release), CapabilitySet::empty(), "{release}");
        }
        for release in ["5.15.0-91-generic", "5.18.19", "4.19", "", "of tomorrow"] {
            assert_eq!(needed(release), CapabilitySet::BPF, "{release}");
        }
    }

    #[test]
    fn a_thread_that_has_dropped_all_has_no_more_than_is_needed_and_none_to_hand_down() {
        let (kept, sets) = in_thread(|| (drop_all().unwrap(), capabilities(None).unwrap()));
        assert_eq!(kept.0 & !needed(&uname().release().to_string_lossy()), CapabilitySet::empty());
        let expected =
            CapabilitySets { effective: kept.0, permitted: kept.0, inheritable: CapabilitySet::empty() };
        assert_eq!(sets, expected);
    }

    #[test]
    fn a_thread_that_has_renounced_keeps_what_it_has_and_can_gain_nothing() {
        in_thread(|| {
            let before = capabilities(None).unwrap();
            renounce().unwrap();
            let after = capabilities(None).unwrap();
            assert_eq!((after.effective, after.permitted), (before.effective, before.permitted));
            assert!(after.inheritable.is_empty() && rustix::thread::no_new_privs().unwrap());
            if before.effective.contains(CapabilitySet::SETPCAP) {
                let bounding = each(CapabilitySet::all());
                let left: Vec<_> =
                    bounding.filter(|one| capability_is_in_bounding_set(*one) == Ok(true)).collect();
                assert!(left.is_empty(), "{left:?}");
            }
        });
    }

    #[test]
    fn capabilities_are_listed_by_name() {
        let of = |bits| Capabilities(CapabilitySet::from_bits_retain(bits));
        assert_eq!(of(0).to_string(), "none");
        assert_eq!(of(1 << 39 | 1 << 12).to_string(), "cap_net_admin cap_bpf");
        assert_eq!(of(1 << 60).names(), ["cap_60"]);
    }

    #[test]
    fn the_process_has_what_any_of_its_threads_has() {
        let of_thread = Capabilities(capabilities(None).unwrap().permitted);
        let seen = in_thread(|| {
            drop_in_thread();
            of_process().unwrap()
        });
        assert_eq!(seen.0 & of_thread.0, of_thread.0, "this thread's");
        assert!(permitted("Name:\tatlas-relay\nCapInh:\t0\nCapEff:\t0\n").is_err());
        let status = "CapInh:\t0000000000000000\nCapPrm:\t0000008000001000\nCapEff:\t0000000000000000\n";
        assert_eq!(permitted(status).unwrap(), CapabilitySet::BPF | CapabilitySet::NET_ADMIN);
    }
}
