//! Whose a file is, for whoever may not use it.

use std::fmt::Write as _;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User};

/// What to do about `path` where it is refused to this user: as whom to run this instead. Empty for other errors, and for the
/// file's own owner, whom something else keeps from it.
pub(crate) fn refusal_hint(path: &Path, error: &io::Error) -> String {
    if error.kind() != io::ErrorKind::PermissionDenied {
        return String::new();
    }
    let Some(owned) = Owned::nearest(path) else { return String::new() };
    if owned.owner == Uid::effective() {
        return String::new();
    }
    let name = User::from_uid(owned.owner).ok().flatten().map(|user| user.name);
    owned.hint(path, name.as_deref())
}

/// The file, or of the directories above it the nearest that this user can see: of a private one no more is known.
struct Owned {
    path: PathBuf,
    owner: Uid,
}

impl Owned {
    fn nearest(path: &Path) -> Option<Owned> {
        path.ancestors().find_map(|path| {
            let owner = Uid::from_raw(std::fs::metadata(path).ok()?.uid());
            Some(Owned { path: path.to_owned(), owner })
        })
    }

    fn hint(&self, asked: &Path, name: Option<&str>) -> String {
        let what = if self.path == asked { "it".to_owned() } else { self.path.display().to_string() };
        let mut hint = format!("; {what} belongs to ");
        // Writing to a text does not fail.
        let _written = match name {
            Some(name) => write!(hint, "user {name}: run this as that user, with `sudo -u {name}` before it"),
            None => write!(hint, "uid {}: run this as that user", self.owner),
        };
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> io::Error {
        io::ErrorKind::PermissionDenied.into()
    }

    #[test]
    fn the_owner_is_named_of_the_file_or_of_the_directory_that_hides_it() {
        let owned = Owned { path: PathBuf::from("/var/lib/atlas-relay"), owner: Uid::from_raw(994) };
        assert_eq!(
            owned.hint(Path::new("/var/lib/atlas-relay/.atlas/keys/node-key.pem"), Some("atlas-relay")),
            "; /var/lib/atlas-relay belongs to user atlas-relay: run this as that user, with `sudo -u atlas-relay` before it"
        );
        assert_eq!(owned.hint(&owned.path, None), "; it belongs to uid 994: run this as that user");
    }

    #[test]
    fn what_is_missing_is_looked_for_above_and_the_owner_gets_no_advice() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("state/admin.sock");
        let nearest = Owned::nearest(&missing).unwrap();
        assert_eq!((nearest.path.as_path(), nearest.owner), (directory.path(), Uid::effective()));
        assert_eq!(refusal_hint(&missing, &refused()), "");
        assert_eq!(refusal_hint(Path::new("/proc/1"), &io::ErrorKind::NotFound.into()), "");
    }
}
