//! A pair of virtual interfaces, for a self-test in a network namespace of its own.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::netlink::Connection;

/// Makes a pair of veth interfaces with these names in the calling thread's network namespace, and sets both up.
///
/// # Errors
/// The kernel refuses: it needs CAP_NET_ADMIN over the namespace.
pub fn make_veth_pair(names: [&str; 2]) -> io::Result<()> {
    let named = |name: &str| {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message
    };
    let [mut one, other] = names.map(named);
    one.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
    ]));
    let mut connection = Connection::open(NETLINK_ROUTE)?;
    connection.ask(Message::NewLink(one), NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)?;
    // Once there are both: one without its peer cannot be set up.
    for name in names {
        let mut message = named(name);
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        connection.ask(Message::SetLink(message), NLM_F_ACK)?;
    }
    Ok(())
}
