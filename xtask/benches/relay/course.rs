//! What is sent in a measurement, and how it must arrive.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context as _, bail, ensure};
use etherparse::{NetHeaders, PacketBuilder, PacketHeaders, TransportHeader};

use crate::traffic_layout::{HEAD_WORDS, Stream};

/// A MAC address.
pub type Station = [u8; 6];

/// Datagrams of many flows on their way.
#[derive(Clone, Debug)]
pub struct Course {
    /// How many flows, and how much in each datagram.
    pub load: Load,
    /// The channel of TURN that they are sent by, if any.
    pub channel: Option<u16>,
    /// As they are sent.
    pub sent: Leg<Numbered>,
    /// As they must arrive.
    pub arrives: Leg<Ends>,
}

/// How many flows, and how much in each datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Number of flows. Each is visited in turn.
    pub flows: u32,
    /// Bytes of UDP payload, without what TURN puts before it.
    pub payload: usize,
}

/// What a datagram looks like on a part of its way.
#[derive(Clone, Copy, Debug)]
pub struct Leg<S> {
    /// Destination and source in the Ethernet header.
    pub stations: [Station; 2],
    /// Source.
    pub source: S,
    /// Destination.
    pub destination: Numbered,
    /// TTL.
    pub ttl: u8,
}

/// One end's address in each flow.
#[derive(Clone, Copy, Debug)]
pub struct Numbered {
    /// Of the first flow.
    pub first: SocketAddrV4,
    /// By how much the IP address grows from flow to flow.
    pub address_step: u32,
    /// By how much the port grows.
    pub port_step: u16,
}

/// One end's address in each flow, as someone else has chosen them.
#[derive(Clone, Debug)]
pub enum Ends {
    /// By a rule.
    Numbered(Numbered),
    /// One by one.
    Listed(Vec<SocketAddrV4>),
}

/// TTL of what agents send.
pub const TTL: u8 = 64;

const IP_CHECK: usize = 24;
const UDP_CHECK: usize = 40;

/// Bytes that ChannelData stands in, and what stands there without it.
const LEAD: usize = 4;

impl Numbered {
    /// The same in each flow.
    pub const fn fixed(address: SocketAddrV4) -> Numbered {
        Numbered { first: address, address_step: 0, port_step: 0 }
    }

    /// Another IP address in each flow.
    pub const fn by_address(first: SocketAddrV4) -> Numbered {
        Numbered { first, address_step: 1, port_step: 0 }
    }

    /// Another port in each flow.
    pub const fn by_port(first: SocketAddrV4) -> Numbered {
        Numbered { first, address_step: 0, port_step: 1 }
    }

    /// The address in `flow`.
    pub fn of(&self, flow: u32) -> SocketAddrV4 {
        let ip = u32::from(*self.first.ip()).wrapping_add(self.address_step.wrapping_mul(flow));
        let port = self.first.port().wrapping_add(self.port_step.wrapping_mul(flow as u16));
        SocketAddrV4::new(Ipv4Addr::from(ip), port)
    }

    fn address_words(&self) -> [u32; 2] {
        [u32::from(*self.first.ip()), self.address_step]
    }
}

impl From<Numbered> for Ends {
    fn from(numbered: Numbered) -> Ends {
        Ends::Numbered(numbered)
    }
}

impl Ends {
    fn of(&self, flow: u32) -> Option<SocketAddrV4> {
        match self {
            Ends::Numbered(numbered) => Some(numbered.of(flow)),
            Ends::Listed(all) => all.get(flow as usize).copied(),
        }
    }
}

impl Course {
    /// What the generator is to make, with `interval` ns from frame to frame (0: as fast as it goes).
    pub fn stream(&self, interval: u32) -> anyhow::Result<Stream> {
        let frame = self.frame()?;
        let mut head = [0; HEAD_WORDS];
        for (word, bytes) in head.iter_mut().zip(frame.chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into()?);
        }
        let sum = |at: usize| u32::from(!u16::from_ne_bytes([frame[at], frame[at + 1]]));
        Ok(Stream {
            head,
            sums: [sum(IP_CHECK), sum(UDP_CHECK)],
            flows: self.load.flows,
            source: self.sent.source.address_words(),
            destination: self.sent.destination.address_words(),
            source_port: [self.sent.source.first.port().into(), self.sent.source.port_step.into()],
            interval,
        })
    }

    /// The frame that the generator makes all others of: no flow's, without addresses and source port.
    pub fn frame(&self) -> anyhow::Result<Vec<u8>> {
        let [to, from] = self.sent.stations;
        let mut payload = self.lead();
        payload.extend(body(0, 0, self.body_len()));
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(from, to)
            .ipv4([0; 4], [0; 4], self.sent.ttl)
            .udp(0, self.sent.destination.first.port())
            .write(&mut frame, &payload)
            .context("cannot make a frame")?;
        Ok(frame)
    }

    /// Compares a frame that has arrived with what must arrive: every header field that matters, both checksums, computed
    /// anew, and every byte of the payload.
    ///
    /// # Errors
    /// What differs.
    pub fn check(&self, frame: &[u8]) -> anyhow::Result<()> {
        let headers = PacketHeaders::from_ethernet_slice(frame).context("not a packet")?;
        let Some(ethernet) = headers.link.and_then(|link| link.ethernet2()) else {
            bail!("no Ethernet header")
        };
        let Some(NetHeaders::Ipv4(ip, _)) = headers.net else { bail!("not IPv4") };
        let Some(TransportHeader::Udp(udp)) = headers.transport else { bail!("not UDP") };
        let payload = headers.payload.slice();
        let (lead, carried) = payload.split_at_checked(self.lead_on_arrival()).context("no payload")?;
        let (flow, stamp) = marks(carried).context("a payload without marks")?;

        ensure!(lead.iter().all(|byte| *byte == 0), "{lead:02x?} stands before the payload of flow {flow}");
        ensure!(carried == body(flow, stamp, self.body_len()), "flow {flow}: another payload");
        ensure!([ethernet.destination, ethernet.source] == self.arrives.stations, "MACs: {ethernet:02x?}");
        let came = [(ip.source, udp.source_port), (ip.destination, udp.destination_port)];
        let came = came.map(|(ip, port)| Some(SocketAddrV4::new(ip.into(), port)));
        let expected = [self.arrives.source.of(flow), Some(self.arrives.destination.of(flow))];
        ensure!(came == expected, "flow {flow}: source and destination {came:?}, not {expected:?}");
        ensure!(ip.time_to_live == self.arrives.ttl, "TTL {}, not {}", ip.time_to_live, self.arrives.ttl);
        ensure!(ip.header_checksum == ip.calc_header_checksum(), "flow {flow}: the IP checksum is wrong");
        let checksum = udp.calc_checksum_ipv4(&ip, payload).context("a datagram too long")?;
        ensure!(udp.checksum == checksum, "flow {flow}: the UDP checksum is wrong");
        Ok(())
    }

    /// What stands before the flow's number when it is sent.
    fn lead(&self) -> Vec<u8> {
        match self.channel {
            Some(channel) => {
                let length = self.load.payload as u16;
                [channel.to_be_bytes(), length.to_be_bytes()].concat()
            }
            None => vec![0; LEAD],
        }
    }

    /// TURN takes its header off.
    fn lead_on_arrival(&self) -> usize {
        if self.channel.is_some() { 0 } else { LEAD }
    }

    fn body_len(&self) -> usize {
        self.load.payload - self.lead_on_arrival()
    }
}

/// A payload's number of the flow, when it was due, and a pattern.
fn body(flow: u32, stamp: u64, length: usize) -> Vec<u8> {
    let mut body = [&flow.to_be_bytes()[..], &stamp.to_ne_bytes()].concat();
    body.extend((body.len()..length).map(|place| (place * 7 + 3) as u8));
    body
}

/// The first two.
fn marks(body: &[u8]) -> Option<(u32, u64)> {
    let (flow, rest) = body.split_first_chunk()?;
    let stamp = rest.first_chunk()?;
    Some((u32::from_be_bytes(*flow), u64::from_ne_bytes(*stamp)))
}
