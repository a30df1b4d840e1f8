//! A stream of numbered datagrams in both directions of a raw session, watched while the network changes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use relay_userspace::agent::{Agent, RawSession};
use relay_userspace::identity::NodeKey;
use xtask::answers::RelaySession;

use super::raw_agents::{connect, dialer, listener, run_inside};
use super::world::{World, wait_for};

/// A datagram of each side this often.
const INTERVAL: Duration = Duration::from_millis(10);

/// The stream as its watcher sees it.
#[derive(Default)]
pub struct Stream {
    over: AtomicBool,
    paused: AtomicBool,
    /// Connector and target.
    sides: [Side; 2],
}

/// What one agent has received and was told.
#[derive(Default)]
struct Side {
    datagrams: AtomicU64,
    /// The most that were missing in a row.
    longest_hole: AtomicU64,
    /// The longest time without any, in microseconds.
    longest_gap_us: AtomicU64,
    /// The largest datagram it may send.
    largest: AtomicU64,
}

/// What a disturbance has cost one receiver.
#[derive(Clone, Copy, Debug)]
pub struct Gap {
    /// Datagrams missing in a row.
    pub datagrams: u64,
    /// Time without any.
    pub time: Duration,
}

/// Calls `watch` while a stream runs in a session between two agents of its own, who know the world's relay as its
/// deployment does.
pub fn with_stream<T>(world: &World, watch: impl FnOnce(&Stream) -> T) -> T {
    let stream = Stream::default();
    let keys = [0, 1].map(|_| NodeKey::generate().unwrap());
    let [connector, target] = keys.each_ref().map(NodeKey::node_id);
    std::thread::scope(|scope| {
        let _over = OverWhenDropped(&stream.over);
        scope.spawn(|| {
            run_inside(&world.lab.agents[0], async || {
                let agent = dialer(world, &keys[0]);
                let session = connect(&agent, target).await;
                stream.carry(0, agent, session).await;
            });
        });
        scope.spawn(|| {
            run_inside(&world.lab.agents[1], async || {
                let agent = listener(world, &keys[1], connector);
                let accepted = tokio::time::timeout(Duration::from_secs(20), agent.accept_raw()).await;
                let session = accepted.expect("a session within 20 s").unwrap();
                stream.carry(1, agent, session).await;
            });
        });
        stream.wait_for_more(20, Duration::from_secs(20));
        watch(&stream)
    })
}

impl Stream {
    /// Waits until each side has received `count` more datagrams.
    pub fn wait_for_more(&self, count: u64, patience: Duration) {
        let before = self.datagrams();
        wait_for(&format!("{count} more datagrams each way"), patience, || {
            let now = self.datagrams();
            (now[0] >= before[0] + count && now[1] >= before[1] + count).then_some(())
        });
    }

    /// Stops sending, or goes on.
    pub fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
    }

    /// The longest gaps since the last call, at the connector and at the target.
    pub fn gaps(&self) -> [Gap; 2] {
        self.sides.each_ref().map(|side| Gap {
            datagrams: side.longest_hole.swap(0, Ordering::Relaxed),
            time: Duration::from_micros(side.longest_gap_us.swap(0, Ordering::Relaxed)),
        })
    }

    /// The largest datagram that fits, in bytes, as connector and target were told.
    pub fn largest(&self) -> [u64; 2] {
        self.sides.each_ref().map(|side| side.largest.load(Ordering::Relaxed))
    }

    fn datagrams(&self) -> [u64; 2] {
        self.sides.each_ref().map(|side| side.datagrams.load(Ordering::Relaxed))
    }

    async fn carry(&self, side: usize, agent: Agent, mut session: RawSession) {
        let side = &self.sides[side];
        let mut tick = tokio::time::interval(INTERVAL);
        let (mut number, mut highest, mut heard) = (0u64, 0u64, Instant::now());
        while !self.over.load(Ordering::Relaxed) {
            tokio::select! {
                _ = tick.tick() => {
                    side.largest.store(session.max_datagram() as u64, Ordering::Relaxed);
                    if !self.paused.load(Ordering::Relaxed) {
                        number += 1;
                        session.send(&number.to_be_bytes().repeat(16)).await.unwrap();
                    }
                }
                datagram = session.recv() => {
                    let datagram = datagram.expect("the session lives as long as the stream");
                    let this = u64::from_be_bytes(datagram[..8].try_into().unwrap());
                    side.datagrams.fetch_add(1, Ordering::Relaxed);
                    side.longest_hole.fetch_max(this.saturating_sub(highest + 1), Ordering::Relaxed);
                    side.longest_gap_us.fetch_max(heard.elapsed().as_micros() as u64, Ordering::Relaxed);
                    (highest, heard) = (highest.max(this), Instant::now());
                }
            }
        }
        agent.shutdown().await;
    }
}

/// The session of a world that has one.
pub fn only_session(world: &World) -> RelaySession {
    let [session] = world.sessions().try_into().unwrap();
    session
}

/// Waits until the program has forwarded `count` more packets from each side of the only session, which must still be
/// `session`.
pub fn wait_for_kernel(world: &World, session: &str, count: u64) {
    let forwarded = || {
        let now = only_session(world);
        assert_eq!(now.session, session, "the session is the same");
        now.sides.map(|side| side.packets_kernel)
    };
    let before = forwarded();
    wait_for(&format!("{count} more packets each way by the kernel"), Duration::from_secs(20), || {
        let now = forwarded();
        (now[0] >= before[0] + count && now[1] >= before[1] + count).then_some(())
    });
}

struct OverWhenDropped<'a>(&'a AtomicBool);

impl Drop for OverWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
