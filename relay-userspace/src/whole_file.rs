//! Files of the node's state: written whole and on disk, or not at all, whatever happens meanwhile.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Puts `content` in the place of what is at `path`, if anything is. At every moment one of both is there.
///
/// # Errors
/// The directory cannot be written, or the disk is full. Then nothing has changed.
pub fn replace(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    with_draft(path, mode, content, |draft| fs::rename(draft, path))
}

/// Writes `content` to a file beside `path`, lets `put` give it its place, and sees to it that the result is on disk. The
/// file beside is gone afterwards.
///
/// # Errors
/// As for [`replace`], or what `put` says.
pub fn with_draft(
    path: &Path,
    mode: u32,
    content: &[u8],
    put: impl FnOnce(&Path) -> io::Result<()>,
) -> io::Result<()> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{:016x}.new", getrandom::u64()?));
    let draft = PathBuf::from(draft);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&draft)?;
    let written = file
        .write_all(content)
        .and_then(|()| file.sync_all())
        .and_then(|()| put(&draft))
        .and_then(|()| File::open(directory(path))?.sync_all());
    // After a rename there is none. The first error is the one to tell.
    let _gone = fs::remove_file(&draft);
    written
}

/// The directory that `path` is in.
pub fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn whoever_reads_meanwhile_sees_the_old_or_the_new_content_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let [old, new] = [b'o', b'n'].map(|byte| vec![byte; 100_000]);
        replace(&path, 0o600, &old).unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                for turn in 0..20 {
                    replace(&path, 0o600, if turn % 2 == 0 { &new } else { &old }).unwrap();
                }
                done.store(true, Ordering::Relaxed);
            });
            while !done.load(Ordering::Relaxed) {
                let read = fs::read(&path).unwrap();
                assert!(read == old || read == new, "{} bytes", read.len());
            }
        });
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn what_cannot_be_put_in_its_place_leaves_all_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        replace(&path, 0o600, b"before").unwrap();
        let error = with_draft(&path, 0o600, b"after", |draft| {
            assert_eq!(fs::read(draft).unwrap(), b"after");
            fs::hard_link(draft, &path)
        });
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"before");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no draft is left");
        assert!(replace(&directory.path().join("none/file"), 0o600, b"").is_err(), "there is no directory");
    }
}
