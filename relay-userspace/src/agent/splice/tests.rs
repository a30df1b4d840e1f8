//! An agent that waits for peers on its relays' connections, and relays made by hand that join them.

use quinn::Endpoint;

use super::*;
use crate::agent::inbox::INBOX_LEN;
use crate::tls;

/// Long enough for a loaded machine: nothing here waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn the_peers_at_one_relay_take_no_places_from_those_at_another() {
    let (target, _inbox) = target();
    let full = Relay::reached_by(&target).await;
    let mut peers = Vec::new();
    for _ in 0..MAX_READABLE_PEERS {
        let mut stream = full.waiting_stream().await;
        let initiator = Initiator::new(&key(1), "one", Known::Nothing, MonoTime::now(), unix_s());
        initiate(initiator, &mut stream.to_peer, &mut stream.from_peer).await.unwrap();
        peers.push(stream);
    }
    // Of this one all places are taken, and that goes on: its peers have done what they came for.
    let other = Relay::reached_by(&target).await;
    other.waiting_stream().await;
    assert!(full.connection.close_reason().is_none());
}

/// An agent that accepts node 1, and its inbox.
fn target() -> (Target, mpsc::Receiver<IncomingMessage>) {
    let (inbox, taken) = mpsc::channel(INBOX_LEN);
    let accept = Arc::new(watch::Sender::new([key(1).node_id()].into()));
    let refusals = RefusalLog::default();
    (Target { key: key(2), name: "two".to_owned(), accept, refusals, inbox }, taken)
}

/// A relay's end of an agent's connection.
struct Relay {
    connection: Connection,
    _endpoints: [Endpoint; 2],
}

impl Relay {
    /// One on whose connection `target` waits.
    async fn reached_by(target: &Target) -> Relay {
        let config = tls::server_config(&key(200), tls::ALPN_RELAY).unwrap();
        let relay = Endpoint::server(config, ([127, 0, 0, 1], 0).into()).unwrap();
        let mut agent = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
        agent.set_default_client_config(tls::client_config(&target.key, tls::ALPN_RELAY, None).unwrap());
        let dialled = agent.connect(relay.local_addr().unwrap(), tls::SERVER_NAME).unwrap();
        let (dialled, connection) = tokio::join!(dialled, async { relay.accept().await.unwrap().await });
        tokio::spawn(target.clone().wait_on(dialled.unwrap()));
        Relay { connection: connection.unwrap(), _endpoints: [relay, agent] }
    }

    /// The next stream on which the agent waits, as a peer has it that was joined to it.
    async fn waiting_stream(&self) -> Stream {
        let opened = timeout(PATIENCE, self.connection.accept_bi()).await.expect("the agent waits");
        let (to_peer, from_peer) = opened.unwrap();
        let from_peer = FrameReader::new(from_peer, MAX_CONTROL_PAYLOAD_LEN);
        let mut stream = Stream { to_peer, from_peer, overdue: 0 };
        assert!(matches!(stream.next().await.unwrap(), Message::RelayAnnounce(_)));
        stream.send(&RelayReady::documented(ReadyStatus::Waiting, None).into()).await.unwrap();
        stream
    }
}

fn key(seed: u8) -> NodeKey {
    NodeKey::from_seed(&[seed; 32])
}
