//! Making the kernel resolve a neighbour, or find out whether it is still there, without any privilege: something is sent
//! to it. (Asking over netlink for the same takes CAP_NET_ADMIN, which the daemon has given up by then.)

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::num::NonZeroU32;

use socket2::{Domain, Socket, Type};

use super::next_hops::HopKey;

/// RFC 863: whatever comes there is thrown away.
const DISCARD: u16 = 9;

/// Sends the neighbour an empty datagram by the interface that it is behind. An answer, if any, is of no interest.
///
/// # Errors
/// What socket(2) and sendto(2) say: the interface is down or gone, no route covers the neighbour.
pub fn resolve(key: HopKey) -> io::Result<()> {
    let to = match key.gateway {
        IpAddr::V4(gateway) => SocketAddr::from((gateway, DISCARD)),
        // Of a link-local address it is the interface that says which is meant.
        IpAddr::V6(gateway) => SocketAddrV6::new(gateway, DISCARD, 0, key.interface).into(),
    };
    let socket = Socket::new(Domain::for_address(to), Type::DGRAM, None)?;
    socket.set_nonblocking(true)?;
    match key.gateway {
        IpAddr::V4(_) => socket.bind_device_by_index_v4(NonZeroU32::new(key.interface))?,
        IpAddr::V6(_) => socket.bind_device_by_index_v6(NonZeroU32::new(key.interface))?,
    }
    socket.send_to(&[], &to.into()).map(drop)
}
