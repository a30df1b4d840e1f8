//! A supervisor that only listens, for tests.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tempfile::TempDir;

use super::NotifySocket;

pub struct Listener {
    directory: TempDir,
    socket: UnixDatagram,
}

impl Listener {
    pub fn open() -> Listener {
        let directory = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        socket.set_nonblocking(true).unwrap();
        Listener { directory, socket }
    }

    /// What its process would speak over.
    pub fn connected(&self) -> NotifySocket {
        NotifySocket::connect(self.directory.path().join("notify").as_os_str()).unwrap()
    }

    /// What has been said so far: each message as one line, and the descriptors that came with it.
    pub fn heard(&self) -> Vec<(String, Vec<OwnedFd>)> {
        let mut heard = Vec::new();
        loop {
            let mut bytes = [0; 512];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let into = &mut [IoSliceMut::new(&mut bytes)];
            let Ok(message) = recvmsg(&self.socket, into, &mut control, RecvFlags::CMSG_CLOEXEC) else {
                return heard;
            };
            let descriptors = control.drain().flat_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<_>>(),
                _ => Vec::new(),
            });
            let descriptors = descriptors.collect();
            let text = std::str::from_utf8(&bytes[..message.bytes]).unwrap().replace('\n', " ");
            heard.push((text, descriptors));
        }
    }

    pub fn said(&self) -> Vec<String> {
        self.heard().into_iter().map(|(text, _)| text).collect()
    }
}
