//! What must hold for every emitted frame, by another library's reading of it.

use etherparse::{NetSlice, SlicedPacket, TransportSlice, UdpHeader};

/// A frame as another library reads it: each checksum as it stands there, and as it comes out when recomputed in full.
#[derive(Debug)]
struct Reading<'f> {
    ip: Option<Checksum>,
    udp: Checksum,
    v6: bool,
    ttl: u8,
    vlan: Option<u16>,
    payload: &'f [u8],
}

#[derive(Clone, Copy, Debug)]
struct Checksum {
    stands: u16,
    recomputed: u16,
}

impl Checksum {
    fn is_right(self) -> bool {
        self.stands == self.recomputed
    }

    /// How wrong it is: the difference in ones' complement, which has two zeros.
    fn fault(self) -> u16 {
        (u32::from(self.stands) + 0xffff - u32::from(self.recomputed)).rem_euclid(0xffff) as u16
    }
}

impl Reading<'_> {
    fn of(frame: &[u8]) -> Reading<'_> {
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        let Some(TransportSlice::Udp(udp)) = &packet.transport else { panic!("not UDP: {packet:?}") };
        let (header, payload): (UdpHeader, _) = (udp.to_header(), udp.payload());
        let vlans = packet.vlan_ids();
        assert!(vlans.len() <= 1, "{vlans:?}");
        let (ip, recomputed, v6, ttl) = match packet.net.as_ref().unwrap() {
            NetSlice::Ipv4(ip) => {
                let ip = ip.header().to_header();
                let own = Checksum { stands: ip.header_checksum, recomputed: ip.calc_header_checksum() };
                (Some(own), header.calc_checksum_ipv4(&ip, payload).unwrap(), false, ip.time_to_live)
            }
            NetSlice::Ipv6(ip) => {
                let ip = ip.header().to_header();
                (None, header.calc_checksum_ipv6(&ip, payload).unwrap(), true, ip.hop_limit)
            }
            other => panic!("{other:?}"),
        };
        let udp = Checksum { stands: header.checksum, recomputed };
        Reading { ip, udp, v6, ttl, vlan: vlans.first().map(|vlan| vlan.value()), payload }
    }
}

/// Bytes of UDP payload of a frame that is a whole UDP packet.
pub fn payload_bytes(frame: &[u8]) -> u64 {
    Reading::of(frame).payload.len() as u64
}

/// What came in and what was emitted for it: payload and VLAN are the same, TTL one less, and every checksum is right. If
/// it came in wrong, it is wrong by the same difference, so that who receives it sees the damage; one that was not there
/// is still not there.
pub fn emitted_right(came: &[u8], emitted: &[u8]) {
    let (came, emitted) = (Reading::of(came), Reading::of(emitted));
    assert_eq!(emitted.payload, came.payload);
    assert_eq!((emitted.vlan, emitted.ttl), (came.vlan, came.ttl - 1));
    match (came.ip, emitted.ip) {
        (Some(before), Some(after)) => carried(before, after),
        (None, Some(made)) => assert!(made.is_right(), "{emitted:?}"),
        (_, None) => {}
    }
    if came.udp.stands == 0 {
        assert!(emitted.udp.stands == 0 && !came.v6 && !emitted.v6, "{emitted:?}");
    } else {
        assert_ne!(emitted.udp.stands, 0);
        carried(came.udp, emitted.udp);
    }
}

fn carried(before: Checksum, after: Checksum) {
    assert!(after.is_right() || !before.is_right(), "{before:?} became {after:?}");
    assert_eq!(after.fault(), before.fault(), "{before:?} became {after:?}");
}
