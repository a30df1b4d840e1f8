//! The parts of a system call's message: addresses and headers in the kernel's form.
#![expect(unsafe_code, reason = "an empty message header has no safe constructor")]

use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::ptr;

use super::ancillary::ControlBuffer;

/// An address of no family. sockaddr_in6 serves for both families: the first eight bytes of sockaddr_in (family, port,
/// address) lie where its family, port and flow label do.
pub const UNNAMED: libc::sockaddr_in6 = libc::sockaddr_in6 {
    sin6_family: libc::AF_UNSPEC as libc::sa_family_t,
    sin6_port: 0,
    sin6_flowinfo: 0,
    sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
    sin6_scope_id: 0,
};

/// The system's form of an address, and its length.
pub fn name(address: SocketAddr) -> (libc::sockaddr_in6, usize) {
    let mut name = UNNAMED;
    name.sin6_port = address.port().to_be();
    match address {
        SocketAddr::V4(v4) => {
            name.sin6_family = libc::AF_INET as libc::sa_family_t;
            name.sin6_flowinfo = u32::from_ne_bytes(v4.ip().octets());
            (name, size_of::<libc::sockaddr_in>())
        }
        SocketAddr::V6(v6) => {
            name.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            name.sin6_addr.s6_addr = v6.ip().octets();
            name.sin6_scope_id = v6.scope_id();
            (name, size_of::<libc::sockaddr_in6>())
        }
    }
}

/// The address in a name the kernel has written.
pub fn address(name: &libc::sockaddr_in6) -> Option<SocketAddr> {
    let port = u16::from_be(name.sin6_port);
    match i32::from(name.sin6_family) {
        libc::AF_INET => Some((Ipv4Addr::from(name.sin6_flowinfo.to_ne_bytes()), port).into()),
        libc::AF_INET6 => {
            let address = Ipv6Addr::from(name.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(address, port, 0, name.sin6_scope_id).into())
        }
        _ => None,
    }
}

/// The first `len` bytes of `bytes`, or all.
pub fn buffer(bytes: &mut [u8], len: usize) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: len.min(bytes.len()) }
}

/// A message header with nothing in it.
pub fn empty() -> libc::mmsghdr {
    // SAFETY: null pointers and zero lengths are a valid value of this plain C structure.
    unsafe { mem::zeroed() }
}

/// A header to receive into: it points to its three parts; the caller keeps them alive and in place while it uses it.
pub fn of<const N: usize>(
    iovec: &mut libc::iovec,
    name: &mut libc::sockaddr_in6,
    control: &mut ControlBuffer<N>,
) -> libc::mmsghdr {
    let mut message = empty();
    message.msg_hdr.msg_name = ptr::from_mut(name).cast();
    message.msg_hdr.msg_iov = iovec;
    message.msg_hdr.msg_iovlen = 1;
    message.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
    reset(&mut message, N);
    message
}

/// Gives the parts of a header the lengths they had before the kernel wrote to them.
pub fn reset(message: &mut libc::mmsghdr, control_len: usize) {
    message.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
    message.msg_hdr.msg_controllen = control_len;
}

/// Whether what was received did not fit its parts.
pub fn is_cut(message: &libc::mmsghdr) -> bool {
    message.msg_hdr.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0
}
