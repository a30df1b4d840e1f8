//! What is due when: one time for each agent and session.

use std::collections::{BTreeMap, BTreeSet};

use super::agents::ConnId;
use crate::clock::MonoTime;
use crate::protocol::SessionId;

/// Whose time it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    Agent(ConnId),
    Session(SessionId),
}

#[derive(Debug, Default)]
pub(super) struct Timers {
    in_order: BTreeSet<(MonoTime, Timer)>,
    of: BTreeMap<Timer, MonoTime>,
}

impl Timers {
    /// Sets the one time of `timer`.
    pub fn set(&mut self, timer: Timer, at: MonoTime) {
        self.clear(timer);
        self.of.insert(timer, at);
        self.in_order.insert((at, timer));
    }

    /// Nothing is due for `timer` any more.
    pub fn clear(&mut self, timer: Timer) {
        if let Some(at) = self.of.remove(&timer) {
            self.in_order.remove(&(at, timer));
        }
    }

    /// The first time of all.
    pub fn first(&self) -> Option<MonoTime> {
        self.in_order.first().map(|(at, _)| *at)
    }

    /// Takes the first timer that is due at `now`.
    pub fn take_due(&mut self, now: MonoTime) -> Option<Timer> {
        let (at, timer) = *self.in_order.first()?;
        if at > now {
            return None;
        }
        self.clear(timer);
        Some(timer)
    }

    #[cfg(test)]
    pub fn has(&self, timer: Timer) -> bool {
        self.of.contains_key(&timer)
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.of.len()
    }
}
