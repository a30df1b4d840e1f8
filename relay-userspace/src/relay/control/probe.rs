//! Connecting back: an agent asks whether a UDP port of its own address answers, and hears who does.
//!
//! Nobody must be able to have the relay send to somebody else, or much: see `crate::probe`. So the address is the one that the
//! agent has shaken hands from, which proves it; and few are under way at once, of one prefix fewer.

use std::net::SocketAddr;

use super::places::{Limits, Place};
use super::{Listener, unix_seconds};
use crate::probe::who_answers;
use crate::protocol::flow_terms::{Ping, Pong};
use crate::relay::prefix::Prefix;

/// So many are under way at once. Each has a socket for up to fifteen seconds.
const AT_ONCE: Limits = Limits { all: 16, per_prefix: 4 };

/// A connection that is to be tried.
pub(super) struct Probe {
    to: SocketAddr,
    echo: i64,
    place: Place,
}

impl Listener {
    /// What a Ping of an agent asks for, if it may: see [`asked_for`]. `left` is how often it still may.
    pub(super) fn probe(
        &self,
        ping: &Ping,
        proved: SocketAddr,
        seen: SocketAddr,
        left: &mut u32,
    ) -> Option<Probe> {
        let to = asked_for(ping, proved, seen)?;
        let more = left.checked_sub(1)?;
        let place = self.probes.take_within(Prefix::of(proved.ip()), AT_ONCE).ok()?;
        *left = more;
        Some(Probe { to, echo: ping.ts, place })
    }
}

impl Probe {
    /// Tries it: the answer for the agent.
    pub(super) async fn run(self) -> Pong {
        who_answers(self.to, self.place).await.answer(unix_seconds(), self.echo)
    }
}

/// Where the relay is to connect to. `proved` is where the agent has shaken hands from, and `seen` where it seems to be now, which
/// anybody who forges a packet can change for a while.
fn asked_for(ping: &Ping, proved: SocketAddr, seen: SocketAddr) -> Option<SocketAddr> {
    let port = ping.probe.filter(|port| *port != 0 && seen.ip() == proved.ip())?;
    Some(SocketAddr::new(proved.ip(), port))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::places::Places;
    use super::*;

    #[test]
    fn an_agent_whose_address_is_another_by_then_is_not_probed() {
        let ping = Ping { probe: Some(4433), ..Ping::new(7) };
        let [proved, other_port, forged] =
            ["192.0.2.1:1", "192.0.2.1:2", "192.0.2.9:1"].map(|address| address.parse().unwrap());
        let own_port = "192.0.2.1:4433".parse().unwrap();
        assert_eq!(asked_for(&ping, proved, proved), Some(own_port));
        assert_eq!(asked_for(&ping, proved, other_port), Some(own_port));
        assert_eq!(asked_for(&ping, proved, forged), None);
        assert_eq!(asked_for(&Ping { probe: Some(0), ..ping }, proved, proved), None);
    }

    #[test]
    fn one_prefix_cannot_have_all_probes() {
        let places = Arc::new(Places::default());
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|ip| Prefix::of(ip.parse().unwrap()));
        let of_one: Vec<Place> = (0..4).map(|_| places.take_within(one, AT_ONCE).unwrap()).collect();
        assert!(places.take_within(one, AT_ONCE).is_err());
        assert!(places.take_within(other, AT_ONCE).is_ok());
        drop(of_one);
        assert!(places.take_within(one, AT_ONCE).is_ok());
    }
}
