//! From a frame to what the decision needs to know of it. Reads only, and everything unusual is a reason to pass.

use crate::frame::{Frame, field};
use crate::header::{
    ECN_MASK, ETH_DESTINATION, ETH_LEN, ETH_MIN_LEN, ETH_TYPE, ETHER_TYPE_IPV4, ETHER_TYPE_IPV6,
    ETHER_TYPE_SERVICE_VLAN, ETHER_TYPE_VLAN, UDP_LEN, V4_DESTINATION, V4_FRAGMENT, V4_FRAGMENT_MASK,
    V4_HEADERS, V4_LEN, V4_PROTOCOL, V4_SOURCE, V4_TOS, V4_TOTAL_LEN, V4_TTL, V4_UDP_DESTINATION,
    V4_UDP_LENGTH, V4_UDP_SOURCE, V4_VERSION, V4_VERSION_PLAIN,
};
use crate::reason::Reason;
use crate::tables::Tables;
use crate::tuple::{TupleV4, port_word};
use crate::{BIND_LEN, BIND_MAGIC_LEN};

use network_types::ip::IpProto;

/// A UDP packet that may be relayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// What it is recognised by.
    pub tuple: TupleV4,
    /// Bytes of UDP payload.
    pub payload: u32,
    /// Bytes of the IP packet.
    pub ip_length: u32,
    /// The TOS byte.
    pub tos: u8,
}

impl Packet {
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
pub fn parse<F: Frame, T: Tables>(frame: &F, tables: &T) -> Result<Packet, Reason> {
    let ethernet = frame.window::<ETH_LEN>(0).ok_or(Reason::Truncated)?;
    match u16::from_ne_bytes(field::<ETH_TYPE, 2, _>(ethernet)) {
        ETHER_TYPE_IPV4 => {}
        ETHER_TYPE_IPV6 => return Err(Reason::Ipv6),
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
    parse_v4(frame, tables, interface.mtu.load())
}

#[inline(always)]
fn parse_v4<F: Frame, T: Tables>(frame: &F, tables: &T, mtu: u32) -> Result<Packet, Reason> {
    let headers = frame.window::<V4_HEADERS>(0).ok_or(Reason::Truncated)?;
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
    // A frame may be longer than its packet only by the padding of the shortest frame: bytes behind the packet would be
    // carried along unseen, and past the egress MTU.
    let expected = ip_length + ETH_LEN as u32;
    let frame_length = frame.length();
    if udp_length < UDP_LEN as u32
        || ip_length != udp_length + V4_LEN as u32
        || frame_length < expected
        || frame_length > if expected > ETH_MIN_LEN { expected } else { ETH_MIN_LEN }
    {
        return Err(Reason::LengthMismatch);
    }
    if ip_length > mtu {
        return Err(Reason::SuperFrame);
    }
    let [ttl] = field::<V4_TTL, 1, _>(headers);
    if ttl <= 1 {
        return Err(Reason::TtlExpiring);
    }
    let packet = Packet {
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
        tos: field::<V4_TOS, 1, _>(headers)[0],
    };
    match frame.window::<BIND_MAGIC_LEN>(V4_HEADERS) {
        Some(head) if packet.payload >= BIND_MAGIC_LEN as u32 => {
            classify_bind(u64::from_ne_bytes(*head), packet.payload, tables.bind_magic())?;
        }
        _ => {}
    }
    Ok(packet)
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
