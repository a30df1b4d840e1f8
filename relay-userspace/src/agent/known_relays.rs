//! The keys of relays seen before.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use crate::config::RelayAddress;
use crate::identity::NodeId;
use crate::whole_file;

/// A file of lines `HOST:PORT atlas_<hex>`; lines that begin with `#` are comments.
///
/// It is read anew for each question and replaced whole for each answer, under a lock (flock(2) on the same name with
/// `.lock`), so that a daemon and commands may share it.
#[derive(Clone, Debug)]
pub struct KnownRelays {
    path: PathBuf,
}

impl KnownRelays {
    /// The file at `path`. It need not exist.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        KnownRelays { path: path.into() }
    }

    /// Checks the key that the relay at `address` has proved to hold. A relay given as `HOST:PORT` and not seen before
    /// is remembered.
    ///
    /// # Errors
    /// It is another key than the pinned or remembered one, or the file cannot be used.
    pub fn check(&self, address: &RelayAddress, shown: NodeId) -> Result<(), PinError> {
        let place = address.at.to_string();
        if let Some(expected) = address.node {
            return match expected == shown {
                true => Ok(()),
                false => Err(PinError::NotPinned { place, expected, shown }),
            };
        }
        let known = match self.remembered(&self.read()?, &place)? {
            Some(known) => known,
            None => self.remember_first(&place, shown)?,
        };
        match known == shown {
            true => Ok(()),
            false => Err(PinError::Changed { place, expected: known, shown, file: self.path.clone() }),
        }
    }

    /// Remembers the relay at `place`, unless somebody else just has. Gives the id that is remembered.
    fn remember_first(&self, place: &str, shown: NodeId) -> Result<NodeId, PinError> {
        let _lock = self.lock().map_err(|source| self.failed("lock", source))?;
        let text = self.read()?;
        if let Some(known) = self.remembered(&text, place)? {
            return Ok(known);
        }
        self.remember(text, place, shown).map_err(|source| self.failed("write", source))?;
        Ok(shown)
    }

    fn read(&self) -> Result<String, PinError> {
        match fs::read_to_string(&self.path) {
            Ok(text) => Ok(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            Err(source) => Err(self.failed("read", source)),
        }
    }

    fn remembered(&self, text: &str, place: &str) -> Result<Option<NodeId>, PinError> {
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let malformed = || PinError::Malformed { file: self.path.clone(), line: at + 1 };
            let (known, id) = line.split_once(char::is_whitespace).ok_or_else(malformed)?;
            let id: NodeId = id.trim().parse().map_err(|_| malformed())?;
            if known == place {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    fn remember(&self, mut text: String, place: &str, id: NodeId) -> io::Result<()> {
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(&format!("{place} {id}\n"));
        whole_file::replace(&self.path, 0o644, text.as_bytes())
    }

    /// Keeps other writers out, in this process and in others, until the file is dropped. It is held for a write only,
    /// so waiting for it takes no longer.
    fn lock(&self) -> io::Result<File> {
        fs::create_dir_all(whole_file::directory(&self.path))?;
        let mut options = File::options();
        // Root may come here for a node whose user could have put a link there.
        options.create(true).append(true).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(self.beside(".lock"))?;
        file.lock()?;
        Ok(file)
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut path = self.path.as_os_str().to_owned();
        path.push(suffix);
        path.into()
    }

    fn failed(&self, doing: &'static str, source: io::Error) -> PinError {
        PinError::File { doing, file: self.path.clone(), source }
    }
}

/// Why a relay's key was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The configuration names another key.
    #[error(
        "the relay at {place} is {shown}, but `network.relays` expects {expected}: it is another relay, or somebody in the middle"
    )]
    NotPinned {
        /// `HOST:PORT`.
        place: String,
        /// The configured id.
        expected: NodeId,
        /// The id of the key that was shown.
        shown: NodeId,
    },
    /// Another key was seen there before.
    #[error(
        "the relay at {place} was {expected} and is now {shown}: it has been set up anew, or somebody is in the middle; \
         to accept the new key, remove the line of {place} from {}", file.display()
    )]
    Changed {
        /// `HOST:PORT`.
        place: String,
        /// The remembered id.
        expected: NodeId,
        /// The id of the key that was shown.
        shown: NodeId,
        /// The file that remembers.
        file: PathBuf,
    },
    /// A line is not `HOST:PORT atlas_<hex>`.
    #[error("{}, line {line}: expected `HOST:PORT atlas_<64 hex digits>`; correct or remove the line", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// The file system said no.
    #[error("cannot {doing} {}: {source}", file.display())]
    File {
        /// `read`, `lock` or `write`.
        doing: &'static str,
        /// The file.
        file: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_key_is_remembered_and_another_refused_with_both_ids() {
        let directory = tempfile::tempdir().unwrap();
        let known = KnownRelays::at(directory.path().join("state/known_relays"));
        let address: RelayAddress = "relay.example.org:4433".parse().unwrap();
        known.check(&address, id(1)).unwrap();
        known.check(&address, id(1)).unwrap();
        let refusal = known.check(&address, id(2)).unwrap_err().to_string();
        for part in [id(1).to_string(), id(2).to_string(), "state/known_relays".into()] {
            assert!(refusal.contains(&part), "{refusal}");
        }
        known.check(&"relay.example.org:443".parse().unwrap(), id(2)).unwrap();
        known.check(&address, id(1)).unwrap();
    }

    #[test]
    fn a_link_in_the_place_of_the_lock_or_the_file_makes_nothing_elsewhere() {
        let directory = tempfile::tempdir().unwrap();
        let (path, elsewhere) = (directory.path().join("known_relays"), directory.path().join("elsewhere"));
        let check = || KnownRelays::at(&path).check(&"192.0.2.1:4433".parse().unwrap(), id(1));
        std::os::unix::fs::symlink(&elsewhere, directory.path().join("known_relays.lock")).unwrap();
        let refused = check().unwrap_err();
        assert!(matches!(refused, PinError::File { doing: "lock", .. }), "{refused}");
        fs::remove_file(directory.path().join("known_relays.lock")).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        check().unwrap();
        assert!(!elsewhere.exists() && path.symlink_metadata().unwrap().is_file());
    }

    #[test]
    fn relays_seen_for_the_first_time_at_the_same_time_are_all_remembered() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state/known_relays");
        let relays: Vec<(RelayAddress, NodeId)> =
            (1..=16).map(|byte| (format!("192.0.2.{byte}:4433").parse().unwrap(), id(byte))).collect();
        let start = std::sync::Barrier::new(relays.len());
        std::thread::scope(|threads| {
            for (address, shown) in &relays {
                let (known, start) = (KnownRelays::at(&path), &start);
                threads.spawn(move || {
                    start.wait();
                    known.check(address, *shown).unwrap();
                });
            }
        });
        for (address, _) in &relays {
            let refused = KnownRelays::at(&path).check(address, id(99));
            assert!(matches!(refused, Err(PinError::Changed { .. })), "{} is forgotten", address.at);
        }
        let mut names: Vec<_> =
            fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["known_relays", "known_relays.lock"], "no drafts are left");
    }

    #[test]
    fn of_two_keys_shown_at_the_same_time_for_one_relay_one_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let known = KnownRelays::at(directory.path().join("known_relays"));
        let address: RelayAddress = "192.0.2.1:4433".parse().unwrap();
        let taken = std::thread::scope(|threads| {
            let checks = [1, 2].map(|byte| {
                let (known, address) = (&known, &address);
                threads.spawn(move || known.check(address, id(byte)).is_ok())
            });
            checks.map(|check| check.join().unwrap())
        });
        assert_eq!(taken.into_iter().filter(|taken| *taken).count(), 1);
    }

    #[test]
    fn a_pinned_relay_is_checked_from_the_start_and_not_written_down() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("known_relays");
        let known = KnownRelays::at(&path);
        let address: RelayAddress = format!("{}@192.0.2.1:4433", id(1)).parse().unwrap();
        known.check(&address, id(1)).unwrap();
        assert!(matches!(known.check(&address, id(2)), Err(PinError::NotPinned { .. })));
        assert!(!path.exists());
    }

    #[test]
    fn a_malformed_line_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("known_relays");
        fs::write(&path, "# a comment\n\nrelay:1 atlas_\n").unwrap();
        let error = KnownRelays::at(&path).check(&"relay:1".parse().unwrap(), id(1)).unwrap_err();
        assert!(matches!(error, PinError::Malformed { line: 3, .. }));
    }

    fn id(byte: u8) -> NodeId {
        NodeId::from_bytes([byte; 32])
    }
}
