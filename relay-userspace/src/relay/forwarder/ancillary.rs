//! Control messages (cmsg(3)): what the kernel tells about a received datagram and is told about one to send.
//!
//! A control message is `{ length: usize, level: i32, type: i32 }` in host byte order, its data, and padding to the
//! alignment of `usize`; the length counts header and data, not the padding.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Room for everything the kernel is asked to report about one datagram, of either family.
pub const RECEIVE_SPACE: usize = 192;

/// Room for everything one sent message carries: TOS, TTL and source address, of either family, and segment length.
pub const SEND_SPACE: usize = 112;

const HEADER_LEN: usize = 16;
const ALIGNMENT: usize = 8;
const _: () = assert!(HEADER_LEN == size_of::<libc::cmsghdr>() && ALIGNMENT == align_of::<libc::cmsghdr>());

/// A buffer with the alignment the kernel's structures have.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub struct ControlBuffer<const N: usize>(pub [u8; N]);

/// What came with a datagram besides its bytes and source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ancillary {
    /// The destination address in its IP header.
    pub to: Option<IpAddr>,
    /// TOS (IPv4) or traffic class (IPv6): DSCP and ECN.
    pub tos: u8,
    /// TTL or hop limit as it arrived.
    pub ttl: Option<u8>,
    /// It arrived in fragments.
    pub fragmented: bool,
    /// It is several datagrams that the kernel has merged, of so many bytes each; the last may be shorter.
    pub segment_len: Option<u16>,
}

impl Ancillary {
    /// Reads the control messages the kernel has written. Unknown and malformed ones are skipped.
    pub fn parse(control: &[u8]) -> Ancillary {
        let mut found = Ancillary::default();
        for (level, kind, data) in Messages(control) {
            match (level, kind) {
                (libc::IPPROTO_IP, libc::IP_TOS) => found.tos = byte(data).unwrap_or(0),
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => found.tos = int(data).unwrap_or(0),
                (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                    found.ttl = int(data);
                }
                // in_pktinfo: { interface: i32, local address, destination address in the header }
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    found.to = array::<4>(data, 8).map(|octets| Ipv4Addr::from(octets).into());
                }
                // in6_pktinfo: { address, interface: u32 }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    found.to = array::<16>(data, 0).map(|octets| Ipv6Addr::from(octets).into());
                }
                (libc::IPPROTO_IP, IP_RECVFRAGSIZE) | (libc::IPPROTO_IPV6, IPV6_RECVFRAGSIZE) => {
                    found.fragmented = true;
                }
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    let len = array(data, 0).and_then(|len| u16::try_from(i32::from_ne_bytes(len)).ok());
                    found.segment_len = len.filter(|len| *len > 0);
                }
                _ => {}
            }
        }
        found
    }
}

/// linux/in.h: report the largest fragment of a reassembled datagram. Not in libc.
pub const IP_RECVFRAGSIZE: i32 = 25;

/// linux/in6.h: the same for IPv6.
pub const IPV6_RECVFRAGSIZE: i32 = 77;

/// Writes the control messages of one message to send; with a segment length the kernel cuts it into datagrams of that
/// many bytes. Returns how many bytes they take.
pub fn write_send(
    buffer: &mut ControlBuffer<SEND_SPACE>,
    from: IpAddr,
    tos: u8,
    ttl: u8,
    segment_len: Option<u16>,
) -> usize {
    let mut writer = Writer { buffer: &mut buffer.0, len: 0 };
    let (tos, ttl) = (i32::from(tos).to_ne_bytes(), i32::from(ttl).to_ne_bytes());
    match from {
        IpAddr::V4(from) => {
            writer.push(libc::IPPROTO_IP, libc::IP_TOS, &[&tos]);
            writer.push(libc::IPPROTO_IP, libc::IP_TTL, &[&ttl]);
            writer.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &[&[0; 4], &from.octets(), &[0; 4]]);
        }
        IpAddr::V6(from) => {
            writer.push(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &[&tos]);
            writer.push(libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, &[&ttl]);
            writer.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &[&from.octets(), &[0; 4]]);
        }
    }
    if let Some(len) = segment_len {
        writer.push(libc::SOL_UDP, libc::UDP_SEGMENT, &[&len.to_ne_bytes()]);
    }
    writer.len
}

struct Writer<'b> {
    buffer: &'b mut [u8],
    len: usize,
}

impl Writer<'_> {
    /// Appends a message whose data are `parts` one after another. Does nothing when there is no room; `SEND_SPACE` is
    /// enough for what this module writes, and a test says so.
    fn push(&mut self, level: i32, kind: i32, parts: &[&[u8]]) {
        let data_len: usize = parts.iter().map(|part| part.len()).sum();
        let length = HEADER_LEN + data_len;
        let Some(room) = self.buffer.get_mut(self.len..self.len + length.next_multiple_of(ALIGNMENT)) else {
            debug_assert!(false, "SEND_SPACE is too small");
            return;
        };
        let fields = [&length.to_ne_bytes()[..], &level.to_ne_bytes(), &kind.to_ne_bytes()];
        let mut at = 0;
        for part in fields.iter().chain(parts) {
            if let Some(to) = room.get_mut(at..at + part.len()) {
                to.copy_from_slice(part);
            }
            at += part.len();
        }
        self.len += room.len();
    }
}

/// The messages in a control buffer: level, type, data.
struct Messages<'b>(&'b [u8]);

impl<'b> Iterator for Messages<'b> {
    type Item = (i32, i32, &'b [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from_ne_bytes(array(self.0, 0)?);
        let (level, kind) = (i32::from_ne_bytes(array(self.0, 8)?), i32::from_ne_bytes(array(self.0, 12)?));
        let data = self.0.get(HEADER_LEN..length)?;
        self.0 =
            length.checked_next_multiple_of(ALIGNMENT).and_then(|next| self.0.get(next..)).unwrap_or(&[]);
        Some((level, kind, data))
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn byte(data: &[u8]) -> Option<u8> {
    data.first().copied()
}

fn int(data: &[u8]) -> Option<u8> {
    u8::try_from(i32::from_ne_bytes(array(data, 0)?)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
        let mut buffer = ControlBuffer([0; SEND_SPACE]);
        let mut writer = Writer { buffer: &mut buffer.0, len: 0 };
        writer.push(level, kind, &[data]);
        let len = writer.len;
        buffer.0[..len].to_vec()
    }

    #[test]
    fn what_is_written_for_sending_fits_both_families() {
        let mut buffer = ControlBuffer([0; SEND_SPACE]);
        for (segment_len, more) in [(None, 0), (Some(1200), 24)] {
            let mut written = |from: IpAddr| write_send(&mut buffer, from, 3, 63, segment_len);
            assert_eq!(written(Ipv4Addr::LOCALHOST.into()), 24 + 24 + 32 + more);
            assert_eq!(written(Ipv6Addr::LOCALHOST.into()), 24 + 24 + 40 + more);
        }
    }

    #[test]
    fn reported_fields_are_found_in_any_order() {
        let to: [u8; 12] = [7, 0, 0, 0, 10, 0, 0, 1, 192, 0, 2, 5];
        let parts = [
            message(libc::IPPROTO_IP, libc::IP_PKTINFO, &to),
            message(libc::IPPROTO_IP, libc::IP_TOS, &[0xb9]),
            message(libc::IPPROTO_IP, libc::IP_TTL, &61i32.to_ne_bytes()),
            message(libc::SOL_UDP, libc::UDP_GRO, &1200i32.to_ne_bytes()),
        ];
        let to = Some(IpAddr::from([192, 0, 2, 5]));
        let expected = Ancillary { to, tos: 0xb9, ttl: Some(61), fragmented: false, segment_len: Some(1200) };
        assert_eq!(Ancillary::parse(&parts.concat()), expected);
        assert_eq!(Ancillary::parse(&[&parts[3][..], &parts[2], &parts[1], &parts[0]].concat()), expected);
    }

    #[test]
    fn a_message_cut_short_ends_the_list() {
        let whole = message(libc::IPPROTO_IP, libc::IP_TTL, &61i32.to_ne_bytes());
        for len in 0..20 {
            assert_eq!(Ancillary::parse(&whole[..len]), Ancillary::default());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_panic_or_endless_loop(control in prop::collection::vec(any::<u8>(), 0..256)) {
            Ancillary::parse(&control);
        }
    }
}
