//! A proved tuple as sessions keep it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use relay_common::siphash::{SipKey, siphash13};

use crate::relay::datapath::FlowTuple;

/// A [`FlowTuple`] in little more than half the bytes: IPv4 addresses in IPv6's form, in which none comes by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProvedTuple {
    agent: ([u8; 16], u16),
    relay: ([u8; 16], u16),
}

impl ProvedTuple {
    /// A hash that nobody can foretell: tuples are the agents' choice.
    pub fn hash(&self, key: SipKey) -> u64 {
        let half = |bytes: [u8; 16]| {
            let bits = u128::from_ne_bytes(bytes);
            [bits as u64, (bits >> 64) as u64]
        };
        let ([a, b], [c, d]) = (half(self.agent.0), half(self.relay.0));
        siphash13(key, [a, b, c, d, u64::from(self.agent.1) << 16 | u64::from(self.relay.1)])
    }
}

impl From<FlowTuple> for ProvedTuple {
    fn from(FlowTuple { agent, relay }: FlowTuple) -> Self {
        let short = |at: SocketAddr| {
            let ip = match at.ip() {
                IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                IpAddr::V6(v6) => v6,
            };
            (ip.octets(), at.port())
        };
        ProvedTuple { agent: short(agent), relay: short(relay) }
    }
}

impl From<ProvedTuple> for FlowTuple {
    fn from(ProvedTuple { agent, relay }: ProvedTuple) -> Self {
        let long = |(ip, port): ([u8; 16], u16)| SocketAddr::new(Ipv6Addr::from(ip).to_canonical(), port);
        FlowTuple { agent: long(agent), relay: long(relay) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tuple_is_kept_as_it_was() {
        for (agent, relay) in
            [("192.0.2.7:1", "198.51.100.1:4433"), ("[2001:db8::7]:65535", "[2001:db8:1::1]:443")]
        {
            let tuple = FlowTuple { agent: agent.parse().unwrap(), relay: relay.parse().unwrap() };
            assert_eq!(FlowTuple::from(ProvedTuple::from(tuple)), tuple);
        }
    }

    #[test]
    fn every_part_of_a_tuple_and_the_key_count_in_its_hash() {
        let tuple = |agent: &str, relay: &str| {
            ProvedTuple::from(FlowTuple { agent: agent.parse().unwrap(), relay: relay.parse().unwrap() })
        };
        let one = tuple("192.0.2.7:1", "198.51.100.1:4433");
        let others = [
            tuple("192.0.2.8:1", "198.51.100.1:4433"),
            tuple("192.0.2.7:2", "198.51.100.1:4433"),
            tuple("192.0.2.7:1", "198.51.100.2:4433"),
            tuple("192.0.2.7:1", "198.51.100.1:443"),
        ];
        assert!(others.iter().all(|other| other.hash([1, 2]) != one.hash([1, 2])));
        assert!(one.hash([1, 2]) != one.hash([1, 3]));
    }
}
