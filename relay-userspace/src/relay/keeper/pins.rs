//! BPF objects pinned as files of a bpffs: `DIRECTORY/NODE/vLAYOUT/NAME`. They last until the file is removed or the host
//! stops.

use std::fs::{self, DirBuilder, Metadata};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{
    Access, AtFlags, CWD, Dir, FlockOperation, Mode, OFlags, access, flock, fstatfs, openat, statfs, unlinkat,
};
use rustix::io::Errno;

use super::object::Object;
use super::{Kept, is_name};
use crate::identity::NodeId;
use crate::relay::datapath::descriptors::{open_pinned, pin};

/// A directory of pins of one relay and one layout.
#[derive(Debug)]
pub struct Pins {
    /// The relay's, with one directory for each layout.
    node: PathBuf,
    /// That of our layout.
    directory: PathBuf,
    /// Nobody else uses the relay's directory as long as this is open: a node may run in two roots.
    _lock: OwnedFd,
}

/// What the name of a pin ends with that is not in its place yet.
const UNFINISHED: char = '~';

/// BPF_FS_MAGIC of linux/magic.h.
const MAGIC: u32 = 0xcafe_4a11;

impl Pins {
    /// Opens the pins of `node` below `bpffs`, makes the directories if there are none, and gives what is there. Nobody
    /// else may have had a hand in them.
    ///
    /// # Errors
    /// Why it is not possible, for people.
    pub fn open(bpffs: &Path, node: &NodeId, layout: u32) -> Result<(Pins, Vec<Kept>), String> {
        let fault = |path: &Path, fault: &str| format!("datapath.bpffs: {}: {fault}", path.display());
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error: io::Error| fault(&path, &error.to_string())
        };
        if !is_bpffs(bpffs) {
            let mount = "not in a bpffs: mount one (`mount -t bpf -o mode=0711 bpf /sys/fs/bpf`), or say which by the key";
            return Err(fault(bpffs, mount));
        }
        let own = own_directory(bpffs, node);
        let directory = own.join(format!("v{layout}"));
        make(bpffs, 0o755).map_err(failed(bpffs))?;
        let status = fs::symlink_metadata(bpffs).map_err(failed(bpffs))?;
        if !is_safe_parent(&status) {
            return Err(fault(
                bpffs,
                "others than its owner may write there, or the owner is neither root nor this user: use another directory",
            ));
        }
        for path in [&own, &directory] {
            make(path, 0o700).map_err(failed(path))?;
            let status = fs::symlink_metadata(path).map_err(failed(path))?;
            if !is_ours(&status) {
                return Err(fault(
                    path,
                    "not used: expected a directory of this user with mode 0700, and pins in another may be anybody's; \
                     remove it",
                ));
            }
            access(path, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| failed(path)(error.into()))?;
        }
        let lock = lock(&own).map_err(failed(&own))?;
        let lock = lock.ok_or_else(|| fault(&own, "a relay of the same identity uses it"))?;
        let pins = Pins { node: own, directory, _lock: lock };
        let kept = pins.read().map_err(failed(&pins.directory))?;
        Ok((pins, kept))
    }

    /// Where the pins are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The directories of other layouts.
    pub fn foreign(&self) -> Vec<PathBuf> {
        let mut all = layouts_in(&self.node);
        all.retain(|directory| *directory != self.directory);
        all
    }

    /// See [`super::Keeper::keep`].
    pub fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let object = Object::of(descriptor)?;
        if !object.is_bpf() {
            return Ok(());
        }
        let path = self.directory.join(name);
        let there = open_pinned(&path).and_then(|there| Object::of(there.as_fd()));
        if there.is_ok_and(|there| there == object) {
            return Ok(());
        }
        let unfinished = self.directory.join(format!("{name}{UNFINISHED}"));
        remove_file(&unfinished)?;
        pin(descriptor, &unfinished)?;
        fs::rename(&unfinished, &path)
    }

    /// See [`super::Keeper::let_go`].
    pub fn let_go(&self, name: &str) -> io::Result<()> {
        remove_file(&self.directory.join(name))
    }

    /// See [`super::Keeper::clear`].
    pub fn clear(&self) -> io::Result<()> {
        remove(&self.directory)
    }

    /// What is there. What cannot be opened is as if it were not there.
    fn read(&self) -> io::Result<Vec<Kept>> {
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if name.ends_with(UNFINISHED) {
                remove_file(&path)?;
                continue;
            }
            if !is_name(name) {
                continue;
            }
            match open_pinned(&path) {
                Ok(descriptor) => kept.push(Kept { name: name.to_owned(), descriptor }),
                Err(error) => tracing::warn!(path = %path.display(), %error, "a pin cannot be opened"),
            }
        }
        Ok(kept)
    }
}

impl Drop for Pins {
    /// A relay that has pinned nothing leaves no directory.
    fn drop(&mut self) {
        for directory in [&self.directory, &self.node] {
            let _not_empty = fs::remove_dir(directory);
        }
    }
}

/// The directories of all layouts that there are pins of.
pub fn layouts(bpffs: &Path, node: &NodeId) -> Vec<PathBuf> {
    layouts_in(&own_directory(bpffs, node))
}

/// Removes all pins of a relay. False: there was none.
pub fn remove_all(bpffs: &Path, node: &NodeId) -> io::Result<bool> {
    let layouts = layouts(bpffs, node);
    let _lock = match layouts.is_empty() {
        true => None,
        false => Some(lock(&own_directory(bpffs, node))?.ok_or_else(|| {
            io::Error::new(io::ErrorKind::ResourceBusy, "a relay of the same identity uses it")
        })?),
    };
    for directory in &layouts {
        remove(directory)?;
    }
    Ok(!layouts.is_empty())
}

/// Keeps others from using a directory of ours; none: somebody does.
fn lock(directory: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let directory = openat(CWD, directory, flags, Mode::empty())?;
    match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(directory)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Removes a directory of pins with all that is in it, and the relay's if that was the last. Whoever owns them cannot make
/// it remove anything else: it follows no link, and removes nothing that is not in a bpffs.
pub fn remove(directory: &Path) -> io::Result<()> {
    let wrong = || io::Error::from(io::ErrorKind::InvalidInput);
    let [node, bpffs] = [1, 2].map(|above| directory.ancestors().nth(above));
    let (node, bpffs) = (node.ok_or_else(wrong)?, bpffs.ok_or_else(wrong)?);
    let [layout, own] = [directory, node].map(Path::file_name);
    let (layout, own) = (layout.ok_or_else(wrong)?, own.ok_or_else(wrong)?);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let bpffs = openat(CWD, bpffs, flags, Mode::empty())?;
    if fstatfs(&bpffs)?.f_type as u32 != MAGIC {
        return Err(wrong());
    }
    let node = openat(&bpffs, own, flags | OFlags::NOFOLLOW, Mode::empty())?;
    let pins = match openat(&node, layout, flags | OFlags::NOFOLLOW, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        pins => pins?,
    };
    for entry in Dir::read_from(&pins)? {
        let entry = entry?;
        if ![c".", c".."].contains(&entry.file_name()) {
            unlinkat(&pins, entry.file_name(), AtFlags::empty())?;
        }
    }
    unlinkat(&node, layout, AtFlags::REMOVEDIR)?;
    match unlinkat(&bpffs, own, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOTEMPTY) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn own_directory(bpffs: &Path, node: &NodeId) -> PathBuf {
    let digits: String = node.as_bytes().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    bpffs.join(digits)
}

fn layouts_in(node: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(node) else { return Vec::new() };
    let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|it| it.is_dir()));
    let mut all: Vec<PathBuf> = directories.map(|entry| entry.path()).collect();
    all.sort();
    all
}

/// Whether a directory is in a bpffs, or would be once it is made.
pub fn is_bpffs(directory: &Path) -> bool {
    let there = directory.ancestors().find_map(|path| statfs(path).ok());
    there.is_some_and(|filesystem| filesystem.f_type as u32 == MAGIC)
}

/// Makes a directory unless there is one.
fn make(path: &Path, mode: u32) -> io::Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Whether nobody but root and this user can put another directory in the place of ours.
fn is_safe_parent(status: &Metadata) -> bool {
    const STICKY: u32 = 0o1000;
    const OTHERS_WRITE: u32 = 0o022;
    let owner = status.uid() == 0 || status.uid() == user();
    owner && status.is_dir() && (status.mode() & OTHERS_WRITE == 0 || status.mode() & STICKY != 0)
}

/// Whether nobody but root and this user can have put anything in.
fn is_ours(status: &Metadata) -> bool {
    status.is_dir() && status.uid() == user() && status.mode() & 0o7777 == 0o700
}

fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
