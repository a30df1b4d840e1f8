//! Connecting to a UDP port to hear who answers there: what `probe` in a Ping asks for, of a relay as of an agent.
//!
//! Who is asked decides where to, and how often: nobody must be able to have it send to somebody else, or much. Two datagrams of
//! 1200 bytes go there, QUIC's first and the one that gives up, unless somebody answers. The key is one of the moment: what is
//! proved with a node's own to whoever is there could be passed on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::{Endpoint, EndpointConfig, TokioRuntime};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::control_transport::control_transport;
use crate::identity::{NodeId, NodeKey};
use crate::protocol::flow_terms::{Pong, ProbeOutcome};
use crate::tls;

/// So many may be asked for on one connection, one after the other. An agent, whose connections last, lets one more be asked for
/// now and then.
pub const MOST_PER_CONNECTION: u32 = 3;

/// Somebody who is there answers within this time.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// QUIC sends its first datagram again after three times the round trip that it begins with: not before the patience is over.
const FIRST_ROUND_TRIP: Duration = Duration::from_millis(1100);

/// What has come of it, as whoever asked is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Probed {
    /// Somebody has answered.
    Answered {
        /// Where.
        at: SocketAddr,
        /// Who.
        node: NodeId,
    },
    /// Nobody has.
    Silent {
        /// Where.
        at: SocketAddr,
    },
    /// Who was asked does not do it for now.
    Refused,
    /// Who was asked does not know how to.
    NotKnown,
    /// The agent that was to be asked is not connected.
    NotConnected,
}

impl Probed {
    /// What a Pong says; none if that makes no sense.
    pub fn told(pong: &Pong) -> Option<Probed> {
        let at = || pong.probed_at.as_ref()?.parse().ok();
        Some(match pong.probed {
            None => Probed::NotKnown,
            Some(ProbeOutcome::Refused) => Probed::Refused,
            Some(ProbeOutcome::Silent) => Probed::Silent { at: at()? },
            Some(ProbeOutcome::Answered) => {
                Probed::Answered { at: at()?, node: pong.probed_node.as_ref()?.parse().ok()? }
            }
        })
    }
}

/// The answer to a Ping: who has answered at `at`.
pub fn answer(ts: i64, echo: i64, at: SocketAddr, node: Option<NodeId>) -> Pong {
    let outcome = if node.is_some() { ProbeOutcome::Answered } else { ProbeOutcome::Silent };
    Pong {
        probed: Some(outcome),
        probed_at: Some(at.to_string()),
        probed_node: node.map(|node| node.to_string()),
        ..Pong::new(ts, echo)
    }
}

/// The answer to a Ping of somebody who may not ask.
pub fn refusal(ts: i64, echo: i64) -> Pong {
    Pong { probed: Some(ProbeOutcome::Refused), ..Pong::new(ts, echo) }
}

/// Who answers at `to`, if anybody does. `place` is kept for as long as there is a socket for it, ten seconds where nobody
/// answers, whether or not anybody waits for the outcome.
pub async fn who_answers(to: SocketAddr, place: impl Send + 'static) -> Option<NodeId> {
    let (tell, told) = oneshot::channel();
    tokio::spawn(async move {
        if let Some(endpoint) = endpoint_towards(to) {
            let _nobody_waits = tell.send(timeout(PATIENCE, connect(&endpoint, to)).await.ok().flatten());
            endpoint.wait_idle().await;
        }
        drop(place);
    });
    told.await.ok().flatten()
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

/// Who proves a key at `to`.
async fn connect(endpoint: &Endpoint, to: SocketAddr) -> Option<NodeId> {
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
    use super::*;

    #[tokio::test]
    async fn one_who_does_not_answer_is_sent_two_datagrams_of_1200_bytes_and_the_place_is_taken_until_then() {
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        silent.set_nonblocking(true).unwrap();
        let place = Arc::new(());

        assert_eq!(who_answers(silent.local_addr().unwrap(), Arc::clone(&place)).await, None);

        assert_eq!(Arc::strong_count(&place), 2, "its socket is still there");
        while Arc::strong_count(&place) > 1 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut buffer = [0; 2048];
        let sent: Vec<usize> = std::iter::from_fn(|| silent.recv(&mut buffer).ok()).collect();
        assert_eq!(sent, [1200, 1200]);
    }

    #[test]
    fn what_is_told_is_what_was_answered_and_nothing_is_made_of_nonsense() {
        let at: SocketAddr = "[2001:db8::1]:4433".parse().unwrap();
        let node = NodeKey::from_seed(&[1; 32]).node_id();
        let told = |pong: Pong| Probed::told(&pong);
        assert_eq!(told(answer(1, 2, at, Some(node))), Some(Probed::Answered { at, node }));
        assert_eq!(told(answer(1, 2, at, None)), Some(Probed::Silent { at }));
        assert_eq!(told(refusal(1, 2)), Some(Probed::Refused));
        assert_eq!(told(Pong::new(1, 2)), Some(Probed::NotKnown));
        let good = answer(1, 2, at, Some(node));
        let escape = || Some("\u{1b}[2J192.0.2.1:4433".to_owned());
        assert_eq!(told(Pong { probed_at: escape(), ..good.clone() }), None);
        assert_eq!(told(Pong { probed_node: escape(), ..good.clone() }), None);
        assert_eq!(told(Pong { probed_at: None, ..good.clone() }), None);
        assert_eq!(told(Pong { probed_node: None, ..good }), None);
    }
}
