//! Frames as a relay may see them: of sessions, with every kind of peculiarity, and of no sense at all.

use std::net::IpAddr;

use etherparse::{IpHeaders, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder};
use relay_common::BIND_LEN;
use relay_common::checksum::fold_wide;
use relay_userspace::relay::datapath::FlowTuple;

use crate::random::Random;
use crate::world::{Circumstance, GATEWAY, HOPS, JUMBO, MTU, RELAY, RELAY_V6, STATION, agent, hop_to, peer};

pub const MAGIC: [u8; 8] = [0x2a, 1, 2, 3, 4, 5, 6, 7];

const ETH_LEN: usize = 14;

/// A frame that looks as if it were from agent `from`, more or less.
pub fn frame(random: &mut Random, from: u32, circumstance: Circumstance) -> Vec<u8> {
    if random.one_in(25) {
        return raw(random);
    }
    let len = payload_len(random, from, circumstance == Circumstance::JumboInterface);
    let payload = random.bytes(len);
    let mut frame = packet(random, agent(from), &payload);
    if random.one_in(3) {
        disturb(random, &mut frame);
    }
    tag(random, &mut frame, HOPS[hop_to(peer(from))].2);
    if random.one_in(25) {
        damage(random, &mut frame);
    }
    frame
}

/// Any bytes, with a beginning that leads somewhere.
fn raw(random: &mut Random) -> Vec<u8> {
    let len = ETH_LEN + random.below(120);
    let mut frame = random.bytes(len);
    if random.one_in(2) {
        frame[..6].copy_from_slice(&STATION);
        let types = [[0x08, 0x00], [0x86, 0xdd], [0x81, 0x00], [0x88, 0xa8]];
        frame[12..14].copy_from_slice(&random.pick(&types));
    }
    if frame.len() > 18 && random.one_in(2) {
        frame[14] = random.pick(&[0x45, 0x60]);
    }
    frame
}

/// Changes a few bytes of the headers or just behind them.
fn damage(random: &mut Random, frame: &mut [u8]) {
    for _ in 0..=random.below(4) {
        let at = random.below(frame.len().min(70));
        frame[at] = random.byte();
    }
}

/// Bytes of payload: small, usual, or about as much as the way in or out takes.
fn payload_len(random: &mut Random, from: u32, jumbo: bool) -> usize {
    let out = HOPS[hop_to(peer(from))].1;
    let headers = if agent(from).agent.is_ipv6() { 48 } else { 28 };
    match random.below(10) {
        0 => random.below(64),
        1 => random.below(1473),
        2 => 1200,
        3..=7 => random.below(256),
        _ => {
            let mtu = if jumbo { random.pick(&[JUMBO, out]) } else { random.pick(&[MTU, MTU.min(out)]) };
            // Translation makes it 20 bytes more or less.
            let around = random.pick(&[0, 0, 20, 40]) + random.below(3);
            (mtu as usize + around - 21).saturating_sub(headers)
        }
    }
}

fn packet(random: &mut Random, FlowTuple { agent: from, relay }: FlowTuple, payload: &[u8]) -> Vec<u8> {
    let udp_length = (8 + payload.len()) as u16;
    let (ttl, class) = (2 + random.below(254) as u8, random.byte());
    let ip = match (from.ip(), relay.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut ip = Ipv4Header::new(udp_length, ttl, IpNumber::UDP, from.octets(), to.octets()).unwrap();
            ip.dscp = (class >> 2).try_into().unwrap();
            ip.ecn = (class & 3).try_into().unwrap();
            ip.identification = random.next() as u16;
            ip.dont_fragment = random.one_in(2);
            IpHeaders::Ipv4(ip, Default::default())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => IpHeaders::Ipv6(
            Ipv6Header {
                traffic_class: class,
                flow_label: (random.below(1 << 20) as u32).try_into().unwrap(),
                payload_length: udp_length,
                next_header: IpNumber::UDP,
                hop_limit: ttl,
                source: from.octets(),
                destination: to.octets(),
            },
            Default::default(),
        ),
        _ => unreachable!("a tuple has one family"),
    };
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(GATEWAY, STATION)
        .ip(ip)
        .udp(from.port(), relay.port())
        .write(&mut frame, payload)
        .unwrap();
    if random.one_in(2) {
        frame.resize(frame.len().max(60), 0);
    }
    frame
}

/// Gives the frame the tag of `vlan`, none for 0; now and then another.
fn tag(random: &mut Random, frame: &mut Vec<u8>, vlan: u16) {
    let priority = (random.below(16) as u16) << 12;
    match random.below(80) {
        0 => insert(frame, 0x8100, priority),
        1 => insert(frame, 0x88a8, priority | vlan),
        2 => {
            insert(frame, 0x8100, priority | vlan);
            insert(frame, random.pick(&[0x8100, 0x88a8]), priority | 7);
        }
        3 => insert(frame, 0x8100, random.next() as u16),
        4..=10 => {}
        _ if vlan == 0 => {}
        _ => insert(frame, 0x8100, priority | vlan),
    }
}

fn insert(frame: &mut Vec<u8>, ether_type: u16, control: u16) {
    let [[a, b], [c, d]] = [ether_type.to_be_bytes(), control.to_be_bytes()];
    frame.splice(12..12, [a, b, c, d]);
}

/// Makes something about an untagged frame unusual.
fn disturb(random: &mut Random, frame: &mut Vec<u8>) {
    let v6 = frame[12] == 0x86;
    let (headers, ttl, protocol, length, source, source_port, check) =
        if v6 { (62, 21, 20, 18, 22, 54, 60) } else { (42, 22, 23, 16, 26, 34, 40) };
    match random.below(26) {
        0 if v6 => frame[protocol] = random.pick(&[0, 43, 44, 51, 60, 135, 139, 140]),
        0 => frame[14] = 0x46 + random.below(10) as u8,
        1 if v6 => extend(frame, random.pick(&[0, 43, 60])),
        1 => add_options(random, frame),
        2 => frame[14] = random.byte(),
        3 if v6 => frame[14] ^= 0x10 << random.below(4),
        3 => frame[14] = random.pick(&[0x44, 0x40, 0x55, 0x65]),
        4 if v6 => extend(frame, 44),
        4 => frame[20..22].copy_from_slice(&random.pick(&[
            [0x20, 0],
            [0, 1],
            [0x80, 0],
            [0x3f, 0xff],
            [0x60, 7],
        ])),
        5 => frame[ttl] = random.below(2) as u8,
        6 => frame[protocol] = random.pick(&[1, 6, 58, 132, 136]),
        7 => frame[0] ^= 2,
        8 => {
            let station = random.pick(&[[0xff; 6], [1, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1], GATEWAY]);
            frame[..6].copy_from_slice(&station);
        }
        9 => {
            frame[12..14].copy_from_slice(&random.pick(&[[0x08, 0x06], [0x88, 0xcc], [0, 46], [0x86, 0xde]]))
        }
        10 => frame[length..length + 2].copy_from_slice(&(random.next() as u16).to_be_bytes()),
        11 => frame[source_port + 5] ^= 1 << random.below(8),
        12 => {
            let more = 1 + random.below(70);
            frame.extend(random.bytes(more));
        }
        13 => frame.truncate(ETH_LEN + random.below(headers - ETH_LEN)),
        14 => frame.truncate(headers + random.below(frame.len() + 1 - headers)),
        15 => frame[source_port + random.below(4)] ^= 1,
        16 => unbindable(random, &mut frame[source..]),
        17 | 18 => frame[check..check + 2].fill(0),
        19 => frame[check..check + 2].copy_from_slice(&random.pick(&[[0xff, 0xff], [0, 1], [0x12, 0x34]])),
        20 if !v6 => frame[24] ^= 1 << random.below(8), // the IP header's own checksum
        20 | 21 => {
            // A bind datagram, or the like of one.
            let len = random.pick(&[8, 9, BIND_LEN - 1, BIND_LEN, BIND_LEN, BIND_LEN, BIND_LEN + 1, 1200]);
            frame.resize(headers + len, 0);
            frame[headers..headers + 8].copy_from_slice(&MAGIC);
            set_lengths(frame);
        }
        22 => {
            // Merged packets: larger than the interface's MTU.
            frame.resize(ETH_LEN + MTU as usize + 1 + random.below(1000), 0);
            set_lengths(frame);
        }
        23 => unfinish(frame, source, check),
        24 => finish_alike(random, frame, source, check),
        _ => {
            let group = random.pick(&[[0xff; 6], [1, 0, 0x5e, 0, 0, 1], [0; 6]]);
            frame[6..12].copy_from_slice(&group);
        }
    }
}

/// Leaves the checksum to hardware: what stands there then is the sum of the pseudo header.
fn unfinish(frame: &mut [u8], source: usize, check: usize) {
    let ports = check - 6;
    let words = frame[source..ports].chunks(2).chain([&frame[check - 2..check]]);
    let sum: u32 = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum::<u32>() + 17;
    let folded = (sum & 0xffff) + (sum >> 16);
    frame[check..check + 2].copy_from_slice(&(folded as u16).to_be_bytes());
}

/// Makes the checksum one that is the sum of the pseudo header and right all the same, by what the payload begins with; now and
/// then as good as right.
fn finish_alike(random: &mut Random, frame: &mut [u8], source: usize, check: usize) {
    let length = usize::from(u16::from_be_bytes([frame[check - 2], frame[check - 1]]));
    if length < 10 {
        return;
    }
    unfinish(frame, source, check);
    let (ports, payload) = (check - 6, check + 2);
    frame[payload..payload + 2].fill(0);
    let words = frame[ports..ports + length].chunks(2).chain([&frame[check..payload]]);
    let sum =
        words.map(|word| u64::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]))).sum();
    frame[payload..payload + 2].copy_from_slice(&(!fold_wide(sum)).to_be_bytes());
    if random.one_in(4) {
        frame[ports + 8 + random.below(length - 8)] ^= 1 << random.below(8);
    }
}

/// Puts an extension header of eight bytes in front of the UDP header.
fn extend(frame: &mut Vec<u8>, kind: u8) {
    frame[20] = kind;
    frame.splice(54..54, [17, 0, 1, 4, 0, 0, 0, 0]);
    let length = u16::from_be_bytes([frame[18], frame[19]]) + 8;
    frame[18..20].copy_from_slice(&length.to_be_bytes());
}

/// Puts one to ten words of options behind the IPv4 header.
fn add_options(random: &mut Random, frame: &mut Vec<u8>) {
    let words = 1 + random.below(10);
    frame[14] = 0x45 + words as u8;
    frame.splice(34..34, vec![1; 4 * words]);
    let length = u16::from_be_bytes([frame[16], frame[17]]) + 4 * words as u16;
    frame[16..18].copy_from_slice(&length.to_be_bytes());
}

/// A source that is no agent's: of a group, of this host, none, or the relay itself.
fn unbindable(random: &mut Random, source: &mut [u8]) {
    let v4 = [[224, 0, 0, 1], [255; 4], [127, 0, 0, 1], [0; 4]];
    match (random.below(5), RELAY.ip(), RELAY_V6.ip()) {
        (4, IpAddr::V4(relay), _) if source[0] != 0xfd => source[..4].copy_from_slice(&relay.octets()),
        (4, _, IpAddr::V6(relay)) => source[..16].copy_from_slice(&relay.octets()),
        (which, ..) if source[0] != 0xfd => source[..4].copy_from_slice(&v4[which]),
        (which, ..) => source[..2].copy_from_slice(&[[0xff, 2], [0, 0], [0xff, 0x0e], [0xfe, 0x80]][which]),
    }
}

fn set_lengths(frame: &mut [u8]) {
    let ip_length = (frame.len() - ETH_LEN) as u16;
    if frame[12] == 0x86 {
        frame[18..20].copy_from_slice(&(ip_length - 40).to_be_bytes());
        frame[58..60].copy_from_slice(&(ip_length - 40).to_be_bytes());
    } else {
        frame[16..18].copy_from_slice(&ip_length.to_be_bytes());
        frame[38..40].copy_from_slice(&(ip_length - 20).to_be_bytes());
    }
}
