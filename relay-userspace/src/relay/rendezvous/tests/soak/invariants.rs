//! What must hold after every input.

use relay_common::{Reason, Side};

use super::super::relay_of;
use super::*;
use crate::protocol::flow_terms::RelayReady;
use crate::relay::datapath::{Arrival, FlowTuple, Traffic};
use crate::relay::prefix::Prefix;

use super::super::super::session::{Session, SessionState};
use super::super::super::splices::MAX_WAITING_STREAMS;

impl Simulation {
    /// Carries the outputs out, and checks what must hold for each.
    pub fn carry_out(&mut self) {
        while let Some(output) = self.rendezvous.next_output() {
            match output {
                Output::Send { conn, message } => {
                    let who = self.open.get(&conn).expect("nothing is sent on a connection that is over");
                    self.touched.nodes.insert(*who);
                    if let Message::RelayReady(RelayReady {
                        session: Some(session),
                        max_datagram: Some(largest),
                        ..
                    }) = &message
                    {
                        self.touched.sessions.insert(*session);
                        self.told.insert((conn, *session), *largest);
                    }
                    self.transmit(Transit::ToAgent(conn, message));
                }
                Output::Ping { conn } => {
                    assert!(self.open.contains_key(&conn));
                    assert!(!self.census.given.contains(&conn), "its first stream is a peer's");
                    let ping = crate::protocol::message::Ping::new(0);
                    self.transmit(Transit::ToAgent(conn, ping.into()));
                }
                Output::Pong { .. } => {}
                Output::Close { conn, .. } => {
                    let who = self.open.remove(&conn).expect("a connection is closed once");
                    self.census.given.remove(&conn);
                    self.touched.nodes.insert(who);
                }
                Output::Bind { to, bytes, .. } => {
                    assert!(self.sources.contains(&to), "nothing is sent where no datagram came from");
                    self.transmit(Transit::BindToAgent(to, bytes));
                }
                Output::Splice { session, ends, .. } => self.join(session, ends),
                Output::Unsplice { session, reason } => {
                    assert!(self.census.joined.contains_key(&session), "only what is joined is parted");
                    self.rendezvous.spliced_over(session, reason, Traffic::default(), self.now);
                }
                Output::Drained { .. } => panic!("nobody drains it"),
                Output::Event(event) => self.take_down(&event),
            }
        }
    }

    fn join(&mut self, session: SessionId, ends: [StreamEnd; 2]) {
        let nodes = ends.map(|end| *self.open.get(&end.conn).expect("both are connected"));
        let prefix = Prefix::of(self.rendezvous.agents.get(ends[0].conn).unwrap().remote.ip());
        self.census.join(session, nodes, prefix, ends);
        self.touched.nodes.extend(nodes);
        self.touched.prefixes.insert(prefix);
        let [_, target] = nodes;
        // It waits for the next one, if it does not forget that.
        if self.random.below(4) > 0 {
            self.wait_on_streams(target, 1);
        }
    }

    fn take_down(&mut self, event: &Event) {
        let name = match event {
            Event::Offered { session, connector, target } => {
                let nodes = [who(connector), who(target)];
                let offer =
                    self.rendezvous.sessions.get(*session).expect("an offer is there when it is told");
                let asked_on = offer.party(Side::Connector).conn.expect("whoever asks is connected");
                let remote = self.rendezvous.agents.get(asked_on).unwrap().remote;
                let prefix = Prefix::of(remote.ip());
                self.census.offered(*session, nodes, prefix);
                self.touched.prefixes.insert(prefix);
                self.touched.nodes.extend(nodes);
                self.touched.sessions.insert(*session);
                "offered"
            }
            Event::Paired { session, .. } => {
                self.census.paired(*session);
                self.touched.nodes.extend(self.census.nodes_of(*session));
                self.touched.sessions.insert(*session);
                "paired"
            }
            Event::Ended { session, connector, target, reason, .. } => {
                match self.census.part(*session, [who(connector), who(target)], &mut self.touched) {
                    true => *self.seen.entry("parted").or_default() += 1,
                    false => self.census.ended(*session, &mut self.touched),
                }
                reason.word()
            }
            Event::Spliced { .. } => "joined",
            Event::Moved { session, .. } => {
                self.touched.sessions.insert(*session);
                "moved"
            }
            Event::TupleLost { session, to, .. } => {
                self.touched.sessions.extend([*session, *to]);
                "tuple lost"
            }
            Event::Replaced { .. } => "replaced",
            Event::Limited { .. } => "limited",
            _ => "other",
        };
        *self.seen.entry(name).or_default() += 1;
    }

    /// All that the last input may have changed is sound, and the totals are what they should be.
    pub fn check_touched(&mut self) {
        let mut touched = std::mem::take(&mut self.touched);
        let slots = self.flows.take_touched();
        touched.sessions.extend(slots.iter().filter_map(|slot| self.census.by_slot.get(slot)));
        for id in touched.sessions {
            let Some(session) = self.rendezvous.sessions.get(id) else {
                assert!(!self.census.sessions.contains_key(&id), "what is gone was said to have ended");
                continue;
            };
            self.check_session(session);
            let tuples = session.parties.each_ref().map(|party| party.tuple());
            let slot = session.slot;
            touched.tuples.extend(self.census.update(id, tuples, slot));
        }
        for who in touched.nodes {
            self.check_node(who);
        }
        for tuple in touched.tuples {
            self.check_tuple(tuple);
        }
        for prefix in touched.prefixes {
            let asked = self.census.prefixes.get(&prefix).copied().unwrap_or(0);
            assert_eq!(self.rendezvous.sessions.prefixes().sessions_of(prefix), asked, "{prefix}");
        }
        self.check_totals();
    }

    fn check_totals(&self) {
        let Rendezvous { nodes, agents, sessions, splices, .. } = &self.rendezvous;
        assert_eq!(agents.count(), self.open.len());
        assert_eq!(splices.counts(), [self.census.joined.len(), self.census.ends.len()]);
        assert_eq!(self.census.ends.len(), 2 * self.census.joined.len());
        assert_eq!(sessions.total(), self.census.sessions.len());
        assert_eq!(sessions.tuple_count(), self.census.bound, "every proved tuple has one owner");
        assert_eq!(self.flows.ledger.slots.len(), self.census.by_slot.len(), "no flow without a session");
        assert_eq!(nodes.announced() as usize, self.census.announced.len());
        assert!(nodes.announced() <= self.rendezvous.settings.policy.announced_agents);
    }

    fn check_node(&mut self, who: usize) {
        let Rendezvous { nodes, agents, sessions, splices, settings, .. } = &self.rendezvous;
        let (id, policy, counts) = (node(who), &settings.policy, self.census.counts(who));
        let number = nodes.number(&id);
        let Some(node) = number.map(|number| nodes.get(number).unwrap()) else {
            assert_eq!(counts, Default::default(), "a node with sessions is known");
            assert!(self.agents[who].conn.is_none_or(|conn| !self.open.contains_key(&conn)));
            self.census.announced.remove(&who);
            return;
        };
        assert!(policy.access.permits(&id), "who may not be here is not");
        let conns = nodes.connections(&id);
        assert!(counts.all() > 0 || !conns.is_empty(), "a node that has gone is forgotten");
        for conn in &conns {
            assert_eq!(agents.get(*conn).map(|agent| agent.node), Some(id));
            assert_eq!(self.open.get(conn), Some(&who));
        }
        assert_eq!(
            (node.sessions, Side::BOTH.map(|side| node.open_offers(side))),
            (counts.all(), counts.offers)
        );
        assert_eq!(sessions.of_node(number, nodes).count(), counts.sessions as usize);
        let [as_source, as_target] = counts.offers;
        assert!(as_source <= policy.offers_per_source && as_target <= policy.offers_per_target);
        assert!(counts.all() <= policy.sessions_per_node);
        if let Some(announcement) = &node.announcement {
            assert!(conns.contains(&announcement.conn));
            let waits = splices.waits(announcement.conn);
            assert!(announcement.speaks_flow || waits, "who takes no flows waits on a stream");
        }
        if node.announcement.is_some() {
            self.census.announced.insert(who);
        } else {
            self.census.announced.remove(&who);
        }
    }

    fn check_session(&self, session: &Session) {
        let Rendezvous { nodes, agents, sessions, looks, settings, .. } = &self.rendezvous;
        let wakes_at = session.wakes_at.expect("a session is looked at");
        assert!(looks.has(sessions.number(session.id).unwrap(), wakes_at));
        assert!(wakes_at <= session.due(settings.idle_timeout), "and in time");
        let known = &self.census.sessions[&session.id];
        let ids = nodes.ids(session.nodes()).expect("a session's nodes are known");
        assert_eq!(ids.map(|id| who(&id)), known.nodes);
        assert_ne!(ids[0], ids[1]);
        for (side, node) in Side::BOTH.into_iter().zip(ids) {
            let party = session.party(side);
            if let Some(conn) = party.conn {
                assert_eq!(agents.get(conn).map(|agent| agent.node), Some(node));
                assert_eq!(self.told.get(&(conn, session.id)), Some(&session.max_datagram_bytes()));
            } else {
                assert_eq!(nodes.newest(&node), None, "a side follows its node's connections");
            }
            if let Some(tuple) = party.tuple() {
                assert_eq!(sessions.owner(&tuple), Some((session.id, side)));
                assert!(party.counter > 0);
            }
            let mut of_node = sessions.of_node(Some(party.node), nodes);
            assert!(of_node.any(|(of_node, as_side)| of_node.id == session.id && as_side == side));
            assert!(session.is_offer() || party.proved + CONSENT > self.now, "consent is fresh");
        }
        assert!(session.offer_until().is_none_or(|until| until > self.now && session.slot.is_none()));
        let tuples = session.parties.each_ref().map(|party| party.tuple());
        if let [Some(connector), Some(target)] = tuples {
            let both_v4 = connector.agent.is_ipv4() && target.agent.is_ipv4();
            assert_eq!(session.max_datagram_bytes(), if both_v4 { 1472 } else { 1452 });
        }
        if let Some(slot) = session.slot {
            assert_eq!(session.state(), SessionState::Paired);
            let installed = &self.flows.ledger.slots[&slot];
            assert_eq!(Some(installed.tuples), session.tuples(), "what is forwarded is what was proved");
            self.flows.forwards(slot, self.now);
            let leases = session.parties.each_ref().map(|party| party.proved + LEASE);
            assert_eq!(installed.deadlines, leases);
        }
    }

    /// Only tuples of paired sessions are forwarded, and for a while those that their sides have just moved away from.
    fn check_tuple(&self, tuple: FlowTuple) {
        if self.flows.ledger.by_tuple.contains_key(&tuple) {
            return;
        }
        let from = tuple.agent;
        let arrival = Arrival { from, to: tuple.relay, payload: b"x", tos: 0, ttl: 64 };
        assert_eq!(self.flows.tables.decide(&arrival, self.now), Err(Reason::NoFlow), "{from}");
        // Whoever has proved it since has it for itself, paired or not.
        let owner = self.rendezvous.sessions.owner(&tuple);
        let expected = self.flows.destination_of_previous(&tuple, self.now).filter(|_| owner.is_none());
        let found = self.flows.tables.decide_previous(&arrival, self.now).map(|relayed| relayed.to);
        assert_eq!(found, expected.ok_or(Reason::NoFlow), "{from}");
    }

    /// Of all addresses that have ever sent something.
    pub fn nobody_else_is_forwarded(&self, chosen: impl Fn(&SocketAddr) -> bool) {
        for from in self.sources.iter().copied().filter(chosen) {
            self.check_tuple(FlowTuple { agent: from, relay: relay_of(from) });
        }
    }

    /// Everything there is, found by walking over it.
    pub fn check_whole(&mut self) {
        let Rendezvous { nodes, agents, sessions, splices, pings, looks, .. } = &self.rendezvous;
        assert!(agents.ids().iter().eq(self.open.keys()));
        let mut paired = 0;
        for session in sessions.iter() {
            self.check_session(session);
            let known = &self.census.sessions[&session.id];
            assert_eq!(session.parties.each_ref().map(|party| party.tuple()), known.tuples);
            assert_eq!(session.slot, known.slot);
            paired += usize::from(session.slot.is_some());
        }
        assert_eq!(self.census.by_slot.len(), paired);
        for splice in self.rendezvous.splices(self.now) {
            let known = &self.census.joined[&splice.session];
            assert_eq!([splice.connector, splice.target].map(|node| who(&node)), known.nodes);
            assert!(known.ends.iter().all(|end| self.open.contains_key(&end.conn)), "both are connected");
        }
        splices.check();
        for (conn, streams) in splices.waiting() {
            assert!(self.open.contains_key(&conn));
            assert!((1..=MAX_WAITING_STREAMS).contains(&streams.len()));
            let is_joined = |stream| self.census.ends.contains(&StreamEnd { conn, stream });
            assert!(!streams.iter().any(|stream| is_joined(*stream)), "what waits is not joined");
        }
        let asked: BTreeMap<Prefix, u32> = sessions.prefixes().iter().collect();
        assert_eq!(asked, self.census.prefixes);
        assert!(
            asked.values().all(|sessions| *sessions <= self.rendezvous.settings.policy.sessions_per_prefix)
        );
        // Entries that do not count any more go when they come.
        assert!(pings.len() < 2 * AGENTS + self.open.len());
        assert!(looks.len() < 2 * AGENTS + 2 * sessions.total());
        let known: BTreeSet<usize> = nodes.iter().map(|node| who(&node.id)).collect();
        let announced = nodes.iter().filter(|node| node.announcement.is_some());
        assert!(announced.map(|node| who(&node.id)).collect::<BTreeSet<_>>() == self.census.announced);
        for who in known {
            self.check_node(who);
        }
        let sample = (self.inputs % 16) as u16;
        self.nobody_else_is_forwarded(|source| source.port() % 16 == sample);
        self.check_totals();
    }
}
