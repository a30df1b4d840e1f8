//! A relay's agents and sessions by the hundred thousand: the daemon's own state machine over its own flow table, without
//! sockets. Of the agents there is no more than their ids, addresses and the terms they are told.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use relay_common::BIND_LEN;
use relay_userspace::clock::MonoTime;
use relay_userspace::identity::{NodeId, NodeKey};
use relay_userspace::protocol::Message;
use relay_userspace::protocol::bind::{BindDatagram, BindKind, Cookie, UnverifiedBind};
use relay_userspace::protocol::flow_terms::{FLOW, FlowTerms, RelayAnnounce, RelayConnect};
use relay_userspace::relay::datapath::{FlowTable, Limit, NoRoutes, TableSizes, Tables};
use relay_userspace::relay::rendezvous::{
    Authenticated, ConnId, Output, Policy, Randomness, Rendezvous, Settings,
};

use crate::frames::MAGIC;

/// Where agents send their datagrams to.
const RELAY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 4433);

/// The coarse clock moves in such steps.
const TICK: Duration = Duration::from_millis(4);

/// A relay with agents and sessions, at a time of its own.
pub struct Population {
    rendezvous: Rendezvous,
    flows: FlowTable<NoRoutes>,
    random: Seeded,
    now: MonoTime,
    agents: u64,
    /// What the last input was answered with.
    terms: Vec<FlowTerms>,
    binds: Vec<[u8; BIND_LEN]>,
}

/// A Bind with which a side goes on proving its tuple.
pub struct Keepalive {
    from: SocketAddr,
    bytes: [u8; BIND_LEN],
}

/// xorshift64 (Marsaglia 2003): the same numbers in every run.
pub struct Seeded(pub u64);

impl Seeded {
    /// A number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Puts `items` into another order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, (self.number() % (last as u64 + 1)) as usize);
        }
    }
}

impl Randomness for Seeded {
    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.number().to_ne_bytes()[..chunk.len()]);
        }
    }
}

impl Population {
    /// A relay with room for `sessions`, and nobody there.
    pub fn new(sessions: u32) -> Population {
        let mut random = Seeded(0x9e37_79b9_7f4a_7c15);
        let now = MonoTime(1_000_000_000_000);
        let settings = Settings {
            key: NodeKey::from_seed(&[1; 32]),
            limit: Limit::per_second(1024 * 1024),
            policy: Policy { announced_agents: u32::MAX, ..Policy::default() },
            idle_timeout: Duration::from_secs(300),
            advertise: Vec::new(),
        };
        let tables = Tables::private(TableSizes::for_sessions(sessions), [1, 2], MAGIC);
        Population {
            rendezvous: Rendezvous::new(settings, &mut random, now),
            flows: FlowTable::new(Arc::new(tables), NoRoutes),
            random,
            now,
            agents: 0,
            terms: Vec::new(),
            binds: Vec::new(),
        }
    }

    /// Sessions that are paired.
    pub fn sessions(&self) -> u32 {
        self.flows.installed()
    }

    /// Lets time pass as the driver sees it, tick by tick.
    pub fn pass(&mut self, span: Duration) {
        let end = self.now + span;
        while self.now < end {
            self.now = self.now + TICK;
            if self.rendezvous.next_deadline().is_some_and(|due| due <= self.now) {
                self.rendezvous.expire(&mut self.flows, self.now);
                self.carry_out();
            }
        }
    }

    /// One more agent is connected and announced.
    pub fn announce(&mut self) {
        let number = self.agents;
        self.agents += 1;
        let (conn, node, name) = (ConnId(number), node(number), format!("agent-{number}"));
        let (remote, relay) = (address(0x6440_0000, number), Some(RELAY.ip()));
        self.rendezvous.connected(Authenticated { conn, node, name, remote, relay }, self.now);
        let node_id = node.to_string();
        self.receive(conn, RelayAnnounce { node_id, timestamp: 0, flow: Some(FLOW), allow: None }.into());
    }

    /// Pairs agents `2n` and `2n + 1`, both of which bind: what each proves its tuple with next.
    ///
    /// # Errors
    /// The relay does not do it.
    pub fn pair(&mut self, number: u64) -> anyhow::Result<[Keepalive; 2]> {
        let [source, target] = [2 * number, 2 * number + 1];
        self.terms.clear();
        let connect = RelayConnect {
            source_id: node(source).to_string(),
            target_id: node(target).to_string(),
            timestamp: None,
            flow: Some(FLOW),
        };
        self.receive(ConnId(source), connect.into());
        let terms: [FlowTerms; 2] =
            std::mem::take(&mut self.terms).try_into().ok().context("both sides get terms")?;
        let [connector, target] = [(&terms[0], source), (&terms[1], target)];
        Ok([self.bind(connector.0, connector.1)?, self.bind(target.0, target.1)?])
    }

    /// Whether the relay answers a keepalive as it should.
    ///
    /// # Errors
    /// It does not.
    pub fn keep_alive(&mut self, keepalive: &Keepalive) -> anyhow::Result<()> {
        self.binds.clear();
        self.bind_datagram(keepalive.from, &keepalive.bytes);
        ensure!(self.binds.len() == 1, "a keepalive has {} answers", self.binds.len());
        Ok(())
    }

    /// The whole bind exchange of one side.
    fn bind(&mut self, terms: &FlowTerms, agent: u64) -> anyhow::Result<Keepalive> {
        let FlowTerms { session, side, .. } = *terms;
        let from = address(0x0a00_0000, agent);
        let ask = BindDatagram { kind: BindKind::Bind, side, session, counter: 1, cookie: Cookie::NONE };
        let challenge = self.exchange(terms, &ask, from)?;
        let bound = self.exchange(terms, &BindDatagram { kind: BindKind::Proof, ..challenge }, from)?;
        ensure!(matches!(bound.kind, BindKind::Bound { .. }), "a proof is answered by Bound");
        let next = BindDatagram { kind: BindKind::Bind, counter: 2, ..bound };
        Ok(Keepalive { from, bytes: next.seal(&terms.bind_magic, &terms.bind_key) })
    }

    fn exchange(
        &mut self,
        terms: &FlowTerms,
        datagram: &BindDatagram,
        from: SocketAddr,
    ) -> anyhow::Result<BindDatagram> {
        self.binds.clear();
        self.bind_datagram(from, &datagram.seal(&terms.bind_magic, &terms.bind_key));
        let answers = self.binds.iter().rev();
        // Of two, the last is for whoever has sent the datagram: see `Rendezvous::accept`.
        let answer = answers.map(|bytes| UnverifiedBind::parse(bytes, &terms.bind_magic)).next();
        Ok(answer.context("no answer to a bind datagram")??.verify(&terms.bind_key)?)
    }

    fn bind_datagram(&mut self, from: SocketAddr, bytes: &[u8; BIND_LEN]) {
        self.rendezvous.bind(from, RELAY, bytes, &mut self.flows, &mut self.random, self.now);
        self.carry_out();
    }

    fn receive(&mut self, conn: ConnId, message: Message) {
        self.rendezvous.received(conn, message, &mut self.flows, &mut self.random, self.now);
        self.carry_out();
    }

    /// Takes what the driver would send.
    fn carry_out(&mut self) {
        while let Some(output) = self.rendezvous.next_output() {
            match output {
                Output::Send { message: Message::RelayReady(ready), .. } if ready.session.is_some() => {
                    self.terms.extend(ready.terms());
                }
                Output::Bind { bytes, .. } => self.binds.push(bytes),
                _ => {}
            }
        }
    }
}

/// Sixteen ports to an address, as behind NATs.
fn address(first: u32, number: u64) -> SocketAddr {
    let ip = Ipv4Addr::from(first + (number >> 4) as u32);
    SocketAddr::from((ip, 20_000 + (number & 15) as u16))
}

/// Ids are hashes: these are spread like such.
fn node(number: u64) -> NodeId {
    let mut bytes = [0; 32];
    Seeded((number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)).fill(&mut bytes);
    NodeId::from_bytes(bytes)
}
