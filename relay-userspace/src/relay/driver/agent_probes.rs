//! Asking an agent to connect to this relay anew: so the operator hears whether who is not connected yet reaches it.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Driver;
use super::answers::json;
use crate::admin;
use crate::clock::MonoTime;
use crate::identity::NodeId;
use crate::probe::{self, Probed, ProbedRelay};
use crate::protocol::flow_terms::{Ping, Pong};
use crate::relay::bans::BanSubject;
use crate::relay::control::{ToAgent, unix_seconds};
use crate::relay::prefix::Prefix;
use crate::relay::rendezvous::{AskedOn, ConnId, StreamNumber};

/// An agent is waited for so long: its own patience, and twice the way.
const PATIENCE: Duration = probe::PATIENCE.saturating_add(Duration::from_secs(3));

/// Agents that have been asked, by connection.
#[derive(Debug, Default)]
pub(super) struct AgentProbes {
    /// One question at a time.
    waiting: BTreeMap<ConnId, Waiting>,
    /// `ts` of the last Ping for a sign of life whose Pong is still to come.
    owed: BTreeMap<ConnId, i64>,
}

#[derive(Debug)]
struct Waiting {
    /// `ts` of the Ping.
    ts: i64,
    /// Closed: nobody waits any more.
    told: oneshot::Sender<Option<Probed>>,
}

impl AgentProbes {
    /// Whether an agent has been asked and is waited for.
    pub fn waits(&self, conn: ConnId) -> bool {
        self.waiting.get(&conn).is_some_and(|waiting| !waiting.told.is_closed())
    }

    /// An agent is asked for a sign of life with a Ping that has this `ts`.
    pub fn pinged(&mut self, conn: ConnId, ts: i64) {
        self.owed.insert(conn, ts);
    }

    /// An agent is asked with a Ping that has this `ts`. What is returned is told what its answer says: nothing, if that makes no
    /// sense.
    fn ask(&mut self, conn: ConnId, ts: i64) -> oneshot::Receiver<Option<Probed>> {
        let (told, answered) = oneshot::channel();
        self.waiting.insert(conn, Waiting { ts, told });
        answered
    }

    /// A Pong has come.
    pub fn pong(&mut self, conn: ConnId, pong: &Pong) {
        // Of two Pings with the same `ts` the earlier one is answered first.
        if pong.probed.is_none() && self.owed.get(&conn) == Some(&pong.echo) {
            self.owed.remove(&conn);
            return;
        }
        if self.waiting.get(&conn).is_none_or(|waiting| waiting.ts != pong.echo) {
            return;
        }
        if let Some(Waiting { told, .. }) = self.waiting.remove(&conn) {
            let _nobody_waits = told.send(Probed::told(pong));
        }
    }

    /// A connection is over.
    pub fn closed(&mut self, conn: ConnId) {
        self.waiting.remove(&conn);
        self.owed.remove(&conn);
    }
}

/// What becomes of having an agent asked.
enum Asking {
    /// It is asked: what is told once it has answered.
    Asked(oneshot::Receiver<Option<Probed>>),
    /// There is no need to ask.
    Known(Probed),
    /// It is not asked, and why.
    Not(String),
}

impl Driver {
    /// Has an agent connect to this relay anew, and tells `asker` what comes of it.
    pub(super) fn probe_from(&mut self, agent: NodeId, asker: admin::Asker) {
        let relay = self.node;
        let told = move |probed| json(&ProbedRelay { relay, probed });
        let answered = match self.ask_agent(agent) {
            Asking::Asked(answered) => answered,
            Asking::Known(probed) => return drop(asker.send(told(probed))),
            Asking::Not(why) => return drop(asker.send(Err(why))),
        };
        tokio::spawn(async move {
            let answer = match timeout(PATIENCE, answered).await {
                Ok(Ok(Some(probed))) => told(probed),
                Ok(Ok(None)) => Err("the agent's answer makes no sense".to_owned()),
                Ok(Err(_)) => Err("the agent's connection has ended before it answered".to_owned()),
                Err(_) => Err(format!("the agent has not answered within {} s", PATIENCE.as_secs())),
            };
            let _asker_gone = asker.send(answer);
        });
    }

    fn ask_agent(&mut self, agent: NodeId) -> Asking {
        let Some(AskedOn { conn, remote, speaks_flow }) = self.rendezvous.asked_on(&agent) else {
            return Asking::Known(Probed::NotConnected);
        };
        if !speaks_flow {
            return Asking::Known(Probed::NotKnown);
        }
        let prefix = Prefix::of(remote.ip());
        if self.rules.bans().left(BanSubject::Prefix(prefix), MonoTime::now()).is_some() {
            return Asking::Not(format!("no new connection from {prefix} is let in: `bans` says why"));
        }
        if self.agent_probes.waits(conn) {
            return Asking::Not("the agent is being asked already: ask again in some seconds".to_owned());
        }
        // That it asks is said by a port. The agent goes to the one at which it has reached this relay, which may be another.
        let (stream, ping) =
            (StreamNumber::FIRST, Ping { probe: Some(self.port), ..Ping::new(unix_seconds()) });
        let answered = self.agent_probes.ask(conn, ping.ts);
        tracing::debug!(node = %agent, "asking an agent to connect anew");
        self.send(conn, ToAgent::Message { stream, message: ping.into() });
        Asking::Asked(answered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::NodeKey;

    const CONN: ConnId = ConnId(1);

    #[test]
    fn the_pong_that_answers_is_told_from_others() {
        let at = "192.0.2.1:4433".parse().unwrap();
        let node = NodeKey::from_seed(&[1; 32]).node_id();
        let answered = Probed::Answered { at, node }.answer(8, 7);
        let mut probes = AgentProbes::default();
        let mut told = probes.ask(CONN, 7);
        assert!(probes.waits(CONN) && !probes.waits(ConnId(2)));
        probes.pong(CONN, &Pong::new(8, 6));
        probes.pong(CONN, &Pong { echo: 6, ..answered.clone() });
        probes.pong(ConnId(2), &answered);
        assert!(told.try_recv().is_err());
        probes.pong(CONN, &answered);
        assert_eq!(told.try_recv(), Ok(Some(Probed::Answered { at, node })));
        assert!(!probes.waits(CONN));
        probes.pong(CONN, &answered);
    }

    #[test]
    fn an_agent_that_answers_the_documented_way_does_not_know_how_unless_that_was_an_earlier_pings_answer() {
        let mut probes = AgentProbes::default();
        probes.pinged(CONN, 7);
        let mut told = probes.ask(CONN, 7);
        probes.pong(CONN, &Pong::new(8, 7));
        assert!(told.try_recv().is_err());
        probes.pong(CONN, &Pong::new(8, 7));
        assert_eq!(told.try_recv(), Ok(Some(Probed::NotKnown)));
        probes.pinged(CONN, 9);
        let mut told = probes.ask(CONN, 9);
        probes.pong(CONN, &Probed::Refused.answer(9, 9));
        assert_eq!(told.try_recv(), Ok(Some(Probed::Refused)));
    }

    #[test]
    fn a_pong_that_is_owed_for_another_ping_takes_none_of_the_answer() {
        let mut probes = AgentProbes::default();
        probes.pinged(CONN, 6);
        let mut told = probes.ask(CONN, 7);
        probes.pong(CONN, &Pong::new(8, 7));
        assert_eq!(told.try_recv(), Ok(Some(Probed::NotKnown)));
        probes.closed(CONN);
        let mut told = probes.ask(CONN, 6);
        probes.pong(CONN, &Pong::new(8, 6));
        assert_eq!(told.try_recv(), Ok(Some(Probed::NotKnown)), "what was owed was owed by that connection");
    }

    #[test]
    fn who_waits_is_told_of_nonsense_and_of_the_end_of_the_connection() {
        let mut probes = AgentProbes::default();
        let mut told = probes.ask(CONN, 7);
        probes.pong(CONN, &Pong { probed_at: Some("\u{1b}[2J".to_owned()), ..Probed::Refused.answer(8, 7) });
        assert_eq!(told.try_recv(), Ok(Some(Probed::Refused)), "what is not used is not looked at");
        let mut told = probes.ask(CONN, 7);
        let silent = Probed::Silent { at: "192.0.2.1:4433".parse().unwrap() }.answer(8, 7);
        probes.pong(CONN, &Pong { probed_at: Some("\u{1b}[2J".to_owned()), ..silent });
        assert_eq!(told.try_recv(), Ok(None));
        let mut told = probes.ask(CONN, 7);
        probes.closed(CONN);
        assert_eq!(told.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        drop(probes.ask(CONN, 7));
        assert!(!probes.waits(CONN), "nobody waits any more: another may ask");
    }
}
