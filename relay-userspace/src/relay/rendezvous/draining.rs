//! A relay that is about to stop: agents are told to move away, and once nobody uses it any more it is done.

use std::net::SocketAddr;
use std::time::Duration;

use super::agents::ConnId;
use super::{Output, Rendezvous};
use crate::clock::MonoTime;
use crate::config::RelayHint;
use crate::protocol::flow_terms::{Disconnect, disconnect_reason};

/// How a relay is to be drained.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drain {
    /// It stops after this, whoever still uses it. None: once nobody does.
    pub within: Option<Duration>,
    /// The relay that agents may move to.
    pub hint: Option<RelayHint>,
}

/// How far it is drained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrainStatus {
    /// Sessions, offers and joined streams that are left.
    pub sessions: usize,
    /// Until it stops, whoever still uses it.
    pub left: Option<Duration>,
    /// The relay that agents may move to.
    pub hint: Option<RelayHint>,
}

/// It is being drained.
#[derive(Debug)]
pub(super) struct Draining {
    deadline: Option<MonoTime>,
    hint: Option<RelayHint>,
    /// The deadline has come.
    late: bool,
    /// [`Output::Drained`] was given.
    done: bool,
}

impl Rendezvous {
    /// The relay is about to stop: it takes no new sessions from now on, and tells its agents to move. Those sessions that
    /// it has go on. Asked again, the later values count.
    pub fn drain(&mut self, Drain { within, hint }: Drain, now: MonoTime) {
        let deadline = within.map(|within| now + within);
        let is_news = self.draining.as_ref().is_none_or(|it| (it.deadline, &it.hint) != (deadline, &hint));
        self.draining = Some(Draining { deadline, hint, late: false, done: false });
        if is_news {
            for conn in self.agents.ids() {
                self.tell_drain(conn, now);
            }
        }
    }

    /// How far [`drain`](Self::drain) has come; None if it was not asked for.
    pub fn drain_status(&self, now: MonoTime) -> Option<DrainStatus> {
        let Draining { deadline, hint, .. } = self.draining.as_ref()?;
        let left = deadline.map(|deadline| deadline.since(now));
        Some(DrainStatus { sessions: self.carried(), left, hint: hint.clone() })
    }

    /// Whether agents are told to send data to `address`.
    pub fn advertises(&self, address: SocketAddr) -> bool {
        self.settings.advertise.contains(&address)
    }

    /// An agent has said that it speaks flow. If the relay is being drained, it has not been told yet.
    pub(super) fn speaks_flow(&mut self, conn: ConnId, now: MonoTime) {
        let Some(agent) = self.agents.get_mut(conn) else { return };
        if !std::mem::replace(&mut agent.speaks_flow, true) {
            self.tell_drain(conn, now);
        }
    }

    /// When the drain is over at the latest.
    pub(super) fn drain_deadline(&self) -> Option<MonoTime> {
        self.draining.as_ref().filter(|it| !it.late)?.deadline
    }

    /// Does what is due for the drain.
    pub(super) fn expire_drain(&mut self, now: MonoTime) {
        if self.drain_deadline().is_some_and(|deadline| deadline <= now)
            && let Some(draining) = &mut self.draining
        {
            draining.late = true;
        }
    }

    /// Says once that the drain is over, when nothing else is to be done.
    pub(super) fn drained(&mut self) -> Option<Output> {
        let left = self.carried();
        let draining = self.draining.as_mut().filter(|it| !it.done && (it.late || left == 0))?;
        draining.done = true;
        Some(Output::Drained { left })
    }

    /// Tells an agent where to move and until when. Those that know only the documented messages would take a Disconnect
    /// for the end of the connection.
    fn tell_drain(&mut self, conn: ConnId, now: MonoTime) {
        let Some(Draining { deadline, hint, .. }) = &self.draining else { return };
        if self.agents.get(conn).is_none_or(|agent| !agent.speaks_flow) {
            return;
        }
        // Rounded up: the relay is there for so long at least.
        let left = deadline.map(|deadline| deadline.since(now));
        let after_s = left.map(|left| left.as_secs() + u64::from(left.subsec_nanos() > 0));
        let relay = hint.as_ref().map(RelayHint::to_string);
        let note = Some("this relay is about to stop".to_owned());
        self.send(
            conn,
            Disconnect { relay, after_s, ..Disconnect::new(disconnect_reason::DRAIN, note, None) },
        );
    }

    /// Sessions, offers and joined streams.
    fn carried(&self) -> usize {
        self.sessions.total() + self.splices.total()
    }
}
