//! What agents do over the real tables that is worth an attacker's while: bursts renewed, another session's datagrams.

use std::sync::Arc;

use super::super::*;
use super::*;
use crate::relay::datapath::{Arrival, FlowTable, NoRoutes, TableSizes, Tables};

/// A rendezvous over the real flow table.
struct Real {
    rendezvous: Rendezvous,
    flows: FlowTable<NoRoutes>,
    tables: Arc<Tables>,
    random: Seeded,
    now: MonoTime,
    messages: Vec<(ConnId, Message)>,
    binds: Vec<[u8; BIND_LEN]>,
}

impl Real {
    fn new(limit: Limit) -> Real {
        let mut random = Seeded(7);
        let now = MonoTime(1_000_000_000_000);
        let (key, policy) = (NodeKey::from_seed(&[0; 32]), Policy::default());
        let settings = Settings { key, limit, policy, idle_timeout: IDLE, advertise: Vec::new() };
        let tables = Arc::new(Tables::private(TableSizes::for_sessions(64), [1, 2], magic().0));
        Real {
            rendezvous: Rendezvous::new(settings, &mut random, now),
            flows: FlowTable::new(Arc::clone(&tables), NoRoutes),
            tables,
            random,
            now,
            messages: Vec::new(),
            binds: Vec::new(),
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.rendezvous.next_output() {
            match output {
                Output::Send { conn, message } => self.messages.push((conn, message)),
                Output::Bind { bytes, .. } => self.binds.push(bytes),
                _ => {}
            }
        }
    }

    fn connect(&mut self, seed: u8) -> ConnId {
        let conn = ConnId(seed.into());
        let remote = addr(&format!("203.0.113.{seed}:1000"));
        let agent =
            Authenticated { conn, node: node(seed), name: String::new(), remote, relay: Some(relay().ip()) };
        self.rendezvous.connected(agent, self.now);
        conn
    }

    fn message(&mut self, conn: ConnId, message: impl Into<Message>) {
        self.rendezvous.received(conn, message.into(), &mut self.flows, &mut self.random, self.now);
        self.drain();
    }

    fn offer(&mut self, conn: ConnId) -> [FlowTerms; 2] {
        self.messages.clear();
        self.message(conn, connect(1, 2));
        let terms: Vec<FlowTerms> = self
            .messages
            .iter()
            .filter_map(|(_, message)| match message {
                Message::RelayReady(ready) => ready.terms().ok(),
                _ => None,
            })
            .collect();
        terms.try_into().unwrap()
    }

    fn bind(&mut self, terms: &FlowTerms, from: &str, counter: u64) {
        let mut cookie = Cookie::NONE;
        for kind in [BindKind::Bind, BindKind::Proof] {
            self.binds.clear();
            let FlowTerms { session, side, .. } = *terms;
            let bytes = BindDatagram { kind, side, session, counter, cookie }
                .seal(&terms.bind_magic, &terms.bind_key);
            self.rendezvous.bind(addr(from), relay(), &bytes, &mut self.flows, &mut self.random, self.now);
            self.drain();
            for bytes in &self.binds {
                let claim = UnverifiedBind::parse(bytes, &terms.bind_magic).unwrap();
                if let Ok(answer) = claim.verify(&terms.bind_key) {
                    cookie = answer.cookie;
                }
            }
        }
    }

    /// Sends as much as the relay takes at this moment: bytes that were let through.
    fn flood(&self, from: &str) -> u64 {
        let payload = [0x40; 200];
        let arrival = Arrival { from: addr(from), to: relay(), payload: &payload, tos: 0, ttl: 64 };
        let passes = || {
            let late = || self.tables.decide_previous(&arrival, self.now);
            self.tables.decide(&arrival, self.now).or_else(|_| late()).is_ok()
        };
        (0..10_000).take_while(|_| passes()).count() as u64 * 200
    }
}

/// One session, and nothing but its tuples taken over by a second session of the same pair, and taken back: each of its
/// sides once a second.
#[test]
fn a_session_that_loses_and_takes_back_its_tuple_gets_no_more_than_its_limit() {
    let mut over = Vec::new();
    for rate in [8 * 1024, 64 * 1024, 1024 * 1024] {
        let limit = Limit::per_second(rate);
        let mut world = Real::new(limit);
        let source = world.connect(1);
        let target = world.connect(2);
        world.message(target, announce(2));
        let [first, second] = [world.offer(source), world.offer(source)];
        world.bind(&first[0], A, 1);
        world.bind(&first[1], B, 1);
        // The second is a session as well, at tuples of its own.
        world.bind(&second[0], "203.0.113.1:2001", 1);
        world.bind(&second[1], "203.0.113.2:2001", 1);
        let mut sent = world.flood(A);
        let begin = world.now;
        for round in 1..=30 {
            for (side, at) in [(0, A), (1, B)] {
                for _ in 0..10 {
                    world.now = world.now + Duration::from_micros(50_100);
                    sent += world.flood(A);
                }
                world.bind(&second[side], at, 2 * round);
                world.bind(&first[side], at, 2 * round);
                sent += world.flood(A);
                world.rendezvous.expire(&mut world.flows, world.now);
                world.drain();
            }
        }
        let most = limit.burst_bytes + limit.bytes_per_s * world.now.since(begin).as_millis() as u64 / 1000;
        if sent > most {
            over.push(format!("{rate} B/s: {sent} bytes in 30 s, {most} are the limit"));
        }
    }
    assert!(over.is_empty(), "{over:#?}");
}

/// Agent 1 has moved away from A, and A is agent 3's now: it has proved so, and waits for its own peer.
#[test]
fn what_a_tuple_sends_goes_to_nobody_once_another_session_has_proved_it() {
    let mut world = Real::new(LIMIT);
    let source = world.connect(1);
    let target = world.connect(2);
    world.message(target, announce(2));
    let first = world.offer(source);
    world.bind(&first[0], A, 1);
    world.bind(&first[1], B, 1);
    let other = world.connect(3);
    let its_target = world.connect(4);
    world.message(its_target, announce(4));
    world.messages.clear();
    world.message(other, connect(3, 4));
    let ready = world.messages.iter().find_map(|(conn, message)| match message {
        Message::RelayReady(ready) if *conn == other => ready.terms().ok(),
        _ => None,
    });
    world.bind(&first[0], "203.0.113.1:2002", 2);
    world.bind(&ready.unwrap(), A, 1);
    assert_eq!(world.flood(A), 0, "agent 3's datagrams are delivered to agent 2 of another session");
}
