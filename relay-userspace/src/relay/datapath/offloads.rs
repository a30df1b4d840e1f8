//! What interfaces do to frames before anybody sees them: the active features by the kernel's generic netlink family
//! "ethtool" (Linux 5.6 and later).

use std::io;

use netlink_packet_core::NlasIterator;
use netlink_sys::protocols::NETLINK_GENERIC;

use super::netlink::Connection;
use super::xdp_features::{CTRL_ATTR_FAMILY_ID, Generic, ask_for_family, attribute, find};

// linux/ethtool_netlink.h
const ETHTOOL_MSG_FEATURES_GET: u8 = 11;
const ETHTOOL_A_FEATURES_HEADER: u16 = 1;
const ETHTOOL_A_FEATURES_ACTIVE: u16 = 4;
const ETHTOOL_A_HEADER_DEV_INDEX: u16 = 1;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;
/// linux/netlink.h: an attribute of attributes.
const NLA_F_NESTED: u16 = 1 << 15;

/// The names of the features that are active at the interface with this index, as `ethtool -k` writes the kernel's own:
/// `rx-lro`, `rx-gro-hw`. `None` on kernels that cannot say.
///
/// # Errors
/// The kernel refuses, or there is no such interface.
pub fn active_features(index: u32) -> io::Result<Option<Vec<String>>> {
    let mut connection = Connection::open(NETLINK_GENERIC)?;
    let Some(answers) = ask_for_family(&mut connection, b"ethtool\0")? else { return Ok(None) };
    let family = answers.iter().find_map(|answer| answer.attribute(CTRL_ATTR_FAMILY_ID)?.first_chunk());
    let Some(family) = family.map(|bytes| u16::from_ne_bytes(*bytes)) else { return Ok(None) };
    let device = attribute(ETHTOOL_A_HEADER_DEV_INDEX, &index.to_ne_bytes());
    let header = attribute(ETHTOOL_A_FEATURES_HEADER | NLA_F_NESTED, &device);
    let answers = connection.ask(Generic::new(family, ETHTOOL_MSG_FEATURES_GET, &header), 0)?;
    Ok(answers.iter().find_map(|answer| answer.attribute(ETHTOOL_A_FEATURES_ACTIVE)).map(names))
}

/// The names in a set of bits: a list of those that are set.
fn names(set: &[u8]) -> Vec<String> {
    let Some(bits) = find(set, ETHTOOL_A_BITSET_BITS) else { return Vec::new() };
    let name = |bit: &[u8]| {
        let name = find(bit, ETHTOOL_A_BITSET_BIT_NAME)?;
        std::str::from_utf8(name).ok().map(|name| name.trim_end_matches('\0').to_owned())
    };
    NlasIterator::new(bits).flatten().filter_map(|bit| name(bit.value())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_has_features_with_names() {
        let Some(active) = active_features(1).unwrap() else { return };
        assert!(active.iter().any(|name| name == "tx-scatter-gather"), "{active:?}");
    }

    #[test]
    fn what_is_no_set_of_bits_has_no_names() {
        assert!(names(&[]).is_empty() && names(&[1, 2, 3]).is_empty() && names(&[0xff; 64]).is_empty());
    }
}
