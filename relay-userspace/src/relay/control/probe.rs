//! Connecting back: an agent asks whether a UDP port of its own address answers, and hears who does.
//!
//! Nobody must be able to have the relay send to somebody else, or more than was sent to it. So the address is the one that the
//! agent is connected from, which it has proved; one datagram of 1200 bytes goes there, no larger than the agent's own first
//! one, and nothing more unless somebody answers; and few are under way at once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::{Endpoint, EndpointConfig, TokioRuntime};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::{Listener, unix_seconds};
use crate::control_transport::control_transport;
use crate::identity::{NodeId, NodeKey};
use crate::protocol::flow_terms::{Ping, Pong, ProbeOutcome};
use crate::tls;

/// So many are under way at once, of all agents together.
pub(super) const AT_ONCE: usize = 4;

/// So many may one connection ask for, one after the other.
pub(super) const MOST_PER_CONNECTION: u32 = 3;

/// Somebody who is there answers within this time.
const PATIENCE: Duration = Duration::from_secs(3);

/// QUIC sends its first datagram again after three times the round trip that it begins with: not before the patience is over.
const FIRST_ROUND_TRIP: Duration = Duration::from_secs(2);

/// A connection that is to be tried.
pub(super) struct Probe {
    key: NodeKey,
    to: SocketAddr,
    echo: i64,
    _place: OwnedSemaphorePermit,
}

impl Listener {
    /// What a Ping of an agent that is connected from `from` asks for, if it may: `left` is how often it still may.
    pub(super) fn probe(&self, ping: &Ping, from: SocketAddr, left: &mut u32) -> Option<Probe> {
        let port = ping.probe.filter(|port| *port != 0)?;
        let more = left.checked_sub(1)?;
        let place = Arc::clone(&self.probes).try_acquire_owned().ok()?;
        *left = more;
        let (key, to) = (self.settings.key.clone(), SocketAddr::new(from.ip(), port));
        Some(Probe { key, to, echo: ping.ts, _place: place })
    }
}

impl Probe {
    /// Tries it: the answer for the agent.
    pub(super) async fn run(self) -> Pong {
        let answered = timeout(PATIENCE, who_answers(&self.key, self.to)).await.ok().flatten();
        let outcome = if answered.is_some() { ProbeOutcome::Answered } else { ProbeOutcome::Silent };
        Pong {
            probed: Some(outcome),
            probed_at: Some(self.to.to_string()),
            probed_node: answered.map(|node| node.to_string()),
            ..Pong::new(unix_seconds(), self.echo)
        }
    }
}

/// The answer to an agent that may not ask.
pub(super) fn refusal(ping: &Ping) -> Pong {
    Pong { probed: Some(ProbeOutcome::Refused), ..Pong::new(unix_seconds(), ping.ts) }
}

/// Who proves a key at `to`, if anybody does.
async fn who_answers(key: &NodeKey, to: SocketAddr) -> Option<NodeId> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    let mut of_endpoint = EndpointConfig::default();
    // A relay tells QUIC from bind datagrams by this bit.
    of_endpoint.grease_quic_bit(false);
    let endpoint = Endpoint::new(of_endpoint, None, socket, Arc::new(TokioRuntime)).ok()?;
    let mut config = tls::client_config(key, tls::ALPN_RELAY, None).ok()?;
    let mut transport = control_transport();
    transport.initial_rtt(FIRST_ROUND_TRIP);
    config.transport_config(Arc::new(transport));
    let connection = endpoint.connect_with(config, to, tls::SERVER_NAME).ok()?.await.ok()?;
    let node = tls::peer_node(&connection).ok();
    connection.close(0_u8.into(), b"that you are there was all that was asked");
    endpoint.wait_idle().await;
    node
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    /// What `to` is sent until the prober gives up.
    async fn sent_to_nobody() -> Vec<usize> {
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        silent.set_nonblocking(true).unwrap();
        let to = silent.local_addr().unwrap();
        let key = NodeKey::from_seed(&[1; 32]);
        assert!(timeout(PATIENCE, who_answers(&key, to)).await.is_err(), "nobody answers");
        let mut buffer = [0; 2048];
        std::iter::from_fn(|| silent.recv(&mut buffer).ok()).collect()
    }

    #[tokio::test]
    async fn one_who_does_not_answer_is_sent_one_datagram_of_1200_bytes() {
        assert_eq!(sent_to_nobody().await, [1200]);
    }
}
