//! From a frame to what the decision needs to know of it. Reads only, and everything unusual is a reason to pass.

use network_types::ip::IpProto;

use crate::frame::{Frame, field};
use crate::header::{
    ECN_MASK, ETH_DESTINATION, ETH_LEN, ETH_MIN_LEN, ETH_TYPE, ETHER_TYPE_IPV4, ETHER_TYPE_IPV6,
    ETHER_TYPE_SERVICE_VLAN, ETHER_TYPE_VLAN, UDP_LEN, V4_DESTINATION, V4_FRAGMENT, V4_FRAGMENT_MASK,
    V4_HEADERS, V4_LEN, V4_PROTOCOL, V4_SOURCE, V4_TOS, V4_TOTAL_LEN, V4_TTL, V4_UDP_CHECK,
    V4_UDP_DESTINATION, V4_UDP_LENGTH, V4_UDP_SOURCE, V4_VERSION, V4_VERSION_PLAIN, V6_DESTINATION,
    V6_HEADERS, V6_HOP_LIMIT, V6_LEN, V6_NEXT_HEADER, V6_PAYLOAD_LEN, V6_SOURCE, V6_UDP_CHECK,
    V6_UDP_DESTINATION, V6_UDP_LENGTH, V6_UDP_SOURCE, V6_VERSION,
};
use crate::reason::Reason;
use crate::tables::Tables;
use crate::tuple::{AddressV6, TupleV4, TupleV6, port_word};
use crate::vlan::Tag;
use crate::{BIND_LEN, BIND_MAGIC_LEN};

/// A UDP packet that may be relayed, recognised by a tuple of its family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<K> {
    /// What it is recognised by.
    pub tuple: K,
    /// Bytes of UDP payload.
    pub payload: u32,
    /// Bytes of the IP packet.
    pub ip_length: u32,
    /// The TOS or traffic class byte.
    pub tos: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// The UDP checksum, as it stands in the packet.
    pub udp_check: u16,
    /// The VLAN tag of its frame.
    pub tag: Tag,
}

/// A packet of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// IPv4.
    V4(Packet<TupleV4>),
    /// IPv6.
    V6(Packet<TupleV6>),
}

impl<K> Packet<K> {
    /// Whether the sender understands congestion marks and the packet has none yet: ECT(0) or ECT(1), not CE.
    #[inline(always)]
    pub const fn markable(&self) -> bool {
        markable(self.tos)
    }
}

/// Whether a packet with this TOS or traffic class byte may be marked: ECT(0) or ECT(1) (RFC 3168 section 5).
#[inline(always)]
pub const fn markable(tos: u8) -> bool {
    let ecn = tos & ECN_MASK;
    ecn == 0b01 || ecn == 0b10
}

/// Takes a frame apart.
///
/// # Errors
/// The reason why it is not a packet that can be relayed as it is.
#[inline(always)]
pub fn parse<F: Frame, T: Tables>(frame: &F, tables: &T) -> Result<Parsed, Reason> {
    let ethernet = frame.window::<ETH_LEN>(0).ok_or(Reason::Truncated)?;
    let mut ether_type = u16::from_ne_bytes(field::<ETH_TYPE, 2, _>(ethernet));
    let mut tag = Tag::NONE;
    if ether_type == ETHER_TYPE_VLAN {
        (tag, ether_type) = Tag::read(frame)?;
    }
    match ether_type {
        ETHER_TYPE_IPV4 | ETHER_TYPE_IPV6 => {}
        ETHER_TYPE_VLAN | ETHER_TYPE_SERVICE_VLAN => return Err(Reason::VlanTagged),
        _ => return Err(Reason::NotIp),
    }
    let index = frame.interface();
    let interface = tables.interface(index).ok_or(Reason::UnknownInterface)?;
    if interface.index.load() != index {
        return Err(Reason::UnknownInterface);
    }
    if !interface.is_addressed(field::<ETH_DESTINATION, 6, _>(ethernet)) {
        return Err(Reason::OtherStation);
    }
    let mtu = interface.mtu.load();
    if ether_type == ETHER_TYPE_IPV4 {
        let packet = parse_v4(frame, tag, mtu)?;
        refuse_bind(frame, tables, V4_HEADERS + tag.shift(), packet.payload)?;
        Ok(Parsed::V4(packet))
    } else {
        let packet = parse_v6(frame, tag, mtu)?;
        refuse_bind(frame, tables, V6_HEADERS + tag.shift(), packet.payload)?;
        Ok(Parsed::V6(packet))
    }
}

#[inline(always)]
fn parse_v4<F: Frame>(frame: &F, tag: Tag, mtu: u32) -> Result<Packet<TupleV4>, Reason> {
    let headers = frame.window::<V4_HEADERS>(tag.shift()).ok_or(Reason::Truncated)?;
    let [version] = field::<V4_VERSION, 1, _>(headers);
    if version != V4_VERSION_PLAIN {
        return Err(if version >> 4 == 4 && version & 15 > 5 {
            Reason::IpOptions
        } else {
            Reason::Malformed
        });
    }
    let [protocol] = field::<V4_PROTOCOL, 1, _>(headers);
    if protocol != IpProto::Udp as u8 {
        return Err(Reason::NotUdp);
    }
    if u16::from_be_bytes(field::<V4_FRAGMENT, 2, _>(headers)) & V4_FRAGMENT_MASK != 0 {
        return Err(Reason::Fragment);
    }
    let ip_length = u32::from(u16::from_be_bytes(field::<V4_TOTAL_LEN, 2, _>(headers)));
    let udp_length = u32::from(u16::from_be_bytes(field::<V4_UDP_LENGTH, 2, _>(headers)));
    check_lengths(frame.length() - tag.shift() as u32, ip_length, udp_length, V4_LEN as u32, mtu)?;
    let [ttl] = field::<V4_TTL, 1, _>(headers);
    if ttl <= 1 {
        return Err(Reason::TtlExpiring);
    }
    let [tos] = field::<V4_TOS, 1, _>(headers);
    Ok(Packet {
        tuple: TupleV4 {
            source: u32::from_ne_bytes(field::<V4_SOURCE, 4, _>(headers)),
            destination: u32::from_ne_bytes(field::<V4_DESTINATION, 4, _>(headers)),
            ports: port_word(
                field::<V4_UDP_SOURCE, 2, _>(headers),
                field::<V4_UDP_DESTINATION, 2, _>(headers),
            ),
        },
        payload: udp_length - UDP_LEN as u32,
        ip_length,
        tos,
        ttl,
        udp_check: u16::from_ne_bytes(field::<V4_UDP_CHECK, 2, _>(headers)),
        tag,
    })
}

#[inline(always)]
fn parse_v6<F: Frame>(frame: &F, tag: Tag, mtu: u32) -> Result<Packet<TupleV6>, Reason> {
    let headers = frame.window::<V6_HEADERS>(tag.shift()).ok_or(Reason::Truncated)?;
    let [version, class] = field::<V6_VERSION, 2, _>(headers);
    if version >> 4 != 6 {
        return Err(Reason::Malformed);
    }
    let [next_header] = field::<V6_NEXT_HEADER, 1, _>(headers);
    if next_header != IpProto::Udp as u8 {
        return Err(if is_extension(next_header) { Reason::ExtensionHeader } else { Reason::NotUdp });
    }
    let ip_length = u32::from(u16::from_be_bytes(field::<V6_PAYLOAD_LEN, 2, _>(headers))) + V6_LEN as u32;
    let udp_length = u32::from(u16::from_be_bytes(field::<V6_UDP_LENGTH, 2, _>(headers)));
    check_lengths(frame.length() - tag.shift() as u32, ip_length, udp_length, V6_LEN as u32, mtu)?;
    let [ttl] = field::<V6_HOP_LIMIT, 1, _>(headers);
    if ttl <= 1 {
        return Err(Reason::TtlExpiring);
    }
    let udp_check = u16::from_ne_bytes(field::<V6_UDP_CHECK, 2, _>(headers));
    if udp_check == 0 {
        return Err(Reason::ZeroChecksum);
    }
    Ok(Packet {
        tuple: TupleV6 {
            source: address::<V6_SOURCE, _>(headers),
            destination: address::<V6_DESTINATION, _>(headers),
            ports: port_word(
                field::<V6_UDP_SOURCE, 2, _>(headers),
                field::<V6_UDP_DESTINATION, 2, _>(headers),
            ),
        },
        payload: udp_length - UDP_LEN as u32,
        ip_length,
        tos: version << 4 | class >> 4,
        ttl,
        udp_check,
        tag,
    })
}

/// Whether a next header value is an extension header that may stand before UDP (RFC 8200 section 4, IANA's list):
/// hop-by-hop, routing, fragment, authentication, destination options, mobility, HIP, Shim6.
#[inline(always)]
const fn is_extension(next_header: u8) -> bool {
    matches!(next_header, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140)
}

#[inline(always)]
fn address<const OFFSET: usize, const W: usize>(headers: &[u8; W]) -> AddressV6 {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = field::<OFFSET, 16, W>(headers);
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
        u32::from_ne_bytes([m, n, o, p]),
    ]
}

/// Frame (without tag), IP packet, UDP datagram and the interface's MTU must agree; all in bytes.
#[inline(always)]
fn check_lengths(frame: u32, ip: u32, udp: u32, ip_header: u32, mtu: u32) -> Result<(), Reason> {
    // A frame may be longer than its packet only by the padding of the shortest frame: bytes behind the packet would be
    // carried along unseen, and past the egress MTU.
    let expected = ip + ETH_LEN as u32;
    let longest = if expected > ETH_MIN_LEN { expected } else { ETH_MIN_LEN };
    if udp < UDP_LEN as u32 || ip != udp + ip_header || frame < expected || frame > longest {
        return Err(Reason::LengthMismatch);
    }
    if ip > mtu { Err(Reason::SuperFrame) } else { Ok(()) }
}

#[inline(always)]
fn refuse_bind<F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    offset: usize,
    payload: u32,
) -> Result<(), Reason> {
    if payload < BIND_MAGIC_LEN as u32 {
        return Ok(());
    }
    let head = frame.window::<BIND_MAGIC_LEN>(offset).ok_or(Reason::Truncated)?;
    classify_bind(u64::from_ne_bytes(*head), payload, tables.bind_magic())
}

/// Tells bind datagrams from relayed ones, by the first eight bytes of the payload and its length in bytes.
///
/// # Errors
/// It is a bind datagram, or pretends to be one.
#[inline(always)]
pub fn classify_bind(head: u64, payload: u32, magic: u64) -> Result<(), Reason> {
    if head != magic {
        Ok(())
    } else if payload == BIND_LEN as u32 {
        Err(Reason::Bind)
    } else {
        Err(Reason::BindMalformed)
    }
}
