//! The directory for pins: where it lies, and who can write there.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use rustix::fs::{Access, access};

use crate::doctor::facts::Bpffs;
use crate::relay::keeper::is_bpffs;

/// What there is of `directory`, or of the one above that it would be made in.
pub fn bpffs(directory: PathBuf) -> Bpffs {
    let there = directory.ancestors().find(|path| path.exists());
    let owner = there.and_then(|path| fs::metadata(path).ok()).map(|metadata| metadata.uid());
    let writable = there.is_some_and(|path| access(path, Access::WRITE_OK | Access::EXEC_OK).is_ok());
    Bpffs { mounted: is_bpffs(&directory), owner, writable, directory }
}
