//! Connecting back: an agent asks whether a UDP port of its own address answers, and hears who does.
//!
//! Nobody must be able to have the relay send to somebody else, or much. So the address is the one that the agent has shaken
//! hands from, which proves it; two datagrams of 1200 bytes go there, QUIC's first and the one that gives up, unless somebody
//! answers; and few are under way at once, of one prefix fewer. The key is one of the moment: what is proved with the relay's
//! own to whoever the agent has there could be passed on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::{Endpoint, EndpointConfig, TokioRuntime};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::places::{Limits, Place};
use super::{Listener, unix_seconds};
use crate::control_transport::control_transport;
use crate::identity::{NodeId, NodeKey};
use crate::protocol::flow_terms::{Ping, Pong, ProbeOutcome};
use crate::relay::prefix::Prefix;
use crate::tls;

/// So many are under way at once. Each has a socket until QUIC has let go of it, ten seconds where nobody answers.
const AT_ONCE: Limits = Limits { all: 16, per_prefix: 4 };

/// So many may one connection ask for, one after the other.
pub(super) const MOST_PER_CONNECTION: u32 = 3;

/// Somebody who is there answers within this time.
const PATIENCE: Duration = Duration::from_secs(3);

/// QUIC sends its first datagram again after three times the round trip that it begins with: not before the patience is over.
const FIRST_ROUND_TRIP: Duration = Duration::from_millis(1100);

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
        let Probe { to, echo, place } = self;
        let (tell, told) = oneshot::channel();
        // Of its own, so that the place is taken for as long as the socket is there, whether or not the agent waits.
        tokio::spawn(async move {
            if let Some(endpoint) = endpoint_towards(to) {
                let _nobody_waits =
                    tell.send(timeout(PATIENCE, who_answers(&endpoint, to)).await.ok().flatten());
                endpoint.wait_idle().await;
            }
            drop(place);
        });
        let answered = told.await.ok().flatten();
        let outcome = if answered.is_some() { ProbeOutcome::Answered } else { ProbeOutcome::Silent };
        Pong {
            probed: Some(outcome),
            probed_at: Some(to.to_string()),
            probed_node: answered.map(|node| node.to_string()),
            ..Pong::new(unix_seconds(), echo)
        }
    }
}

/// Where the relay is to connect to. `proved` is where the agent has shaken hands from, and `seen` where it seems to be now, which
/// anybody who forges a packet can change for a while.
fn asked_for(ping: &Ping, proved: SocketAddr, seen: SocketAddr) -> Option<SocketAddr> {
    let port = ping.probe.filter(|port| *port != 0 && seen.ip() == proved.ip())?;
    Some(SocketAddr::new(proved.ip(), port))
}

/// The answer to an agent that may not ask.
pub(super) fn refusal(ping: &Ping) -> Pong {
    Pong { probed: Some(ProbeOutcome::Refused), ..Pong::new(unix_seconds(), ping.ts) }
}

/// A socket of its own.
fn endpoint_towards(to: SocketAddr) -> Option<Endpoint> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    let mut config = EndpointConfig::default();
    // A relay tells QUIC from bind datagrams by this bit.
    config.grease_quic_bit(false);
    Endpoint::new(config, None, socket, Arc::new(TokioRuntime)).ok()
}

/// Who proves a key at `to`, if anybody does.
async fn who_answers(endpoint: &Endpoint, to: SocketAddr) -> Option<NodeId> {
    let mut config = tls::client_config(&NodeKey::generate().ok()?, tls::ALPN_RELAY, None).ok()?;
    let mut transport = control_transport();
    transport.initial_rtt(FIRST_ROUND_TRIP);
    config.transport_config(Arc::new(transport));
    let connection = endpoint.connect_with(config, to, tls::SERVER_NAME).ok()?.await.ok()?;
    let node = tls::peer_node(&connection).ok();
    connection.close(0_u8.into(), b"that you are there was all that was asked");
    node
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::places::Places;
    use super::*;

    #[tokio::test]
    async fn one_who_does_not_answer_is_sent_two_datagrams_of_1200_bytes_and_the_place_is_taken_until_then() {
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        silent.set_nonblocking(true).unwrap();
        let (to, places) = (silent.local_addr().unwrap(), Arc::new(Places::default()));
        let prefix = Prefix::of(to.ip());
        let place = places.take_within(prefix, AT_ONCE).unwrap();

        let pong = Probe { to, echo: 7, place }.run().await;

        assert_eq!((pong.echo, pong.probed), (7, Some(ProbeOutcome::Silent)));
        assert_eq!(places.taken(prefix), (1, 1), "its socket is still there");
        while places.taken(prefix) != (0, 0) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut buffer = [0; 2048];
        let sent: Vec<usize> = std::iter::from_fn(|| silent.recv(&mut buffer).ok()).collect();
        assert_eq!(sent, [1200, 1200]);
    }

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
