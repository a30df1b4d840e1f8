//! The control connection to one relay: dialled, verified, kept, and dialled again.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::backoff::{self, Backoff};
use super::data_address::is_sound;
use super::error::LinkError;
use super::known_relays::KnownRelays;
use super::probe::{Probes, RelayProbes};
use super::state::RelayIndex;
use super::verification::{initiate, unix_s};
use crate::clock::MonoTime;
use crate::config::RelayAddress;
use crate::control_transport::control_transport;
use crate::identity::NodeKey;
use crate::protocol::envelope::MAX_CONTROL_PAYLOAD_LEN;
use crate::protocol::flow_terms::{Disconnect, disconnect_reason};
use crate::protocol::frames::{FrameReader, write_frame};
use crate::protocol::handshake::{HandshakeError, Initiator, Peer};
use crate::protocol::message::{Message, Ping};
use crate::tls;

/// Documented: dialling one address takes at most this long.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// A NAT's shortest usual memory of a UDP mapping is longer.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// A relay that says nothing for so long is gone.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// The round trip is told this often. QUIC measures it with every acknowledgement, at least with each sign of life.
const ROUND_TRIP_SAMPLE: Duration = Duration::from_secs(5);

/// A closing connection gets this long to tell its peer.
const GOODBYE: Duration = Duration::from_millis(250);

/// What one link tells the driver.
#[derive(Debug)]
pub struct LinkEvent {
    /// Which relay.
    pub relay: RelayIndex,
    /// What has happened.
    pub what: LinkChange,
}

/// What has happened to a link.
#[derive(Debug)]
pub enum LinkChange {
    /// Connected, and the handshake is done.
    Up {
        /// The relay.
        peer: Peer,
        /// Where it was reached: data goes there too unless it says otherwise.
        address: SocketAddr,
        /// The round trip of the handshake.
        round_trip: Duration,
        /// To be notified when the local address towards the relay has changed.
        address_changed: Arc<Notify>,
        /// Messages for the relay go here. Dropping it closes the connection.
        outgoing: mpsc::Sender<Message>,
        /// For streams that are joined to a peer's.
        connection: quinn::Connection,
    },
    /// The relay has sent a message.
    Message(Message),
    /// The round trip of the connection, as QUIC has it at present.
    RoundTrip(Duration),
    /// Not connected, or no more.
    Down(LinkError),
}

/// What a link needs to know.
#[derive(Clone, Debug)]
pub struct LinkSettings {
    /// Who we are.
    pub key: NodeKey,
    /// Our name for humans.
    pub name: String,
    /// The relay.
    pub address: RelayAddress,
    /// Where the relay was reached that has named this one: it must not have the agent dial into a network that only the
    /// agent reaches. None: it is configured.
    pub named_at: Option<SocketAddr>,
    /// The keys of relays seen before.
    pub known_relays: KnownRelays,
    /// What relays may have this agent try.
    pub probes: Probes,
}

/// Keeps one relay connected until `stop`.
pub async fn keep_connected(
    relay: RelayIndex,
    settings: LinkSettings,
    events: mpsc::Sender<LinkEvent>,
    stop: CancellationToken,
) {
    let (mut backoff, mut probes) = (Backoff::default(), settings.probes.of_relay());
    while !stop.is_cancelled() {
        let connected = tokio::select! {
            () = stop.cancelled() => return,
            connected = connect(&settings) => connected,
        };
        let error = match connected {
            Ok(link) => {
                let since = Instant::now();
                let error = link.serve(relay, &mut probes, &events, &stop).await;
                backoff.lasted(since.elapsed());
                error
            }
            Err(error) => error,
        };
        if stop.is_cancelled() {
            return;
        }
        let replaced = matches!(error, LinkError::Replaced);
        let chance = getrandom::u64().unwrap_or(0);
        let wait = if error.is_restart() { backoff::spread(chance) } else { backoff.next(chance) };
        tracing::warn!(
            relay = %settings.address.at,
            %error,
            retry_ms = if replaced { None } else { Some(wait.as_millis() as u64) },
            "not connected to the relay"
        );
        if events.send(LinkEvent { relay, what: LinkChange::Down(error) }).await.is_err() || replaced {
            return;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// A verified connection.
struct Connected {
    endpoint: quinn::Endpoint,
    connection: quinn::Connection,
    to_relay: quinn::SendStream,
    from_relay: FrameReader<quinn::RecvStream>,
    peer: Peer,
}

async fn connect(settings: &LinkSettings) -> Result<Connected, LinkError> {
    let address = &settings.address;
    let resolved: Vec<SocketAddr> =
        tokio::time::timeout(DIAL_TIMEOUT, tokio::net::lookup_host((address.at.host(), address.at.port())))
            .await
            .map_err(|_| LinkError::Resolve(std::io::ErrorKind::TimedOut.into()))?
            .map_err(LinkError::Resolve)?
            .collect();
    let mut last = LinkError::Resolve(std::io::ErrorKind::NotFound.into());
    for remote in resolved {
        if settings.named_at.is_some_and(|by| !is_sound(remote, by)) {
            last = LinkError::OutOfScope;
            continue;
        }
        match dial(&settings.key, remote).await {
            Ok((endpoint, connection)) => return verify(settings, endpoint, connection).await,
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Connects to whoever listens at `remote`.
pub async fn dial(
    key: &NodeKey,
    remote: SocketAddr,
) -> Result<(quinn::Endpoint, quinn::Connection), LinkError> {
    let socket = socket_towards(remote).map_err(LinkError::Socket)?;
    let mut endpoint_config = quinn::EndpointConfig::default();
    // The relay tells QUIC from bind datagrams by this bit.
    endpoint_config.grease_quic_bit(false);
    let endpoint = quinn::Endpoint::new(endpoint_config, None, socket, Arc::new(quinn::TokioRuntime))
        .map_err(LinkError::Socket)?;
    // The key is looked at afterwards, where a refusal can name both.
    let mut config = tls::client_config(key, tls::ALPN_RELAY, None)?;
    let mut transport = control_transport();
    transport
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(quinn::IdleTimeout::try_from(IDLE_TIMEOUT).ok());
    config.transport_config(Arc::new(transport));
    let connecting = endpoint.connect_with(config, remote, tls::SERVER_NAME).map_err(LinkError::quic)?;
    let connection = tokio::time::timeout(DIAL_TIMEOUT, connecting)
        .await
        .map_err(|_| LinkError::DialTimeout)?
        .map_err(|error| LinkError::of(&error))?;
    Ok((endpoint, connection))
}

/// A socket on any local port.
fn socket_towards(remote: SocketAddr) -> std::io::Result<std::net::UdpSocket> {
    let any: IpAddr = match remote {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    std::net::UdpSocket::bind((any, 0))
}

async fn verify(
    settings: &LinkSettings,
    endpoint: quinn::Endpoint,
    connection: quinn::Connection,
) -> Result<Connected, LinkError> {
    let key = tls::peer_key(&connection)?;
    if let Err(error) = settings.known_relays.check(&settings.address, key.node_id()) {
        connection.close(HandshakeError::KeyMismatch.code().number().into(), b"another key was expected");
        drained(&endpoint).await;
        return Err(error.into());
    }
    let (mut to_relay, from_relay) = connection.open_bi().await.map_err(|error| LinkError::of(&error))?;
    let mut from_relay = FrameReader::new(from_relay, MAX_CONTROL_PAYLOAD_LEN);
    let initiator = Initiator::new(&settings.key, &settings.name, key, MonoTime::now(), unix_s());
    match initiate(initiator, &mut to_relay, &mut from_relay).await {
        Ok(peer) => Ok(Connected { endpoint, connection, to_relay, from_relay, peer }),
        Err(error) => {
            connection.close(error.code().number().into(), error.to_string().as_bytes());
            drained(&endpoint).await;
            Err(error.into())
        }
    }
}

impl Connected {
    /// Carries messages both ways until the connection is over.
    async fn serve(
        mut self,
        relay: RelayIndex,
        probes: &mut RelayProbes,
        events: &mpsc::Sender<LinkEvent>,
        stop: &CancellationToken,
    ) -> LinkError {
        let (outgoing, mut to_send) = mpsc::channel(64);
        let (address, answers) = (self.connection.remote_address(), outgoing.downgrade());
        let address_changed = Arc::new(Notify::new());
        let up = LinkChange::Up {
            peer: self.peer.clone(),
            address,
            round_trip: self.connection.rtt(),
            address_changed: address_changed.clone(),
            outgoing,
            connection: self.connection.clone(),
        };
        if events.send(LinkEvent { relay, what: up }).await.is_err() {
            return LinkError::Quic("the agent is being stopped".to_owned());
        }
        let reading = async {
            loop {
                match self.from_relay.next().await {
                    Ok(Some(Message::Disconnect(told))) if ends_connection(&told) => {
                        return LinkError::told(&told);
                    }
                    Ok(Some(Message::Ping(Ping { ts, probe: Some(port) }))) => {
                        probes.ask(port, address, ts, &answers);
                    }
                    Ok(Some(message)) => {
                        let event = LinkEvent { relay, what: LinkChange::Message(message) };
                        if events.send(event).await.is_err() {
                            return LinkError::Quic("the agent is being stopped".to_owned());
                        }
                    }
                    Ok(None) => return LinkError::Quic("the relay has closed the control stream".to_owned()),
                    Err(error) => {
                        return match self.connection.close_reason() {
                            Some(quinn::ConnectionError::TimedOut) => LinkError::Lost,
                            Some(quinn::ConnectionError::Reset) => LinkError::Forgotten,
                            Some(reason) => LinkError::of(&reason),
                            None => LinkError::quic(error),
                        };
                    }
                }
            }
        };
        let writing = async {
            while let Some(message) = to_send.recv().await {
                if let Err(error) = write_frame(&mut self.to_relay, &message).await {
                    tracing::debug!(%error, "a message to the relay was not sent");
                    break;
                }
            }
            // The driver has dropped its end, or the relay takes nothing more.
            let _finished = self.to_relay.finish();
            let _delivered = tokio::time::timeout(GOODBYE, self.to_relay.stopped()).await;
        };
        let measuring = async {
            loop {
                tokio::time::sleep(ROUND_TRIP_SAMPLE).await;
                let event = LinkEvent { relay, what: LinkChange::RoundTrip(self.connection.rtt()) };
                if events.send(event).await.is_err() {
                    return;
                }
            }
        };
        let following = follow_address(&self.endpoint, address, &address_changed);
        let error = tokio::select! {
            error = reading => error,
            // The driver is gone, and stops everything.
            () = measuring => LinkError::Quic("the agent is being stopped".to_owned()),
            never = following => match never {},
            () = writing => if stop.is_cancelled() {
                LinkError::Quic("closed here".to_owned())
            } else {
                LinkError::Silent
            },
        };
        self.connection.close(0_u8.into(), b"");
        drained(&self.endpoint).await;
        error
    }
}

/// Whether what the relay says ends the connection, and not one session, or nothing yet.
fn ends_connection(told: &Disconnect) -> bool {
    told.session.is_none() && told.reason != disconnect_reason::DRAIN
}

/// Gives the control connection another local port whenever the local address has changed: what lies between may remember
/// the old one for the old address. The ping that QUIC sends after it tells the relay at once.
async fn follow_address(endpoint: &quinn::Endpoint, relay: SocketAddr, changed: &Notify) -> Infallible {
    loop {
        changed.notified().await;
        if let Err(error) = socket_towards(relay).and_then(|socket| endpoint.rebind(socket)) {
            tracing::debug!(%relay, %error, "the control connection keeps its socket");
        }
    }
}

/// Waits until an endpoint's connections are gone, but not for long: so that what was said last is sent.
pub async fn drained(endpoint: &quinn::Endpoint) {
    let _idle = tokio::time::timeout(GOODBYE, endpoint.wait_idle()).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_address_that_does_not_answer_is_given_up_after_five_seconds() {
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let begin = tokio::time::Instant::now();
        let given_up = dial(&NodeKey::from_seed(&[1; 32]), silent.local_addr().unwrap()).await;
        assert!(matches!(given_up, Err(LinkError::DialTimeout)), "{given_up:?}");
        assert_eq!(begin.elapsed().as_secs(), 5);
    }
}
