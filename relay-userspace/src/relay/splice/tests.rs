//! Joined streams between two QUIC clients and the relay's end, over loopback.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proptest::prelude::{Strategy, any, prop};
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use quinn::{Connection, Endpoint, ReadError, RecvStream, SendStream, TransportConfig, VarInt, WriteError};
use rustix::time::{ClockId, clock_gettime};
use tokio::time::timeout;

use super::*;
use crate::identity::NodeKey;
use crate::protocol::flow_terms::{ReadyStatus, RelayReady};
use crate::tls;

const SESSION: SessionId = SessionId([5; 16]);

/// Long enough for a loaded machine: nothing here waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(30);

/// The window of an agent's stream, and what it writes ahead.
const AGENT_WINDOW: u32 = 16 * 1024;

/// An agent's end of a stream.
struct Agent {
    connection: Connection,
    send: SendStream,
    receive: RecvStream,
    _endpoint: Endpoint,
    /// The relay's end of its connection, which goes on when a pairing is over.
    _at_relay: Connection,
}

/// Two agents whose streams are joined.
struct World {
    connector: Agent,
    target: Agent,
    splicer: Splicer,
    _relay: Endpoint,
}

impl World {
    /// Joins two streams, of the first of which `unread` has been read already.
    async fn joined(limit: Limit, idle_timeout: Duration, unread: &'static [u8]) -> World {
        let mut server = tls::server_config(&NodeKey::from_seed(&[9; 32]), tls::ALPN_RELAY).unwrap();
        let mut transport = TransportConfig::default();
        transport.stream_receive_window(STREAM_WINDOW.into()).send_window(SEND_WINDOW.into());
        server.transport_config(Arc::new(transport));
        let relay = Endpoint::server(server, ([127, 0, 0, 1], 0).into()).unwrap();
        let (mut connector, connector_half) = agent(&relay, 1, Bytes::from_static(unread)).await;
        let (target, target_half) = agent(&relay, 2, Bytes::new()).await;
        let mut splicer = Splicer::new();
        let [to_connector, to_target] = splicer.join(SESSION, ready(), limit, idle_timeout);
        to_connector.send(connector_half).unwrap();
        to_target.send(target_half).unwrap();
        let expected = ready().encode().unwrap();
        let mut told = vec![0; expected.len()];
        connector.receive.read_exact(&mut told).await.unwrap();
        assert_eq!(told, expected, "the connector is told first");
        World { connector, target, splicer, _relay: relay }
    }

    async fn unlimited() -> World {
        World::joined(Limit::UNLIMITED, PATIENCE * 10, b"").await
    }

    /// How the pairing has come to its end, and what each side has sent.
    async fn over(&mut self) -> (EndReason, [u64; 2]) {
        let over = async {
            loop {
                if let News::Over { session, reason, traffic } = self.splicer.news().await {
                    assert_eq!(session, SESSION);
                    return (reason, traffic.sides.map(|side| side.bytes));
                }
            }
        };
        timeout(PATIENCE, over).await.expect("it ends")
    }
}

fn ready() -> Message {
    RelayReady::documented(ReadyStatus::Ready, Some(NodeKey::from_seed(&[2; 32]).node_id())).into()
}

/// An agent with a stream, and the relay's end of that.
async fn agent(relay: &Endpoint, seed: u8, unread: Bytes) -> (Agent, Half) {
    let mut endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
    let key = NodeKey::from_seed(&[seed; 32]);
    let mut config = tls::client_config(&key, tls::ALPN_RELAY, None).unwrap();
    let mut transport = TransportConfig::default();
    transport.stream_receive_window(AGENT_WINDOW.into()).send_window(AGENT_WINDOW.into());
    config.transport_config(Arc::new(transport));
    endpoint.set_default_client_config(config);
    let dialled = endpoint.connect(relay.local_addr().unwrap(), tls::SERVER_NAME).unwrap();
    let (connection, incoming) = tokio::join!(dialled, async { relay.accept().await.unwrap().await });
    let (connection, at_relay) = (connection.unwrap(), incoming.unwrap());
    let (mut send, receive) = connection.open_bi().await.unwrap();
    // A stream is there once something was sent on it.
    send.write_all(b"!").await.unwrap();
    let (to_agent, mut from_agent) = at_relay.accept_bi().await.unwrap();
    from_agent.read_exact(&mut [0]).await.unwrap();
    let window = ReceiveWindow::new(at_relay.clone(), 256 * 1024, STREAM_WINDOW).widen();
    (
        Agent { connection, send, receive, _endpoint: endpoint, _at_relay: at_relay },
        Half::new(to_agent, from_agent, unread, window),
    )
}

async fn send_in_pieces(send: &mut SendStream, pieces: Vec<Vec<u8>>) {
    for piece in pieces {
        send.write_all(&piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    send.finish().unwrap();
}

#[tokio::test]
async fn what_comes_out_is_what_went_in_however_it_is_cut_into_pieces() {
    let pieces = || prop::collection::vec(prop::collection::vec(any::<u8>(), 1..6_000), 0..60);
    let mut runner = TestRunner::deterministic();
    for _ in 0..12 {
        let [there, back] = [(); 2].map(|()| pieces().new_tree(&mut runner).unwrap().current());
        let mut world = World::joined(Limit::UNLIMITED, PATIENCE * 10, b"read before").await;
        let World { connector, target, .. } = &mut world;
        let expected = [[b"read before", &there.concat()[..]].concat(), back.concat()];
        let (_, _, at_target, at_connector) = timeout(PATIENCE, async {
            tokio::join!(
                send_in_pieces(&mut connector.send, there),
                send_in_pieces(&mut target.send, back),
                target.receive.read_to_end(1 << 20),
                connector.receive.read_to_end(1 << 20),
            )
        })
        .await
        .expect("all of it arrives");
        assert!(at_target.unwrap() == expected[0], "connector to target");
        assert!(at_connector.unwrap() == expected[1], "target to connector");
        let (_, bytes) = world.over().await;
        assert_eq!(bytes, expected.map(|bytes| bytes.len() as u64));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_does_not_read_makes_the_sender_wait_with_a_bounded_amount_on_the_way() {
    const PIECE: usize = 1_000;
    const TOTAL: usize = 3_000 * PIECE;
    // The relay's, and what the two agents' own QUIC holds.
    let bound = (MAX_BUFFERED + 2 * AGENT_WINDOW) as usize + PIECE;
    let World { mut connector, mut target, splicer: _splicer, _relay } = World::unlimited().await;
    let (written, mut seen) = tokio::sync::watch::channel(0);
    let writing = tokio::spawn(async move {
        for _ in 0..TOTAL / PIECE {
            connector.send.write_all(&[7; PIECE]).await.unwrap();
            written.send_modify(|bytes| *bytes += PIECE);
        }
        connector.send.finish().unwrap();
        connector
    });
    // It gets ahead of the receiver as far as a stream's window lets it.
    timeout(PATIENCE, seen.wait_for(|written| *written >= STREAM_WINDOW as usize)).await.unwrap().unwrap();
    let mut read = 0;
    while read < TOTAL {
        let ahead = seen.borrow().saturating_sub(read);
        assert!(ahead <= bound, "{ahead} bytes are on the way");
        let piece = timeout(PATIENCE, target.receive.read_chunk(PIECE, true)).await.unwrap();
        read += piece.unwrap().unwrap().bytes.len();
    }
    writing.await.unwrap();
}

#[tokio::test]
async fn a_finished_direction_is_finished_at_the_other_end_and_the_other_direction_goes_on() {
    let mut world = World::unlimited().await;
    world.connector.send.write_all(b"question").await.unwrap();
    world.connector.send.finish().unwrap();
    assert_eq!(world.target.receive.read_to_end(100).await.unwrap(), b"question");
    world.target.send.write_all(b"answer").await.unwrap();
    world.target.send.finish().unwrap();
    assert_eq!(world.connector.receive.read_to_end(100).await.unwrap(), b"answer");
    assert_eq!(world.over().await, (EndReason::Left(Side::Connector), [8, 6]));
}

#[tokio::test]
async fn a_reset_and_a_stop_arrive_with_their_codes() {
    let mut world = World::unlimited().await;
    world.target.send.reset(VarInt::from_u32(4711)).unwrap();
    let reset = world.connector.receive.read_chunk(100, true).await;
    assert!(matches!(reset, Err(ReadError::Reset(code)) if code == VarInt::from_u32(4711)), "{reset:?}");
    world.target.receive.stop(VarInt::from_u32(815)).unwrap();
    assert_eq!(world.connector.send.stopped().await.unwrap(), Some(VarInt::from_u32(815)));
    let write = world.connector.send.write_all(b"more").await;
    assert!(matches!(write, Err(WriteError::Stopped(code)) if code == VarInt::from_u32(815)), "{write:?}");
    assert_eq!(world.over().await, (EndReason::Left(Side::Target), [0, 0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_arrives_although_the_receiver_has_not_read_what_came_before() {
    let mut world = World::unlimited().await;
    let World { connector, target, .. } = &mut world;
    // More than the receiver takes, so that the relay holds the rest.
    let enough = connector.send.write_all(&[7; STREAM_WINDOW as usize]);
    timeout(PATIENCE, enough).await.expect("the relay takes as much").unwrap();
    connector.send.reset(VarInt::from_u32(7)).unwrap();
    let reset = timeout(PATIENCE, target.receive.received_reset()).await.expect("it arrives");
    assert_eq!(reset.unwrap(), Some(VarInt::from_u32(7)));
}

#[tokio::test]
async fn a_lost_connection_resets_the_other_agents_stream() {
    let mut world = World::unlimited().await;
    world.target.connection.close(VarInt::from_u32(1), b"");
    let reset = world.connector.receive.read_chunk(100, true).await;
    assert!(matches!(reset, Err(ReadError::Reset(code)) if code == ENDED_BY_THE_RELAY), "{reset:?}");
    assert_eq!(world.connector.send.stopped().await.unwrap(), Some(ENDED_BY_THE_RELAY));
    assert_eq!(world.over().await.0, EndReason::Left(Side::Target));
}

#[tokio::test]
async fn an_agent_whose_stream_is_gone_before_it_is_joined_ends_the_pairing() {
    let mut splicer = Splicer::new();
    let [to_connector, to_target] = splicer.join(SESSION, ready(), Limit::UNLIMITED, PATIENCE);
    drop(to_target);
    let relay = {
        let server = tls::server_config(&NodeKey::from_seed(&[9; 32]), tls::ALPN_RELAY).unwrap();
        Endpoint::server(server, ([127, 0, 0, 1], 0).into()).unwrap()
    };
    let (mut connector, half) = agent(&relay, 1, Bytes::new()).await;
    to_connector.send(half).unwrap();
    let ended = async {
        loop {
            if let News::Over { reason, .. } = splicer.news().await {
                return reason;
            }
        }
    };
    assert_eq!(timeout(PATIENCE, ended).await.expect("it ends"), EndReason::Left(Side::Target));
    let reset = connector.receive.read_chunk(100, true).await;
    assert!(matches!(reset, Err(ReadError::Reset(code)) if code == ENDED_BY_THE_RELAY), "{reset:?}");
}

#[tokio::test]
async fn streams_that_are_not_both_handed_over_in_time_are_reset_and_the_pairing_ends() {
    let relay = {
        let server = tls::server_config(&NodeKey::from_seed(&[9; 32]), tls::ALPN_RELAY).unwrap();
        Endpoint::server(server, ([127, 0, 0, 1], 0).into()).unwrap()
    };
    let [(mut connector, connector_half), (mut target, target_half)] =
        [agent(&relay, 1, Bytes::new()).await, agent(&relay, 2, Bytes::new()).await];
    let mut splicer = Splicer::new();
    tokio::time::pause();
    let [to_connector, to_target] = splicer.join(SESSION, ready(), Limit::UNLIMITED, PATIENCE);
    to_connector.send(connector_half).unwrap();
    let begin = tokio::time::Instant::now();
    let reason = loop {
        if let News::Over { session, reason, .. } = splicer.news().await {
            assert_eq!(session, SESSION);
            break reason;
        }
    };
    assert_eq!((reason, begin.elapsed().as_secs()), (EndReason::NotJoined, HAND_OVER.as_secs()));
    tokio::time::resume();
    // The other one comes too late.
    drop(to_target.send(target_half).unwrap_err());
    for agent in [&mut connector, &mut target] {
        let reset = agent.receive.read_chunk(100, true).await;
        assert!(matches!(reset, Err(ReadError::Reset(code)) if code == ENDED_BY_THE_RELAY), "{reset:?}");
    }
}

#[tokio::test]
async fn a_pairing_on_which_nothing_passes_ends() {
    let mut world = World::joined(Limit::UNLIMITED, Duration::from_millis(300), b"").await;
    world.connector.send.write_all(b"something").await.unwrap();
    world.target.receive.read_exact(&mut [0; 9]).await.unwrap();
    assert_eq!(world.over().await, (EndReason::Idle, [9, 0]));
    let reset = world.target.receive.read_chunk(100, true).await;
    assert!(matches!(reset, Err(ReadError::Reset(code)) if code == ENDED_BY_THE_RELAY), "{reset:?}");
}

#[tokio::test]
async fn a_pairing_that_is_ended_resets_both_streams_and_tells_what_it_has_carried() {
    let mut world = World::unlimited().await;
    world.connector.send.write_all(b"something").await.unwrap();
    world.target.receive.read_exact(&mut [0; 9]).await.unwrap();
    assert_eq!(world.splicer.end(SESSION).sides.map(|side| side.bytes), [9, 0]);
    for agent in [&mut world.connector, &mut world.target] {
        let reset = agent.receive.read_chunk(100, true).await;
        assert!(matches!(reset, Err(ReadError::Reset(code)) if code == ENDED_BY_THE_RELAY), "{reset:?}");
        assert_eq!(agent.send.stopped().await.unwrap(), Some(ENDED_BY_THE_RELAY));
    }
}

#[tokio::test]
async fn what_all_pairings_carry_is_told_while_they_last_and_once() {
    let mut world = World::unlimited().await;
    let World { connector, target, splicer, .. } = &mut world;
    let mut told = Vec::new();
    for bytes in [9, 5] {
        connector.send.write_all(&vec![7; bytes]).await.unwrap();
        target.receive.read_exact(&mut vec![0; bytes]).await.unwrap();
        let next = async {
            loop {
                match splicer.news().await {
                    News::Passed(0) => {}
                    News::Passed(bytes) => return bytes,
                    over @ News::Over { .. } => panic!("{over:?}"),
                }
            }
        };
        told.push(timeout(PATIENCE, next).await.expect("it is told"));
    }
    assert_eq!(told, [9, 5]);
}

/// The time that the coarse clock follows.
fn true_time() -> MonoTime {
    let at = clock_gettime(ClockId::Monotonic);
    MonoTime(at.tv_sec as u64 * 1_000_000_000 + at.tv_nsec as u64)
}

#[tokio::test(flavor = "multi_thread")]
async fn both_directions_together_pass_no_more_than_the_limit() {
    const RATE: u64 = 400_000;
    let limit = Limit::per_second(RATE);
    // By the bucket's clock, which may be some ticks behind the true time: what is earned counts from where it stands.
    let begin = MonoTime::now();
    let mut world = World::joined(limit, PATIENCE, b"").await;
    let World { connector, target, .. } = &mut world;
    let passed = AtomicUsize::new(0);
    let receive = async |receive: &mut RecvStream| {
        while let Some(chunk) = receive.read_chunk(usize::MAX, true).await.unwrap() {
            let passed = passed.fetch_add(chunk.bytes.len(), Ordering::Relaxed) + chunk.bytes.len();
            let earned = RATE as f64 * true_time().since(begin).as_secs_f64() + limit.burst_bytes as f64;
            assert!(passed as f64 <= earned, "{passed} bytes, {earned} allowed");
        }
    };
    let pieces = || vec![vec![7; 10_000]; 40];
    timeout(PATIENCE, async {
        tokio::join!(
            send_in_pieces(&mut connector.send, pieces()),
            send_in_pieces(&mut target.send, pieces()),
            receive(&mut target.receive),
            receive(&mut connector.receive),
        )
    })
    .await
    .expect("what is above the limit waits and is not lost");
    assert_eq!(world.over().await.1, [400_000; 2]);
}
