//! The socket on which a supervisor hears from its process: sd_notify(3).

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// A connected socket. Clones share it.
#[derive(Clone, Debug)]
pub struct NotifySocket {
    socket: Arc<UnixDatagram>,
}

/// How long a supervisor that does not read may hold us up.
const PATIENCE: Duration = Duration::from_secs(2);

impl NotifySocket {
    /// Connects to the socket of this name: a path, or `@` and an abstract name.
    ///
    /// # Errors
    /// There is no such socket.
    pub fn connect(name: &OsStr) -> io::Result<NotifySocket> {
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(NotifySocket { socket: Arc::new(socket) })
    }

    /// Sends one message: assignments, one a line.
    ///
    /// # Errors
    /// The supervisor is gone, or does not read.
    pub fn send(&self, message: &str) -> io::Result<()> {
        self.socket.send(message.as_bytes()).map(drop)
    }

    /// Sends one message with a descriptor.
    ///
    /// # Errors
    /// As for [`NotifySocket::send`].
    pub fn send_with(&self, message: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [descriptor];
        if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let message = [IoSlice::new(message.as_bytes())];
        sendmsg(&self.socket, &message, &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Waits until everything that was sent has been read: sd_notify_barrier(3).
    ///
    /// # Errors
    /// As for [`NotifySocket::send`], or it was not read within `patience`.
    pub fn wait_until_read(&self, patience: Duration) -> io::Result<()> {
        let (reader, writer) = io::pipe()?;
        self.send_with("BARRIER=1", writer.as_fd())?;
        drop(writer);
        // The last copy of the other end is the supervisor's, who closes it when it comes to this message.
        let mut closed = [PollFd::new(&reader, PollFlags::empty())];
        let patience = Timespec::try_from(patience).map_err(|_| io::ErrorKind::InvalidInput)?;
        match poll(&mut closed, Some(&patience))? {
            0 => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervision::listener::Listener;

    #[test]
    fn a_socket_of_an_abstract_name_is_reached_too() {
        let name = format!("atlas-relay-test-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        NotifySocket::connect(OsStr::new(&format!("@{name}"))).unwrap().send("READY=1").unwrap();
        let mut bytes = [0; 16];
        assert_eq!(socket.recv(&mut bytes).unwrap(), 7);
    }

    #[test]
    fn the_wait_is_over_when_what_was_sent_has_been_read_and_not_before() {
        let listener = Listener::open();
        let socket = listener.connected();
        socket.send("STOPPING=1").unwrap();
        let unread = socket.wait_until_read(Duration::from_millis(1)).unwrap_err();
        assert_eq!(unread.kind(), io::ErrorKind::TimedOut);
        assert_eq!(listener.said(), ["STOPPING=1", "BARRIER=1"]);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| socket.wait_until_read(Duration::from_secs(10)));
            while listener.said().is_empty() {
                std::thread::yield_now();
            }
            waiting.join().unwrap().unwrap();
        });
    }
}
