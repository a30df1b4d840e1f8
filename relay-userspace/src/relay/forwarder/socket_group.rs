//! The relay's UDP port in one family as several sockets: one for control, the others for relayed traffic.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use super::socket_options::{self, PathMtu};
use super::steering::{Marks, keep_out};
use crate::socket_queue;

/// What is asked of the kernel for each socket's buffers, in bytes.
pub const BUFFER_BYTES: usize = 4 << 20;

/// The sockets that share the relay's address and port (SO_REUSEPORT), with the kernel program that chooses among them.
#[derive(Debug)]
pub struct SocketGroup {
    /// Socket 0 is control's. The kernel numbers them in the order they were bound, and gives a closed one's number to
    /// the last: the group is opened and closed as a whole.
    pub sockets: Vec<UdpSocket>,
    address: SocketAddr,
    receive_buffer: usize,
}

impl SocketGroup {
    /// Opens the group on `address`, with `relayed` sockets for relayed traffic, at least one; port 0 lets the kernel
    /// choose.
    ///
    /// A socket with SO_REUSEPORT may join another relay of the same user silently, so the port is first bound without
    /// it: that fails if anything else has it. For a wildcard address this includes sockets on any single address of
    /// this host and a dual-stack `[::]`, since each would take part of the relay's traffic. Two relays started in the
    /// same instant can both pass; the lock file of their state directory tells them apart.
    ///
    /// # Errors
    /// [`OpenError`] names the address and what to do.
    pub fn open(address: SocketAddr, marks: Marks, relayed: u32) -> Result<SocketGroup, OpenError> {
        let address = probe(address).map_err(|error| OpenError::of(address, error))?;
        let mut sockets = Vec::new();
        for _ in 0..=relayed {
            let socket = open(address).map_err(|error| OpenError::of(address, error))?;
            if sockets.is_empty() {
                // From the first socket on, so that none ever chooses by the kernel's own hash.
                let program = marks.program(relayed, address.is_ipv4());
                socket_options::attach_steering(&socket, &program)
                    .map_err(|source| OpenError::System { address, source })?;
            }
            sockets.push(socket);
        }
        SocketGroup::of(sockets, address)
    }

    /// Takes over the sockets of a group, in the order of their numbers, with the program that chooses among them. None if
    /// they are not all on this address and `port` (port 0 takes any), or the kernel refuses an option.
    pub fn adopt(sockets: Vec<UdpSocket>, address: IpAddr, port: u16) -> Option<SocketGroup> {
        let first = sockets.first()?.local_addr().ok()?;
        let is_wanted = first.ip() == address && (port == 0 || port == first.port());
        let are_one = sockets.iter().all(|socket| socket.local_addr().is_ok_and(|at| at == first));
        if !is_wanted || !are_one {
            return None;
        }
        for socket in &sockets {
            socket_options::report_ancillary(socket).ok()?;
            socket_options::set_path_mtu(socket, PathMtu::KeepDf).ok()?;
        }
        // Whom the predecessor has kept out for a while nobody would let in again.
        let nobody = keep_out([], 1, address.is_ipv4());
        socket_options::attach_filter(sockets.first()?, &nobody).ok()?;
        SocketGroup::of(sockets, first).ok()
    }

    fn of(sockets: Vec<UdpSocket>, address: SocketAddr) -> Result<SocketGroup, OpenError> {
        let mut receive_buffer = usize::MAX;
        for socket in &sockets {
            let obtained = socket_queue::set_buffer_sizes(socket, BUFFER_BYTES)
                .map_err(|source| OpenError::System { address, source })?;
            receive_buffer = receive_buffer.min(obtained);
        }
        Ok(SocketGroup { sockets, address, receive_buffer })
    }

    /// The address and port of all its sockets.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The smallest kernel buffer for received datagrams among its sockets, in bytes.
    pub fn receive_buffer(&self) -> usize {
        self.receive_buffer
    }
}

/// Why the relay's port could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has the port.
    #[error("UDP {0} is in use: stop what uses it (`ss -ulpn sport = :{port}` shows it) or choose another port", port = .0.port())]
    InUse(SocketAddr),
    /// The port is privileged.
    #[error("no permission to open UDP {0}: ports below 1024 need CAP_NET_BIND_SERVICE or another port")]
    Denied(SocketAddr),
    /// The address is not one of this host's.
    #[error("cannot open UDP {0}: it is not an address of this host")]
    NotLocal(SocketAddr),
    /// The kernel lacks something this needs.
    #[error("cannot set up UDP {address}: {source}")]
    System {
        /// The relay's address.
        address: SocketAddr,
        /// What the kernel says.
        source: io::Error,
    },
}

impl OpenError {
    fn of(address: SocketAddr, source: io::Error) -> OpenError {
        match source.kind() {
            io::ErrorKind::AddrInUse => OpenError::InUse(address),
            io::ErrorKind::PermissionDenied => OpenError::Denied(address),
            io::ErrorKind::AddrNotAvailable => OpenError::NotLocal(address),
            _ => OpenError::System { address, source },
        }
    }
}

/// Binds `address` alone and lets go of it. Returns it with the port the kernel chose, if that was 0.
fn probe(address: SocketAddr) -> io::Result<SocketAddr> {
    let socket = unbound(address)?;
    socket.bind(&address.into())?;
    UdpSocket::from(socket).local_addr()
}

fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = unbound(address)?;
    socket.set_reuse_port(true)?;
    let socket = UdpSocket::from(socket);
    // Before it is bound: no datagram comes without its control messages.
    socket_options::report_ancillary(&socket)?;
    socket_options::set_path_mtu(&socket, PathMtu::KeepDf)?;
    socket2::SockRef::from(&socket).bind(&address.into())?;
    Ok(socket)
}

/// A socket of the address's family. IPv6 sockets take IPv6 alone: IPv4 has sockets of its own, and addresses have one
/// form.
fn unbound(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}
