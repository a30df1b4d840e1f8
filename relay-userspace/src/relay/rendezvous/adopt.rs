//! Sessions that a predecessor has left: gone on with, if they may be, or ended.

use relay_common::Side;

use super::event::EndReason;
use super::session::{Party, Session};
use super::{Event, LEASE, Rendezvous};
use crate::clock::MonoTime;
use crate::relay::datapath::{Flows, InstallError, Left, Origin};
use crate::relay::prefix::Prefix;

impl Rendezvous {
    /// Goes on with a session that a predecessor has left, unless it is over, somebody of it `is_banned` or may not use the
    /// relay, or its flows cannot be put in place; it ends then. Its sides have [`CONSENT`](super::CONSENT) to prove their
    /// tuples anew, if their flows do not stop before, with the last proof's lease.
    ///
    /// # Errors
    /// Why it has ended.
    pub fn adopt(
        &mut self,
        left: &Left,
        is_banned: bool,
        flows: &mut impl Flows,
        now: MonoTime,
    ) -> Result<(), EndReason> {
        let [connector, target] = left.identity.nodes;
        let access = &self.settings.policy.access;
        let reason = if left.is_over(now) {
            Some(EndReason::LeaseOver)
        } else if is_banned {
            Some(EndReason::Banned)
        } else if !access.permits(&connector) || !access.permits(&target) {
            Some(EndReason::AccessDenied)
        } else if connector == target || self.sessions.get(left.identity.session).is_some() {
            Some(EndReason::Unreadable)
        } else {
            None
        };
        if let Some(reason) = reason {
            let traffic = left.slot.map_or(left.carried, |slot| flows.traffic(slot));
            if let Some(slot) = left.slot {
                flows.remove(slot, now);
            }
            let (session, age) = (left.identity.session, now.since(left.identity.since));
            self.event(Event::Ended { session, connector, target, reason, age, traffic });
            return Err(reason);
        }
        self.insert_left(left, now);
        match self.place_left(left, flows, now) {
            Ok(()) => {
                self.schedule(left.identity.session);
                Ok(())
            }
            Err(error) => {
                let reason = match error {
                    InstallError::TableFull => EndReason::TableFull,
                    InstallError::Tuple(fault) => EndReason::TupleRefused(fault),
                };
                self.end(left.identity.session, reason, flows, now);
                Err(reason)
            }
        }
    }

    fn insert_left(&mut self, left: &Left, now: MonoTime) {
        let identity = &left.identity;
        let numbers = identity.nodes.map(|node| self.nodes.known(node));
        let mut parties = numbers.into_iter().zip(identity.counters);
        let mut party = |side: Side| {
            let (node, counter) = parties.next()?;
            let agent = left.tuples.and_then(|tuples| tuples.get(side.index()).map(|tuple| tuple.agent));
            Some(Party::left(node, counter, agent, now))
        };
        let (Some(connector), Some(target)) = (party(Side::Connector), party(Side::Target)) else { return };
        let of_connector = left.tuples.map(|[connector, _]| Prefix::of(connector.agent.ip()));
        let prefix = identity.prefix.or(of_connector).unwrap_or(Prefix::NOBODYS);
        let (id, since) = (identity.session, identity.since);
        let offer = |prefix| Session::offer(id, [connector, target], prefix, since);
        self.sessions.insert(offer, prefix, &mut self.nodes);
        self.sessions.close_offer(numbers, &mut self.nodes);
        if let Some(session) = self.sessions.get_mut(id) {
            session.go_on(left.carried, left.debt, now);
        }
        for (tuple, side) in left.tuples.iter().flatten().zip(Side::BOTH) {
            self.sessions.own(id, side, *tuple);
        }
    }

    /// Puts its flows in place, if they are not, under today's limit.
    fn place_left(&mut self, left: &Left, flows: &mut impl Flows, now: MonoTime) -> Result<(), InstallError> {
        let (id, limit) = (left.identity.session, self.settings.limit);
        // What it had it keeps, and no longer than a daemon gives. It gets nothing: a relay that is started again and again
        // must not stand for sides that prove nothing.
        let deadlines = left.deadlines.map(|deadline| deadline.min(now + LEASE));
        let slot = match (left.slot, left.tuples) {
            (Some(slot), _) => {
                if !left.has_limit(limit) {
                    flows.set_limit(slot, limit, now);
                }
                for (side, deadline) in Side::BOTH.into_iter().zip(deadlines) {
                    flows.extend(slot, side, deadline);
                }
                slot
            }
            (None, Some(tuples)) => {
                let origin = Origin { identity: left.identity, debt: left.debt, carried: left.carried };
                flows.install(tuples, limit, &origin, deadlines, now)?
            }
            // Both sides prove their tuples, and it is put in place again.
            (None, None) => return Ok(()),
        };
        if let Some(session) = self.sessions.get_mut(id) {
            session.paired(slot, now);
            session.see_mtus(flows);
        }
        Ok(())
    }
}
