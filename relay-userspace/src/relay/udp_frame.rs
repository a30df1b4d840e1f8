//! Ethernet frames with one UDP packet in them: made for a question, and read again for people.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    IpHeaders, IpNumber, Ipv4Header, Ipv6Header, LinkSlice, NetSlice, PacketBuilder, SlicedPacket,
    TransportSlice, VlanId,
};

/// What a frame with a UDP packet says in its headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpFrame<'f> {
    /// Destination and source MAC address.
    pub stations: [[u8; 6]; 2],
    /// The VLAN of its tag.
    pub vlan: Option<u16>,
    /// Source address and port.
    pub source: SocketAddr,
    /// Destination address and port.
    pub destination: SocketAddr,
    /// TOS or traffic class.
    pub tos: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// The checksum of an IPv4 header.
    pub ip_checksum: Option<Checksum>,
    /// The checksum of the UDP packet; 0: there is none.
    pub udp_checksum: Checksum,
    /// What is in the packet.
    pub payload: &'f [u8],
}

/// A checksum in a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// As it stands there.
    pub stands: u16,
    /// Whether it is that of the packet.
    pub is_right: bool,
}

impl<'f> UdpFrame<'f> {
    /// Reads a frame; none if there is no whole UDP packet in it.
    pub fn read(frame: &'f [u8]) -> Option<UdpFrame<'f>> {
        let packet = SlicedPacket::from_ethernet(frame).ok()?;
        let Some(LinkSlice::Ethernet2(link)) = &packet.link else { return None };
        let Some(TransportSlice::Udp(udp)) = &packet.transport else { return None };
        let (header, payload) = (udp.to_header(), udp.payload());
        let [source, destination]: [IpAddr; 2];
        let (tos, ttl, ip_checksum, computed) = match packet.net.as_ref()? {
            NetSlice::Ipv4(ip) => {
                let ip = ip.header().to_header();
                [source, destination] = [ip.source.into(), ip.destination.into()];
                let own = Checksum {
                    stands: ip.header_checksum,
                    is_right: ip.header_checksum == ip.calc_header_checksum(),
                };
                let tos = ip.dscp.value() << 2 | ip.ecn.value();
                (tos, ip.time_to_live, Some(own), header.calc_checksum_ipv4(&ip, payload).ok()?)
            }
            NetSlice::Ipv6(ip) => {
                let ip = ip.header().to_header();
                [source, destination] = [ip.source.into(), ip.destination.into()];
                (ip.traffic_class, ip.hop_limit, None, header.calc_checksum_ipv6(&ip, payload).ok()?)
            }
            NetSlice::Arp(_) => return None,
        };
        // IPv4 may go without, IPv6 may not.
        let is_right = header.checksum == computed || (header.checksum == 0 && ip_checksum.is_some());
        Some(UdpFrame {
            stations: [link.destination(), link.source()],
            vlan: packet.vlan_ids().first().map(|vlan| vlan.value()),
            source: (source, header.source_port).into(),
            destination: (destination, header.destination_port).into(),
            tos,
            ttl,
            ip_checksum,
            udp_checksum: Checksum { stands: header.checksum, is_right },
            payload,
        })
    }
}

/// What a frame is made of.
#[derive(Clone, Copy, Debug)]
pub struct Ingredients {
    /// Destination and source MAC address.
    pub stations: [[u8; 6]; 2],
    /// The VLAN whose tag it carries.
    pub vlan: Option<u16>,
    /// Source address and port.
    pub source: SocketAddr,
    /// Destination address and port, of the same family.
    pub destination: SocketAddr,
    /// TTL or hop limit.
    pub ttl: u8,
}

/// Makes a frame with one UDP packet, which says that it may not be fragmented. None if the addresses are of two families, or
/// the payload fits no packet.
pub fn make(of: &Ingredients, payload: &[u8]) -> Option<Vec<u8>> {
    let udp_length = u16::try_from(payload.len()).ok()?.checked_add(8)?;
    let ip = match (of.source.ip(), of.destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let (source, destination) = (source.octets(), destination.octets());
            let mut ip = Ipv4Header::new(udp_length, of.ttl, IpNumber::UDP, source, destination).ok()?;
            ip.dont_fragment = true;
            IpHeaders::Ipv4(ip, Default::default())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let ip = Ipv6Header {
                payload_length: udp_length,
                next_header: IpNumber::UDP,
                hop_limit: of.ttl,
                source: source.octets(),
                destination: destination.octets(),
                ..Ipv6Header::default()
            };
            IpHeaders::Ipv6(ip, Default::default())
        }
        _ => return None,
    };
    let [to, from] = of.stations;
    let link = PacketBuilder::ethernet2(from, to);
    let packet = match of.vlan {
        None => link.ip(ip),
        Some(vlan) => link.single_vlan(VlanId::try_new(vlan).ok()?).ip(ip),
    };
    let mut frame = Vec::new();
    packet.udp(of.source.port(), of.destination.port()).write(&mut frame, payload).ok()?;
    Some(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEAR: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const FAR: [u8; 6] = [2, 0, 0, 0, 0, 2];

    fn ingredients(source: &str, destination: &str, vlan: Option<u16>) -> Ingredients {
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        Ingredients { stations: [NEAR, FAR], vlan, source, destination, ttl: 7 }
    }

    #[test]
    fn a_frame_that_was_made_is_read_as_what_it_is_made_of() {
        for (source, destination, vlan) in [
            ("192.0.2.1:40001", "192.0.2.2:4433", None),
            ("192.0.2.1:40001", "192.0.2.2:4433", Some(5)),
            ("[2001:db8::1]:40001", "[2001:db8::2]:4433", None),
            ("[2001:db8::1]:40001", "[2001:db8::2]:4433", Some(4094)),
        ] {
            let of = ingredients(source, destination, vlan);
            for payload in [&[][..], &[1, 2, 3], &[7; 1200]] {
                let frame = make(&of, payload).unwrap();
                let read = UdpFrame::read(&frame).unwrap();
                assert_eq!((read.stations, read.vlan, read.ttl), (of.stations, vlan, 7));
                assert_eq!((read.source, read.destination), (of.source, of.destination));
                assert_eq!((read.payload, read.tos), (payload, 0));
                assert!(read.udp_checksum.is_right && read.udp_checksum.stands != 0);
                assert_eq!(
                    read.ip_checksum.map(|checksum| checksum.is_right),
                    of.source.is_ipv4().then_some(true)
                );
            }
        }
    }

    #[test]
    fn a_wrong_checksum_is_seen() {
        let mut frame = make(&ingredients("192.0.2.1:1", "192.0.2.2:2", None), b"payload").unwrap();
        let last = frame.len() - 1;
        frame[last] ^= 1;
        assert!(!UdpFrame::read(&frame).unwrap().udp_checksum.is_right);
        frame[22] ^= 1;
        assert!(!UdpFrame::read(&frame).unwrap().ip_checksum.unwrap().is_right);
    }

    #[test]
    fn what_cannot_be_a_packet_is_none() {
        assert!(make(&ingredients("192.0.2.1:1", "[2001:db8::2]:2", None), &[]).is_none());
        assert!(make(&ingredients("192.0.2.1:1", "192.0.2.2:2", None), &vec![0; 65_508]).is_none());
        for bytes in [&[][..], &[0; 13], &[0; 60], &[0xff; 1500]] {
            assert!(UdpFrame::read(bytes).is_none());
        }
    }
}
