//! What `explain` says: the JSON of the admin socket, which is also what `--json` prints.

use relay_common::next_hop::{Egress, Hop};
use relay_common::{Reason, Side};
use serde::{Deserialize, Serialize};

use super::datapath::{CopiedFlow, Fate, Relayed, Way};
use super::udp_frame::{Checksum, UdpFrame};

/// What would become of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The relay's datapath: `xdp-native`, `xdp-generic` or `userspace`.
    pub datapath: String,
    /// The packet.
    pub packet: Packet,
    /// Why no packet to this destination reaches the relay; none: it listens there.
    #[serde(default)]
    pub not_listening: Option<String>,
    /// What the XDP program does with it; none in the userspace datapath.
    pub program: Option<Decision>,
    /// What the userspace forwarder does with it; none if it does not get it, or not as it is.
    pub forwarder: Option<Decision>,
    /// The packet as it leaves, if it does.
    pub leaves: Option<Leaving>,
    /// The session that its tuple is one of.
    pub session: Option<Session>,
    /// Where that session's packets from this side go next; none without an XDP program.
    pub next_hop: Option<NextHop>,
    /// The session's limit; none: it has no limit.
    pub bucket: Option<Bucket>,
}

/// The packet that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    /// Address and port that it comes from.
    pub source: String,
    /// The relay's address and port that it comes to.
    pub destination: String,
    /// Bytes of the Ethernet frame.
    pub frame_bytes: usize,
    /// UDP payload bytes; none if there is no whole UDP packet in the frame.
    pub payload_bytes: Option<usize>,
    /// TTL or hop limit, likewise.
    pub ttl: Option<u8>,
    /// TOS or traffic class, likewise.
    pub tos: Option<u8>,
    /// The VLAN of its tag.
    pub vlan: Option<u16>,
    /// The interface that it is taken to come by.
    pub interface: Option<String>,
}

/// What somebody does with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// The reason's name.
    pub reason: String,
    /// What it means.
    pub text: String,
    /// `forward`, `pass`, `drop` or `abort`.
    pub action: String,
}

/// The packet as it leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaving {
    /// The relay's address and port.
    pub source: String,
    /// The other agent's address and port.
    pub destination: String,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TOS or traffic class: its last two bits are 3 if the packet is marked for the limit.
    pub tos: u8,
    /// The checksums, and whether each is that of the packet; none where the kernel will make them.
    pub checksums: Option<Checksums>,
    /// Source MAC address; none where the kernel will find it.
    pub station: Option<String>,
    /// Destination MAC address, likewise.
    pub to_station: Option<String>,
    /// The VLAN of its tag.
    pub vlan: Option<u16>,
}

/// Checksums of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checksums {
    /// Of the IPv4 header, four hexadecimal digits; none for IPv6.
    pub ip: Option<String>,
    /// Of the UDP packet; `0000`: there is none.
    pub udp: String,
    /// Whether they are those of the packet.
    pub right: bool,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Its id, 32 hexadecimal digits; none of a slot that nobody's record goes with.
    pub session: Option<String>,
    /// The side that sends packets of the tuple: `connector` or `target`.
    pub sender: String,
    /// The sender has moved away from this tuple in the last seconds: the program does not know it any more, and the
    /// forwarder still relays what was on its way.
    pub previous_tuple: bool,
    /// Connector and target.
    pub sides: [SessionSide; 2],
}

/// One side of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionSide {
    /// Its node id.
    pub node_id: Option<String>,
    /// Where it sends from.
    pub agent: Option<String>,
    /// The relay's address that it sends to.
    pub relay: Option<String>,
    /// Milliseconds for which packets from and to it may still be forwarded, if it does not prove its tuple again before.
    pub consent_left_ms: u64,
}

/// A next hop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextHop {
    /// Its number.
    pub number: u16,
    /// `transmit`: back out of the interface; `redirect`: by another, or by itself on a veth; `userspace`: not from the
    /// program.
    pub egress: String,
    /// The interface's name.
    pub interface: Option<String>,
    /// The largest IP packet that it takes, in bytes.
    pub mtu: Option<u32>,
    /// The VLAN whose tag its frames carry.
    pub vlan: Option<u16>,
    /// Its own MAC address, as the program writes it.
    pub to_station: Option<String>,
    /// The gateway's address, or the agent's on the relay's own network, by the kernel's routes.
    pub gateway: Option<String>,
    /// The state of its entry in the kernel's neighbour table.
    pub neighbour: Option<String>,
    /// Seconds since the neighbour was heard of.
    pub confirmed_s: Option<u64>,
}

/// A session's limit, and what is left of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// UDP payload bytes per second of both directions.
    pub rate_bytes_per_s: u64,
    /// The burst.
    pub burst_bytes: u64,
    /// What is left of it.
    pub left_bytes: u64,
    /// What is left of it for packets of more than 256 bytes: all but an eighth of the burst.
    pub left_for_large_bytes: u64,
}

/// What an [`Explanation`] is made of beside the packet's fate.
#[derive(Clone, Debug, Default)]
pub struct Setting {
    /// The datapath's name.
    pub datapath: &'static str,
    /// Why the relay does not listen at the packet's destination.
    pub not_listening: Option<String>,
    /// The interface that the packet is taken to come by.
    pub interface: Option<String>,
    /// The interface that it leaves by.
    pub egress: Option<String>,
    /// The way to the other agent, by the kernel's routes.
    pub way: Option<Way>,
}

impl Explanation {
    /// Says what becomes of the packet from `source` to `destination`.
    pub fn of(source: String, destination: String, fate: &Fate, setting: Setting) -> Explanation {
        let read = UdpFrame::read(&fate.frame);
        let Setting { datapath, not_listening, interface, egress, way } = setting;
        Explanation {
            datapath: datapath.to_owned(),
            packet: Packet {
                source,
                destination,
                frame_bytes: fate.frame.len(),
                payload_bytes: read.as_ref().map(|read| read.payload.len()),
                ttl: read.as_ref().map(|read| read.ttl),
                tos: read.as_ref().map(|read| read.tos),
                vlan: read.as_ref().and_then(|read| read.vlan),
                interface,
            },
            not_listening,
            program: fate.program.as_ref().map(|by| Decision::of(by.reason)),
            forwarder: fate.forwarder.as_ref().map(|by| Decision::of(by.err().unwrap_or(Reason::Forwarded))),
            leaves: leaves(fate, read.as_ref()),
            session: fate.flow.as_ref().map(Session::of),
            next_hop: fate
                .flow
                .as_ref()
                .filter(|_| fate.program.is_some())
                .map(|flow| NextHop::of(flow, egress, way)),
            bucket: fate.flow.as_ref().and_then(Bucket::of),
        }
    }
}

impl Decision {
    fn of(reason: Reason) -> Decision {
        Decision {
            reason: reason.name().to_owned(),
            text: reason.text().to_owned(),
            action: reason.action().name().to_owned(),
        }
    }
}

fn leaves(fate: &Fate, came: Option<&UdpFrame<'_>>) -> Option<Leaving> {
    if let Some(by) = fate.program.as_ref().filter(|by| by.reason == Reason::Forwarded) {
        let made = UdpFrame::read(&by.frame)?;
        let [to_station, station] = made.stations.map(station_text);
        return Some(Leaving {
            source: made.source.to_string(),
            destination: made.destination.to_string(),
            ttl: made.ttl,
            tos: made.tos,
            checksums: Some(Checksums {
                ip: made.ip_checksum.map(|Checksum { stands, .. }| format!("{stands:04x}")),
                udp: format!("{:04x}", made.udp_checksum.stands),
                right: made.udp_checksum.is_right && made.ip_checksum.is_none_or(|ip| ip.is_right),
            }),
            station: Some(station),
            to_station: Some(to_station),
            vlan: made.vlan,
        });
    }
    let Some(Ok(Relayed { to, from, mark, .. })) = fate.forwarder else { return None };
    let came = came?;
    /// Congestion experienced (RFC 3168 section 5).
    const CE: u8 = 0b11;
    Some(Leaving {
        source: from.to_string(),
        destination: to.to_string(),
        ttl: came.ttl.saturating_sub(1),
        tos: if mark { came.tos | CE } else { came.tos },
        checksums: None,
        station: None,
        to_station: None,
        vlan: None,
    })
}

impl Session {
    fn of(flow: &CopiedFlow) -> Session {
        let side = |side: Side| {
            let tuple = flow.tuples.get(side.index()).copied().flatten();
            let node = flow.identity.and_then(|identity| identity.nodes.get(side.index()).copied());
            let left = flow.consent_left.get(side.index()).map_or(0, std::time::Duration::as_millis);
            SessionSide {
                node_id: node.map(|node| node.to_string()),
                agent: tuple.map(|tuple| tuple.agent.to_string()),
                relay: tuple.map(|tuple| tuple.relay.to_string()),
                consent_left_ms: u64::try_from(left).unwrap_or(u64::MAX),
            }
        };
        let sender = match flow.side {
            Side::Connector => "connector",
            Side::Target => "target",
        };
        Session {
            session: flow.identity.map(|identity| identity.session.to_string()),
            sender: sender.to_owned(),
            previous_tuple: flow.previous,
            sides: Side::BOTH.map(side),
        }
    }
}

impl NextHop {
    fn of(flow: &CopiedFlow, interface: Option<String>, way: Option<Way>) -> NextHop {
        let hop: Option<&Hop> = flow.hop.as_ref().filter(|hop| hop.egress != Egress::Userspace);
        let egress = match hop.map(|hop| hop.egress) {
            Some(Egress::Transmit) => "transmit",
            Some(Egress::Redirect) => "redirect",
            Some(Egress::Userspace) | None => "userspace",
        };
        let entry = way.as_ref().and_then(|way| way.neighbour.as_ref());
        NextHop {
            number: flow.hop_number,
            egress: egress.to_owned(),
            interface: interface.or_else(|| way.as_ref().map(|way| way.interface.clone())),
            mtu: hop.map(|hop| hop.mtu),
            vlan: hop.map(|hop| hop.vlan).filter(|vlan| *vlan != 0),
            to_station: hop.map(|hop| station_text(hop.stations()[0])),
            gateway: way.as_ref().map(|way| way.gateway.to_string()),
            neighbour: entry.map(|entry| entry.state.clone()),
            confirmed_s: entry.and_then(|entry| entry.confirmed).map(|ago| ago.as_secs()),
        }
    }
}

impl Bucket {
    fn of(flow: &CopiedFlow) -> Option<Bucket> {
        let allowance = flow.allowance;
        let reserved = allowance.burst >> 3;
        Some(Bucket {
            rate_bytes_per_s: allowance.bytes_per_s()?,
            burst_bytes: allowance.bytes(allowance.burst)?,
            left_bytes: allowance.bytes(flow.burst_left)?,
            left_for_large_bytes: allowance.bytes(flow.burst_left.saturating_sub(reserved))?,
        })
    }
}

fn station_text(station: [u8; 6]) -> String {
    station.map(|byte| format!("{byte:02x}")).join(":")
}
