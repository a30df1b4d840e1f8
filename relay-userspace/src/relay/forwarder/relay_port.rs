//! The relay's UDP port in both families.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::thread;

use relay_common::BIND_MAGIC_LEN;
use sha2::{Digest as _, Sha256};
use socket2::{Domain, Socket, Type};

use super::connection_ids::ConnectionIds;
use super::socket_group::{BUFFER_BYTES, OpenError, SocketGroup};
use super::steering::{Marks, TAG_LEN};
use crate::relay::family::{Family, PerFamily};

/// The relay's port: a group of sockets for IPv4 and, where the host has IPv6, one for IPv6 alone. Both know the same
/// bind magic and connection ids, so an agent may come by either, and its peer by the other.
#[derive(Debug)]
pub struct RelayPort {
    /// Each group's sockets of one number together; control's first.
    pub(super) sockets: Vec<PerFamily<Arc<UdpSocket>>>,
    marks: Marks,
    addresses: PerFamily<SocketAddr>,
}

/// Readers of each family where nobody has said how many, at most.
pub const DEFAULT_READERS: u32 = 8;

/// One per CPU: all packets of one tuple are one reader's, so more than that would only take turns.
fn default_readers() -> u32 {
    let cpus = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    u32::try_from(cpus).unwrap_or(DEFAULT_READERS).min(DEFAULT_READERS)
}

/// Where any port will do, so many are tried until one is free in both families.
const CHOICES: u32 = 16;

impl RelayPort {
    /// Opens `port` on all addresses of this host; 0 lets the kernel choose. `readers` is the number of sockets of each
    /// family for relayed traffic, which a thread each reads: one carries what one core can. 0 makes it one per CPU, up
    /// to `DEFAULT_READERS`. `bind_magic` is what bind datagrams begin with. On a host without IPv6 the relay runs on
    /// IPv4, and the log says why.
    ///
    /// # Errors
    /// [`OpenError`] names the address and what to do.
    pub fn open(port: u16, readers: u32, bind_magic: [u8; BIND_MAGIC_LEN]) -> Result<RelayPort, OpenError> {
        let v6 = match why_without_ipv6() {
            None => Some(Ipv6Addr::UNSPECIFIED.into()),
            Some(why) => {
                tracing::info!(why, "the relay's port is opened on IPv4 alone");
                None
            }
        };
        RelayPort::open_at(PerFamily { v4: Ipv4Addr::UNSPECIFIED.into(), v6 }, port, readers, bind_magic)
    }

    /// The port on one address of each family.
    pub(super) fn open_at(
        at: PerFamily<IpAddr>,
        port: u16,
        readers: u32,
        bind_magic: [u8; BIND_MAGIC_LEN],
    ) -> Result<RelayPort, OpenError> {
        let readers = if readers == 0 { default_readers() } else { readers };
        let marks = Marks { bind_magic, connection_tag: connection_tag(&bind_magic) };
        let mut choices = if port == 0 { CHOICES } else { 1 };
        loop {
            choices -= 1;
            match open_groups(at, port, readers, marks) {
                Err(OpenError::InUse(_)) if choices > 0 => {}
                opened => return opened.map(|groups| RelayPort::of(groups, marks)),
            }
        }
    }

    fn of(groups: PerFamily<SocketGroup>, marks: Marks) -> RelayPort {
        let addresses =
            PerFamily { v4: groups.v4.local_addr(), v6: groups.v6.as_ref().map(SocketGroup::local_addr) };
        let obtained = groups.iter().map(SocketGroup::receive_buffer).min().unwrap_or(0);
        if obtained < BUFFER_BYTES {
            tracing::warn!(
                obtained,
                asked = BUFFER_BYTES,
                "the receive buffers are small: short overloads will lose packets; raise net.core.rmem_max"
            );
        }
        let mut v6 = groups.v6.into_iter().flat_map(|group| group.sockets).map(Arc::new);
        let v4 = groups.v4.sockets.into_iter().map(Arc::new);
        RelayPort { sockets: v4.map(|v4| PerFamily { v4, v6: v6.next() }).collect(), marks, addresses }
    }

    /// Takes over the sockets that a predecessor has left, with the datagrams that wait in them. None if they are not what
    /// [`RelayPort::open`] would open for `port` and `readers`, or the kernel refuses an option of one: nothing of them is to
    /// be used then.
    pub fn adopt(
        sockets: BTreeMap<String, OwnedFd>,
        port: u16,
        readers: u32,
        bind_magic: [u8; BIND_MAGIC_LEN],
    ) -> Option<RelayPort> {
        let readers = if readers == 0 { default_readers() } else { readers };
        let mut sockets: BTreeMap<String, UdpSocket> =
            sockets.into_iter().map(|(name, socket)| (name, UdpSocket::from(socket))).collect();
        let marks = Marks { bind_magic, connection_tag: connection_tag(&bind_magic) };
        let mut group = |family: Family| -> Option<Vec<UdpSocket>> {
            let name = |number| name_of_socket(family, number, marks, readers);
            (0..=readers).map(|number| sockets.remove(&name(number))).collect()
        };
        let (v4, v6) = (group(Family::V4), group(Family::V6));
        let wants_v6 = why_without_ipv6().is_none();
        let v4 = v4.filter(|_| v6.is_some() == wants_v6 && sockets.is_empty())?;
        let v4 = SocketGroup::adopt(v4, Ipv4Addr::UNSPECIFIED.into(), port)?;
        let port = v4.local_addr().port();
        let v6 = match v6 {
            Some(v6) => Some(SocketGroup::adopt(v6, Ipv6Addr::UNSPECIFIED.into(), port)?),
            None => None,
        };
        Some(RelayPort::of(PerFamily { v4, v6 }, marks))
    }

    /// Its sockets, each with the name it is to be kept as.
    ///
    /// # Errors
    /// No more descriptors.
    pub fn descriptors(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        let readers = u32::try_from(self.sockets.len().saturating_sub(1)).unwrap_or(u32::MAX);
        let mut all = Vec::new();
        for (number, of_number) in (0..).zip(&self.sockets) {
            for family in [Family::V4, Family::V6] {
                if let Some(socket) = of_number.get(family) {
                    all.push((
                        name_of_socket(family, number, self.marks, readers),
                        socket.as_fd().try_clone_to_owned()?,
                    ));
                }
            }
        }
        Ok(all)
    }

    /// Where it listens. The port is the same in both families.
    pub fn addresses(&self) -> PerFamily<SocketAddr> {
        self.addresses
    }

    /// Its number.
    pub fn port(&self) -> u16 {
        self.addresses.v4.port()
    }

    /// Makes the connection ids by which the kernel tells the relay's QUIC connections from relayed ones: what
    /// `quinn::EndpointConfig::cid_generator` must return.
    pub fn connection_ids(&self) -> ConnectionIds {
        ConnectionIds::tagged(self.marks.connection_tag)
    }
}

/// What a socket of a family is kept as; control's has number 0. The last part tells the program by which the kernel chooses
/// among the sockets: one in use must not be replaced, so a group with another one is opened anew.
fn name_of_socket(family: Family, number: u32, marks: Marks, readers: u32) -> String {
    let mut digest = Sha256::new();
    for libc::sock_filter { code, jt, jf, k } in marks.program(readers, family == Family::V4) {
        digest.update(code.to_ne_bytes());
        digest.update([jt, jf]);
        digest.update(k.to_ne_bytes());
    }
    let [a, b, c, d, ..]: [u8; 32] = digest.finalize().into();
    let steering = u32::from_be_bytes([a, b, c, d]);
    match family {
        Family::V4 => format!("udp4-{number}-{steering:08x}"),
        Family::V6 => format!("udp6-{number}-{steering:08x}"),
    }
}

/// A group on each address, all on one port: the one the kernel chose for the first, if `port` is 0.
fn open_groups(
    at: PerFamily<IpAddr>,
    mut port: u16,
    readers: u32,
    marks: Marks,
) -> Result<PerFamily<SocketGroup>, OpenError> {
    at.try_map(|address| {
        let group = SocketGroup::open(SocketAddr::new(address, port), marks, readers)?;
        port = group.local_addr().port();
        Ok(group)
    })
}

/// Why this host has no IPv6; none if it has. Without an address yet it has: one may come.
fn why_without_ipv6() -> Option<&'static str> {
    match Socket::new(Domain::IPV6, Type::DGRAM, None) {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            return Some("there are no IPv6 sockets: the kernel has no IPv6, or it may not be used here");
        }
        _ => {}
    }
    // Sockets can be had nevertheless where it is disabled, but no packet comes.
    let mut interfaces =
        fs::read_dir("/proc/sys/net/ipv6/conf").ok()?.filter_map(Result::ok).filter(|entry| {
            // What new interfaces get, and what was last written for all.
            !["all", "default"].iter().any(|name| entry.file_name() == *name)
        });
    let disabled = interfaces
        .all(|entry| fs::read(entry.path().join("disable_ipv6")).is_ok_and(|is| is.starts_with(b"1")));
    disabled.then_some("IPv6 is disabled on every interface (net.ipv6.conf.*.disable_ipv6)")
}

/// The first bytes of SHA-256 over `atlas relay connection tag v1` and the bind magic: a successor with the same identity
/// knows its predecessor's connections by it. It is in every packet to the relay, so it need not be secret.
fn connection_tag(bind_magic: &[u8; BIND_MAGIC_LEN]) -> [u8; TAG_LEN] {
    let [a, b, c, d, ..]: [u8; 32] = Sha256::new()
        .chain_update(b"atlas relay connection tag v1")
        .chain_update(bind_magic)
        .finalize()
        .into();
    [a, b, c, d]
}
