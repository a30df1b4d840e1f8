//! What whoever asks at the admin socket is answered.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::Driver;
use crate::admin::{Asked, Request};
use crate::clock::MonoTime;
use crate::config::RelayHint;
use crate::relay::bans::{BanCause, BanStatus, BanSubject};
use crate::relay::datapath::FlowTuple;
use crate::relay::rendezvous::Drain;
use crate::relay::report;
use crate::relay::stopping::Stopping;

impl Driver {
    /// Does what is asked for, and answers; at once, but where something has to be waited for.
    pub(super) fn answer(&mut self, Asked { request, answer }: Asked) {
        let value = match request {
            Request::Probe { agent } => return self.probe_from(agent, answer),
            Request::Reload => return self.reconfiguration.begin(answer),
            Request::Stop => {
                tracing::info!("stopping: told by a command");
                self.stopper.stop(Stopping::End);
                return self.awaiting_end.push(answer);
            }
            Request::Peers => json(&report::Peers::from(self.rendezvous.peers(MonoTime::now()))),
            Request::Sessions => json(&self.sessions()),
            Request::Status => self.status().and_then(|status| json(&status)),
            Request::Settings => json(&self.reconfiguration.settings()),
            Request::Send { .. } => {
                Err("this daemon is a relay: run this with an agent's ATLAS_ROOT".to_owned())
            }
            Request::EndSession { session } => {
                match self.rendezvous.end_by_operator(session, &mut self.packets.flows, MonoTime::now()) {
                    true => json(&report::Ended { sessions: 1 }),
                    false => Err(format!("no session {session} here: `net sessions` shows those there are")),
                }
            }
            Request::EndSessionsOf { node } => {
                let (flows, now) = (&mut self.packets.flows, MonoTime::now());
                json(&report::Ended { sessions: self.rendezvous.end_all_by_operator(&node, flows, now) })
            }
            Request::Drain { hint: Some(hint), .. } if hint.node == self.node => {
                Err(format!("{hint} is this relay itself: name the one that its agents are to move to"))
            }
            Request::Drain { hint: Some(hint), .. } if self.is_own(&hint) => Err(format!(
                "{} is an address of this relay, whose node id is {}: name the one that its agents are to move to",
                hint.at, self.node
            )),
            Request::Drain { deadline_s, hint } => {
                let to = hint.as_ref().map(tracing::field::display);
                tracing::info!(deadline_s, to, "draining: no new sessions from now on");
                let (within, now) = (deadline_s.map(Duration::from_secs), MonoTime::now());
                self.rendezvous.drain(Drain { within, hint }, now);
                json(&self.rendezvous.drain_status(now).map(report::Drain::from))
            }
            Request::Explain { source, destination, packet } => {
                let tuple = FlowTuple { agent: source, relay: destination };
                self.packets.explain(tuple, packet.into()).and_then(|explanation| json(&explanation))
            }
            Request::Bans => json(&report::Bans::from(self.rules.bans().list(MonoTime::now()))),
            Request::AddBan { subject, seconds } => {
                self.ban(subject, seconds, MonoTime::now()).and_then(|ban| json(&ban))
            }
            Request::LiftBan { subject } => json(&self.lift_ban(subject)),
        };
        let _asker_gone = answer.send(value);
    }

    /// Whether agents that go where the hint says would come back to this relay, as far as an address tells; names may change.
    fn is_own(&self, hint: &RelayHint) -> bool {
        let at = hint.at.socket_addr();
        at.is_some_and(|at| self.packets.listening.is_at(at) || self.rendezvous.advertises(at))
    }

    fn sessions(&self) -> report::Sessions {
        let now = MonoTime::now();
        let mut all = report::Sessions::from(self.rendezvous.sessions(&self.packets.flows, now));
        let spliced = self.rendezvous.splices(now);
        let spliced = spliced.iter().map(|it| (it, self.splicer.traffic(it.session)));
        all.sessions.extend(spliced.map(report::Session::from));
        all
    }

    fn status(&mut self) -> Result<report::Status, String> {
        let now = MonoTime::now();
        let mut status = self.packets.status().map_err(|error| error.to_string())?;
        let refusals = self.rendezvous.refusals().iter();
        status.control = refusals.map(|(name, count)| (name.to_owned(), count)).collect();
        status.relayed_bytes_per_s = self.rendezvous.relayed_bytes_per_s(now);
        let adopted = self.adopted.iter();
        status.adopted = adopted.map(|(word, count)| ((*word).to_owned(), *count)).collect();
        status.drain = self.rendezvous.drain_status(now).map(report::Drain::from);
        status.draining = status.drain.is_some();
        status.agents = self.outboxes.len();
        Ok(status)
    }

    /// Bans somebody for the operator, by default for as long as others are banned.
    pub(super) fn ban(
        &self,
        subject: BanSubject,
        seconds: Option<u64>,
        now: MonoTime,
    ) -> Result<report::Ban, String> {
        let duration = seconds.map_or(self.rules.policy().ban_duration, Duration::from_secs);
        if duration.is_zero() {
            return Err("say for how long: security.ban_duration_secs is 0".to_owned());
        }
        let mut bans = self.rules.bans();
        bans.add(subject, duration, now).map_err(|error| error.to_string())?;
        tracing::info!(%subject, seconds = duration.as_secs(), "banned by the operator");
        Ok(report::Ban::from(BanStatus { subject, left: duration, cause: BanCause::ByHand }))
    }

    fn lift_ban(&self, subject: BanSubject) -> report::Lifted {
        let lifted = self.rules.bans().lift(subject, MonoTime::now());
        if lifted {
            tracing::info!(%subject, "ban lifted by the operator");
        }
        report::Lifted { subject: subject.to_string(), lifted }
    }
}

pub(super) fn json(value: &impl Serialize) -> Result<Value, String> {
    serde_json::to_value(value).map_err(|error| error.to_string())
}
