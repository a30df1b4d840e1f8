//! Where the fields of an Ethernet, IP and UDP header stand in a frame without VLAN tag; in one with a tag everything
//! behind the MAC addresses stands four bytes further back. Offsets come from the `network-types` structs.

use core::mem::offset_of;

use network_types::eth::{EthHdr, EtherType};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use network_types::udp::UdpHdr;

pub(crate) const ETH_LEN: usize = EthHdr::LEN;
pub(crate) const ETH_DESTINATION: usize = offset_of!(EthHdr, dst_addr);
pub(crate) const ETH_TYPE: usize = offset_of!(EthHdr, ether_type);

/// Ether types as the two bytes stand in the frame, read as a native-endian word.
pub(crate) const ETHER_TYPE_IPV4: u16 = EtherType::Ipv4 as u16;
pub(crate) const ETHER_TYPE_IPV6: u16 = EtherType::Ipv6 as u16;
pub(crate) const ETHER_TYPE_VLAN: u16 = EtherType::Ieee8021q as u16;
pub(crate) const ETHER_TYPE_SERVICE_VLAN: u16 = EtherType::Ieee8021ad as u16;

/// An Ethernet header with a VLAN tag, whose control information stands behind the tag's own ether type.
pub(crate) const TAGGED_ETH_LEN: usize = ETH_LEN + 4;
pub(crate) const TAG_CONTROL: usize = ETH_TYPE + 2;
pub(crate) const TAGGED_ETH_TYPE: usize = ETH_TYPE + 4;

/// The shortest frame on Ethernet without its check sequence; shorter packets are padded to it (IEEE 802.3, 3.2.8).
/// A tag may be put into a frame that was padded before.
pub(crate) const ETH_MIN_LEN: u32 = 60;

pub(crate) const V4_LEN: usize = Ipv4Hdr::LEN;
pub(crate) const V4_VERSION: usize = ETH_LEN + offset_of!(Ipv4Hdr, vihl);
pub(crate) const V4_TOS: usize = ETH_LEN + offset_of!(Ipv4Hdr, tos);
pub(crate) const V4_ID: usize = ETH_LEN + offset_of!(Ipv4Hdr, id);
pub(crate) const V4_TOTAL_LEN: usize = ETH_LEN + offset_of!(Ipv4Hdr, tot_len);
pub(crate) const V4_FRAGMENT: usize = ETH_LEN + offset_of!(Ipv4Hdr, frags);
pub(crate) const V4_TTL: usize = ETH_LEN + offset_of!(Ipv4Hdr, ttl);
pub(crate) const V4_PROTOCOL: usize = ETH_LEN + offset_of!(Ipv4Hdr, proto);
pub(crate) const V4_CHECK: usize = ETH_LEN + offset_of!(Ipv4Hdr, check);
pub(crate) const V4_SOURCE: usize = ETH_LEN + offset_of!(Ipv4Hdr, src_addr);
pub(crate) const V4_DESTINATION: usize = ETH_LEN + offset_of!(Ipv4Hdr, dst_addr);

/// Version 4 and five words of header: no options.
pub(crate) const V4_VERSION_PLAIN: u8 = 0x45;

/// Everything of the flags and offset field but "don't fragment": more fragments, offset (RFC 791 section 3.1).
pub(crate) const V4_FRAGMENT_MASK: u16 = 0xbfff;

/// The flags and offset field of a packet that may not be fragmented and is not, as it stands in the packet.
pub(crate) const V4_DONT_FRAGMENT: [u8; 2] = [0x40, 0];

pub(crate) const V6_LEN: usize = Ipv6Hdr::LEN;
pub(crate) const V6_VERSION: usize = ETH_LEN + offset_of!(Ipv6Hdr, vcf);
pub(crate) const V6_PAYLOAD_LEN: usize = ETH_LEN + offset_of!(Ipv6Hdr, payload_len);
pub(crate) const V6_NEXT_HEADER: usize = ETH_LEN + offset_of!(Ipv6Hdr, next_hdr);
pub(crate) const V6_HOP_LIMIT: usize = ETH_LEN + offset_of!(Ipv6Hdr, hop_limit);
pub(crate) const V6_SOURCE: usize = ETH_LEN + offset_of!(Ipv6Hdr, src_addr);
pub(crate) const V6_DESTINATION: usize = ETH_LEN + offset_of!(Ipv6Hdr, dst_addr);

/// How much longer an IPv6 header is than an IPv4 header: what translation adds to a packet or takes from it.
pub(crate) const V6_EXTRA: u32 = (V6_LEN - V4_LEN) as u32;

pub(crate) const UDP_LEN: usize = UdpHdr::LEN;
pub(crate) const UDP_LENGTH: usize = offset_of!(UdpHdr, len);
pub(crate) const UDP_CHECK: usize = offset_of!(UdpHdr, check);

pub(crate) const V4_UDP: usize = ETH_LEN + V4_LEN;
pub(crate) const V4_UDP_SOURCE: usize = V4_UDP + offset_of!(UdpHdr, src);
pub(crate) const V4_UDP_DESTINATION: usize = V4_UDP + offset_of!(UdpHdr, dst);
pub(crate) const V4_UDP_LENGTH: usize = V4_UDP + UDP_LENGTH;
pub(crate) const V4_UDP_CHECK: usize = V4_UDP + UDP_CHECK;

/// Ethernet, IPv4 without options and UDP: the bytes one look at an IPv4 packet needs.
pub(crate) const V4_HEADERS: usize = V4_UDP + UDP_LEN;

pub(crate) const V6_UDP: usize = ETH_LEN + V6_LEN;
pub(crate) const V6_UDP_SOURCE: usize = V6_UDP + offset_of!(UdpHdr, src);
pub(crate) const V6_UDP_DESTINATION: usize = V6_UDP + offset_of!(UdpHdr, dst);
pub(crate) const V6_UDP_LENGTH: usize = V6_UDP + UDP_LENGTH;
pub(crate) const V6_UDP_CHECK: usize = V6_UDP + UDP_CHECK;

/// Ethernet, IPv6 and UDP.
pub(crate) const V6_HEADERS: usize = V6_UDP + UDP_LEN;

/// Explicit congestion notification: the low two bits of the TOS byte (RFC 3168 section 5).
pub(crate) const ECN_MASK: u8 = 0b11;
