//! The supplementary groups of whoever is at the other end of a Unix socket.

#![expect(unsafe_code, reason = "this socket option is in no safe API")]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// NGROUPS_MAX: no process has more.
const MOST: usize = 65_536;

/// Those it had when it connected (SO_PEERGROUPS).
///
/// # Errors
/// What getsockopt(2) says: Linux before 4.13 does not know the option.
pub fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    // Few have more; the kernel says how many there are.
    let mut groups = vec![0u32; 32];
    loop {
        let mut len = libc::socklen_t::try_from(size_of_val(&groups[..])).map_err(io::Error::other)?;
        // SAFETY: `groups` is writable and `len` is its size in bytes; the kernel writes at most that, and nothing if that
        // is too little.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &mut len,
            )
        };
        let count = len as usize / size_of::<u32>();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() || count > MOST {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}
