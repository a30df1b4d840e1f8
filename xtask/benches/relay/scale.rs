//! Section 5: what it is to have many flows. A session is two flows, one for each direction.
//!
//! The program's cost by the number of flows; the memory of a session in the kernel, from the maps' own accounting, and in
//! the daemon, from its allocator's; how fast flows are installed; what looking after sessions takes.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::ensure;
use relay_common::{Reason, Side};
use relay_userspace::clock::MonoTime;
use relay_userspace::relay::datapath::{FlowTable, FlowTuple, Flows as _, Netlink, NoRoutes, Origin, SlotId};
use relay_userspace::relay::rendezvous::KEEPALIVE;
use xtask::interrupt;

use crate::Bench;
use crate::cpu;
use crate::frames::{Family, Kind};
use crate::memory::{allocated, mapped_arrays};
use crate::population::{Keepalive, Population, Seeded};
use crate::program_cost::AMPLE;
use crate::prologue::{Flows, Prologue, Subject};
use crate::report::Report;
use crate::rounds::{Candidate, Samples, in_turns};
use crate::sessions::Sessions;

/// How many sessions are many: a million flows.
const MANY: u32 = 500_000;

/// Measures all of it.
pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let [cpu, _] = cpu::two()?;
    std::thread::scope(|scope| {
        let here = scope.spawn(|| {
            cpu::stay_on(cpu)?;
            program_cost(bench, report)?;
            installs(report)?;
            population(report)
        });
        here.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

const COST_ROUNDS: usize = 7;
const COST_PACKETS: u32 = 400_000;

/// Each packet of a flow chosen at random.
fn program_cost(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    const COURSES: [(&str, u32); 3] = [
        ("program, 1,000 flows", 500),
        ("program, 100,000 flows", 50_000),
        ("program, 1,000,000 flows", MANY),
    ];
    const BARE: &str = "bare reflector, 1,000,000 flows";
    let kind = Kind::plain(Family::V4, 64);
    let flows = |sessions: u32| Flows { count: 2 * sessions, step: 1 };
    let mut bare = Prologue::load(&bench.object, kind, flows(MANY), Subject::Bare)?;
    let mut candidates = vec![Candidate::new(BARE, move || bare.run(COST_PACKETS))];
    for (name, count) in COURSES {
        let before = mapped_arrays()?;
        let mut sessions = Sessions::load(count, [Family::V4; 2], AMPLE)?;
        if count == MANY {
            let arrays = mapped_arrays()?;
            let new = arrays.iter().filter(|(descriptor, _)| !before.contains_key(descriptor));
            let bytes: u64 = new.map(|(_, bytes)| bytes).sum();
            report.add(KERNEL_MEMORY, "B/session", &one(bytes as f64 / f64::from(MANY)));
        }
        let subject = Subject::Relay(sessions.program.descriptor()?);
        let mut prologue = Prologue::load(&bench.object, kind, flows(count), subject)?;
        candidates.push(Candidate::new(name, move || {
            let before = sessions.counted(Reason::Forwarded)?;
            let ns = prologue.run(COST_PACKETS)?;
            let forwarded = sessions.counted(Reason::Forwarded)? - before;
            ensure!(forwarded > u64::from(COST_PACKETS) * 99 / 100, "{forwarded} packets were forwarded");
            Ok(ns)
        }));
    }
    let samples = in_turns(COST_ROUNDS, &mut candidates)?;
    report.add(BARE, "ns/packet", &samples[0]);
    for ((name, count), found) in COURSES.into_iter().zip(&samples[1..]) {
        match count == COURSES[0].1 {
            true => report.add(name, "ns/packet", found),
            false => report.add_beside(name, "ns/packet", found, COURSES[0].0, &samples[1]),
        }
    }
    Ok(())
}

const KERNEL_MEMORY: &str = "memory of a session, mapped arrays";
const DAEMON_MEMORY: &str = "memory of a session, daemon besides";
const AGENT_MEMORY: &str = "memory of an announced agent, daemon";
const INSTALLS: &str = "flows installed, agents in any order";

const INSTALL_ROUNDS: usize = 5;

/// Flows installed, moved and removed in the kernel's tables, a million of them, in seconds of the thread's own. Next hops are not asked for: that is a
/// question to the kernel, not to the table.
fn installs(report: &mut Report) -> anyhow::Result<()> {
    let Sessions { program: _program, mut flows, mut slots, .. } =
        Sessions::load(MANY, [Family::V4; 2], AMPLE)?;
    let mut now = MonoTime::now();
    remove(&mut flows, &slots, now);
    let mut order: Vec<u32> = (0..MANY).collect();
    let [mut in_order, mut in_any_order, mut moved, mut removed] = [const { Vec::new() }; 4];
    for round in 0..INSTALL_ROUNDS {
        order.sort_unstable();
        for rates in [&mut in_order, &mut in_any_order] {
            interrupt::check()?;
            // The slots of the round before have rested.
            now = now + Duration::from_secs(2);
            let sides: Vec<_> =
                order.iter().map(|session| [flow(2 * session), flow(2 * session + 1)]).collect();
            slots.clear();
            let begin = cpu::thread_time();
            for sides in sides {
                slots.push(flows.install(sides, AMPLE, &Origin::NONE, [now; 2], now)?);
            }
            rates.push(rate(2 * MANY, begin));
            if round % 2 == 1 {
                // A quarter of the agents, each to a tuple that nobody has.
                let tuples: Vec<FlowTuple> = (0..MANY / 4).map(|agent| flow(2 * MANY + agent)).collect();
                let begin = cpu::thread_time();
                for (slot, tuple) in slots.iter().zip(&tuples) {
                    flows.rebind(*slot, Side::Connector, *tuple, now)?;
                }
                moved.push(rate(MANY / 4, begin));
            }
            removed.push(remove(&mut flows, &slots, now));
            Seeded(round as u64 + 1).shuffle(&mut order);
        }
    }
    for (name, rates) in [
        ("flows installed, agents in order", in_order),
        (INSTALLS, in_any_order),
        ("flows moved", moved),
        ("flows removed", removed),
    ] {
        report.add(name, "flows/s", &Samples(rates));
    }
    next_hops(report)
}

/// What the relay asks the kernel once for each direction of a session that the program forwards.
fn next_hops(report: &mut Report) -> anyhow::Result<()> {
    const QUESTIONS: u32 = 10_000;
    let mut netlink = Netlink::open()?;
    let mut rates = Vec::new();
    for _ in 0..INSTALL_ROUNDS {
        interrupt::check()?;
        let begin = cpu::thread_time();
        for number in 0..QUESTIONS {
            netlink.next_hop(Ipv4Addr::from(0x7f01_0000 + number).into(), Ipv4Addr::LOCALHOST.into())?;
        }
        rates.push(rate(QUESTIONS, begin));
    }
    report.add("next hops asked of the kernel", "flows/s", &Samples(rates));
    Ok(())
}

fn flow(number: u32) -> FlowTuple {
    FlowTuple { agent: Family::V4.agent(number), relay: Family::V4.relay() }
}

/// Removes sessions: flows per second.
fn remove(flows: &mut FlowTable<NoRoutes>, slots: &[SlotId], now: MonoTime) -> f64 {
    let begin = cpu::thread_time();
    for slot in slots {
        flows.remove(*slot, now);
    }
    rate(2 * slots.len() as u32, begin)
}

/// So many since `begin`, by the second of this thread's.
fn rate(count: u32, begin: f64) -> f64 {
    f64::from(count) / (cpu::thread_time() - begin) * 1e9
}

/// Agents and sessions come so many to a step of time.
const AT_ONCE: u32 = 100;
const STEP: Duration = Duration::from_millis(4);

/// Of so many sessions one is kept alive in the measurement.
const ONE_IN: u32 = 10;

/// The daemon's own state machine with a million agents, half a million sessions between them.
fn population(report: &mut Report) -> anyhow::Result<()> {
    let mut relay = Population::new(MANY);
    let before = allocated();
    for agent in 0..2 * MANY {
        relay.announce();
        if agent % AT_ONCE == 0 {
            interrupt::check()?;
            relay.pass(STEP);
        }
    }
    let announced = allocated();
    report.add(AGENT_MEMORY, "B/agent", &one((announced - before) as f64 / f64::from(2 * MANY)));
    let mut keepalives: Vec<Keepalive> = Vec::with_capacity(2 * (MANY / ONE_IN) as usize);
    let kept = size_of::<Keepalive>() * keepalives.capacity();
    for session in 0..MANY {
        let sides = relay.pair(session.into())?;
        if session % ONE_IN == 0 {
            keepalives.extend(sides);
        }
        if session % AT_ONCE == 0 {
            interrupt::check()?;
            relay.pass(STEP);
        }
    }
    ensure!(relay.sessions() == MANY, "{} of {MANY} sessions are paired", relay.sessions());
    let looks = looking_after(&mut relay)?;
    let session = (allocated() - announced - kept) as f64 / f64::from(MANY);
    report.add(DAEMON_MEMORY, "B/session", &one(session));
    report.add("looking after 500,000 sessions", "% of a core", &looks);

    Seeded(1).shuffle(&mut keepalives);
    let rounds = keepalives.chunks(keepalives.len() / 5).map(|keepalives| {
        let begin = cpu::thread_time();
        for keepalive in keepalives {
            relay.keep_alive(keepalive)?;
        }
        Ok((cpu::thread_time() - begin) / keepalives.len() as f64)
    });
    let ns = Samples(rounds.collect::<anyhow::Result<_>>()?);
    let each_second = f64::from(2 * MANY) / KEEPALIVE.as_secs_f64();
    report.add("keepalives answered", "1/s", &Samples(ns.0.iter().map(|ns| 1e9 / ns).collect()));
    let load = ns.0.iter().map(|ns| 100.0 * ns * each_second / 1e9);
    report.add("keepalives of 500,000 sessions", "% of a core", &Samples(load.collect()));
    report.note(format!(
        "Sessions are two flows. Memory of the daemon: what it has allocated, the allocator's own part included, for \
         sessions whose agents are connected, {} of which are counted apart and without their QUIC connections. Each of \
         500,000 sessions' agents sends a keepalive every {} s.",
        2 * MANY,
        KEEPALIVE.as_secs()
    ));
    Ok(())
}

/// What the daemon does by itself: looks at traffic and deadlines, and asks agents for signs of life.
fn looking_after(relay: &mut Population) -> anyhow::Result<Samples> {
    const SPAN: Duration = Duration::from_secs(5);
    let mut shares = Vec::new();
    for _ in 0..3 {
        interrupt::check()?;
        let begin = cpu::thread_time();
        relay.pass(SPAN);
        shares.push(100.0 * (cpu::thread_time() - begin) / SPAN.as_nanos() as f64);
    }
    Ok(Samples(shares))
}

fn one(figure: f64) -> Samples {
    Samples(vec![figure])
}
