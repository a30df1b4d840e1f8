//! What the kernel knows of links, routes, neighbours and addresses: questions and answers over rtnetlink(7).

use std::io;
use std::iter;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp,
    VlanProtocol, XdpAttached,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::next_hops::{HopKey, Link, Neighbour, Vlan, XdpProgram};
use super::program::Hook;

/// The largest datagram the kernel answers with (a part of a dump), in bytes.
const ANSWER_LEN: usize = 64 * 1024;

/// The kernel's view of the network. Every question waits for its answer, which the kernel gives at once.
pub struct Netlink(Connection<Message>);

impl Netlink {
    /// Opens a connection. Questions need no privilege.
    ///
    /// # Errors
    /// What socket(2) says.
    pub fn open() -> io::Result<Netlink> {
        Connection::open(NETLINK_ROUTE).map(Netlink)
    }

    /// Every interface. [`Link::takes_redirects`] is not known here.
    ///
    /// # Errors
    /// The kernel refuses or cannot be reached.
    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let answers = self.0.ask(Message::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
        Ok(answers.iter().filter_map(link).collect())
    }

    /// The interface with index `index`, `None` if there is none.
    ///
    /// # Errors
    /// The kernel refuses or cannot be reached.
    pub fn link(&mut self, index: u32) -> io::Result<Option<Link>> {
        let mut question = LinkMessage::default();
        question.header.index = index;
        let answers = unless(libc::ENODEV, self.0.ask(Message::GetLink(question), 0))?;
        Ok(answers.iter().find_map(link))
    }

    /// What has been counted on the interface with index `index`, `None` if there is none.
    ///
    /// # Errors
    /// The kernel refuses or cannot be reached.
    pub fn link_counts(&mut self, index: u32) -> io::Result<Option<LinkCounts>> {
        let mut question = LinkMessage::default();
        question.header.index = index;
        let answers = unless(libc::ENODEV, self.0.ask(Message::GetLink(question), 0))?;
        Ok(answers.iter().find_map(link_counts))
    }

    /// Every address of this host.
    ///
    /// # Errors
    /// The kernel refuses or cannot be reached.
    pub fn addresses(&mut self) -> io::Result<Vec<IpAddr>> {
        let answers = self.0.ask(Message::GetAddress(AddressMessage::default()), NLM_F_DUMP)?;
        Ok(answers.iter().filter_map(address).collect())
    }

    /// The next hop of packets from the local address `from` to `to`. `None` if no Ethernet-like hop leads there: no
    /// route, one that ends in this host, or one through a tunnel or label the program cannot make.
    ///
    /// # Errors
    /// The kernel cannot be reached.
    pub fn next_hop(&mut self, to: IpAddr, from: IpAddr) -> io::Result<Option<HopKey>> {
        let mut question = RouteMessage::default();
        question.header.address_family = family(to);
        question.header.destination_prefix_length = prefix_len(to);
        question.attributes.push(RouteAttribute::Destination(to.into()));
        if !from.is_unspecified() {
            question.header.source_prefix_length = prefix_len(from);
            question.attributes.push(RouteAttribute::Source(from.into()));
        }
        match self.0.ask(Message::GetRoute(question), 0) {
            Ok(answers) => Ok(answers.iter().find_map(|answer| next_hop(answer, to))),
            Err(error) if is_no_route(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What the kernel knows of a neighbour, `None` if it has no entry for it that may be used.
    ///
    /// # Errors
    /// The kernel refuses or cannot be reached.
    pub fn neighbour(&mut self, key: HopKey) -> io::Result<Option<KnownNeighbour>> {
        let answers = unless(libc::ENOENT, self.0.ask(Message::GetNeighbour(about(key)), 0))?;
        Ok(answers.iter().find_map(neighbour))
    }

    /// What the kernel says of a neighbour's entry, usable or not; `None` if it has none.
    ///
    /// # Errors
    /// The kernel refuses or cannot be reached.
    pub fn neighbour_entry(&mut self, key: HopKey) -> io::Result<Option<NeighbourEntry>> {
        let answers = unless(libc::ENOENT, self.0.ask(Message::GetNeighbour(about(key)), 0))?;
        Ok(answers.iter().find_map(neighbour_entry))
    }
}

/// An entry of the kernel's neighbour table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeighbourEntry {
    /// As ip(8) writes it: `reachable`, `stale`, `failed` and so on.
    pub state: String,
    /// How long ago the neighbour was heard of; none if it never was.
    pub confirmed: Option<Duration>,
}

/// A connection of one netlink family, whose messages are `M`.
pub(super) struct Connection<M> {
    socket: Socket,
    asked: u32,
    messages: PhantomData<fn(M) -> M>,
}

impl<M: NetlinkSerializable + NetlinkDeserializable> Connection<M> {
    pub fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Connection { socket, asked: 0, messages: PhantomData })
    }

    /// Asks and collects the answers: one, or with [`NLM_F_DUMP`] as many as there are.
    pub fn ask(&mut self, question: M, flags: u16) -> io::Result<Vec<M>> {
        self.asked = self.asked.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.asked;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(question));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        self.answers(flags & NLM_F_DUMP != 0)
    }

    fn answers(&mut self, many: bool) -> io::Result<Vec<M>> {
        let mut answers = Vec::new();
        let mut buffer = Vec::with_capacity(ANSWER_LEN);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            for message in messages::<M>(&buffer) {
                if message.header.sequence_number != self.asked {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(answer) => {
                        answers.push(answer);
                        if !many {
                            return Ok(answers);
                        }
                    }
                    NetlinkPayload::Error(error) => {
                        return match error.code {
                            Some(code) => Err(io::Error::from_raw_os_error(code.get().saturating_neg())),
                            None => Ok(answers),
                        };
                    }
                    NetlinkPayload::Done(_) => return Ok(answers),
                    _ => {}
                }
            }
        }
    }
}

/// The netlink messages of one datagram; those that make no sense are skipped.
pub(super) fn messages<M: NetlinkDeserializable>(
    mut bytes: &[u8],
) -> impl Iterator<Item = NetlinkMessage<M>> + '_ {
    iter::from_fn(move || {
        loop {
            let len = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
            let message = bytes.get(..len).filter(|_| len > 0)?;
            bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
            match NetlinkMessage::deserialize(message) {
                Ok(message) => return Some(message),
                Err(error) => tracing::debug!(%error, "skipped a netlink message that could not be read"),
            }
        }
    })
}

/// A usable entry of the kernel's neighbour table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownNeighbour {
    /// What it says.
    pub neighbour: Neighbour,
    /// The kernel has not heard of it for a while, and finds out nothing unless somebody uses the entry.
    pub stale: bool,
}

/// What the kernel and the driver have counted on an interface: of what was received, and of what was transmitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounts {
    /// Packets.
    pub packets: [u64; 2],
    /// Packets that were dropped, those for want of receive buffers included.
    pub dropped: [u64; 2],
    /// Errors.
    pub errors: [u64; 2],
}

fn link_counts(answer: &Message) -> Option<LinkCounts> {
    let Message::NewLink(message) = answer else { return None };
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Stats64(counts) => Some(LinkCounts {
            packets: [counts.rx_packets, counts.tx_packets],
            dropped: [counts.rx_dropped.saturating_add(counts.rx_missed_errors), counts.tx_dropped],
            errors: [counts.rx_errors, counts.tx_errors],
        }),
        _ => None,
    })
}

fn link(answer: &Message) -> Option<Link> {
    let Message::NewLink(message) = answer else { return None };
    let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        veth: false,
        vlan: vlan(&message.attributes),
        xdp: None,
        takes_redirects: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(mac) if ethernet => link.mac = mac.as_slice().try_into().ok(),
            LinkAttribute::LinkInfo(infos) => link.veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth)),
            LinkAttribute::Xdp(facts) => link.xdp = xdp_program(facts),
            _ => {}
        }
    }
    Some(link)
}

/// The VLAN that the interface is. One with service tags (802.1ad), or on top of an interface that is elsewhere, is
/// taken for an interface like any other: the program makes no frames of it.
fn vlan(attributes: &[LinkAttribute]) -> Option<Vlan> {
    let (mut below, mut number, mut protocol) = (None, None, None);
    for attribute in attributes {
        match attribute {
            LinkAttribute::Link(index) => below = Some(*index),
            LinkAttribute::LinkNetNsId(_) => return None,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    let LinkInfo::Data(InfoData::Vlan(facts)) = info else { continue };
                    for fact in facts {
                        match fact {
                            InfoVlan::Id(id) => number = Some(*id),
                            InfoVlan::Protocol(is) => protocol = Some(*is),
                            _ => {}
                        }
                    }
                }
            }
            _ => {}
        }
    }
    (protocol == Some(VlanProtocol::Ieee8021Q)).then_some(Vlan { below: below?, number: number? })
}

/// The program that sees the interface's packets. If there is one in the driver and one in the stack, it is the driver's.
fn xdp_program(facts: &[LinkXdp]) -> Option<XdpProgram> {
    let id_of = |hook| {
        facts.iter().find_map(|fact| match (hook, fact) {
            (Hook::Native, LinkXdp::DrvProgId(id)) | (Hook::Generic, LinkXdp::SkbProgId(id)) => Some(*id),
            _ => None,
        })
    };
    let attached = facts.iter().find_map(|fact| match fact {
        LinkXdp::Attached(attached) => Some(attached),
        _ => None,
    })?;
    let hook = match attached {
        XdpAttached::None => return None,
        XdpAttached::SocketBuffer => Hook::Generic,
        _ => Hook::Native,
    };
    Some(XdpProgram { hook, id: id_of(hook).unwrap_or(0) })
}

fn address(answer: &Message) -> Option<IpAddr> {
    let Message::NewAddress(message) = answer else { return None };
    local_address(message)
}

/// The address of this host that a message is about.
pub(super) fn local_address(message: &AddressMessage) -> Option<IpAddr> {
    // On a point-to-point link IFA_ADDRESS is the other end's, and IFA_LOCAL ours.
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}

fn next_hop(answer: &Message, to: IpAddr) -> Option<HopKey> {
    let Message::NewRoute(message) = answer else { return None };
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let (mut interface, mut gateway) = (None, to);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(address))
            | RouteAttribute::Via(RouteVia::Inet(address)) => gateway = IpAddr::V4(*address),
            RouteAttribute::Gateway(RouteAddress::Inet6(address))
            | RouteAttribute::Via(RouteVia::Inet6(address)) => gateway = IpAddr::V6(*address),
            RouteAttribute::EncapType(_) | RouteAttribute::Encap(_) => return None,
            _ => {}
        }
    }
    Some(HopKey { interface: interface?, gateway })
}

fn neighbour(answer: &Message) -> Option<KnownNeighbour> {
    let Message::NewNeighbour(message) = answer else { return None };
    let usable = match message.header.state {
        NeighbourState::Reachable
        | NeighbourState::Stale
        | NeighbourState::Delay
        | NeighbourState::Probe
        | NeighbourState::Permanent
        | NeighbourState::Noarp => true,
        NeighbourState::None
        | NeighbourState::Incomplete
        | NeighbourState::Failed
        | NeighbourState::Other(_) => false,
        _ => false,
    };
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(mac) => mac.as_slice().try_into().ok(),
        _ => None,
    });
    let stale = message.header.state == NeighbourState::Stale;
    mac.filter(|_| usable).map(|mac| KnownNeighbour { neighbour: Neighbour { mac }, stale })
}

fn neighbour_entry(answer: &Message) -> Option<NeighbourEntry> {
    // linux/neighbour.h: times are in ticks of a hundredth of a second, which is what the kernel tells userspace in.
    const TICK: Duration = Duration::from_millis(10);
    let Message::NewNeighbour(message) = answer else { return None };
    let confirmed = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::CacheInfo(times) => TICK.checked_mul(times.confirmed),
        _ => None,
    });
    // An entry that nobody has answered for keeps no such time.
    let was_heard = neighbour(answer).is_some() && message.header.state != NeighbourState::Permanent;
    let state = message.header.state.to_string();
    Some(NeighbourEntry { state, confirmed: confirmed.filter(|_| was_heard) })
}

/// The neighbour a message is about.
pub(super) fn subject(message: &NeighbourMessage) -> Option<HopKey> {
    let gateway = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    });
    Some(HopKey { interface: message.header.ifindex, gateway: gateway? })
}

fn about(key: HopKey) -> NeighbourMessage {
    let mut question = NeighbourMessage::default();
    question.header.family = family(key.gateway);
    question.header.ifindex = key.interface;
    question.attributes.push(NeighbourAttribute::Destination(key.gateway.into()));
    question
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn prefix_len(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// What the kernel answers when there is no way to a destination, or not from that source: `unreachable`, `blackhole`,
/// `prohibit` and `throw` routes included.
fn is_no_route(error: &io::Error) -> bool {
    let codes =
        [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EINVAL, libc::EACCES, libc::EAGAIN, libc::ENODEV];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

fn unless(absent: i32, answers: io::Result<Vec<Message>>) -> io::Result<Vec<Message>> {
    match answers {
        Err(error) if error.raw_os_error() == Some(absent) => Ok(Vec::new()),
        answers => answers,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel says of a VLAN. Not every kernel has VLANs, so it is said here.
    fn described(protocol: VlanProtocol, more: Option<LinkAttribute>) -> Option<Vlan> {
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.header.link_layer_type = LinkLayerType::Ether;
        let facts = vec![InfoVlan::Protocol(protocol), InfoVlan::Id(5)];
        let infos = vec![LinkInfo::Kind(InfoKind::Vlan), LinkInfo::Data(InfoData::Vlan(facts))];
        message.attributes = vec![LinkAttribute::Link(3), LinkAttribute::LinkInfo(infos)];
        message.attributes.extend(more);
        // As bytes, the way it comes.
        let mut packet = NetlinkMessage::from(Message::NewLink(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        let read = messages::<Message>(&bytes).next().unwrap();
        let NetlinkPayload::InnerMessage(answer) = read.payload else { panic!("not a link") };
        link(&answer).unwrap().vlan
    }

    #[test]
    fn a_vlan_is_known_by_its_number_and_the_interface_below() {
        assert_eq!(described(VlanProtocol::Ieee8021Q, None), Some(Vlan { below: 3, number: 5 }));
    }

    #[test]
    fn a_vlan_with_service_tags_or_on_an_interface_elsewhere_is_none_of_ours() {
        assert_eq!(described(VlanProtocol::Ieee8021Ad, None), None);
        assert_eq!(described(VlanProtocol::Ieee8021Q, Some(LinkAttribute::LinkNetNsId(0))), None);
    }
}
