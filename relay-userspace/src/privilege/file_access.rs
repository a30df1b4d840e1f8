//! Which files the daemon can reach at all: those it needs, by Landlock, whatever their permissions say.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, LandlockStatus, PathBeneath, PathFd, RestrictionStatus, Ruleset,
    RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, RulesetStatus,
};

/// The kernel's interface this was written for and tested with (Linux 6.10). What a later one could restrict too is left
/// alone, what an earlier one cannot is not restricted.
const WRITTEN_FOR: ABI = ABI::V5;

/// What any daemon reads: addresses of names (the modules that look them up are in the system's libraries) and what the
/// kernel tells.
const READ_BY_ALL: [&str; 6] = ["/etc", "/proc", "/sys", "/usr", "/lib", "/lib64"];

/// Where a name server's address is told. Usually a link to a file that is made anew in its directory now and then.
const RESOLVER: &str = "/etc/resolv.conf";

/// Directories or files.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// Read, besides what any daemon reads.
    pub read: Vec<PathBuf>,
    /// Read and written. Of a directory that does not exist yet, the one that it will be made in.
    pub written: Vec<PathBuf>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restricted {
    /// Everything that was asked for.
    Whole,
    /// The kernel is of before Linux 6.10: it restricts less.
    Partly,
    /// The kernel has no Landlock, or it is switched off.
    Not,
}

impl fmt::Display for Restricted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Restricted::Whole => "whole",
            Restricted::Partly => "partly: this kernel cannot restrict all that later ones can",
            Restricted::Not => "not: this kernel has no Landlock, or it is not among its `lsm=`",
        })
    }
}

/// From now on the calling thread, and those that it starts, open nothing but `places` and execute nothing. What is open
/// already stays so. Also keeps them from gaining privilege (`no_new_privs`).
///
/// # Errors
/// The kernel refuses, which it has no reason for.
pub fn restrict(places: &Places) -> Result<Restricted, RulesetError> {
    let reading = AccessFs::ReadFile | AccessFs::ReadDir;
    let devices = AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev;
    let writing = AccessFs::from_all(WRITTEN_FOR) & !AccessFs::Execute & !devices;
    let resolver = fs::canonicalize(RESOLVER).ok().and_then(|file| Some(file.parent()?.to_owned()));
    let system = READ_BY_ALL.iter().map(PathBuf::from).chain(resolver);
    let read = system.chain(places.read.iter().cloned()).map(|place| (place, reading));
    let written = places.written.iter().map(|place| (existing(place).to_owned(), writing));
    let rules =
        read.chain(written).filter_map(|(place, access)| rule(&place, access)).map(Ok::<_, RulesetError>);
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(WRITTEN_FOR))?
        .create()?
        .add_rules(rules)?
        .restrict_self()?;
    Ok(what_came_of_it(&status))
}

/// What is not there needs no access.
fn rule(place: &Path, access: BitFlags<AccessFs>) -> Option<PathBeneath<PathFd>> {
    let access = if place.is_dir() { access } else { access & AccessFs::from_file(WRITTEN_FOR) };
    Some(PathBeneath::new(PathFd::new(place).ok()?, access))
}

/// `place`, or the closest of the directories it is in that exists. A name without a directory is in the present one.
fn existing(place: &Path) -> &Path {
    place.ancestors().find(|above| above.exists()).unwrap_or(Path::new("."))
}

fn what_came_of_it(status: &RestrictionStatus) -> Restricted {
    match (&status.ruleset, status.landlock) {
        (_, LandlockStatus::NotEnabled | LandlockStatus::NotImplemented)
        | (RulesetStatus::NotEnforced, _) => Restricted::Not,
        (RulesetStatus::FullyEnforced, _) => Restricted::Whole,
        (RulesetStatus::PartiallyEnforced, _) => Restricted::Partly,
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::ToSocketAddrs as _;
    use std::process::Command;
    use std::thread;

    use super::*;

    /// Runs `test` in a thread that may only reach `places`: the others keep what they may.
    fn restricted<T: Send>(places: &Places, test: impl FnOnce(Restricted) -> T + Send) -> T {
        thread::scope(|scope| scope.spawn(|| test(restrict(places).unwrap())).join()).unwrap()
    }

    /// Without Landlock nothing is refused.
    fn refused<T>(restricted: Restricted, result: io::Result<T>) -> bool {
        restricted == Restricted::Not
            || result.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    }

    #[test]
    fn what_was_not_named_is_out_of_reach_and_what_was_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let [own, read, other] = ["own", "read", "other"].map(|name| directory.path().join(name));
        for place in [&own, &read, &other] {
            fs::create_dir(place).unwrap();
            fs::write(place.join("file"), "before").unwrap();
        }
        let places = Places { read: vec![read.clone()], written: vec![own.clone()] };

        restricted(&places, |how| {
            fs::write(own.join("new"), "text").unwrap();
            fs::rename(own.join("new"), own.join("file")).unwrap();
            fs::create_dir(own.join("inner")).unwrap();
            fs::remove_file(own.join("file")).unwrap();
            assert_eq!(fs::read_to_string(read.join("file")).unwrap(), "before");
            assert!(refused(how, fs::write(read.join("file"), "after")), "writing what is to be read");
            assert!(refused(how, fs::read_to_string(other.join("file"))), "reading anything else");
            assert!(refused(how, fs::write(other.join("new"), "text")), "writing anywhere else");
            assert!(refused(how, Command::new("/bin/true").status()), "executing");
        });
        assert_eq!(fs::read_to_string(other.join("file")).unwrap(), "before", "other threads may as before");
    }

    #[test]
    fn a_directory_that_is_yet_to_be_made_can_be_made() {
        let directory = tempfile::tempdir().unwrap();
        let later = directory.path().join("a/b/c");
        let places = Places { written: vec![later.clone()], ..Places::default() };
        restricted(&places, |_| {
            fs::create_dir_all(&later).unwrap();
            fs::write(later.join("file"), "text").unwrap();
        });
    }

    #[test]
    fn what_has_no_directory_in_its_name_is_in_the_present_one() {
        for (place, expected) in
            [("", "."), ("not-there", "."), ("not-there/either", "."), ("/not-there", "/")]
        {
            assert_eq!(existing(place.as_ref()), Path::new(expected), "{place:?}");
        }
    }

    #[test]
    fn names_are_still_looked_up() {
        restricted(&Places::default(), |_| {
            assert!(("localhost", 1).to_socket_addrs().unwrap().count() > 0, "by /etc/hosts");
            // Whatever the answer is, the configuration of the resolver was read for it.
            let configured = fs::read_to_string(RESOLVER).is_ok() || !Path::new(RESOLVER).exists();
            assert!(configured, "{RESOLVER}");
        });
    }

    #[test]
    fn it_is_told_what_the_kernel_lacks() {
        for (how, word) in
            [(Restricted::Whole, "whole"), (Restricted::Partly, "kernel"), (Restricted::Not, "lsm=")]
        {
            assert!(how.to_string().contains(word), "{how}");
        }
    }
}
