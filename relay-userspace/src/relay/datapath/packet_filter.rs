//! The kernel's packet filter: chains of nftables that drop what no rule accepts, by the netlink family of nf_tables.

use std::io;

use netlink_packet_core::NLM_F_DUMP;
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::netlink::Connection;
use super::xdp_features::{Generic, find};

// linux/netfilter/nfnetlink.h, nf_tables.h, linux/netfilter.h
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_GETCHAIN: u16 = 4;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NF_INET_LOCAL_IN: u32 = 1;
const NF_DROP: u32 = 0;

/// A chain that packets to this host go through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// `ip`, `ip6` or `inet`.
    pub family: &'static str,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Whether it drops what no rule of it accepts.
    pub drops: bool,
}

/// The chains of nftables that packets to this host go through.
///
/// # Errors
/// EPERM: the asker has no CAP_NET_ADMIN. Others: the kernel has no nf_tables.
pub fn input_chains() -> io::Result<Vec<Chain>> {
    let mut connection = Connection::open(NETLINK_NETFILTER)?;
    let question = Generic::new(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN, 0, &[]);
    let answers = connection.ask(question, NLM_F_DUMP)?;
    Ok(answers.iter().filter_map(|answer| chain(answer.head()?, |kind| answer.attribute(kind))).collect())
}

/// The chain that an answer is about: its address family, and its attributes.
fn chain<'a>(family: u8, attribute: impl Fn(u16) -> Option<&'a [u8]>) -> Option<Chain> {
    let family = match family {
        1 => "inet",
        2 => "ip",
        10 => "ip6",
        _ => return None,
    };
    let number = |bytes: &[u8]| bytes.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
    let text = |kind| {
        let text = std::str::from_utf8(attribute(kind)?).ok()?;
        Some(text.trim_end_matches('\0').to_owned())
    };
    let hook = find(attribute(NFTA_CHAIN_HOOK)?, NFTA_HOOK_HOOKNUM).and_then(number)?;
    let policy = attribute(NFTA_CHAIN_POLICY).and_then(number);
    let (table, name) = (text(NFTA_CHAIN_TABLE)?, text(NFTA_CHAIN_NAME)?);
    (hook == NF_INET_LOCAL_IN).then_some(Chain { family, table, name, drops: policy == Some(NF_DROP) })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::super::xdp_features::attribute;
    use super::*;

    fn said(family: u8, hook: u32, policy: u32) -> Option<Chain> {
        let hook = attribute(NFTA_HOOK_HOOKNUM, &hook.to_be_bytes());
        let policy = policy.to_be_bytes();
        let attributes: HashMap<u16, &[u8]> = HashMap::from([
            (NFTA_CHAIN_TABLE, &b"filter\0"[..]),
            (NFTA_CHAIN_NAME, b"input\0"),
            (NFTA_CHAIN_HOOK, &hook),
            (NFTA_CHAIN_POLICY, &policy),
        ]);
        chain(family, |kind| attributes.get(&kind).copied())
    }

    #[test]
    fn a_chain_that_packets_to_this_host_go_through_is_told_with_its_policy() {
        let expected = Chain { family: "inet", table: "filter".into(), name: "input".into(), drops: true };
        assert_eq!(said(1, NF_INET_LOCAL_IN, NF_DROP), Some(expected.clone()));
        assert_eq!(said(1, NF_INET_LOCAL_IN, 1), Some(Chain { drops: false, ..expected }));
        assert_eq!(said(1, 2, NF_DROP), None, "forwarding");
        assert_eq!(said(7, NF_INET_LOCAL_IN, NF_DROP), None, "a bridge");
    }
}
