//! WireGuard through the relay: two endpoints whose datagrams are a raw session's.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "in a test a panic is a failure"
)]

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use etherparse::PacketBuilder;
use relay_userspace::agent::{Agent, AgentSettings, Incoming, RawSession};
use relay_userspace::config::{AtlasRoot, Config};
use relay_userspace::identity::NodeKey;
use relay_userspace::relay::Relay;
use relay_userspace::relay::stopping::Stopping;
use tokio::sync::mpsc;

/// What WireGuard adds to a packet: a header of 16 bytes and a tag of 16.
const OVERHEAD: usize = 32;

/// Whatever is waited for comes within this time even on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn wireguard_carries_ip_packets_both_ways_over_a_raw_session() {
    let directory = tempfile::tempdir().unwrap();
    let (relay, address) = relay(directory.path());
    let settings = |seed: u8| {
        let relay = format!("{}@{address}", key(0).node_id()).parse().unwrap();
        let known = directory.path().join(format!("known-{seed}"));
        AgentSettings::dialer(key(seed), "wireguard", vec![relay], known)
    };
    let office = Agent::spawn(AgentSettings {
        announce: true,
        accept: vec![key(1).node_id()],
        incoming: Incoming::Raw,
        ..settings(2)
    });
    let laptop = Agent::spawn(settings(1));
    let near = connect(&laptop, &office).await;
    let far = office.accept_raw().await.unwrap();
    let mtu = near.max_datagram() - OVERHEAD;
    let traffic = near.session().clone();

    // The relay sees these datagrams and has neither key.
    let [near_key, far_key] = [[1; 32], [2; 32]].map(StaticSecret::from);
    let (near_public, far_public) = (PublicKey::from(&near_key), PublicKey::from(&far_key));
    let mut near = Endpoint::start(near, near_key, far_public);
    let mut far = Endpoint::start(far, far_key, near_public);

    // The first packet waits for the handshake that it causes.
    for packet in packets(mtu) {
        near.out.send(packet.clone()).await.unwrap();
        assert_eq!(far.arrived().await, packet);
        far.out.send(packet.clone()).await.unwrap();
        assert_eq!(near.arrived().await, packet);
    }
    // Initiation, response, and each packet; keep-alives besides.
    let sent = traffic.traffic();
    assert!(sent.datagrams_sent as usize > packets(mtu).len(), "{sent:?}");
    assert!(sent.bytes_sent as usize > mtu + OVERHEAD, "{sent:?}");
    drop((near, far));
    relay.stop(Stopping::End);
    relay.stopped().await.unwrap();
}

/// A WireGuard endpoint that takes and gives IP packets.
struct Endpoint {
    out: mpsc::Sender<Vec<u8>>,
    into: mpsc::Receiver<Vec<u8>>,
}

impl Endpoint {
    fn start(session: RawSession, key: StaticSecret, peer: PublicKey) -> Endpoint {
        let tunnel = Tunn::new(key, peer, None, None, 1, None);
        let (out, to_send) = mpsc::channel(16);
        let (deliver, into) = mpsc::channel(16);
        tokio::spawn(run(session, tunnel, to_send, deliver));
        Endpoint { out, into }
    }

    async fn arrived(&mut self) -> Vec<u8> {
        tokio::time::timeout(PATIENCE, self.into.recv()).await.expect("a packet arrives").unwrap()
    }
}

/// Drives a tunnel over a session until either end is dropped.
async fn run(
    mut session: RawSession,
    mut tunnel: Tunn,
    mut to_send: mpsc::Receiver<Vec<u8>>,
    deliver: mpsc::Sender<Vec<u8>>,
) {
    let mut buffer = vec![0; 2048];
    let mut timers = tokio::time::interval(Duration::from_millis(250));
    loop {
        tokio::select! {
            packet = to_send.recv() => {
                let Some(packet) = packet else { return };
                carry_out(tunnel.encapsulate(&packet, &mut buffer), &session, &deliver).await;
            }
            datagram = session.recv() => {
                let Some(datagram) = datagram else { return };
                let mut more = carry_out(tunnel.decapsulate(None, &datagram, &mut buffer), &session, &deliver).await;
                // What waited for the handshake, one at a time.
                while more {
                    more = carry_out(tunnel.decapsulate(None, &[], &mut buffer), &session, &deliver).await;
                }
            }
            _ = timers.tick() => {
                carry_out(tunnel.update_timers(&mut buffer), &session, &deliver).await;
            }
        }
    }
}

/// Does what the tunnel says. True if something was sent: there may be more.
async fn carry_out(result: TunnResult<'_>, session: &RawSession, deliver: &mpsc::Sender<Vec<u8>>) -> bool {
    match result {
        TunnResult::Done => false,
        // What comes twice or too late is dropped; without what is missing the test ends in time.
        TunnResult::Err(error) => {
            eprintln!("WireGuard: {error:?}");
            false
        }
        TunnResult::WriteToNetwork(datagram) => {
            session.send(datagram).await.unwrap();
            true
        }
        TunnResult::WriteToTunnelV4(packet, _) => {
            let _test_is_over = deliver.send(packet.to_vec()).await;
            false
        }
        TunnResult::WriteToTunnelV6(packet, _) => {
            let _test_is_over = deliver.send(packet.to_vec()).await;
            false
        }
    }
}

/// IP packets of both versions, among them the largest that fits the path.
fn packets(mtu: usize) -> Vec<Vec<u8>> {
    let bytes = |len: usize| (0..len).map(|place| place as u8).collect::<Vec<u8>>();
    let v4 = |len: usize| {
        let mut packet = Vec::new();
        let builder = PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(1000, 2000);
        builder.write(&mut packet, &bytes(len)).unwrap();
        packet
    };
    let v6 = |len: usize| {
        let mut packet = Vec::new();
        let builder = PacketBuilder::ipv6([0xfd; 16], [0xfe; 16], 64).udp(1000, 2000);
        builder.write(&mut packet, &bytes(len)).unwrap();
        packet
    };
    vec![v4(0), v4(1), v4(500), v4(mtu - 28), v6(0), v6(500), v6(mtu - 48)]
}

/// Connects once the other has announced itself.
async fn connect(from: &Agent, to: &Agent) -> RawSession {
    let connected = async {
        loop {
            match from.connect_raw(to.node_id()).await {
                Ok(session) => return session,
                Err(_not_announced_yet) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, connected).await.expect("the other announces itself")
}

/// A relay on loopback.
fn relay(directory: &Path) -> (Relay, std::net::SocketAddr) {
    let text = "[transport]\nenable_relay = true\noffer_relay = true\n\
                [datapath]\nmode = \"userspace\"\nmax_sessions = 16\n";
    let mut config = Config::parse(text, Path::new("config.toml"), &AtlasRoot::at(directory)).unwrap();
    config.network.port = 0;
    let relay = Relay::start(&config, None, key(0), "relay").unwrap();
    let address = (Ipv4Addr::LOCALHOST, relay.local_addr().port()).into();
    (relay, address)
}

fn key(seed: u8) -> NodeKey {
    NodeKey::from_seed(&[seed; 32])
}
