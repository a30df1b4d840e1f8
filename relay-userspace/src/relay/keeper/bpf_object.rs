//! BPF objects as files in bpffs, whatever kind they are of: aya knows maps and links apart, each by a type of its own.

#![expect(unsafe_code, reason = "bpf(2) is not in std, and aya's is not public")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use aya_obj::generated::{bpf_attr, bpf_cmd};

/// Makes the file `path` stand for the object.
pub fn pin(object: BorrowedFd<'_>, path: &CStr) -> io::Result<()> {
    call(bpf_cmd::BPF_OBJ_PIN, object.as_raw_fd(), path).map(drop)
}

/// Opens the object that the file `path` stands for. No child inherits it.
pub fn open(path: &CStr) -> io::Result<OwnedFd> {
    let number = call(bpf_cmd::BPF_OBJ_GET, 0, path)?;
    // SAFETY: the kernel has just opened it for us, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn call(command: bpf_cmd, object: RawFd, path: &CStr) -> io::Result<RawFd> {
    // SAFETY: bpf_attr is a union of structs of integers, for which zero is a value; the kernel wants unused bytes zero.
    let mut attributes: bpf_attr = unsafe { std::mem::zeroed() };
    attributes.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attributes.__bindgen_anon_4.bpf_fd = object as u32;
    let size = size_of::<bpf_attr>();
    // SAFETY: the attributes and the path, which ends with a zero, live until the call returns; the size is theirs.
    let number = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const attributes, size) };
    match RawFd::try_from(number) {
        Ok(number @ 0..) => Ok(number),
        _ => Err(io::Error::last_os_error()),
    }
}
