//! What a session's limit makes of the agents' QUIC, which fills it: by the relay's own counters.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use xtask::answers::RelaySession;
use xtask::deployment::Node;
use xtask::lab::delay::Conditions;
use xtask::lab::{LabPlan, Process};
use xtask::tcp_copy;
use xtask::tool::Tool;

use super::world::{FORWARDED, NATIVE, RELAY, SERVED, World};

const LIMIT: u64 = 1_048_576;
const SETTLED: Duration = Duration::from_secs(5);
const MEASURED: Duration = Duration::from_secs(20);

/// How both agents meet the limit.
#[derive(Clone, Copy)]
struct Agents {
    pacing: bool,
    ecn: bool,
}

const MARKED: Agents = Agents { pacing: false, ecn: true };
const DROPPED: Agents = Agents { pacing: false, ecn: false };
const PACED: Agents = Agents { pacing: true, ecn: true };

#[test]
fn unpaced_quic_with_ecn_uses_the_limit_at_40_ms_and_loses_next_to_nothing() {
    let name = "unpaced_quic_with_ecn_uses_the_limit_at_40_ms_and_loses_next_to_nothing";
    let Some([marked, dropped, paced]) = measure(name, Duration::from_millis(40)) else { return };
    assert!(marked.share() >= 0.95, "ECN on, pacing off: {marked}");
    assert!(marked.loss() < 0.001, "ECN on, pacing off: {marked}");
    assert!(marked.all_marked() > 0, "nothing was marked: {marked}");
    // What the two are for: each alone spares packets that the limit would drop.
    assert!(dropped.loss() > marked.loss(), "ECN off, pacing off: {dropped}");
    assert!(dropped.loss() > paced.loss(), "ECN on, pacing on: {paced}");
    assert_eq!(dropped.all_marked(), 0, "without ECN nothing bears a mark");
}

#[test]
#[ignore = "long: figures of other round trips"]
fn quic_in_a_limited_session_at_other_round_trips() {
    for round_trip in [0, 10, 100].map(Duration::from_millis) {
        let outcomes = measure("quic_in_a_limited_session_at_other_round_trips", round_trip);
        let Some([marked, dropped, _]) = outcomes else { return };
        assert!(marked.all_marked() > 0 && dropped.all_marked() == 0, "{marked}; without ECN {dropped}");
    }
}

/// Runs the three kinds of agents at the same time, each in a lab of its own.
fn measure(name: &str, round_trip: Duration) -> Option<[Outcome; 3]> {
    let plan = LabPlan::over_a_line(Conditions::delay(round_trip / 2));
    let worlds: Option<Vec<World>> =
        [MARKED, DROPPED, PACED].iter().map(|_| World::planned(name, &plan, RELAY)).collect();
    let worlds: [World; 3] = worlds?.try_into().ok()?;
    let outcomes = std::thread::scope(|scope| {
        let kinds = worlds.iter().zip([MARKED, DROPPED, PACED]);
        let running: Vec<_> = kinds.map(|(world, agents)| scope.spawn(move || fill(world, agents))).collect();
        running.into_iter().map(|run| run.join().unwrap()).collect::<Vec<_>>()
    });
    for (agents, outcomes) in [MARKED, DROPPED, PACED].iter().zip(&outcomes) {
        println!("{} ms round trip, {agents}: {outcomes}", round_trip.as_millis());
    }
    outcomes.try_into().ok()
}

/// Sends through a session as much as its QUIC will.
fn fill(world: &World, agents: Agents) -> Outcome {
    let deployment = &world.deployment;
    for node in [&deployment.connector, &deployment.target] {
        agents.configure(node);
    }
    let relay = deployment.start_relay(Some(LIMIT), NATIVE).unwrap();
    let target = deployment.start_target().unwrap();
    let forward = deployment.start_forward(FORWARDED, SERVED).unwrap();
    let directory = world.lab.directory();
    let receiver = tcp_copy::receive(deployment.target.host(), SERVED, &directory.join("received")).unwrap();
    run_first(&[&relay, &target, &forward, &receiver]);
    let start = Instant::now();
    let mut sender =
        tcp_copy::send(deployment.connector.host(), FORWARDED, Path::new("/dev/zero"), directory).unwrap();
    run_first(&[&sender]);
    let at_start = Reading::of(world);
    std::thread::sleep(SETTLED.saturating_sub(start.elapsed()));
    let settled = Reading::of(world);
    std::thread::sleep((SETTLED + MEASURED).saturating_sub(start.elapsed()));
    let at_end = Reading::of(world);
    assert!(sender.ended().unwrap().is_none(), "the sender has ended: {}", sender.said());
    assert_eq!(world.lab.invalid_packets_at_nats().unwrap(), 0, "packets with wrong checksums");
    Outcome { first: at_start.until(&settled), measured: settled.until(&at_end) }
}

/// Runs processes before all ordinary ones, as the line's thread does: what is measured is the limit, and not how soon a
/// busy machine runs a process that has been sent something. Every such wait is a longer round trip.
fn run_first(processes: &[&Process]) {
    for process in processes {
        let tool = Tool::new("chrt").words("--rr --all-tasks --pid 1").arg(process.id().to_string());
        if let Err(error) = tool.output() {
            println!("not allowed, so a busy machine lowers the figures: {error:#}");
        }
    }
}

impl Agents {
    fn configure(self, node: &Node) {
        let Agents { pacing, ecn } = self;
        let config = std::fs::read_to_string(node.directory().join("state/config.toml")).unwrap();
        let (before, after) = config.split_once("[agent]\n").unwrap_or((&config, ""));
        node.configure(&format!("{before}[agent]\npacing = {pacing}\necn = {ecn}\n{after}")).unwrap();
    }
}

impl fmt::Display for Agents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |on| if on { "on" } else { "off" };
        write!(f, "ECN {}, pacing {}", word(self.ecn), word(self.pacing))
    }
}

/// The session's counters at a moment.
struct Reading {
    at: Instant,
    session: RelaySession,
}

impl Reading {
    fn of(world: &World) -> Reading {
        let [session] = world.sessions().try_into().unwrap();
        Reading { at: Instant::now(), session }
    }

    /// What was relayed from here to `end`.
    fn until(&self, end: &Reading) -> Relayed {
        let counted = |count: fn(&RelaySession) -> u64| count(&end.session) - count(&self.session);
        Relayed {
            span: end.at - self.at,
            bytes: counted(|session| session.sides.iter().map(|side| side.bytes).sum()),
            packets: counted(|session| {
                session.sides.iter().map(|side| side.packets_kernel + side.packets_userspace).sum()
            }),
            limited: counted(|session| session.limited_packets),
            marked: counted(|session| session.marked_packets),
        }
    }
}

struct Outcome {
    first: Relayed,
    measured: Relayed,
}

/// What a span of time has seen, both directions together.
struct Relayed {
    span: Duration,
    /// UDP payload.
    bytes: u64,
    packets: u64,
    limited: u64,
    marked: u64,
}

impl Outcome {
    /// Of the limit.
    fn share(&self) -> f64 {
        self.measured.share()
    }

    /// Packets dropped for the limit, of all.
    fn loss(&self) -> f64 {
        self.measured.loss()
    }

    fn all_marked(&self) -> u64 {
        self.first.marked + self.measured.marked
    }
}

impl Relayed {
    fn share(&self) -> f64 {
        self.bytes as f64 / (LIMIT as f64 * self.span.as_secs_f64())
    }

    fn loss(&self) -> f64 {
        self.limited as f64 / (self.packets + self.limited) as f64
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}; in the {:.1} s before that {}",
            self.measured,
            self.first.span.as_secs_f64(),
            self.first
        )
    }
}

impl fmt::Display for Relayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Relayed { packets, limited, marked, .. } = self;
        write!(
            f,
            "{:.1} % of the limit, {:.3} % lost ({limited} of {}), {marked} marked",
            100.0 * self.share(),
            100.0 * self.loss(),
            packets + limited
        )
    }
}
