//! The frames that the prologue sends: Ethernet, IP, UDP, and what each flow's number changes in them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use relay_common::BIND_LEN;

use crate::bench_layout::{HEAD_WORDS, MIN_FRAME, Template};

/// The relay's port.
pub const PORT: u16 = 4433;

/// The relay's MAC address.
pub const STATION: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Its gateway's.
pub const GATEWAY: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// What bind datagrams begin with.
pub const MAGIC: [u8; 8] = [0x2a, 1, 2, 3, 4, 5, 6, 7];

/// TTL of what agents send.
pub const TTL: u8 = 64;

/// The UDP port of every agent.
const AGENT_PORT: u16 = 5000;
const UDP: u8 = 17;

/// The family of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// Bytes of Ethernet, IP and UDP headers.
    pub const fn headers(self) -> usize {
        match self {
            Family::V4 => 42,
            Family::V6 => 62,
        }
    }

    /// The relay.
    pub const fn relay(self) -> SocketAddr {
        let address = match self {
            Family::V4 => IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
            Family::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 1)),
        };
        SocketAddr::new(address, PORT)
    }

    /// The agent that sends the packets of flow `number`.
    pub fn agent(self, number: u32) -> SocketAddr {
        let last = FIRST_SOURCE + number;
        let address = match self {
            Family::V4 => Ipv4Addr::from(last).into(),
            Family::V6 => Ipv6Addr::from(SOURCE_PREFIX | u128::from(last)).into(),
        };
        SocketAddr::new(address, AGENT_PORT)
    }
}

/// The last four bytes of the first agent's address: 10.0.0.1.
const FIRST_SOURCE: u32 = 0x0a00_0001;
const SOURCE_PREFIX: u128 = 0x2001_0db8_0000_0002 << 64;

/// What all frames of a course have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// What the frames are.
    pub family: Family,
    /// Bytes of UDP payload, enough for the prologue's state.
    pub payload: usize,
    /// TOS or traffic class.
    pub tos: u8,
    /// Whether the payload is a bind datagram's.
    pub is_bind: bool,
    /// Whether it is the first fragment of a larger packet (IPv4).
    pub is_fragment: bool,
    /// Whether the UDP checksum is the sum of the pseudo header, as hardware finds it that is to finish it.
    pub is_unfinished: bool,
}

impl Kind {
    /// An ordinary packet.
    pub const fn plain(family: Family, payload: usize) -> Kind {
        Kind { family, payload, tos: 0, is_bind: false, is_fragment: false, is_unfinished: false }
    }

    /// A bind datagram.
    pub const fn bind(family: Family) -> Kind {
        Kind { is_bind: true, ..Kind::plain(family, BIND_LEN) }
    }

    /// A whole frame of flow 0, checksums aside: the prologue writes them.
    pub fn frame(self) -> Vec<u8> {
        debug_assert!(self.family.headers() + self.payload >= MIN_FRAME, "no room for the prologue's state");
        let mut frame = [&GATEWAY_TO_STATION[..], &self.ip(), &self.udp()].concat();
        frame.extend((0..self.payload).map(|place| place as u8));
        if self.is_bind {
            let start = self.family.headers();
            frame[start..start + MAGIC.len()].copy_from_slice(&MAGIC);
        }
        if self.family == Family::V6 {
            frame[12..14].copy_from_slice(&0x86ddu16.to_be_bytes());
        }
        frame
    }

    /// What the prologue makes frames of this kind from.
    pub fn template(self) -> Template {
        let frame = self.frame();
        let mut head = [0; HEAD_WORDS];
        for (word, bytes) in head.iter_mut().zip(frame.chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into().unwrap_or_default());
        }
        let ip = &frame[14..self.family.headers() - 8];
        let ip_sum = ip.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        // Any sum but the pseudo header's own does for a finished one.
        let more = if self.is_unfinished { 0 } else { 0x5555 };
        let addresses = &ip[if self.family == Family::V4 { 12 } else { 8 }..];
        let sum: u32 =
            addresses.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        let udp_sum = sum + u32::from(UDP) + (self.payload + 8) as u32 + more;
        Template { head, source: FIRST_SOURCE, ip_sum, udp_sum, unused: 0 }
    }

    /// The IP header without checksum and the last four bytes of the source address.
    fn ip(self) -> Vec<u8> {
        let udp_length = (self.payload + 8) as u16;
        match self.family.relay().ip() {
            IpAddr::V4(relay) => {
                let [length_high, length_low] = (udp_length + 20).to_be_bytes();
                let fragment = if self.is_fragment { 0x20 } else { 0 };
                let fixed =
                    [0x45, self.tos, length_high, length_low, 0, 0, fragment, 0, TTL, UDP, 0, 0, 0, 0, 0, 0];
                [&fixed[..], &relay.octets()].concat()
            }
            IpAddr::V6(relay) => {
                let [length_high, length_low] = udp_length.to_be_bytes();
                let fixed = [0x60 | self.tos >> 4, self.tos << 4, 0, 0, length_high, length_low, UDP, TTL];
                [&fixed[..], &SOURCE_PREFIX.to_be_bytes(), &relay.octets()].concat()
            }
        }
    }

    fn udp(self) -> [u8; 8] {
        let [[a, b], [c, d], [e, f]] = [AGENT_PORT, PORT, (self.payload + 8) as u16].map(u16::to_be_bytes);
        [a, b, c, d, e, f, 0, 0]
    }
}

/// The Ethernet header of IPv4.
const GATEWAY_TO_STATION: [u8; 14] = {
    let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (STATION, GATEWAY);
    [a, b, c, d, e, f, g, h, i, j, k, l, 8, 0]
};
