//! What drivers say of their XDP support: the kernel's generic netlink family "netdev" (Linux 6.3 and later).

use std::convert::Infallible;
use std::io;

use netlink_packet_core::{
    NetlinkDeserializable, NetlinkHeader, NetlinkPayload, NetlinkSerializable, NlasIterator,
};
use netlink_sys::protocols::NETLINK_GENERIC;

use super::netlink::{Connection, messages};

// linux/genetlink.h
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
pub(super) const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const CTRL_ATTR_MCAST_GROUPS: u16 = 7;
const CTRL_ATTR_MCAST_GRP_NAME: u16 = 1;
const CTRL_ATTR_MCAST_GRP_ID: u16 = 2;
// linux/netdev.h
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_XDP_ACT_NDO_XMIT: u64 = 4;

/// Asks drivers for their XDP support.
pub struct XdpFeatures {
    connection: Connection<Generic>,
    family: u16,
    announcements: u32,
}

impl XdpFeatures {
    /// Opens a connection; `None` on kernels that cannot say.
    ///
    /// # Errors
    /// The kernel cannot be reached.
    pub fn open() -> io::Result<Option<XdpFeatures>> {
        let mut connection = Connection::open(NETLINK_GENERIC)?;
        let Some(answers) = ask_for_family(&mut connection, b"netdev\0")? else { return Ok(None) };
        let described = answers.iter().find_map(|answer| {
            let family = u16::from_ne_bytes(*answer.attribute(CTRL_ATTR_FAMILY_ID)?.first_chunk()?);
            Some((family, announcements(answer.attribute(CTRL_ATTR_MCAST_GROUPS)?)?))
        });
        Ok(described.map(|(family, announcements)| XdpFeatures { connection, family, announcements }))
    }

    /// Whether the driver of the interface with index `index` takes frames redirected to it by a native program. `None`
    /// if the interface is gone.
    ///
    /// # Errors
    /// The kernel cannot be reached.
    pub fn takes_redirects(&mut self, index: u32) -> io::Result<Option<bool>> {
        Ok(self.of(index)?.map(|features| features & NETDEV_XDP_ACT_NDO_XMIT != 0))
    }

    /// What the driver of that interface can do: bits by the place of [`FEATURES`]. `None` if the interface is gone.
    ///
    /// # Errors
    /// The kernel cannot be reached.
    pub fn of(&mut self, index: u32) -> io::Result<Option<u64>> {
        let index = attribute(NETDEV_A_DEV_IFINDEX, &index.to_ne_bytes());
        let answers = match self.connection.ask(Generic::new(self.family, NETDEV_CMD_DEV_GET, &index), 0) {
            Ok(answers) => answers,
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(answers.iter().find_map(|answer| {
            Some(u64::from_ne_bytes(*answer.attribute(NETDEV_A_DEV_XDP_FEATURES)?.first_chunk()?))
        }))
    }

    /// The multicast group of changes: a veth takes redirects only while its peer is ready for them, and no other
    /// announcement tells of that.
    pub fn announcements(&self) -> u32 {
        self.announcements
    }
}

/// The names of what a driver can do, in the order of the bits (linux/netdev.h, enum netdev_xdp_act).
pub const FEATURES: [&str; 7] =
    ["basic", "redirect", "ndo_xmit", "xsk_zerocopy", "hw_offload", "rx_sg", "ndo_xmit_sg"];

/// Asks for a family by its name, which ends with a 0; `None` if the kernel has none of this name.
pub(super) fn ask_for_family(
    connection: &mut Connection<Generic>,
    name: &[u8],
) -> io::Result<Option<Vec<Generic>>> {
    let name = attribute(CTRL_ATTR_FAMILY_NAME, name);
    match connection.ask(Generic::new(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, &name), 0) {
        Ok(answers) => Ok(Some(answers)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The interfaces that a datagram of announcements is about.
pub(super) fn announced(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    messages::<Generic>(bytes).filter_map(|message| match message.payload {
        NetlinkPayload::InnerMessage(message) => {
            Some(u32::from_ne_bytes(*message.attribute(NETDEV_A_DEV_IFINDEX)?.first_chunk()?))
        }
        _ => None,
    })
}

/// A message of generic netlink: `{ command: u8, version: u8, reserved: u16 }` and attributes.
pub(super) struct Generic {
    family: u16,
    bytes: Vec<u8>,
}

impl Generic {
    pub fn new(family: u16, command: u8, attributes: &[u8]) -> Generic {
        Generic { family, bytes: [&[command, 1, 0, 0], attributes].concat() }
    }

    /// Its first byte: the command or, of nf_tables, the address family.
    pub fn head(&self) -> Option<u8> {
        self.bytes.first().copied()
    }

    pub fn attribute(&self, kind: u16) -> Option<&[u8]> {
        find(self.bytes.get(4..)?, kind)
    }
}

pub(super) fn find(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    let found = NlasIterator::new(attributes).flatten().find(|found| found.kind() == kind)?;
    let len = usize::from(found.length());
    found.into_inner().get(4..len)
}

/// The number of the family's one multicast group, "mgmt", in the list of its groups.
fn announcements(groups: &[u8]) -> Option<u32> {
    NlasIterator::new(groups).flatten().find_map(|group| {
        let name = find(group.value(), CTRL_ATTR_MCAST_GRP_NAME)?;
        let id = find(group.value(), CTRL_ATTR_MCAST_GRP_ID)?;
        (name == b"mgmt\0").then_some(u32::from_ne_bytes(*id.first_chunk()?))
    })
}

/// An attribute: `{ length: u16, kind: u16 }`, the value, padding to four bytes.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = 4 + value.len();
    let mut bytes = [&(len as u16).to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(len.next_multiple_of(4), 0);
    bytes
}

impl NetlinkSerializable for Generic {
    fn message_type(&self) -> u16 {
        self.family
    }

    fn buffer_len(&self) -> usize {
        self.bytes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        for (to, from) in buffer.iter_mut().zip(&self.bytes) {
            *to = *from;
        }
    }
}

impl NetlinkDeserializable for Generic {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Generic { family: header.message_type, bytes: payload.to_vec() })
    }
}
