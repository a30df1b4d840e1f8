//! What is on its way, and what becomes of it there.

use super::*;
use crate::protocol::bind::BindClient;
use crate::protocol::message::Pong;

/// What travels, by arrival time; the number keeps arrivals at one time apart.
#[derive(Default)]
pub struct Network {
    due: BTreeMap<(MonoTime, u64), Transit>,
    sent: u64,
}

pub enum Transit {
    ToRelay(StreamEnd, Message),
    ToAgent(ConnId, Message),
    BindToRelay(SocketAddr, [u8; BIND_LEN]),
    BindToAgent(SocketAddr, [u8; BIND_LEN]),
    /// An agent looks at a session of its own, at the time it had meant to: not on the network at all.
    Look(usize, SessionId, MonoTime),
}

impl Network {
    pub fn next_at(&self) -> Option<MonoTime> {
        self.due.first_key_value().map(|((at, _), _)| *at)
    }

    pub fn next(&mut self) -> Option<Transit> {
        self.due.pop_first().map(|(_, transit)| transit)
    }

    pub fn at(&mut self, at: MonoTime, transit: Transit) {
        self.sent += 1;
        self.due.insert((at, self.sent), transit);
    }

    pub fn clear(&mut self) {
        self.due.clear();
    }
}

impl Simulation {
    /// Puts something on its way: one in twelve is lost, one bind in twenty arrives twice, all at times of their own.
    pub fn transmit(&mut self, transit: Transit) {
        if self.random.below(12) == 0 {
            return;
        }
        if self.random.below(20) == 0 {
            let again = match &transit {
                Transit::BindToRelay(from, bytes) => Some(Transit::BindToRelay(*from, *bytes)),
                Transit::BindToAgent(to, bytes) => Some(Transit::BindToAgent(*to, *bytes)),
                _ => None,
            };
            again.into_iter().for_each(|transit| self.send(transit));
        }
        self.send(transit);
    }

    fn send(&mut self, transit: Transit) {
        let at = self.now + Duration::from_micros(1000 + self.random.below(120_000));
        self.network.at(at, transit);
    }

    pub fn arrive(&mut self, transit: Transit) {
        let now = self.now;
        match transit {
            Transit::ToRelay(end, message) => {
                self.touched.of_message(self.open.get(&end.conn).copied(), &message);
                self.rendezvous.received_on(end, message, &mut self.flows, &mut self.random, now);
                let is_the_peers = self.census.ends.contains(&end);
                assert!(!is_the_peers || self.rendezvous.outputs.is_empty(), "nothing follows on {end:?}");
                self.after_input();
            }
            Transit::BindToRelay(from, bytes) => {
                self.sources.insert(from);
                self.touched.of_bind(&bytes, &self.rendezvous.magic);
                let (flows, random) = (&mut self.flows, &mut self.random);
                self.rendezvous.bind(from, super::super::relay_of(from), &bytes, flows, random, now);
                self.after_input();
            }
            Transit::ToAgent(conn, message) => self.tell_agent(conn, &message),
            Transit::BindToAgent(to, bytes) => {
                for (who, session) in self.flows_at(to) {
                    if let Some(flow) = self.agents[who].sessions.get_mut(&session) {
                        let _not_for_this_one = flow.client.handle(&bytes, now);
                        self.poll(who, session);
                    }
                }
            }
            Transit::Look(who, session, meant) => {
                if let Some(flow) = self.agents[who].sessions.get_mut(&session)
                    && flow.looks_at.take_if(|at| *at == meant).is_some()
                {
                    self.poll(who, session);
                }
            }
        }
    }

    fn tell_agent(&mut self, conn: ConnId, message: &Message) {
        let Some(who) = self.open.get(&conn).copied().filter(|who| self.agents[*who].conn == Some(conn))
        else {
            return;
        };
        match message {
            Message::RelayReady(ready) if ready.session.is_some() => {
                let terms = ready.terms().unwrap();
                // An agent that no longer knows the session does not answer for it.
                let known = self.agents[who].sessions.contains_key(&terms.session);
                if !known && !terms.bind_now {
                    self.begin(who, terms.session, BindClient::new(&terms, self.now));
                }
            }
            Message::Disconnect(disconnect) => match disconnect.session {
                Some(session) => drop(self.agents[who].sessions.remove(&session)),
                None => self.agents[who].conn = None,
            },
            Message::RelayError(error) => {
                if let Some(session) = error.session {
                    self.agents[who].sessions.remove(&session);
                }
            }
            Message::Ping(_) => {
                let first = StreamEnd { conn, stream: StreamNumber::FIRST };
                self.transmit(Transit::ToRelay(first, Pong::new(0, 0).into()));
            }
            _ => {}
        }
    }
}
