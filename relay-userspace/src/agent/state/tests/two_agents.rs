//! Two agents and their relays under simulated time: relays pair, forget and die; agents notice as their bind exchange
//! would tell them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use relay_common::Side;

use super::*;
use crate::config::RelayHint;
use crate::protocol::bind::{BindEvent, PathHealth};
use crate::protocol::flow_terms::{RelayConnect, RelayError, RelayReady};

/// A step of the simulation.
const STEP: Duration = Duration::from_millis(250);

/// An agent that sends all the time binds after a second without an answer, and its path is silent three later.
const NOTICED: Duration = Duration::from_secs(4);

/// A control connection without an answer is given up.
const LINK_IDLE: Duration = Duration::from_secs(30);

/// Consent without a proof.
const CONSENT: Duration = Duration::from_secs(73);

pub struct World {
    pub now: Now,
    pub agents: [SimAgent; 2],
    pub relays: Vec<SimRelay>,
    /// Messages on their way to an agent.
    mail: VecDeque<(RelayIndex, usize, Message)>,
    next_session: u8,
    next_request: u64,
}

pub struct SimAgent {
    pub state: State,
    /// The sockets that are open, by session.
    pub paths: BTreeMap<SessionId, SimPath>,
    /// What applications have, by the session that it began as.
    pub handles: BTreeMap<SessionId, Handle>,
    pub failed: Vec<ConnectError>,
    pub moves: usize,
    /// When it has asked which relay to connect it.
    pub asked: Vec<(MonoTime, RelayIndex)>,
    /// The relays that it keeps connected.
    pub knows: BTreeSet<usize>,
}

pub struct Handle {
    pub present: SessionId,
    pub end: Option<SessionEnd>,
}

pub struct SimPath {
    pub relay: RelayIndex,
    carries: Use,
    told: PathHealth,
    dead_since: Option<MonoTime>,
    unproved_since: Option<MonoTime>,
    lost: bool,
}

pub struct SimRelay {
    /// It has said that it is about to stop.
    pub draining: bool,
    /// Forwards and answers.
    pub alive: bool,
    /// Takes binds. Off: as a firewall that lets control pass alone.
    pub data_open: bool,
    /// Its daemon is dead while the kernel forwards.
    pub headless: bool,
    died: MonoTime,
    linked: [bool; 2],
    pub announced: [bool; 2],
    pub sessions: BTreeMap<SessionId, SimSession>,
}

pub struct SimSession {
    /// Connector and target.
    pub nodes: [usize; 2],
    bound: [bool; 2],
}

impl World {
    /// Agents of which each accepts the other, connected to so many relays.
    pub fn new(relays: usize, incoming: Use) -> Self {
        World::where_some_are_unknown(relays, relays, incoming)
    }

    /// Agents that know only the first `known` of so many relays.
    pub fn where_some_are_unknown(known: usize, relays: usize, incoming: Use) -> Self {
        let names = || (0..known).map(|at| format!("relay{at}:4433")).collect();
        let incoming = IncomingSessions { carries: incoming, per_peer: 4 };
        let agent = |at: usize| SimAgent {
            state: State::new(node(at), true, [node(1 - at)], incoming, names()),
            paths: BTreeMap::new(),
            handles: BTreeMap::new(),
            failed: Vec::new(),
            moves: 0,
            asked: Vec::new(),
            knows: (0..known).collect(),
        };
        let relay = || SimRelay {
            draining: false,
            alive: true,
            data_open: true,
            headless: false,
            died: NOW.mono,
            linked: [false; 2],
            announced: [false; 2],
            sessions: BTreeMap::new(),
        };
        let mut world = World {
            now: NOW,
            agents: [agent(0), agent(1)],
            relays: (0..relays).map(|_| relay()).collect(),
            mail: VecDeque::new(),
            next_session: 0,
            next_request: 0,
        };
        world.pass(STEP);
        world
    }

    /// Agent `at` asks for a session with the other.
    pub fn connect(&mut self, at: usize, carries: Use) {
        self.next_request += 1;
        let (id, now) = (RequestId(self.next_request), self.now);
        self.agents[at].state.connect(id, node(1 - at), carries, now);
        self.pump();
    }

    /// As [`World::connect`], until it has one. Gives what it began as.
    pub fn connected(&mut self, at: usize, carries: Use) -> SessionId {
        let before: Vec<SessionId> = self.agents[at].handles.keys().copied().collect();
        self.connect(at, carries);
        self.pass(STEP);
        *self.agents[at].handles.keys().find(|id| !before.contains(id)).expect("a session")
    }

    /// The application of agent `at` drops what began as `origin`.
    pub fn drop_handle(&mut self, at: usize, origin: SessionId) {
        self.agents[at].handles.remove(&origin);
        let now = self.now;
        self.agents[at].state.user_gone(origin, now);
        self.pump();
    }

    /// The relay is gone with everything it knew.
    pub fn kill(&mut self, relay: usize) {
        let relay = &mut self.relays[relay];
        (relay.alive, relay.died) = (false, self.now.mono);
        relay.sessions.clear();
        relay.announced = [false; 2];
    }

    /// It says goodbye first.
    pub fn stop(&mut self, relay: usize) {
        let told: Vec<SessionId> = self.relays[relay].sessions.keys().copied().collect();
        for id in told {
            for agent in 0..2 {
                self.tell_end(RelayIndex(relay), agent, id, disconnect_reason::SHUTDOWN);
            }
        }
        self.pump();
        self.kill(relay);
        for agent in 0..2 {
            self.unlink(relay, agent);
        }
        self.pump();
    }

    /// It says that it is about to stop, and where to go.
    pub fn drain(&mut self, relay: usize, hint: Option<&str>) {
        self.relays[relay].draining = true;
        for agent in 0..2 {
            self.tell_drain(relay, agent, hint);
        }
        self.pump();
    }

    pub fn tell_drain(&mut self, relay: usize, agent: usize, hint: Option<&str>) {
        let drain = Disconnect::new(disconnect_reason::DRAIN, None, None);
        let told = Disconnect { relay: hint.map(str::to_owned), ..drain };
        self.mail.push_back((RelayIndex(relay), agent, told.into()));
    }

    pub fn revive(&mut self, relay: usize) {
        for agent in 0..2 {
            if self.relays[relay].linked[agent] {
                self.unlink(relay, agent);
            }
        }
        (self.relays[relay].alive, self.relays[relay].draining) = (true, false);
    }

    /// Lets time pass.
    pub fn pass(&mut self, span: Duration) {
        let end = self.now.mono + span;
        while self.now.mono < end {
            self.now.mono = self.now.mono + STEP;
            self.links();
            for at in 0..2 {
                self.watch_paths(at);
                let now = self.now;
                if self.agents[at].state.deadline().is_some_and(|due| due <= now.mono) {
                    self.agents[at].state.tick(now);
                }
                self.pump();
            }
        }
    }

    /// The relay that agent `at` uses for what began as `origin`, if it lives.
    pub fn relay_of(&self, at: usize, origin: SessionId) -> Option<usize> {
        let handle = self.agents[at].handles.get(&origin)?;
        handle.end.is_none().then(|| self.agents[at].paths[&handle.present].relay.0)
    }

    /// Nothing is left of moves: each agent has so many sessions, and every relay that lives knows no others.
    pub fn assert_settled(&self, sessions: usize) {
        for agent in &self.agents {
            assert_eq!(agent.state.sessions.len(), sessions, "{:?}", agent.state.sessions);
            assert_eq!(agent.paths.len(), sessions);
            assert!(agent.state.sessions.values().all(|session| session.part == Part::Present));
            assert!(agent.state.moves.is_empty(), "{:?}", agent.state.moves);
        }
        let known: usize = self.relays.iter().map(|relay| relay.sessions.len()).sum();
        assert_eq!(known, sessions, "sessions at relays");
    }

    fn links(&mut self) {
        for relay in 0..self.relays.len() {
            for agent in 0..2 {
                let (alive, linked) = (self.relays[relay].alive, self.relays[relay].linked[agent]);
                let now = self.now;
                if alive && !linked && self.agents[agent].knows.contains(&relay) {
                    self.relays[relay].linked[agent] = true;
                    self.agents[agent].state.relay_up(RelayIndex(relay), now);
                } else if !alive && linked && now.mono >= self.relays[relay].died + LINK_IDLE {
                    self.unlink(relay, agent);
                }
                self.pump();
            }
        }
    }

    fn unlink(&mut self, relay: usize, agent: usize) {
        self.relays[relay].linked[agent] = false;
        let now = self.now;
        self.agents[agent].state.relay_down(RelayIndex(relay), "gone".into(), now);
    }

    /// What the bind exchange of each path would tell.
    fn watch_paths(&mut self, at: usize) {
        let (now, relays) = (self.now, &self.relays);
        let mut events = Vec::new();
        for (id, path) in &mut self.agents[at].paths {
            let relay = &relays[path.relay.0];
            let known = relay.alive && relay.data_open && relay.sessions.contains_key(id);
            let since = |begun: &mut Option<MonoTime>, over: bool| {
                if over {
                    *begun = None
                } else {
                    _ = begun.get_or_insert(now.mono)
                }
                begun.map_or(Duration::ZERO, |begun| now.mono.since(begun))
            };
            let dead = since(&mut path.dead_since, known);
            let unproved = since(&mut path.unproved_since, known && !relay.headless);
            let health = match (dead, unproved) {
                (dead, _) if dead >= NOTICED => PathHealth::Silent,
                (_, unproved) if unproved >= Duration::from_secs(30) => PathHealth::Unproved,
                _ => PathHealth::Sound,
            };
            if std::mem::replace(&mut path.told, health) != health {
                events.push((*id, BindEvent::Path(health)));
            }
            if unproved >= CONSENT && !std::mem::replace(&mut path.lost, true) {
                events.push((*id, BindEvent::Lost));
            }
        }
        for (id, event) in events {
            self.agents[at].state.bind_event(id, event, now);
        }
        self.pump();
    }

    /// Carries everything until nothing is to be done.
    fn pump(&mut self) {
        loop {
            let mut quiet = true;
            for at in 0..2 {
                while let Some(output) = self.agents[at].state.next_output() {
                    quiet = false;
                    self.take(at, output);
                }
            }
            while let Some((relay, to, message)) = self.mail.pop_front() {
                quiet = false;
                let now = self.now;
                self.agents[to].state.message(relay, message, now);
            }
            if quiet {
                return;
            }
        }
    }

    fn take(&mut self, at: usize, output: Output) {
        match output {
            Output::Send(relay, message) => self.at_relay(at, relay, message),
            Output::Start { relay, terms, carries, .. } => {
                let path = SimPath {
                    relay,
                    carries,
                    told: PathHealth::Sound,
                    dead_since: None,
                    unproved_since: None,
                    lost: false,
                };
                self.agents[at].paths.insert(terms.session, path);
                self.bind(at, relay, terms.session);
            }
            Output::Paired(id) => {
                // A raw session is taken, and end to end there comes a connection.
                let is_target = self.agents[at].state.sessions[&id].side == Side::Target;
                if is_target {
                    self.agents[at].state.user_came(id);
                    self.agents[at].handles.insert(id, Handle { present: id, end: None });
                }
            }
            Output::Connected(_, id) => {
                self.agents[at].handles.insert(id, Handle { present: id, end: None });
            }
            Output::Moved { from, to } => self.moved(at, from, to),
            Output::Probe(_) => {}
            Output::Failed(_, error) => self.agents[at].failed.push(error),
            Output::End(id, end) => {
                self.agents[at].paths.remove(&id).expect("a path ends once");
                let handles = self.agents[at].handles.values_mut();
                for handle in handles.filter(|handle| handle.present == id) {
                    handle.end.get_or_insert(end.clone());
                }
            }
            Output::Follow { relay, hint, .. } => {
                assert_eq!(
                    hint,
                    hint_of(relay.0),
                    "the relays are numbered in the order in which agents hear of them"
                );
                self.agents[at].knows.insert(relay.0);
            }
            Output::Forget(relay) => {
                self.agents[at].knows.remove(&relay.0);
                self.relays[relay.0].linked[at] = false;
                self.relays[relay.0].announced[at] = false;
            }
            Output::Update(_) | Output::Limited { .. } | Output::Refused { .. } => {}
            Output::Reconnect(relay) => self.unlink(relay.0, at),
        }
    }

    fn moved(&mut self, at: usize, from: SessionId, to: SessionId) {
        let agent = &mut self.agents[at];
        agent.moves += 1;
        for handle in agent.handles.values_mut().filter(|handle| handle.present == from) {
            handle.present = to;
        }
        assert!(agent.paths.contains_key(&from) && agent.paths.contains_key(&to), "both are received on");
        // End to end the connections of the peer come by the new path from now on.
        if agent.paths[&to].carries == Use::EndToEnd {
            let (now, peer) = (self.now, &mut self.agents[1 - at]);
            if let Some(mut handle) = peer.handles.remove(&from) {
                handle.present = to;
                handle.end = None;
                peer.handles.insert(to, handle);
                peer.state.user_gone(from, now);
            }
        }
    }

    fn at_relay(&mut self, from: usize, relay: RelayIndex, message: Message) {
        if let Message::RelayConnect(_) = &message {
            self.agents[from].asked.push((self.now.mono, relay));
        }
        let sim = &mut self.relays[relay.0];
        if !sim.alive || sim.headless || !sim.linked[from] {
            return;
        }
        match message {
            Message::RelayAnnounce(_) => sim.announced[from] = true,
            Message::RelayConnect(RelayConnect { target_id, .. }) => {
                let to = 1 - from;
                assert_eq!(target_id, node(to).to_string());
                if sim.draining || !sim.announced[to] {
                    let absent = RelayError {
                        code: if sim.draining { 3006 } else { 3001 },
                        message: "absent".into(),
                        target_id: Some(target_id),
                        session: None,
                    };
                    return self.mail.push_back((relay, from, absent.into()));
                }
                self.next_session += 1;
                let id = SessionId([self.next_session; 16]);
                sim.sessions.insert(id, SimSession { nodes: [from, to], bound: [false; 2] });
                for (side, me) in [(Side::Target, to), (Side::Connector, from)] {
                    let terms = FlowTerms { session: id, peer: node(1 - me), ..FlowTerms::example(side) };
                    self.mail.push_back((relay, me, RelayReady::with_terms(&terms).into()));
                }
            }
            Message::Disconnect(Disconnect { session: Some(id), .. }) => {
                if sim.sessions.remove(&id).is_some() {
                    self.tell_end(relay, 1 - from, id, disconnect_reason::PEER_GONE);
                }
            }
            Message::Ping(Ping { ts, .. }) => {
                self.mail.push_back((relay, from, Pong::new(ts, ts).into()));
            }
            Message::Disconnect(_) | Message::Pong(_) => {}
            other => panic!("{other:?}"),
        }
    }

    fn tell_end(&mut self, relay: RelayIndex, to: usize, id: SessionId, reason: &str) {
        let told = Disconnect::new(reason, None, Some(id));
        self.mail.push_back((relay, to, told.into()));
    }

    fn bind(&mut self, at: usize, relay: RelayIndex, id: SessionId) {
        let (now, sim) = (self.now, &mut self.relays[relay.0]);
        if !sim.data_open {
            return;
        }
        let Some(session) = sim.sessions.get_mut(&id) else { return };
        let side = session.nodes.iter().position(|node| *node == at).unwrap();
        session.bound[side] = true;
        if session.bound == [true; 2] {
            let reflexive = "192.0.2.1:1".parse().unwrap();
            // The target hears first here: its peer's connections come after the path.
            for agent in session.nodes.into_iter().rev() {
                self.agents[agent].state.bind_event(id, BindEvent::Paired { reflexive }, now);
                while let Some(output) = self.agents[agent].state.next_output() {
                    self.take(agent, output);
                }
            }
        }
    }
}

/// How a relay is named to agents that do not know it.
pub fn hint_of(relay: usize) -> RelayHint {
    let node = NodeId::from_bytes([100 + relay as u8; 32]);
    format!("{node}@relay{relay}:4433").parse().unwrap()
}

fn node(at: usize) -> NodeId {
    NodeId::from_bytes([at as u8 + 1; 32])
}
