//! A virtual interface of a network namespace, for frames as they are (packet(7)), and the namespace itself.

#![expect(unsafe_code, reason = "packet sockets and leaving a network namespace are in no safe API")]

use std::ffi::CString;
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

/// Gives the calling thread a network namespace of its own, which ends with it and with what it opens there.
///
/// # Errors
/// EPERM: the caller has no CAP_SYS_ADMIN.
pub fn leave_namespace() -> io::Result<()> {
    // SAFETY: the call takes no pointers, and what it changes is the calling thread's network alone.
    match unsafe { libc::unshare(libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A socket for the frames of one interface.
pub struct Wire(OwnedFd);

impl Wire {
    /// Opens the interface `name` of the calling thread's namespace. Reading waits for `patience` at most.
    ///
    /// # Errors
    /// There is no such interface, or no permission.
    pub fn open(name: &str, patience: Duration) -> io::Result<Wire> {
        let every_protocol = (libc::ETH_P_ALL as u16).to_be();
        let name = CString::new(name)?;
        // SAFETY: the name is a string that ends with 0 and outlives the call.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: the call takes no pointers.
        let socket = unsafe { libc::socket(libc::AF_PACKET, kind, i32::from(every_protocol)) };
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and is nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        // SAFETY: integers only, for which zeroes are a value.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = every_protocol;
        address.sll_ifindex = index as i32;
        // SAFETY: the address is a local of the length that is told.
        let bound = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        if bound != 0 {
            return Err(io::Error::last_os_error());
        }
        socket2::SockRef::from(&socket).set_read_timeout(Some(patience))?;
        Ok(Wire(socket))
    }

    /// Puts a frame on the wire.
    ///
    /// # Errors
    /// What send(2) says.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        socket2::SockRef::from(&self.0).send(frame).map(drop)
    }

    /// The next frame that went over the interface, in either direction.
    ///
    /// # Errors
    /// `WouldBlock`: none came in time.
    pub fn receive(&self) -> io::Result<Vec<u8>> {
        use std::io::Read as _;
        let mut frame = vec![0; 2048];
        let len = (&*socket2::SockRef::from(&self.0)).read(&mut frame)?;
        frame.truncate(len);
        Ok(frame)
    }
}
