//! The relay's UDP port as several sockets: one for control, the others for relayed traffic.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use quinn::{ConnectionId, ConnectionIdGenerator};
use relay_common::BIND_MAGIC_LEN;
use socket2::{Domain, Protocol, Socket, Type};

use super::batch_io::{self, BufferSizes, PathMtu};
use super::steering::Marks;

/// Sockets for relayed traffic. One reader carries what one core can; relayed long headers come to the control socket.
const RELAYED: u32 = 1;

/// What is asked of the kernel for each socket's buffers, in bytes.
const BUFFER_BYTES: usize = 4 << 20;

/// The sockets that share the relay's address and port (SO_REUSEPORT), with the kernel program that chooses among them.
#[derive(Debug)]
pub struct SocketGroup {
    /// Socket 0 is control's. The kernel numbers them in the order they were bound, and gives a closed one's number to
    /// the last: the group is opened and closed as a whole.
    pub(super) sockets: Vec<UdpSocket>,
    pub(super) marks: Marks,
    address: SocketAddr,
    buffers: BufferSizes,
}

impl SocketGroup {
    /// Opens the group on `address`; port 0 lets the kernel choose. `bind_magic` is what bind datagrams begin with.
    ///
    /// A socket with SO_REUSEPORT may join another relay of the same user silently, so the port is first bound without
    /// it: that fails if anything else has it. For a wildcard address this includes sockets on any single address of
    /// this host and a dual-stack `[::]`, since each would take part of the relay's traffic. Two relays started in the
    /// same instant can both pass; the lock file of their state directory tells them apart.
    ///
    /// # Errors
    /// [`OpenError`] names the address and what to do.
    pub fn open(address: SocketAddr, bind_magic: [u8; BIND_MAGIC_LEN]) -> Result<SocketGroup, OpenError> {
        SocketGroup::open_sized(address, bind_magic, RELAYED)
    }

    /// The group with any number of sockets for relayed traffic, at least one.
    pub(super) fn open_sized(
        address: SocketAddr,
        bind_magic: [u8; BIND_MAGIC_LEN],
        relayed: u32,
    ) -> Result<SocketGroup, OpenError> {
        let address = probe(address).map_err(|error| OpenError::of(address, error))?;
        let marks = Marks { bind_magic, connection_tag: random_tag() };
        let mut sockets = Vec::new();
        for _ in 0..=relayed {
            let socket = open(address).map_err(|error| OpenError::of(address, error))?;
            if sockets.is_empty() {
                // From the first socket on, so that none ever chooses by the kernel's own hash.
                let program = marks.program(relayed, address.is_ipv4());
                batch_io::attach_steering(&socket, &program)
                    .map_err(|source| OpenError::System { address, source })?;
            }
            sockets.push(socket);
        }
        let mut buffers = BufferSizes { receive: usize::MAX, send: usize::MAX };
        for socket in &sockets {
            let BufferSizes { receive, send } = batch_io::set_buffer_sizes(socket, BUFFER_BYTES)
                .map_err(|source| OpenError::System { address, source })?;
            buffers = BufferSizes { receive: buffers.receive.min(receive), send: buffers.send.min(send) };
        }
        if buffers.receive < BUFFER_BYTES {
            tracing::warn!(
                obtained = buffers.receive,
                asked = BUFFER_BYTES,
                "the receive buffers are small: short overloads will lose packets; raise net.core.rmem_max"
            );
        }
        Ok(SocketGroup { sockets, marks, address, buffers })
    }

    /// The address and port of all its sockets.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The smallest kernel buffers among its sockets, in bytes.
    pub fn buffers(&self) -> BufferSizes {
        self.buffers
    }

    /// Makes the connection ids by which the kernel tells the relay's QUIC connections from relayed ones: what
    /// `quinn::EndpointConfig::cid_generator` must return.
    pub fn connection_ids(&self) -> ConnectionIds {
        ConnectionIds { tag: self.marks.connection_tag, key: RandomState::new(), made: 0 }
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

/// Makes connection ids: the tag, then 64 bits of SipHash of a counter under a random key, so that an observer cannot
/// tell which ids are one connection's (RFC 9000 section 5.1).
#[derive(Clone, Debug)]
pub struct ConnectionIds {
    tag: [u8; 2],
    key: RandomState,
    made: u64,
}

impl ConnectionIdGenerator for ConnectionIds {
    fn generate_cid(&mut self) -> ConnectionId {
        self.made += 1;
        let [t, u] = self.tag;
        let [a, b, c, d, e, f, g, h] = self.key.hash_one(self.made).to_ne_bytes();
        ConnectionId::new(&[t, u, a, b, c, d, e, f, g, h])
    }

    /// Ids without the tag are never answered with a stateless reset.
    fn validate(&self, id: &ConnectionId) -> Result<(), quinn_proto::InvalidCid> {
        if id.starts_with(&self.tag) { Ok(()) } else { Err(quinn_proto::InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        10
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
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
    batch_io::report_ancillary(&socket)?;
    batch_io::set_path_mtu(&socket, PathMtu::KeepDf)?;
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

/// Random so that nobody else's connection ids have it on purpose; it need not be secret.
fn random_tag() -> [u8; 2] {
    let [a, b, ..] = RandomState::new().hash_one(()).to_ne_bytes();
    [a, b]
}
