//! Writing a packet's new headers. Total: after the first byte is written nothing is left that could fail.
//!
//! Within a family the header is changed in place; across families it is made anew, twenty bytes longer or shorter, while
//! the UDP header and what follows stay where they are.

use network_types::ip::IpProto;

use crate::checksum::{ChecksumDelta, fold, folds_to};
use crate::frame::{Frame, field, set_field};
use crate::header::{
    ECN_MASK, ETH_TYPE, ETHER_TYPE_IPV4, ETHER_TYPE_IPV6, TAGGED_ETH_LEN, UDP_LEN, V4_CHECK, V4_DESTINATION,
    V4_DONT_FRAGMENT, V4_FRAGMENT, V4_HEADERS, V4_ID, V4_LEN, V4_PROTOCOL, V4_SOURCE, V4_TOS, V4_TOTAL_LEN,
    V4_TTL, V4_UDP_CHECK, V4_UDP_SOURCE, V4_VERSION, V4_VERSION_PLAIN, V6_DESTINATION, V6_EXTRA, V6_HEADERS,
    V6_HOP_LIMIT, V6_NEXT_HEADER, V6_PAYLOAD_LEN, V6_SOURCE, V6_UDP_CHECK, V6_UDP_SOURCE, V6_VERSION,
};
use crate::next_hop::Hop;
use crate::parse::Packet;
use crate::reason::Reason;
use crate::route::{Onward, Route};
use crate::tuple::{AddressV4, AddressV6, TupleV4, TupleV6};
use crate::vlan::Tag;

/// A packet that can be given new headers.
pub trait Rewrite {
    /// Bytes of the IP packet after the rewrite by `route`.
    fn length_after(&self, route: &Route) -> u32;

    /// Whether its UDP checksum is no more than the sum of its pseudo header (RFC 768, RFC 8200 section 8.1). That is what
    /// stands there before hardware has added the rest.
    ///
    /// One finished checksum of 65536 has that value too, so such a packet is summed. An unfinished one that verifies by chance
    /// is finished already: what hardware puts there is the complement of the sum of pseudo header and rest, and that is zero
    /// together with the value which stands there, so it is that value.
    fn looks_unfinished(&self) -> bool;

    /// Whether the packet can become what `route` makes of it, if its UDP checksum is `unfinished` or is not.
    ///
    /// # Errors
    /// [`Reason::ZeroChecksum`]: an IPv4 packet without UDP checksum cannot become IPv6.
    /// [`Reason::UnfinishedChecksum`]: what is to be finished yet cannot be changed like a finished one.
    fn suits(&self, route: &Route, unfinished: bool) -> Result<(), Reason>;

    /// Sends the frame on its way: link-layer addresses, addresses, ports, TTL less one, checksums, and the CE mark if
    /// `mark` is set.
    ///
    /// # Errors
    /// [`Reason::CommitFailed`] if the headers cannot be written.
    fn rewrite<F: Frame>(&self, frame: &mut F, route: &Route, hop: &Hop, mark: bool) -> Result<(), Reason>;
}

impl Rewrite for Packet<TupleV4> {
    #[inline(always)]
    fn length_after(&self, route: &Route) -> u32 {
        match route.onward {
            Onward::V4 { .. } => self.ip_length,
            Onward::V6 { .. } => self.ip_length + V6_EXTRA,
        }
    }

    #[inline(always)]
    fn looks_unfinished(&self) -> bool {
        let addresses = u64::from(self.tuple.source) + u64::from(self.tuple.destination);
        self.udp_check_is_of_pseudo_header(addresses)
    }

    #[inline(always)]
    fn suits(&self, route: &Route, unfinished: bool) -> Result<(), Reason> {
        match route.onward {
            Onward::V6 { .. } if self.udp_check == 0 => Err(Reason::ZeroChecksum),
            _ if unfinished => Err(Reason::UnfinishedChecksum),
            _ => Ok(()),
        }
    }

    #[inline(always)]
    fn rewrite<F: Frame>(&self, frame: &mut F, route: &Route, hop: &Hop, mark: bool) -> Result<(), Reason> {
        match route.onward {
            Onward::V4 { source, destination, ip_delta } => {
                let headers = frame.window_mut::<V4_HEADERS>(self.tag.shift()).ok_or(Reason::CommitFailed)?;
                let check = u16::from_ne_bytes(field::<V4_CHECK, 2, _>(headers));
                let mut delta = ip_delta;
                if mark {
                    // The word of version and TOS grows by what setting both ECN bits adds.
                    let added = ECN_MASK - (self.tos & ECN_MASK);
                    delta = delta.and(ChecksumDelta(u16::from_ne_bytes([0, added])));
                    set_field::<V4_TOS, 1, _>(headers, [self.tos | ECN_MASK]);
                }
                set_field::<V4_TTL, 1, _>(headers, [self.ttl.wrapping_sub(1)]);
                set_field::<V4_CHECK, 2, _>(headers, delta.apply(check).to_ne_bytes());
                set_field::<V4_SOURCE, 4, _>(headers, source.to_ne_bytes());
                set_field::<V4_DESTINATION, 4, _>(headers, destination.to_ne_bytes());
                set_udp::<V4_UDP_SOURCE, V4_UDP_CHECK, _>(headers, route, self.udp_check);
                set_link_layer(frame, hop, self.tag)
            }
            Onward::V6 { source, destination } => {
                if !frame.move_start(-(V6_EXTRA as i32)) {
                    return Err(Reason::CommitFailed);
                }
                let headers = frame.window_mut::<V6_HEADERS>(self.tag.shift()).ok_or(Reason::CommitFailed)?;
                make_v6(headers, self, source, destination, marked(self.tos, mark));
                set_udp::<V6_UDP_SOURCE, V6_UDP_CHECK, _>(headers, route, self.udp_check);
                set_link_layer(frame, hop, self.tag)
            }
        }
    }
}

impl Rewrite for Packet<TupleV6> {
    #[inline(always)]
    fn length_after(&self, route: &Route) -> u32 {
        match route.onward {
            Onward::V4 { .. } => self.ip_length - V6_EXTRA,
            Onward::V6 { .. } => self.ip_length,
        }
    }

    #[inline(always)]
    fn looks_unfinished(&self) -> bool {
        let ([a, b, c, d], [e, f, g, h]) = (self.tuple.source, self.tuple.destination);
        let [a, b, c, d, e, f, g, h] = [a, b, c, d, e, f, g, h].map(u64::from);
        self.udp_check_is_of_pseudo_header(a + b + c + d + e + f + g + h)
    }

    #[inline(always)]
    fn suits(&self, _: &Route, unfinished: bool) -> Result<(), Reason> {
        if unfinished { Err(Reason::UnfinishedChecksum) } else { Ok(()) }
    }

    #[inline(always)]
    fn rewrite<F: Frame>(&self, frame: &mut F, route: &Route, hop: &Hop, mark: bool) -> Result<(), Reason> {
        match route.onward {
            Onward::V6 { source, destination } => {
                let headers = frame.window_mut::<V6_HEADERS>(self.tag.shift()).ok_or(Reason::CommitFailed)?;
                if mark {
                    let [version, class] = field::<V6_VERSION, 2, _>(headers);
                    set_field::<V6_VERSION, 2, _>(headers, [version, class | ECN_MASK << 4]);
                }
                set_field::<V6_HOP_LIMIT, 1, _>(headers, [self.ttl.wrapping_sub(1)]);
                set_address::<V6_SOURCE, _>(headers, source);
                set_address::<V6_DESTINATION, _>(headers, destination);
                set_udp::<V6_UDP_SOURCE, V6_UDP_CHECK, _>(headers, route, self.udp_check);
                set_link_layer(frame, hop, self.tag)
            }
            Onward::V4 { source, destination, .. } => {
                if !frame.move_start(V6_EXTRA as i32) {
                    return Err(Reason::CommitFailed);
                }
                let headers = frame.window_mut::<V4_HEADERS>(self.tag.shift()).ok_or(Reason::CommitFailed)?;
                make_v4(headers, self, source, destination, marked(self.tos, mark));
                set_udp::<V4_UDP_SOURCE, V4_UDP_CHECK, _>(headers, route, self.udp_check);
                set_link_layer(frame, hop, self.tag)
            }
        }
    }
}

impl<K> Packet<K> {
    /// Whether the UDP checksum is the sum of a pseudo header whose addresses have the sum `addresses`.
    #[inline(always)]
    fn udp_check_is_of_pseudo_header(&self, addresses: u64) -> bool {
        let length = ((self.payload + UDP_LEN as u32) as u16).to_be_bytes();
        let rest = u16::from_ne_bytes(length) as u64 + u16::from_ne_bytes([0, IpProto::Udp as u8]) as u64;
        folds_to(addresses + rest, self.udp_check)
    }
}

/// An IPv6 header for a packet that came as IPv4 (RFC 7915 section 4.1). Flow label 0.
#[inline(always)]
fn make_v6(
    headers: &mut [u8; V6_HEADERS],
    packet: &Packet<TupleV4>,
    source: AddressV6,
    destination: AddressV6,
    tos: u8,
) {
    let payload_length = (packet.payload + UDP_LEN as u32) as u16;
    set_field::<ETH_TYPE, 2, _>(headers, ETHER_TYPE_IPV6.to_ne_bytes());
    set_field::<V6_VERSION, 4, _>(headers, [6 << 4 | tos >> 4, tos << 4, 0, 0]);
    set_field::<V6_PAYLOAD_LEN, 2, _>(headers, payload_length.to_be_bytes());
    set_field::<V6_NEXT_HEADER, 1, _>(headers, [IpProto::Udp as u8]);
    set_field::<V6_HOP_LIMIT, 1, _>(headers, [packet.ttl.wrapping_sub(1)]);
    set_address::<V6_SOURCE, _>(headers, source);
    set_address::<V6_DESTINATION, _>(headers, destination);
}

/// An IPv4 header for a packet that came as IPv6 (RFC 7915 section 5.1). It may not be fragmented, so it needs no
/// identification (RFC 6864 section 4.1).
#[inline(always)]
fn make_v4(
    headers: &mut [u8; V4_HEADERS],
    packet: &Packet<TupleV6>,
    source: AddressV4,
    destination: AddressV4,
    tos: u8,
) {
    let total_length = ((packet.payload + (UDP_LEN + V4_LEN) as u32) as u16).to_be_bytes();
    let lifetime = [packet.ttl.wrapping_sub(1), IpProto::Udp as u8];
    let halves = |word: u32| (word & 0xffff) + (word >> 16);
    let sum = u16::from_ne_bytes([V4_VERSION_PLAIN, tos]) as u32
        + u16::from_ne_bytes(total_length) as u32
        + u16::from_ne_bytes(V4_DONT_FRAGMENT) as u32
        + u16::from_ne_bytes(lifetime) as u32
        + halves(source)
        + halves(destination);
    set_field::<ETH_TYPE, 2, _>(headers, ETHER_TYPE_IPV4.to_ne_bytes());
    set_field::<V4_VERSION, 2, _>(headers, [V4_VERSION_PLAIN, tos]);
    set_field::<V4_TOTAL_LEN, 2, _>(headers, total_length);
    set_field::<V4_ID, 2, _>(headers, [0, 0]);
    set_field::<V4_FRAGMENT, 2, _>(headers, V4_DONT_FRAGMENT);
    set_field::<V4_TTL, 1, _>(headers, [lifetime[0]]);
    set_field::<V4_PROTOCOL, 1, _>(headers, [lifetime[1]]);
    set_field::<V4_CHECK, 2, _>(headers, (!fold(sum)).to_ne_bytes());
    set_field::<V4_SOURCE, 4, _>(headers, source.to_ne_bytes());
    set_field::<V4_DESTINATION, 4, _>(headers, destination.to_ne_bytes());
}

#[inline(always)]
const fn marked(tos: u8, mark: bool) -> u8 {
    if mark { tos | ECN_MASK } else { tos }
}

#[inline(always)]
fn set_address<const OFFSET: usize, const W: usize>(headers: &mut [u8; W], address: AddressV6) {
    let [a, b, c, d] = address.map(u32::to_ne_bytes);
    let [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]] = [a, b, c, d];
    set_field::<OFFSET, 16, W>(headers, [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]);
}

/// Ports and checksum. A checksum of zero says that there is none (RFC 768), so none stays none, and a sum of zero is
/// sent as its other form.
#[inline(always)]
fn set_udp<const PORTS: usize, const CHECK: usize, const W: usize>(
    headers: &mut [u8; W],
    route: &Route,
    old_check: u16,
) {
    set_field::<PORTS, 4, W>(headers, route.ports.to_ne_bytes());
    if old_check != 0 {
        let check = match route.udp_delta.apply(old_check) {
            0 => 0xffff,
            sum => sum,
        };
        set_field::<CHECK, 2, W>(headers, check.to_ne_bytes());
    }
}

/// MAC addresses and tag. The tag is the one that was there, but a header of another family has moved the frame's start.
#[inline(always)]
fn set_link_layer<F: Frame>(frame: &mut F, hop: &Hop, tag: Tag) -> Result<(), Reason> {
    let start = frame.window_mut::<TAGGED_ETH_LEN>(0).ok_or(Reason::CommitFailed)?;
    let [to, middle, from] = hop.stations;
    set_field::<0, 4, _>(start, to.to_ne_bytes());
    set_field::<4, 4, _>(start, middle.to_ne_bytes());
    set_field::<8, 4, _>(start, from.to_ne_bytes());
    if let Some(bytes) = tag.bytes() {
        set_field::<ETH_TYPE, 4, _>(start, bytes);
    }
    Ok(())
}
