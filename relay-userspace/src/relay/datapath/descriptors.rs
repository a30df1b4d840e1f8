//! Descriptors of BPF objects and shared memory: what the libraries in use do not do with them.

#![expect(unsafe_code, reason = "bpf(2) for links by descriptor, dup3(2) over a map's, memfd_create(2)")]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use aya_obj::generated::{
    XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE, bpf_attach_type, bpf_attr, bpf_cmd, bpf_link_info, bpf_link_type,
};

use super::program::Hook;

/// Attaches `program` to an interface. The link is the attachment: closed everywhere, it is over.
///
/// # Errors
/// EBUSY or EEXIST: a program is attached already. EOPNOTSUPP: the driver has no such hook. EINVAL: no links to XDP
/// programs (before Linux 5.9).
pub fn create_link(program: BorrowedFd<'_>, interface: u32, hook: Hook) -> io::Result<OwnedFd> {
    let mut attr = attribute();
    // Plain fields of a union that is all zeroes: of integers only.
    attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attr.link_create.__bindgen_anon_2.target_ifindex = interface;
    attr.link_create.attach_type = bpf_attach_type::BPF_XDP as u32;
    attr.link_create.flags = match hook {
        Hook::Native => XDP_FLAGS_DRV_MODE,
        Hook::Generic => XDP_FLAGS_SKB_MODE,
    };
    let descriptor = bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr)?;
    // SAFETY: the kernel has just made this descriptor for us, close-on-exec, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Makes `link` run `program` from the next packet on.
///
/// # Errors
/// The program cannot be at this link, or `link` is none.
pub fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = attribute();
    attr.link_update.link_fd = link.as_raw_fd() as u32;
    attr.link_update.__bindgen_anon_1.new_prog_fd = program.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr).map(|_| ())
}

/// The interface that an XDP link is attached to, by index; 0 once that is gone. None: it is no XDP link.
///
/// # Errors
/// It is no link.
pub fn interface_of_link(link: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    // SAFETY: integers only, for which zeroes are a value.
    let mut info: bpf_link_info = unsafe { zeroed() };
    let mut attr = attribute();
    attr.info.bpf_fd = link.as_raw_fd() as u32;
    attr.info.info_len = size_of::<bpf_link_info>() as u32;
    attr.info.info = std::ptr::from_mut(&mut info) as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    if info.type_ != bpf_link_type::BPF_LINK_TYPE_XDP as u32 {
        return Ok(None);
    }
    // SAFETY: the kernel has filled in the part of the union that belongs to this type; all parts are integers.
    Ok(Some(unsafe { info.__bindgen_anon_1.xdp.ifindex }))
}

/// Keeps a BPF object by a file at `path`, which is in a bpffs and does not exist.
///
/// # Errors
/// No bpffs, no permission, or it exists.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut attr = attribute();
    attr.__bindgen_anon_4.bpf_fd = object.as_raw_fd() as u32;
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(|_| ())
}

/// The BPF object that the file at `path` keeps.
///
/// # Errors
/// There is none, or no permission.
pub fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut attr = attribute();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    let descriptor = bpf(bpf_cmd::BPF_OBJ_GET, &mut attr)?;
    // SAFETY: as for a new link's.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Makes the descriptor number of `replaced` stand for what `by` stands for. What it stood for before is closed.
///
/// The library that loads the program makes every map itself. A program names its maps by descriptor number until it is
/// loaded, so this gives it others.
///
/// # Errors
/// What dup3(2) says.
pub fn replace_descriptor(replaced: BorrowedFd<'_>, by: BorrowedFd<'_>) -> io::Result<()> {
    let (old, new): (RawFd, RawFd) = (by.as_raw_fd(), replaced.as_raw_fd());
    // SAFETY: both are open, as the borrows show. The number stays open and its owner's, who does not care which of two
    // BPF maps of one kind it is.
    match unsafe { libc::dup3(old, new, libc::O_CLOEXEC) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// A memory file of `length` bytes, all zero, whose length nobody can change: a mapping of it never loses a page.
///
/// # Errors
/// No memory, or no more descriptors.
pub fn memory_file(name: &std::ffi::CStr, length: u64) -> io::Result<OwnedFd> {
    // SAFETY: the name is a string that ends with a zero, and lives until the call returns.
    let descriptor =
        unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if descriptor == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as for a new link's.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(descriptor) });
    file.set_len(length)?;
    // SAFETY: the call takes integers.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, SEALS) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(file.into()),
    }
}

/// Whether `file` is one that [`memory_file`] has made.
pub fn is_memory_file(file: BorrowedFd<'_>) -> bool {
    // SAFETY: the call takes integers; of another kind of file it is an error.
    let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
    seals != -1 && seals & SEALS == SEALS
}

const SEALS: i32 = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;

fn attribute() -> bpf_attr {
    // SAFETY: a union of integers, for which zeroes are a value; the kernel wants what is not used to be zero.
    unsafe { zeroed() }
}

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<RawFd> {
    // SAFETY: the attribute is as long as is said, and what it points to (information, a path) outlives the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as u32, std::ptr::from_mut(attr), size_of::<bpf_attr>())
    };
    match RawFd::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
