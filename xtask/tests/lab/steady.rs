//! A steady 20,000 small datagrams a second through one session, half of them from each side. Each has a number, so that
//! afterwards it is known which have arrived, which have not, and when those were sent.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use relay_userspace::agent::{Agent, RawSession, Session, SessionEnd};
use relay_userspace::identity::{NodeId, NodeKey};
use xtask::lab::Namespace;

use super::raw_agents::{connect, dialer, listener};
use super::scheduling::run_first;
use super::world::{World, wait_for};

/// Datagrams that each side sends in a second.
pub const PER_SIDE: u64 = 10_000;

/// They are sent by the millisecond.
const TICK: Duration = Duration::from_millis(1);

/// Who comes late sends so many at once until it has caught up: less than the shortest queue on the way holds.
const MOST_AT_ONCE: u64 = 40;

/// A datagram's bytes.
pub const LENGTH: usize = 64;

/// Nothing is on its way any more when nothing has arrived for so long, though something is missing.
const ON_ITS_WAY: Duration = Duration::from_secs(2);

/// What a datagram from `side` begins with: by that the lab's hosts know it. QUIC and bind datagrams begin otherwise.
pub const fn mark(side: usize) -> u32 {
    0x05ee_d000 | side as u32
}

/// The traffic as its watcher sees it.
pub struct Steady {
    over: AtomicBool,
    paused: AtomicBool,
    ids: [NodeId; 2],
    /// Connector and target.
    sides: [Side; 2],
}

#[derive(Default)]
struct Side {
    session: OnceLock<Session>,
    /// It has seen that it shall pause.
    pausing: AtomicBool,
    /// Its session has ended, and with it the traffic.
    ended: AtomicBool,
    /// Datagrams sent, which is also the next one's number.
    sent: AtomicU64,
    /// When the datagrams from a number on were sent.
    ticks: Mutex<Vec<(u64, Instant)>>,
    arrived: Mutex<Arrived>,
}

/// What has arrived at one side, by the numbers of the other's datagrams.
#[derive(Default)]
struct Arrived {
    seen: Vec<u64>,
    highest: Option<u64>,
    last: Option<Instant>,
    counts: Arrivals,
}

/// How datagrams have arrived at one side.
#[derive(Clone, Copy, Debug, Default)]
pub struct Arrivals {
    /// Each counted once.
    pub datagrams: u64,
    /// Further copies.
    pub duplicates: u64,
    /// After one that was sent later.
    pub late: u64,
    /// The longest time without any while the other side was sending.
    pub longest_silence: Duration,
}

/// Datagrams in a row that have not arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The number of the first.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// When the first was sent.
    pub sent: Instant,
}

/// Calls `watch` while the traffic runs. Its agents know the world's relay alone.
pub fn under_steady_traffic<T>(world: &World, watch: impl FnOnce(&Steady) -> T) -> T {
    let keys = [0, 1].map(|_| NodeKey::generate().unwrap());
    let ids = keys.each_ref().map(NodeKey::node_id);
    let steady = Steady { over: false.into(), paused: false.into(), ids, sides: Default::default() };
    std::thread::scope(|scope| {
        let _over = OverWhenDropped(&steady.over);
        scope.spawn(|| {
            run_on_workers(&world.lab.agents[0], async || {
                let agent = dialer(world, &keys[0]);
                let session = connect(&agent, ids[1]).await;
                steady.carry(0, agent, session).await;
            });
        });
        scope.spawn(|| {
            run_on_workers(&world.lab.agents[1], async || {
                let agent = listener(world, &keys[1], ids[0]);
                let accepted = tokio::time::timeout(Duration::from_secs(20), agent.accept_raw()).await;
                steady.carry(1, agent, accepted.expect("a session within 20 s").unwrap()).await;
            });
        });
        steady.wait_for_more(PER_SIDE / 10);
        watch(&steady)
    })
}

impl Steady {
    /// Waits until each side has sent `count` more datagrams.
    pub fn wait_for_more(&self, count: u64) {
        let before = self.sent();
        wait_for(&format!("{count} more datagrams sent each way"), Duration::from_secs(120), || {
            assert!(!self.is_over(), "the session has ended: {:?}", self.ends());
            let sent = self.sent();
            (sent[0] >= before[0] + count && sent[1] >= before[1] + count).then_some(())
        });
    }

    /// Stops sending and waits until nothing is on its way any more.
    pub fn pause(&self) {
        self.paused.store(true, Ordering::SeqCst);
        wait_for("the pause", Duration::from_secs(10), || {
            let pausing =
                |side: &Side| side.pausing.load(Ordering::SeqCst) || side.ended.load(Ordering::SeqCst);
            self.sides.iter().all(pausing).then_some(())
        });
        let (mut before, mut since) = (None, Instant::now());
        wait_for("the last datagrams", Duration::from_secs(30), || {
            let arrived = self.arrivals().map(|arrivals| arrivals.datagrams);
            if before != Some(arrived) {
                (before, since) = (Some(arrived), Instant::now());
            }
            let [to_connector, to_target] = arrived;
            (self.sent() == [to_target, to_connector] || since.elapsed() >= ON_ITS_WAY).then_some(())
        });
        self.sides.iter().for_each(|side| side.arrived.lock().unwrap().last = None);
    }

    /// Goes on sending.
    pub fn go_on(&self) {
        self.sides.iter().for_each(|side| side.pausing.store(false, Ordering::SeqCst));
        self.paused.store(false, Ordering::SeqCst);
    }

    /// The datagrams that each side has sent.
    pub fn sent(&self) -> [u64; 2] {
        self.sides.each_ref().map(|side| side.sent.load(Ordering::SeqCst))
    }

    /// What has arrived at each side. The longest silence is that since the last call of [`Steady::forget_silence`].
    pub fn arrivals(&self) -> [Arrivals; 2] {
        self.sides.each_ref().map(|side| side.arrived.lock().unwrap().counts)
    }

    /// Measures the longest silence anew.
    pub fn forget_silence(&self) {
        for side in &self.sides {
            side.arrived.lock().unwrap().counts.longest_silence = Duration::ZERO;
        }
    }

    /// What of each side's datagrams from the number in `from` on has not arrived at the other.
    pub fn missing(&self, from: [u64; 2]) -> [Vec<Missing>; 2] {
        let [connector, target] = &self.sides;
        let [to_connector, to_target] = [connector, target].map(|side| side.arrived.lock().unwrap());
        [(connector, to_target, from[0]), (target, to_connector, from[1])].map(|(sender, arrived, from)| {
            let ticks = sender.ticks.lock().unwrap();
            let mut missing: Vec<Missing> = Vec::new();
            for number in (from..sender.sent.load(Ordering::SeqCst)).filter(|number| !arrived.has(*number)) {
                match missing.last_mut() {
                    Some(last) if last.first + last.count == number => last.count += 1,
                    _ => {
                        let tick = ticks.partition_point(|(first, _)| *first <= number);
                        missing.push(Missing { first: number, count: 1, sent: ticks[tick - 1].1 });
                    }
                }
            }
            missing
        })
    }

    /// What each agent itself says it has not sent or not passed on, by what it calls that.
    pub fn untaken(&self) -> [BTreeMap<String, u64>; 2] {
        self.sides.each_ref().map(|side| {
            let traffic = side.session.get().unwrap().traffic();
            let named =
                [("unsent", traffic.unsent), ("strange", traffic.strange), ("untaken", traffic.untaken)];
            named.map(|(name, count)| (name.to_owned(), count)).into()
        })
    }

    /// The agents' ids, connector's first.
    pub fn ids(&self) -> [NodeId; 2] {
        self.ids
    }

    /// Each agent's session.
    pub fn sessions(&self) -> [&Session; 2] {
        self.sides.each_ref().map(|side| side.session.get().unwrap())
    }

    /// Why each agent's session has ended; none while it lives.
    pub fn ends(&self) -> [Option<SessionEnd>; 2] {
        self.sessions().map(Session::end)
    }

    /// When something has arrived last at each side.
    pub fn last_arrivals(&self) -> [Option<Instant>; 2] {
        self.sides.each_ref().map(|side| side.arrived.lock().unwrap().last)
    }

    fn is_over(&self) -> bool {
        self.sides.iter().any(|side| side.ended.load(Ordering::SeqCst))
    }

    async fn carry(&self, number: usize, agent: Agent, mut session: RawSession) {
        let side = &self.sides[number];
        assert!(side.session.set(session.session().clone()).is_ok(), "each side has one session");
        let mut datagram = [0; LENGTH];
        datagram[..4].copy_from_slice(&mark(number).to_be_bytes());
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // Since when it sends without a pause, and from which number on.
        let mut course: Option<(Instant, u64)> = None;
        while !self.over.load(Ordering::Relaxed) {
            tokio::select! {
                biased;
                now = tick.tick() => {
                    if self.paused.load(Ordering::SeqCst) {
                        course = None;
                        side.pausing.store(true, Ordering::SeqCst);
                        continue;
                    }
                    let sent = side.sent.load(Ordering::SeqCst);
                    let (began, first) = *course.get_or_insert((now.into_std(), sent));
                    let due = first + (PER_SIDE as u128 * began.elapsed().as_micros() / 1_000_000) as u64;
                    let due = due.min(sent + MOST_AT_ONCE);
                    side.ticks.lock().unwrap().push((sent, Instant::now()));
                    for number in sent..due {
                        datagram[4..12].copy_from_slice(&number.to_be_bytes());
                        if session.send(&datagram).await.is_err() {
                            break;
                        }
                    }
                    side.sent.store(due.max(sent), Ordering::SeqCst);
                }
                datagram = session.recv() => {
                    let Some(datagram) = datagram else { break };
                    side.arrived.lock().unwrap().note(number ^ 1, &datagram);
                }
            }
        }
        side.ended.store(true, Ordering::SeqCst);
        while !self.over.load(Ordering::Relaxed) {
            tick.tick().await;
        }
        agent.shutdown().await;
    }
}

impl Arrived {
    fn note(&mut self, from: usize, datagram: &[u8]) {
        assert!(datagram.len() == LENGTH && datagram.starts_with(&mark(from).to_be_bytes()), "a stranger's");
        let number = u64::from_be_bytes(datagram[4..12].try_into().unwrap());
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if self.seen.len() <= word {
            self.seen.resize(word + 1, 0);
        }
        if self.seen[word] & bit != 0 {
            self.counts.duplicates += 1;
            return;
        }
        self.seen[word] |= bit;
        self.counts.datagrams += 1;
        self.counts.late += u64::from(self.highest > Some(number));
        self.highest = self.highest.max(Some(number));
        let now = Instant::now();
        let silence = self.last.map_or(Duration::ZERO, |last| now - last);
        self.counts.longest_silence = self.counts.longest_silence.max(silence);
        self.last = Some(now);
    }

    fn has(&self, number: u64) -> bool {
        self.seen.get((number / 64) as usize).is_some_and(|word| word & (1 << (number % 64)) != 0)
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from number {} on", self.count, self.first)
    }
}

/// Runs `work` inside `namespace`, on a runtime of its own whose threads all come before other work: what is measured is
/// not the agents.
fn run_on_workers(namespace: &Namespace, work: impl AsyncFnOnce() + Send) {
    let run = || {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).on_thread_start(run_first).enable_all().build().unwrap();
        run_first();
        runtime.block_on(work());
    };
    namespace.inside(run).unwrap();
}

struct OverWhenDropped<'a>(&'a AtomicBool);

impl Drop for OverWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
