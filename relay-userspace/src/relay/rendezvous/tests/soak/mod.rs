//! Ten thousand agents that announce, pair, move, lose connections and leave, over a network that loses, delays, repeats
//! and reorders. After every input the invariants are checked: of all that it may have touched, and of the totals. Every
//! now and then the whole state is walked over, so that nothing is missed by looking only where something should happen.

mod agents;
mod books;
mod census;
mod invariants;
mod network;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::super::*;
use super::{Seeded, seconds};
use crate::relay::datapath::{InstallError, TupleFault};

use self::agents::{PopularAgents, SimulatedAgent};
use self::books::Books;
use self::census::{Census, Touched};
use self::network::{Network, Transit};

const AGENTS: usize = 10_000;

#[test]
fn whatever_ten_thousand_agents_and_their_network_do_the_invariants_hold_and_nothing_is_left_behind() {
    soak(0x5eed, 24_000);
}

#[test]
#[ignore = "long: hours of ten thousand agents' time, with other seeds"]
fn so_they_do_for_hours() {
    for seed in 1..=8 {
        soak(seed, 500_000);
    }
}

fn soak(seed: u64, steps: u32) {
    let mut simulation = Simulation::new(seed);
    for who in 0..AGENTS {
        simulation.connect(who);
        simulation.pass(Duration::from_micros(500));
    }
    for _ in 0..steps {
        simulation.step();
    }
    simulation.check_whole();
    let (seen, inputs) = (simulation.seen.clone(), simulation.inputs);
    let events = ["offered", "paired", "moved", "tuple lost", "replaced", "limited", "joined", "parted"];
    // No relay stops here, and none goes on with what another has left.
    let of_restarts = ["shutdown", "banned", "lease_over", "unreadable"];
    let ends = EndReason::ALL.map(EndReason::word).into_iter().filter(|reason| !of_restarts.contains(reason));
    let unseen: Vec<&str> =
        events.into_iter().chain(ends).filter(|event| !seen.contains_key(event)).collect();
    assert!(unseen.is_empty(), "the soak has seen no {unseen:?}: {seen:?}");
    let refusals = simulation.rendezvous.refusals();
    let missed = [
        Refusal::AccessDenied,
        Refusal::AnnouncedFull,
        Refusal::ReplacedTooOften,
        Refusal::TargetAbsent,
        Refusal::TargetDenies,
        Refusal::TotalLimit,
        Refusal::PrefixSessions,
        Refusal::SourceOffers,
        Refusal::TargetRate,
        Refusal::TargetSessions,
        Refusal::ConnectRate,
        Refusal::FlowOnly,
        Refusal::DocumentedOnly,
        Refusal::WaitingStreams,
    ];
    let missed: Vec<Refusal> = missed.into_iter().filter(|refusal| refusals.of(*refusal) == 0).collect();
    assert!(
        missed.is_empty(),
        "nothing was refused for {missed:?}: {:?}",
        refusals.iter().collect::<Vec<_>>()
    );
    assert!(
        seen["paired"] > 1000 && seen["joined"] > 500 && inputs > u64::from(steps) * 4,
        "{inputs} inputs: {seen:?}"
    );
    simulation.everyone_leaves();
}

struct Simulation {
    rendezvous: Rendezvous,
    flows: Books,
    random: Seeded,
    now: MonoTime,
    agents: Vec<SimulatedAgent>,
    popular: PopularAgents,
    network: Network,
    next_conn: u64,
    /// Connections that neither side has given up, and whose they are.
    open: BTreeMap<ConnId, usize>,
    /// The largest datagram of each session, as it was told last on a connection.
    told: BTreeMap<(ConnId, SessionId), u32>,
    /// Addresses that have sent a datagram.
    sources: BTreeSet<SocketAddr>,
    /// Whose data sockets are or were seen at an address.
    receivers: BTreeMap<SocketAddr, Vec<(usize, SessionId)>>,
    census: Census,
    touched: Touched,
    inputs: u64,
    seen: BTreeMap<&'static str, u32>,
}

impl Simulation {
    fn new(seed: u64) -> Simulation {
        let mut random = Seeded(seed);
        let settings = Settings {
            key: NodeKey::from_seed(&[0; 32]),
            limit: Limit::UNLIMITED,
            // Low enough to be reached.
            policy: Policy {
                announced_agents: 9_000,
                offers_per_source: 4,
                offers_per_target: 8,
                sessions_per_node: 16,
                sessions_per_prefix: 12,
                ..Policy::default()
            },
            idle_timeout: seconds(60),
            advertise: Vec::new(),
        };
        let now = MonoTime(1_000_000_000_000);
        Simulation {
            rendezvous: Rendezvous::new(settings, &mut random, now),
            flows: Books::new(),
            random,
            now,
            agents: (0..AGENTS).map(|_| SimulatedAgent::default()).collect(),
            popular: PopularAgents { for_flows: 3 },
            network: Network::default(),
            next_conn: 0,
            open: BTreeMap::new(),
            told: BTreeMap::new(),
            sources: BTreeSet::new(),
            receivers: BTreeMap::new(),
            census: Census::default(),
            touched: Touched::default(),
            inputs: 0,
            seen: BTreeMap::new(),
        }
    }

    /// One thing happens; then up to 10 ms pass.
    fn step(&mut self) {
        let who = self.random.below(AGENTS as u64) as usize;
        match self.random.below(200) {
            0..26 => self.connect(who),
            26..30 => {
                let who = self.popular.one(&mut self.random);
                self.connect(who);
            }
            30..36 => self.lose_connection(who),
            36..84 => (0..4).for_each(|nth| self.ask_for_someone((who + nth * 1000) % AGENTS)),
            84 => (0..20).for_each(|_| self.ask_for_someone(who)),
            85 => self.several_ask_for_one(who),
            86..92 => self.end_a_session(),
            92..112 => self.change_address(),
            112..168 => self.carry_a_packet(),
            168..172 => self.flows.ledger.refuse = Some(InstallError::TableFull),
            172..176 => self.flows.ledger.refuse = Some(InstallError::Tuple(TupleFault::Family)),
            176..180 => self.fall_silent(),
            180..182 => self.migrate(who),
            182 => self.operator_ends(who),
            183 => self.policy_changes(),
            184..188 => self.wait_on_streams(who, 1),
            188 => self.wait_on_streams(self.popular.to_join(), 80),
            189..192 => self.finish_a_stream(who),
            192..195 => self.end_what_is_joined(),
            195..198 => self.rendezvous.spliced_bytes(1000, self.now),
            _ => {}
        }
        let span = Duration::from_micros(self.random.below(10_000));
        self.pass(span);
    }

    /// Lets everything arrive and expire that is due.
    fn pass(&mut self, span: Duration) {
        let until = self.now + span;
        loop {
            let (arrival, deadline) = (self.network.next_at(), self.rendezvous.next_deadline());
            let next = [arrival, deadline].into_iter().flatten().min();
            let Some(at) = next.filter(|at| *at <= until) else { break };
            self.now = self.now.max(at);
            if deadline == Some(at) {
                self.rendezvous.expire(&mut self.flows, self.now);
                self.after_input();
                let next = self.rendezvous.next_deadline();
                assert!(next.is_none_or(|due| due > self.now), "nothing due is left undone");
            } else if let Some(transit) = self.network.next() {
                self.arrive(transit);
            }
        }
        self.now = until;
    }

    /// What the rendezvous has made of an input is carried out and checked.
    fn after_input(&mut self) {
        self.inputs += 1;
        self.carry_out();
        self.check_touched();
        if self.inputs.is_multiple_of(WHOLE_EVERY) {
            self.check_whole();
        }
    }

    /// The operator denies a node that was let in, or lets those in again that he had denied; or wants less carried.
    fn policy_changes(&mut self) {
        let mut policy = self.rendezvous.settings.policy.clone();
        match self.random.below(3) {
            0 => {
                let anyone = self.random.below(AGENTS as u64) as usize;
                let whom = [anyone, self.popular.one(&mut self.random)][self.random.below(2) as usize];
                policy.access.deny.insert(node(whom));
            }
            1 => policy.access.deny.clear(),
            _ => policy.relay_total_limit = if self.random.below(6) == 0 { 20_000 } else { 0 },
        }
        self.rendezvous.set_policy(policy, &mut self.flows, self.now);
        self.after_input();
    }

    /// The operator ends all sessions of a node, or one of all.
    fn operator_ends(&mut self, who: usize) {
        let one = match self.random.below(2) {
            0 => self.census.some_session(&mut self.random),
            _ => self.census.some_joined(&mut self.random),
        };
        match one {
            Some(session) if self.random.below(2) == 0 => {
                assert!(self.rendezvous.end_by_operator(session, &mut self.flows, self.now));
            }
            _ => {
                let ended = self.rendezvous.end_all_by_operator(&node(who), &mut self.flows, self.now);
                assert_eq!(ended, self.census.sessions_of(who));
            }
        }
        self.after_input();
    }

    /// All connections and data sockets die: soon nothing of them is left.
    fn everyone_leaves(&mut self) {
        for who in 0..AGENTS {
            self.lose_connection(who);
            self.agents[who].forget_sessions();
        }
        self.network.clear();
        // Where no Ping can be sent, it is QUIC that finds a connection dead.
        let waits = |conn: &ConnId| self.rendezvous.agents.get(*conn).unwrap().gave_first_stream;
        for conn in self.open.keys().copied().filter(waits).collect::<Vec<_>>() {
            self.connection_dies(conn);
        }
        self.pass(seconds(240));
        self.check_whole();
        assert_eq!(self.rendezvous.sessions.total(), 0);
        assert_eq!(self.rendezvous.splices.counts(), [0, 0]);
        assert_eq!(self.rendezvous.splices.waiting().count(), 0);
        assert_eq!(self.rendezvous.nodes.iter().count(), 0);
        assert_eq!(self.rendezvous.sessions.prefixes().iter().count(), 0);
        assert!(self.flows.ledger.slots.is_empty());
        assert!(self.open.is_empty(), "connections that lingered are found dead by unanswered pings");
        assert_eq!(self.rendezvous.next_deadline(), None);
        self.nobody_else_is_forwarded(|_| true);
    }
}

/// So many inputs lie between two walks over everything.
const WHOLE_EVERY: u64 = 40_000;

fn node(who: usize) -> NodeId {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&(who as u64).to_be_bytes());
    NodeId::from_bytes(bytes)
}

fn who(node: &NodeId) -> usize {
    u64::from_be_bytes(*node.as_bytes().first_chunk().unwrap()) as usize
}

/// Sixteen agents share a prefix; every third of these speaks IPv6.
fn address(who: usize, net: u8) -> IpAddr {
    let home = (who / 16) as u16;
    match home % 3 {
        0 => Ipv6Addr::new(0x2001, 0xdb8, home, u16::from(net), 0, 0, 0, who as u16).into(),
        _ => Ipv4Addr::new(net, 0, (home >> 8) as u8, home as u8).into(),
    }
}

fn control_address(who: usize, port: u64) -> SocketAddr {
    SocketAddr::new(address(who, 192), 1024 + (who % 16) as u16 * 1000 + (port % 1000) as u16)
}

fn data_address(who: usize, port: u64) -> SocketAddr {
    SocketAddr::new(address(who, 203), 1024 + (who % 16) as u16 * 4000 + (port % 4000) as u16)
}
