//! Asking an agent to connect to this relay anew: so the operator hears whether who is not connected yet reaches it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Driver;
use super::answers::json;
use crate::admin;
use crate::clock::MonoTime;
use crate::identity::NodeId;
use crate::probe::{self, Probed};
use crate::protocol::flow_terms::{Ping, Pong};
use crate::relay::bans::BanSubject;
use crate::relay::control::{ToAgent, unix_seconds};
use crate::relay::prefix::Prefix;
use crate::relay::rendezvous::{AskedOn, ConnId, StreamNumber};

/// An agent is waited for so long: its own patience, and twice the way.
const PATIENCE: Duration = probe::PATIENCE.saturating_add(Duration::from_secs(3));

/// Agents that have been asked, by connection: one question at a time.
#[derive(Debug, Default)]
pub(super) struct AgentProbes(BTreeMap<ConnId, Waiting>);

#[derive(Debug)]
struct Waiting {
    /// `ts` of the Ping.
    ts: i64,
    /// A Pong of an earlier Ping is still to come, which may have the same `ts`.
    owes_pong: bool,
    /// Closed: nobody waits any more.
    told: oneshot::Sender<Option<Probed>>,
}

impl AgentProbes {
    /// Whether an agent has been asked and is waited for.
    pub fn waits(&self, conn: ConnId) -> bool {
        self.0.get(&conn).is_some_and(|waiting| !waiting.told.is_closed())
    }

    /// An agent is asked with a Ping that has this `ts`. What is returned is told what its answer says: nothing, if that makes no
    /// sense.
    fn ask(&mut self, conn: ConnId, ts: i64, owes_pong: bool) -> oneshot::Receiver<Option<Probed>> {
        let (told, answered) = oneshot::channel();
        self.0.insert(conn, Waiting { ts, owes_pong, told });
        answered
    }

    /// A Pong has come.
    pub fn pong(&mut self, conn: ConnId, pong: &Pong) {
        let Some(waiting) = self.0.get_mut(&conn).filter(|waiting| waiting.ts == pong.echo) else { return };
        if pong.probed.is_none() && std::mem::take(&mut waiting.owes_pong) {
            return;
        }
        if let Some(Waiting { told, .. }) = self.0.remove(&conn) {
            let _nobody_waits = told.send(Probed::told(pong));
        }
    }

    /// A connection is over.
    pub fn closed(&mut self, conn: ConnId) {
        self.0.remove(&conn);
    }
}

impl Driver {
    /// Has an agent connect to this relay anew, and tells `asker` what comes of it.
    pub(super) fn probe_from(&mut self, agent: NodeId, asker: admin::Asker) {
        let answered = match self.ask_agent(agent) {
            Ok(answered) => answered,
            Err(known) => {
                let _asker_gone = asker.send(known.and_then(|known| json(&known)));
                return;
            }
        };
        tokio::spawn(async move {
            let answer = match timeout(PATIENCE, answered).await {
                Ok(Ok(Some(probed))) => json(&probed),
                Ok(Ok(None)) => Err("the agent's answer makes no sense".to_owned()),
                Ok(Err(_)) => Err("the agent's connection has ended before it answered".to_owned()),
                Err(_) => Err(format!("the agent has not answered within {} s", PATIENCE.as_secs())),
            };
            let _asker_gone = asker.send(answer);
        });
    }

    /// Asks it, or says what is known without, or why it is not asked.
    fn ask_agent(
        &mut self,
        agent: NodeId,
    ) -> Result<oneshot::Receiver<Option<Probed>>, Result<Probed, String>> {
        let Some(AskedOn { conn, remote, speaks_flow, owes_pong }) = self.rendezvous.asked_on(&agent) else {
            return Err(Ok(Probed::NotConnected));
        };
        if !speaks_flow {
            return Err(Ok(Probed::NotKnown));
        }
        let prefix = Prefix::of(remote.ip());
        if self.rules.bans().left(BanSubject::Prefix(prefix), MonoTime::now()).is_some() {
            return Err(Err(format!("no new connection from {prefix} is let in: `bans` says why")));
        }
        if self.agent_probes.waits(conn) {
            return Err(Err("the agent is being asked already: ask again in some seconds".to_owned()));
        }
        let port = reached_at(self.rendezvous.advertised(), remote, self.port);
        let (stream, ping) = (StreamNumber::FIRST, Ping { probe: Some(port), ..Ping::new(unix_seconds()) });
        let answered = self.agent_probes.ask(conn, ping.ts, owes_pong);
        tracing::debug!(node = %agent, port, "asking an agent to connect anew");
        self.send(conn, ToAgent::Message { stream, message: ping.into() });
        Ok(answered)
    }
}

/// The port that an agent at `remote` is to reach this relay at: of the first of `advertised` in its family, of the first of all,
/// or the `own`.
fn reached_at(advertised: &[SocketAddr], remote: SocketAddr, own: u16) -> u16 {
    let of_family =
        advertised.iter().find(|address| address.is_ipv4() == remote.ip().to_canonical().is_ipv4());
    of_family.or(advertised.first()).map_or(own, SocketAddr::port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::NodeKey;

    const CONN: ConnId = ConnId(1);

    #[test]
    fn the_pong_that_answers_is_told_from_others() {
        let at: SocketAddr = "192.0.2.1:4433".parse().unwrap();
        let node = NodeKey::from_seed(&[1; 32]).node_id();
        let answered = probe::answer(8, 7, at, Some(node));
        let mut probes = AgentProbes::default();
        let mut told = probes.ask(CONN, 7, false);
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
        let mut told = probes.ask(CONN, 7, true);
        probes.pong(CONN, &Pong::new(8, 7));
        assert!(told.try_recv().is_err());
        probes.pong(CONN, &Pong::new(8, 7));
        assert_eq!(told.try_recv(), Ok(Some(Probed::NotKnown)));
        let mut told = probes.ask(CONN, 9, true);
        probes.pong(CONN, &probe::refusal(9, 9));
        assert_eq!(told.try_recv(), Ok(Some(Probed::Refused)));
    }

    #[test]
    fn who_waits_is_told_of_nonsense_and_of_the_end_of_the_connection() {
        let mut probes = AgentProbes::default();
        let mut told = probes.ask(CONN, 7, false);
        probes.pong(CONN, &Pong { probed_at: Some("\u{1b}[2J".to_owned()), ..probe::refusal(8, 7) });
        assert_eq!(told.try_recv(), Ok(Some(Probed::Refused)), "what is not used is not looked at");
        let mut told = probes.ask(CONN, 7, false);
        let silent = probe::answer(8, 7, "192.0.2.1:4433".parse().unwrap(), None);
        probes.pong(CONN, &Pong { probed_at: Some("\u{1b}[2J".to_owned()), ..silent });
        assert_eq!(told.try_recv(), Ok(None));
        let mut told = probes.ask(CONN, 7, false);
        probes.closed(CONN);
        assert_eq!(told.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        drop(probes.ask(CONN, 7, false));
        assert!(!probes.waits(CONN), "nobody waits any more: another may ask");
    }

    #[test]
    fn the_port_is_the_advertised_one_of_the_agents_family() {
        let [v4, v6]: [SocketAddr; 2] = ["192.0.2.1:443", "[2001:db8::1]:444"].map(|a| a.parse().unwrap());
        let [agent, agent_v6]: [SocketAddr; 2] =
            ["198.51.100.1:5", "[2001:db8::9]:5"].map(|a| a.parse().unwrap());
        assert_eq!(reached_at(&[], agent, 4433), 4433);
        assert_eq!(reached_at(&[v6, v4], agent, 4433), 443);
        assert_eq!(reached_at(&[v4, v6], agent_v6, 4433), 444);
        assert_eq!(reached_at(&[v4], agent_v6, 4433), 443);
    }
}
