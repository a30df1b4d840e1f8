//! One session in plain memory, packets of it, and what an agent sees of them.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{
    Ethernet2Header, IpHeaders, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder, SlicedPacket,
    TransportSlice, UdpHeader,
};
use relay_common::frame::SliceFrame;
use relay_common::hash::{self, HashKey, MAX_WORDS};
use relay_common::index::{IndexBucket, Place, SlotSide};
use relay_common::interface::Interface;
use relay_common::local::Local;
use relay_common::next_hop::{Egress, Hop, NextHop, station_words};
use relay_common::route::Route;
use relay_common::slot::{LineLocals, Slot};
use relay_common::tables::Tables;
use relay_common::tuple::AnyTuple;
use relay_common::{Departure, Reason, Side, bucket::Allowance, forward};

pub const RELAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
pub const AGENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 5];
pub const RELAY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 9, 0, 2)), 4433);
pub const RELAY_V6: SocketAddr =
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 2)), 4433);
pub const CONNECTOR: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 9, 1, 2)), 40_001);
pub const CONNECTOR_V6: SocketAddr =
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 2, 3, 4, 5, 6, 7)), 40_001);
pub const TARGET: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 9, 2, 2)), 50_002);
pub const TARGET_V6: SocketAddr =
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0xfd00, 7, 6, 5, 4, 3, 2, 1)), 50_002);
pub const INTERFACE: u32 = 7;
pub const MAGIC: [u8; 8] = [0x11, 2, 3, 4, 5, 6, 7, 8];
pub const NOW: u64 = 1_000_000_000;
pub const HEADROOM: usize = 64;

/// The relay's address of an agent's family.
pub fn relay_for(agent: SocketAddr) -> SocketAddr {
    if agent.is_ipv4() { RELAY } else { RELAY_V6 }
}

/// One session, in plain memory.
pub struct World {
    pub buckets: [IndexBucket; 2],
    pub slot: Slot,
    pub hop: NextHop,
    pub interface: Interface,
    pub locals: [Local; 2],
    /// Payload bytes of each packet that was marked.
    pub marked: RefCell<Vec<u32>>,
}

impl World {
    /// A session between CONNECTOR and TARGET.
    pub fn new() -> World {
        World::between(CONNECTOR, TARGET)
    }

    pub fn between(connector: SocketAddr, target: SocketAddr) -> World {
        let world = World {
            buckets: Default::default(),
            slot: Slot::default(),
            hop: NextHop::default(),
            interface: Interface::default(),
            locals: Default::default(),
            marked: RefCell::default(),
        };
        world.interface.write(INTERFACE, RELAY_MAC, 1500);
        world.hop.write(&Hop {
            egress: Egress::Transmit,
            interface: INTERFACE,
            mtu: 1500,
            stations: station_words(GATEWAY_MAC, RELAY_MAC),
            vlan: 0,
        });
        for (side, from, to) in [(Side::Connector, connector, target), (Side::Target, target, connector)] {
            let tuple = AnyTuple::new(from, relay_for(from)).unwrap();
            let route = Route::new(&tuple, &AnyTuple::new(relay_for(to), to).unwrap(), 0);
            let locals = LineLocals { taken: world.local(from), made: world.local(to) };
            world.slot.side(side).write(&tuple, &route, locals);
            let place = Place::of(tuple.hash(&world.hash_key(MAX_WORDS)), 1);
            assert!(
                world.buckets[place.buckets[0] as usize].put(place.fingerprint, SlotSide { slot: 0, side })
            );
            world.slot.deadline[side.index()].store(NOW + 1);
        }
        world
    }

    fn local(&self, agent: SocketAddr) -> u16 {
        match relay_for(agent).ip() {
            IpAddr::V4(_) => 0,
            IpAddr::V6(address) => Local::number(&self.locals, address).unwrap(),
        }
    }

    pub fn limit(&self, bytes_per_s: u64, burst: u64) {
        let allowance = Allowance::new(bytes_per_s, burst);
        self.slot.cost_per_byte.store(allowance.cost_per_byte);
        self.slot.burst.store(allowance.burst);
    }

    /// The frame as it leaves.
    pub fn forward(&self, frame: &[u8]) -> Result<Vec<u8>, Reason> {
        let mut bytes = [&[0xee; HEADROOM], frame].concat();
        let mut view = SliceFrame::new(&mut bytes, HEADROOM, INTERFACE);
        let decision = forward(&mut view, self, || NOW);
        let left = view.as_bytes().to_vec();
        match decision {
            Ok(departure) => assert_eq!(departure, Departure { hop: 0, redirect: false }),
            Err(_) => assert_eq!(left, frame, "a frame that is not forwarded is not changed"),
        }
        decision.map(|_| left)
    }

    pub fn refusal(&self, frame: impl AsRef<[u8]>) -> Reason {
        self.forward(frame.as_ref()).expect_err("not forwarded")
    }
}

impl Tables for World {
    fn hash_key(&self, _: usize) -> HashKey {
        hash::key([11, 22])
    }
    fn bucket_mask(&self) -> u32 {
        1
    }
    fn bucket(&self, number: u32) -> Option<&IndexBucket> {
        self.buckets.get(number as usize)
    }
    fn slot(&self, number: u32) -> Option<&Slot> {
        (number == 0).then_some(&self.slot)
    }
    fn next_hop(&self, number: u32) -> Option<&NextHop> {
        (number == 0).then_some(&self.hop)
    }
    fn local(&self, number: u32) -> Option<&Local> {
        self.locals.get(number as usize)
    }
    fn interface(&self, index: u32) -> Option<&Interface> {
        (index == INTERFACE).then_some(&self.interface)
    }
    fn bind_magic(&self) -> u64 {
        u64::from_ne_bytes(MAGIC)
    }
    fn marked(&self, payload: u32) {
        self.marked.borrow_mut().push(payload);
    }
}

pub fn frame(from: SocketAddr, to: SocketAddr, ttl: u8, tos: u8, payload: &[u8]) -> Vec<u8> {
    let udp_length = (UdpHeader::LEN + payload.len()) as u16;
    let ip = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut ip = Ipv4Header::new(udp_length, ttl, IpNumber::UDP, from.octets(), to.octets()).unwrap();
            ip.dscp = (tos >> 2).try_into().unwrap();
            ip.ecn = (tos & 3).try_into().unwrap();
            ip.dont_fragment = true;
            IpHeaders::Ipv4(ip, Default::default())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => IpHeaders::Ipv6(
            Ipv6Header {
                traffic_class: tos,
                flow_label: 0x54321.try_into().unwrap(),
                payload_length: udp_length,
                next_header: IpNumber::UDP,
                hop_limit: ttl,
                source: from.octets(),
                destination: to.octets(),
            },
            Default::default(),
        ),
        _ => panic!("one family"),
    };
    let builder = PacketBuilder::ethernet2(AGENT_MAC, RELAY_MAC).ip(ip).udp(from.port(), to.port());
    let mut bytes = Vec::new();
    builder.write(&mut bytes, payload).unwrap();
    bytes
}

pub fn data(payload: &[u8]) -> Vec<u8> {
    frame(CONNECTOR, RELAY, 64, 0, payload)
}

pub fn data_v6(payload: &[u8]) -> Vec<u8> {
    frame(CONNECTOR_V6, RELAY_V6, 64, 0, payload)
}

/// What an agent sees of a packet.
#[derive(Debug)]
pub struct Received {
    pub ethernet: Ethernet2Header,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub ttl: u8,
    pub tos: u8,
    pub udp_checksum: u16,
    pub payload: Vec<u8>,
}

/// Takes a forwarded frame apart and checks both checksums in full.
pub fn received(bytes: &[u8]) -> Received {
    let packet = SlicedPacket::from_ethernet(bytes).unwrap();
    let etherparse::LinkSlice::Ethernet2(ethernet) = packet.link.unwrap() else { panic!("Ethernet") };
    let Some(TransportSlice::Udp(udp)) = packet.transport else { panic!("UDP") };
    let (header, payload) = (udp.to_header(), udp.payload().to_vec());
    let ip_length = bytes.len() - 14;
    let (from, to, ttl, tos, checksum): (IpAddr, IpAddr, _, _, _) = match packet.net.unwrap() {
        etherparse::NetSlice::Ipv4(ip) => {
            let ip = ip.header().to_header();
            assert_eq!(ip.header_checksum, ip.calc_header_checksum(), "IP header checksum");
            assert!(usize::from(ip.total_len) == ip_length || bytes.len() == 60);
            let checksum = header.calc_checksum_ipv4(&ip, &payload).unwrap();
            let tos = ip.dscp.value() << 2 | ip.ecn.value();
            (ip.source.into(), ip.destination.into(), ip.time_to_live, tos, checksum)
        }
        etherparse::NetSlice::Ipv6(ip) => {
            let ip = ip.header().to_header();
            assert_eq!(usize::from(ip.payload_length) + 40, ip_length);
            let checksum = header.calc_checksum_ipv6(&ip, &payload).unwrap();
            (ip.source.into(), ip.destination.into(), ip.hop_limit, ip.traffic_class, checksum)
        }
        other => panic!("{other:?}"),
    };
    assert!(header.checksum == checksum || header.checksum == 0 && from.is_ipv4(), "UDP checksum");
    Received {
        ethernet: ethernet.to_header(),
        from: SocketAddr::new(from, header.source_port),
        to: SocketAddr::new(to, header.destination_port),
        ttl,
        tos,
        udp_checksum: header.checksum,
        payload,
    }
}
