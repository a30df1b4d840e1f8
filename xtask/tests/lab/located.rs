//! Where the packets of a [`Steady`] traffic are lost: each of the lab's hosts counts them as they come and go, and what is
//! lost on a stretch between two such counts has to be accounted for by the counters of what stands there.
//!
//! ```text
//!  agent ── NAT ── router ── relay ── router ── NAT ── agent
//! ```

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::ops::Range;
use std::time::Instant;

use relay_common::Reason;
use xtask::answers::{RelaySession, RelaySessions, RelaySide, Status};
use xtask::deployment::Node;
use xtask::lab::{AGENT_INTERFACE, Namespace, RELAY_GATEWAY_DEVICE, RELAY_INTERFACE};

use super::host_counts::{Drops, Passed, count};
use super::steady::{Arrivals, LENGTH, Missing, PER_SIDE, Steady};
use super::world::World;

/// The traffic, the lab, and the relays that it may go through.
pub struct Watch<'a> {
    pub world: &'a World,
    pub steady: &'a Steady,
    relays: Vec<WatchedRelay<'a>>,
}

/// A relay that the traffic may go through.
pub struct WatchedRelay<'a> {
    pub node: &'a Node,
    pub host: &'a Namespace,
    /// The router's device towards it.
    pub gateway_device: &'static str,
}

/// A part of the way, both directions together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stretch {
    /// An agent's host, its socket and the agent itself.
    Agent(usize),
    /// Between an agent and its NAT.
    AgentLink(usize),
    Nat(usize),
    /// Between a NAT and the router.
    NatLink(usize),
    Router,
    /// From the router over the relay back to it.
    Relay(usize),
}

/// What has happened to the traffic between two moments at which nothing was on its way.
#[derive(Debug)]
pub struct Course {
    /// By each side.
    pub sent: [u64; 2],
    /// Of each side's, at the other.
    pub received: [u64; 2],
    /// At each side.
    pub arrivals: [Arrivals; 2],
    /// Of each side's.
    pub missing: [Vec<Missing>; 2],
    sending: Range<Instant>,
    /// Packets of each side that have come back from the relays.
    pub through_relay: [u64; 2],
    /// The packets that were lost on each stretch; below 0: more came out than went in.
    pub lost: BTreeMap<Stretch, i64>,
    /// What its counters say it has dropped, by what they are called.
    pub dropped: BTreeMap<Stretch, BTreeMap<String, u64>>,
    /// What the program of the world's relay has handed up instead of forwarding it, by reason.
    pub handed_up: BTreeMap<String, u64>,
    /// The sessions of the world's relay before and after; none if it did not answer.
    pub sessions: [Option<Vec<RelaySession>>; 2],
}

/// The counts at one moment.
struct Counts {
    sent: [u64; 2],
    arrivals: [Arrivals; 2],
    through_relay: [u64; 2],
    /// Packets that have entered a stretch and that have left it.
    entered: BTreeMap<Stretch, u64>,
    left: BTreeMap<Stretch, u64>,
    dropped: BTreeMap<Stretch, BTreeMap<String, u64>>,
    handed_up: BTreeMap<String, u64>,
    sessions: Option<Vec<RelaySession>>,
}

/// What a relay's own link to the router drops; all else on its stretch is the relay's.
const ITS_LINK: &str = "the link to it";

impl<'a> Watch<'a> {
    /// Begins to count what goes through the world's relay.
    pub fn new(world: &'a World, steady: &'a Steady) -> Watch<'a> {
        let relay = WatchedRelay {
            node: &world.deployment.relay,
            host: &world.lab.relay,
            gateway_device: RELAY_GATEWAY_DEVICE,
        };
        Watch::over(world, steady, vec![relay])
    }

    /// As [`Watch::new`], for traffic that may go through any of `relays`.
    pub fn over(world: &'a World, steady: &'a Steady, relays: Vec<WatchedRelay<'a>>) -> Watch<'a> {
        let watch = Watch { world, steady, relays };
        let lab = &world.lab;
        for number in 0..2 {
            count(&lab.agents[number], &[AGENT_INTERFACE.to_owned()]);
            count(&lab.nats[number], &[format!("lan{number}"), "wan".to_owned()]);
        }
        let devices = watch.relays.iter().map(|relay| relay.gateway_device.to_owned());
        count(&lab.router, &devices.chain(["i0".to_owned(), "i1".to_owned()]).collect::<Vec<_>>());
        watch
    }

    /// What happens to the traffic from now on until `event` is over. Nothing is on its way at both ends.
    pub fn during<T>(&self, event: impl FnOnce() -> T) -> (T, Course) {
        self.steady.pause();
        self.steady.forget_silence();
        let before = self.counts();
        let began = Instant::now();
        self.steady.go_on();
        let result = event();
        let lasted = began.elapsed();
        self.steady.pause();
        let after = self.counts();
        let missing = self.steady.missing(before.sent);
        self.steady.go_on();
        (result, Course::between(before, after, missing, began..began + lasted))
    }

    /// The sessions of the world's relay.
    fn sessions(&self) -> Option<Vec<RelaySession>> {
        let sessions = self.world.deployment.relay.json::<RelaySessions>("net sessions --json");
        sessions.ok().map(|sessions| sessions.sessions)
    }

    fn counts(&self) -> Counts {
        let lab = &self.world.lab;
        let (sent, arrivals) = (self.steady.sent(), self.steady.arrivals());
        let [agents, nats] =
            [&lab.agents, &lab.nats].map(|hosts| [0, 1].map(|number| Passed::by(&hosts[number])));
        let router = Passed::by(&lab.router);
        let (mut entered, mut left) = (BTreeMap::new(), BTreeMap::new());
        let mut stretch = |stretch, [before, after]: [u64; 2]| {
            *entered.entry(stretch).or_default() += before;
            *left.entry(stretch).or_default() += after;
        };
        for from in 0..2 {
            let to = from ^ 1;
            let relays = |count: &dyn Fn(&str) -> u64| {
                self.relays.iter().map(|relay| count(relay.gateway_device)).sum::<u64>()
            };
            let by_agent = agents[from].went(AGENT_INTERFACE, from);
            let [lan, lan_back] = [from, to].map(|number| format!("lan{number}"));
            let [uplink, uplink_back] = [from, to].map(|number| format!("i{number}"));
            let into_nat = nats[from].came(&lan, from);
            let from_nat = nats[from].went("wan", from);
            let into_router = router.came(&uplink, from);
            let back_from_router = router.went(&uplink_back, from);
            let back_into_nat = nats[to].came("wan", from);
            let back_from_nat = nats[to].went(&lan_back, from);
            let into_agent = agents[to].came(AGENT_INTERFACE, from);
            let received = arrivals[to].datagrams + arrivals[to].duplicates;
            stretch(Stretch::Agent(from), [sent[from], by_agent]);
            stretch(Stretch::AgentLink(from), [by_agent, into_nat]);
            stretch(Stretch::Nat(from), [into_nat, from_nat]);
            stretch(Stretch::NatLink(from), [from_nat, into_router]);
            stretch(Stretch::Router, [into_router, relays(&|device| router.went(device, from))]);
            for (number, relay) in self.relays.iter().enumerate() {
                let device = relay.gateway_device;
                stretch(Stretch::Relay(number), [router.went(device, from), router.came(device, from)]);
            }
            stretch(Stretch::Router, [relays(&|device| router.came(device, from)), back_from_router]);
            stretch(Stretch::NatLink(to), [back_from_router, back_into_nat]);
            stretch(Stretch::Nat(to), [back_into_nat, back_from_nat]);
            stretch(Stretch::AgentLink(to), [back_from_nat, into_agent]);
            stretch(Stretch::Agent(to), [into_agent, received]);
        }
        let through_relay =
            [0, 1].map(|from| self.relays.iter().map(|relay| router.came(relay.gateway_device, from)).sum());
        let dropped = self.dropped();
        let handed_up = self.handed_up();
        let sessions = self.sessions();
        Counts { sent, arrivals, through_relay, entered, left, dropped, handed_up, sessions }
    }

    fn handed_up(&self) -> BTreeMap<String, u64> {
        let Ok(mut status) = self.world.deployment.relay.json::<Status>("xdp status --json") else {
            return BTreeMap::new();
        };
        // What is not the traffic's goes up all the time.
        let others = ["no_flow", "not_ip", "not_udp", "bind", Reason::Forwarded.name()];
        status.kernel.retain(|name, _| !Status::is_drop(name) && !others.contains(&name.as_str()));
        status.kernel
    }

    fn dropped(&self) -> BTreeMap<Stretch, BTreeMap<String, u64>> {
        let lab = &self.world.lab;
        let mut dropped = BTreeMap::new();
        let router = Drops::of(&lab.router);
        for (number, untaken) in self.steady.untaken().into_iter().enumerate() {
            let [agent, nat] = [&lab.agents, &lab.nats].map(|hosts| Drops::of(&hosts[number]));
            let between = [agent.device(AGENT_INTERFACE), nat.device(&format!("lan{number}"))].concat();
            dropped.insert(Stretch::AgentLink(number), between.into_iter().collect());
            let between = [nat.device("wan"), router.device(&format!("i{number}"))].concat();
            dropped.insert(Stretch::NatLink(number), between.into_iter().collect());
            dropped.insert(Stretch::Nat(number), nat.stack);
            dropped.insert(Stretch::Agent(number), untaken.into_iter().chain(agent.stack).collect());
        }
        for (number, relay) in self.relays.iter().enumerate() {
            let [towards, _back] = router.drops(relay.gateway_device);
            let host = Drops::of(relay.host);
            let mut drops = host.stack.clone();
            drops.insert(ITS_LINK.to_owned(), towards);
            drops.extend(host.device(RELAY_INTERFACE));
            if let Ok(status) = relay.node.json::<Status>("xdp status --json") {
                drops.extend(reasons_to_drop(&status));
            }
            dropped.insert(Stretch::Relay(number), drops);
        }
        dropped.insert(Stretch::Router, router.stack);
        dropped
    }
}

impl Course {
    fn between(before: Counts, after: Counts, missing: [Vec<Missing>; 2], sending: Range<Instant>) -> Course {
        let lost = after.entered.iter().map(|(stretch, entered)| {
            let entered = entered - before.entered[stretch];
            let left = after.left[stretch] - before.left[stretch];
            (*stretch, entered as i64 - left as i64)
        });
        let lost = lost.collect();
        let mut dropped = after.dropped;
        dropped.iter_mut().for_each(|(stretch, drops)| subtract(drops, &before.dropped[stretch]));
        let mut handed_up = after.handed_up;
        subtract(&mut handed_up, &before.handed_up);
        let pair = |of: &dyn Fn(usize) -> u64| [of(0), of(1)];
        let arrived = |side: usize| after.arrivals[side].datagrams - before.arrivals[side].datagrams;
        let arrivals = [0, 1].map(|side: usize| {
            let (now, then) = (after.arrivals[side], before.arrivals[side]);
            Arrivals {
                datagrams: now.datagrams - then.datagrams,
                duplicates: now.duplicates - then.duplicates,
                late: now.late - then.late,
                longest_silence: now.longest_silence,
            }
        });
        Course {
            sent: pair(&|side| after.sent[side] - before.sent[side]),
            received: pair(&|side| arrived(side ^ 1)),
            arrivals,
            missing,
            sending,
            through_relay: pair(&|side| after.through_relay[side] - before.through_relay[side]),
            lost,
            dropped,
            handed_up,
            sessions: [before.sessions, after.sessions],
        }
    }

    /// Packets that did not arrive.
    pub fn all_lost(&self) -> i64 {
        self.sent.iter().sum::<u64>() as i64 - self.received.iter().sum::<u64>() as i64
    }

    /// Packets that were lost where no counter says so.
    pub fn unlocated(&self) -> u64 {
        let unlocated = |(stretch, lost): (&Stretch, &i64)| {
            let lost = u64::try_from(*lost).unwrap_or(0);
            lost.saturating_sub(self.dropped[stretch].values().sum())
        };
        self.lost.iter().map(unlocated).sum()
    }

    /// Packets that were lost by relay `number`: at its interface, in its program, sockets and daemon.
    pub fn lost_by(&self, relay: usize) -> i64 {
        let lost = self.lost[&Stretch::Relay(relay)];
        lost - self.lost_before(relay)
    }

    /// Packets that were lost on the links, those to and from the relays included, and in the routers.
    pub fn lost_on_links(&self) -> i64 {
        let of = |(stretch, lost): (&Stretch, &i64)| match *stretch {
            Stretch::Relay(number) => self.lost_before(number),
            Stretch::Agent(_) => 0,
            _ => *lost,
        };
        self.lost.iter().map(of).sum()
    }

    /// What is said of the traffic: it came to that many packets, each of which has arrived once or is located.
    pub fn assert_sound(&self) {
        self.assert_sound_but(0);
    }

    /// As [`Course::assert_sound`], but so many packets may be lost where nobody counts.
    pub fn assert_sound_but(&self, uncounted: u64) {
        let offered = self.sent.iter().sum::<u64>() as f64 / self.seconds();
        // Half of it would still be a test; a machine that cannot even do that tells nothing.
        assert!(offered >= PER_SIDE as f64, "no steady traffic, {offered:.0} packets/s: {self}");
        assert_eq!(self.arrivals.map(|arrivals| arrivals.duplicates), [0; 2], "duplicates: {self}");
        assert!(self.lost.values().all(|lost| *lost >= 0), "more came out than went in: {self}");
        assert_eq!(self.lost.values().sum::<i64>(), self.all_lost(), "the sum: {self}");
        let unlocated = self.unlocated();
        assert!(unlocated <= uncounted, "{unlocated} are not located: {self}");
    }

    /// The world's relay has the sessions that it had, and what it has counted of them goes on: by what it has carried, or,
    /// where it was `killed` while it carried something itself, at least by some of that.
    pub fn assert_sessions_kept(&self, killed: bool) {
        let [Some(before), Some(after)] = &self.sessions else { panic!("a relay without an answer: {self}") };
        let ids =
            |sessions: &[RelaySession]| sessions.iter().map(|it| it.session.clone()).collect::<Vec<_>>();
        assert_eq!(ids(after), ids(before), "{self}");
        for (side, (before, after)) in before
            .iter()
            .zip(after)
            .flat_map(|(before, after)| before.sides.iter().zip(&after.sides))
            .enumerate()
        {
            let packets = |side: &RelaySide| side.packets_kernel + side.packets_userspace;
            let carried = packets(after) - packets(before);
            let expected = self.through_relay[side];
            let is_right = if killed { (1..=expected).contains(&carried) } else { carried == expected };
            assert!(is_right, "{carried} packets of side {side} were counted: {self}");
            assert_eq!(after.bytes - before.bytes, carried * LENGTH as u64, "bytes of side {side}: {self}");
        }
    }

    fn seconds(&self) -> f64 {
        (self.sending.end - self.sending.start).as_secs_f64()
    }

    fn lost_before(&self, relay: usize) -> i64 {
        let stretch = Stretch::Relay(relay);
        let by_link = self.dropped[&stretch].get(ITS_LINK).copied().unwrap_or(0);
        self.lost[&stretch].min(by_link as i64)
    }
}

impl fmt::Display for Course {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [sent, received] = [self.sent, self.received].map(|both| both.iter().sum::<u64>());
        let seconds = self.seconds();
        let rate = sent as f64 / seconds;
        write!(f, "{sent} sent in {seconds:.1} s ({rate:.0}/s), {received} received")?;
        let [late, silence] = [0, 1].map(|what| {
            self.arrivals.map(|arrivals| match what {
                0 => arrivals.late.to_string(),
                _ => format!("{:.1} ms", arrivals.longest_silence.as_secs_f64() * 1e3),
            })
        });
        write!(f, ", late {}, longest silences {}", late.join(" and "), silence.join(" and "))?;
        for (stretch, lost) in self.lost.iter().filter(|(_, lost)| **lost != 0) {
            write!(f, "; {lost} lost at {stretch:?}, where the counters say {:?}", self.dropped[stretch])?;
        }
        if !self.handed_up.is_empty() {
            write!(f, "; handed up by the program: {:?}", self.handed_up)?;
        }
        for (side, missing) in self.missing.iter().enumerate().filter(|(_, missing)| !missing.is_empty()) {
            let shown = missing.iter().take(8).fold(String::new(), |mut shown, hole| {
                let _ = write!(shown, ", {hole} ({:.3} s)", (hole.sent - self.sending.start).as_secs_f64());
                shown
            });
            write!(f, "; missing of side {side} in {} places{shown}", missing.len())?;
        }
        Ok(())
    }
}

/// Leaves of `counts` what has come since `before`.
fn subtract(counts: &mut BTreeMap<String, u64>, before: &BTreeMap<String, u64>) {
    for (name, count) in counts.iter_mut() {
        let before = before.get(name).copied().unwrap_or(0);
        // A daemon's own counts begin anew with it.
        *count = if *count >= before { *count - before } else { *count };
    }
    counts.retain(|_, count| *count > 0);
}

/// What a relay has dropped, by reason.
fn reasons_to_drop(status: &Status) -> BTreeMap<String, u64> {
    let named = |by: &str, counts: &BTreeMap<String, u64>| {
        let drops = counts.iter().filter(|(name, _)| Status::is_drop(name));
        drops.map(|(name, count)| (format!("{by} {name}"), *count)).collect::<Vec<_>>()
    };
    [named("program", &status.kernel), named("daemon", &status.userspace)].concat().into_iter().collect()
}
