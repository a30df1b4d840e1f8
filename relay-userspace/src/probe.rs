//! Connecting to a UDP port to hear who answers there: what `probe` in a Ping asks for, of a relay as of an agent.
//!
//! Who is asked decides where to, and how often: nobody must be able to have it send to somebody else, or much. Two datagrams of
//! 1200 bytes go there, QUIC's first and the one that gives up, unless somebody answers. The key is one of the moment: what is
//! proved with a node's own to whoever is there could be passed on.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::{AsyncTimer, AsyncUdpSocket, ConnectionError, Endpoint, EndpointConfig, Runtime, TokioRuntime};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::control_transport::control_transport;
use crate::identity::{NodeId, NodeKey};
use crate::protocol::error_code::PROBE_OVER;
use crate::protocol::flow_terms::{Pong, ProbeOutcome};
use crate::tls;

/// So many may be asked for at first: of a relay on one connection and no more, of an agent one more now and then.
pub const MOST_AT_FIRST: u32 = 3;

/// Somebody who is there answers within this time.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// QUIC lets go of a connection ten seconds after nobody has answered on it. Who answers has a say in it by its round trip and the
/// time that it takes to acknowledge, but gets no longer than this.
const LETTING_GO: Duration = Duration::from_secs(12);

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
    /// Nobody has in time.
    Silent {
        /// Where.
        at: SocketAddr,
    },
    /// Who was asked does not do it for now, or whoever is there has turned it away.
    Refused,
    /// Who was asked does not know how to.
    NotKnown,
    /// The agent that was to be asked is not connected.
    NotConnected,
}

impl Probed {
    /// The Pong that says so.
    pub fn answer(&self, ts: i64, echo: i64) -> Pong {
        let plain = Pong::new(ts, echo);
        let of = |probed| Pong { probed: Some(probed), ..Pong::new(ts, echo) };
        match self {
            Probed::Answered { at, node } => Pong {
                probed_at: Some(at.to_string()),
                probed_node: Some(node.to_string()),
                ..of(ProbeOutcome::Answered)
            },
            Probed::Silent { at } => Pong { probed_at: Some(at.to_string()), ..of(ProbeOutcome::Silent) },
            Probed::Refused => of(ProbeOutcome::Refused),
            Probed::NotKnown | Probed::NotConnected => plain,
        }
    }

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

/// What a relay's operator is told that has had an agent connect to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbedRelay {
    /// The relay: who ought to have answered.
    pub relay: NodeId,
    /// What has come of it.
    #[serde(flatten)]
    pub probed: Probed,
}

/// Who answers at `to`, if anybody does. `place` is kept for as long as there is a socket for it, fifteen seconds at most, whether
/// or not anybody waits for the outcome.
pub async fn who_answers(to: SocketAddr, place: impl Send + 'static) -> Probed {
    let (tell, told) = oneshot::channel();
    tokio::spawn(async move {
        let running = Running::default();
        if let Some(endpoint) = endpoint_towards(to, &running) {
            let silent = Probed::Silent { at: to };
            let _nobody_waits = tell.send(timeout(PATIENCE, connect(&endpoint, to)).await.unwrap_or(silent));
            let _gone_or_not = timeout(LETTING_GO, endpoint.wait_idle()).await;
        }
        running.end().await;
        drop(place);
    });
    // Without a socket nothing was sent.
    told.await.unwrap_or(Probed::Refused)
}

/// A socket of its own.
fn endpoint_towards(to: SocketAddr, running: &Running) -> Option<Endpoint> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    let mut config = EndpointConfig::default();
    // A relay tells QUIC from bind datagrams by this bit.
    config.grease_quic_bit(false);
    Endpoint::new(config, None, socket, Arc::new(running.clone())).ok()
}

/// Who proves a key at `to`.
async fn connect(endpoint: &Endpoint, to: SocketAddr) -> Probed {
    let connecting = NodeKey::generate().ok().and_then(|key| {
        let mut config = tls::client_config(&key, tls::ALPN_RELAY, None).ok()?;
        let mut transport = control_transport();
        transport.initial_rtt(FIRST_ROUND_TRIP);
        config.transport_config(Arc::new(transport));
        endpoint.connect_with(config, to, tls::SERVER_NAME).ok()
    });
    let Some(connecting) = connecting else { return Probed::Refused };
    let connection = match connecting.await {
        Ok(connection) => connection,
        Err(ConnectionError::TimedOut) => return Probed::Silent { at: to },
        Err(_) => return Probed::Refused,
    };
    let node = tls::peer_node(&connection);
    connection.close(PROBE_OVER.into(), b"who you are was all that was asked");
    node.map_or(Probed::Refused, |node| Probed::Answered { at: to, node })
}

/// Runs what QUIC does for one endpoint, until that is to end: QUIC itself keeps a socket until the last connection is gone,
/// whoever has dropped the endpoint.
#[derive(Clone, Debug, Default)]
struct Running {
    tasks: TaskTracker,
    end: CancellationToken,
}

impl Running {
    /// Ends it: then the socket is gone.
    async fn end(&self) {
        self.end.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Runtime for Running {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.tasks.spawn(self.end.clone().run_until_cancelled_owned(future));
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_who_does_not_answer_is_sent_two_datagrams_of_1200_bytes_and_the_place_is_taken_until_then() {
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        silent.set_nonblocking(true).unwrap();
        let at = silent.local_addr().unwrap();
        let place = Arc::new(());

        assert_eq!(who_answers(at, Arc::clone(&place)).await, Probed::Silent { at });

        assert_eq!(Arc::strong_count(&place), 2, "its socket is still there");
        let let_go = async {
            while Arc::strong_count(&place) > 1 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(2 * LETTING_GO, let_go).await.expect("the socket is let go of");
        let mut buffer = [0; 2048];
        let sent: Vec<usize> = std::iter::from_fn(|| silent.recv(&mut buffer).ok()).collect();
        assert_eq!(sent, [1200, 1200]);
    }

    /// Passes on to `server` what comes, and back to who has sent last, each datagram after `delay`; tells who has sent first.
    async fn far_away(server: SocketAddr, delay: Duration) -> (SocketAddr, oneshot::Receiver<SocketAddr>) {
        let [outside, inside] = [(); 2].map(|()| Arc::new(udp()));
        let at = outside.local_addr().unwrap();
        let (tell, told) = oneshot::channel();
        let (mut tell, mut client) = (Some(tell), None);
        tokio::spawn(async move {
            let (mut out, mut back) = (vec![0; 2048], vec![0; 2048]);
            loop {
                let (length, datagram, by, to) = tokio::select! {
                    Ok((length, from)) = outside.recv_from(&mut out) => {
                        client = Some(from);
                        tell.take().into_iter().for_each(|tell| tell.send(from).unwrap());
                        (length, &out, &inside, server)
                    }
                    Ok((length, _)) = inside.recv_from(&mut back) => (length, &back, &outside, client.unwrap()),
                };
                let (datagram, by) = (datagram[..length].to_vec(), Arc::clone(by));
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    let _sent = by.send_to(&datagram, to).await;
                });
            }
        });
        (at, told)
    }

    fn udp() -> tokio::net::UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        tokio::net::UdpSocket::from_std(socket).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_takes_long_to_answer_does_not_keep_place_and_socket_for_longer_than_fifteen_seconds() {
        let key = NodeKey::from_seed(&[1; 32]);
        let server = tls::server_config(&key, tls::ALPN_RELAY).unwrap();
        let server = Endpoint::server(server, "127.0.0.1:0".parse().unwrap()).unwrap();
        let behind = server.local_addr().unwrap();
        tokio::spawn(async move {
            while let Some(incoming) = server.accept().await {
                tokio::spawn(async move {
                    if let Ok(connection) = incoming.await {
                        connection.closed().await;
                    }
                });
            }
        });
        let (at, from) = far_away(behind, Duration::from_millis(1400)).await;
        let (place, begun) = (Arc::new(()), tokio::time::Instant::now());
        let node = key.node_id();
        assert_eq!(who_answers(at, Arc::clone(&place)).await, Probed::Answered { at, node });
        while Arc::strong_count(&place) > 1 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let held = begun.elapsed();
        assert!((LETTING_GO..=PATIENCE + LETTING_GO + Duration::from_millis(50)).contains(&held), "{held:?}");
        let socket = UdpSocket::bind(("0.0.0.0", from.await.unwrap().port()));
        assert!(socket.is_ok(), "its socket is still there: {socket:?}");
    }

    #[test]
    fn what_is_told_is_what_was_answered_and_nothing_is_made_of_nonsense() {
        let at: SocketAddr = "[2001:db8::1]:4433".parse().unwrap();
        let node = NodeKey::from_seed(&[1; 32]).node_id();
        let told = |pong: Pong| Probed::told(&pong);
        let answered = Probed::Answered { at, node };
        for probed in [answered.clone(), Probed::Silent { at }, Probed::Refused, Probed::NotKnown] {
            assert_eq!(told(probed.answer(1, 2)), Some(probed));
        }
        let good = answered.answer(1, 2);
        let escape = || Some("\u{1b}[2J192.0.2.1:4433".to_owned());
        assert_eq!(told(Pong { probed_at: escape(), ..good.clone() }), None);
        assert_eq!(told(Pong { probed_node: escape(), ..good.clone() }), None);
        assert_eq!(told(Pong { probed_at: None, ..good.clone() }), None);
        assert_eq!(told(Pong { probed_node: None, ..good }), None);
    }
}
