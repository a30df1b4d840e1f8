//! Seats for the agents that are connected: bounded altogether and for each source, and an agent that comes back is not
//! kept out by what it has left behind.
//!
//! A relay notices that an agent has vanished only after a while. Until then what it has left holds a seat; and where
//! many come back at once, from behind one address, there may be no other. So where no seat is free, the newest
//! connection of an agent has the seat of that agent's oldest, which gives way. Nobody can have more seats by that than
//! without: not an agent, which has proved its key, nor a prefix.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::places::{Full, Limits, Shares};
use crate::identity::NodeId;
use crate::relay::prefix::Prefix;

/// The seats that are taken; `C` is what it takes to end a connection.
#[derive(Debug)]
pub(super) struct Seats<C> {
    taken: Mutex<Taken<C>>,
}

#[derive(Debug)]
struct Taken<C> {
    shares: Shares,
    /// Numbers given so far.
    numbered: u64,
    /// The seats of each node, the oldest first.
    by_node: BTreeMap<NodeId, Vec<Occupied<C>>>,
}

#[derive(Debug)]
struct Occupied<C> {
    number: u64,
    prefix: Prefix,
    connection: C,
}

/// A seat that is taken, until it is dropped or has to be left to a newer connection.
#[derive(Debug)]
pub(super) struct Seat<C> {
    seats: Arc<Seats<C>>,
    node: NodeId,
    number: u64,
}

impl<C> Seats<C> {
    /// All are free.
    pub fn new() -> Arc<Seats<C>> {
        let taken = Taken { shares: Shares::default(), numbered: 0, by_node: BTreeMap::new() };
        Arc::new(Seats { taken: Mutex::new(taken) })
    }

    /// Whether no seat is free for a node that is not here already.
    pub fn full(&self, prefix: Prefix, limits: Limits) -> bool {
        self.lock().shares.full(prefix, limits).is_some()
    }

    /// Why there is no seat for `node`, whether here already or not.
    pub fn full_for(&self, node: NodeId, prefix: Prefix, limits: Limits) -> Option<Full> {
        let taken = self.lock();
        let full = taken.shares.full(prefix, limits)?;
        taken.giving_way(&node, prefix, limits).is_none().then_some(full)
    }

    /// Takes a seat for a connection of `node` from `prefix`. The other connection that is returned, if there is one, has
    /// lost its seat to it and is to be ended.
    pub fn take(
        self: &Arc<Self>,
        node: NodeId,
        prefix: Prefix,
        connection: C,
        limits: Limits,
    ) -> Result<(Seat<C>, Option<C>), Full> {
        let mut taken = self.lock();
        let mut gave_way = None;
        if let Some(full) = taken.shares.full(prefix, limits) {
            let number = taken.giving_way(&node, prefix, limits).ok_or(full)?;
            gave_way = taken.leave(&node, number);
        }
        taken.numbered += 1;
        let number = taken.numbered;
        taken.shares.add(prefix);
        taken.by_node.entry(node).or_default().push(Occupied { number, prefix, connection });
        Ok((Seat { seats: Arc::clone(self), node, number }, gave_way))
    }

    fn lock(&self) -> MutexGuard<'_, Taken<C>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C> Taken<C> {
    /// The seat of `node` that one of its own can have from `prefix` without that prefix getting more than its share.
    fn giving_way(&self, node: &NodeId, prefix: Prefix, limits: Limits) -> Option<u64> {
        let room_in_prefix = self.shares.of(prefix) < limits.per_prefix;
        let mut seats = self.by_node.get(node)?.iter();
        seats.find(|seat| seat.prefix == prefix || room_in_prefix).map(|seat| seat.number)
    }

    /// Frees a seat, if it is still taken.
    fn leave(&mut self, node: &NodeId, number: u64) -> Option<C> {
        let seats = self.by_node.get_mut(node)?;
        let position = seats.iter().position(|seat| seat.number == number)?;
        let Occupied { prefix, connection, .. } = seats.remove(position);
        if seats.is_empty() {
            self.by_node.remove(node);
        }
        self.shares.remove(prefix);
        Some(connection)
    }
}

impl<C> Drop for Seat<C> {
    fn drop(&mut self) {
        self.seats.lock().leave(&self.node, self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { all: 4, per_prefix: 2 };
    const HOME: &str = "192.0.2.1";
    const AWAY: &str = "2001:db8::/56";

    fn node(seed: u8) -> NodeId {
        NodeId::from_bytes([seed; 32])
    }

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    /// A seat for the connection `name` of the node `seed`, and who has lost one to it.
    fn take(
        seats: &Arc<Seats<&'static str>>,
        seed: u8,
        from: &str,
        name: &'static str,
    ) -> Result<(Seat<&'static str>, Option<&'static str>), Full> {
        seats.take(node(seed), prefix(from), name, LIMITS)
    }

    /// How many seats are taken, and how many of them by HOME.
    fn taken(seats: &Seats<&'static str>) -> (usize, usize) {
        let taken = seats.lock();
        (taken.shares.all(), taken.shares.of(prefix(HOME)))
    }

    #[test]
    fn while_seats_are_free_an_agent_may_have_several_connections() {
        let seats = Seats::new();
        let first = take(&seats, 1, HOME, "first").unwrap();
        let second = take(&seats, 1, HOME, "second").unwrap();
        assert_eq!((first.1, second.1), (None, None));
        drop((first, second));
        assert!(seats.lock().by_node.is_empty());
        assert_eq!(seats.lock().shares.all(), 0);
    }

    #[test]
    fn where_a_prefix_has_its_share_an_agent_that_is_here_comes_back_and_another_does_not_come_in() {
        let seats = Seats::new();
        let (dead, _) = take(&seats, 1, HOME, "dead").unwrap();
        let (_neighbour, _) = take(&seats, 2, HOME, "neighbour").unwrap();
        assert_eq!(take(&seats, 3, HOME, "stranger").unwrap_err(), Full::Prefix);
        assert_eq!(seats.full_for(node(3), prefix(HOME), LIMITS), Some(Full::Prefix));
        assert_eq!(seats.full_for(node(1), prefix(HOME), LIMITS), None);
        let (_back, gave_way) = take(&seats, 1, HOME, "back").unwrap();
        assert_eq!(gave_way, Some("dead"));
        drop(dead); // later, when its task ends: it has nothing left to free
        assert_eq!(seats.lock().shares.all(), 2);
        assert!(seats.full(prefix(HOME), LIMITS));
        assert!(!seats.full(prefix(AWAY), LIMITS));
    }

    #[test]
    fn an_agent_that_comes_back_has_no_more_seats_than_before_however_often_it_comes() {
        let seats = Seats::new();
        let mut held: Vec<_> = [(1, HOME), (1, HOME), (2, AWAY), (3, AWAY)]
            .map(|(seed, from)| take(&seats, seed, from, "held").unwrap().0)
            .into();
        for _ in 0..10 {
            let (seat, gave_way) = take(&seats, 1, HOME, "again").unwrap();
            assert!(gave_way.is_some());
            held.push(seat);
        }
        assert_eq!(seats.lock().by_node[&node(1)].len(), 2);
        assert_eq!(taken(&seats), (4, 2));
        assert_eq!(take(&seats, 4, HOME, "stranger").unwrap_err(), Full::All);
    }

    #[test]
    fn the_oldest_connection_gives_way_and_none_that_would_give_a_prefix_more_than_its_share() {
        let seats = Seats::new();
        let _held = [(1, AWAY, "far"), (1, HOME, "near"), (2, HOME, "near"), (3, AWAY, "far")]
            .map(|(seed, from, name)| take(&seats, seed, from, name).unwrap().0);
        let (_back, gave_way) = take(&seats, 1, HOME, "back").unwrap();
        assert_eq!(gave_way, Some("near"), "HOME has its share, so it is no seat of AWAY's");
        assert_eq!(take(&seats, 3, HOME, "moved").unwrap_err(), Full::All);
    }

    #[test]
    fn when_all_seats_are_taken_an_agent_may_come_back_from_elsewhere() {
        let limits = Limits { all: 2, per_prefix: 2 };
        let seats = Seats::new();
        let _held = [1, 2].map(|seed| seats.take(node(seed), prefix(HOME), "held", limits).unwrap().0);
        let (_moved, gave_way) = seats.take(node(1), prefix(AWAY), "moved", limits).unwrap();
        assert_eq!(gave_way, Some("held"));
        assert_eq!(taken(&seats), (2, 1));
    }

    #[test]
    fn after_the_limits_were_lowered_agents_still_come_back() {
        let seats = Seats::new();
        let _held = [1, 2].map(|seed| take(&seats, seed, HOME, "held").unwrap().0);
        let lowered = Limits { all: 1, per_prefix: 1 };
        assert_eq!(seats.take(node(3), prefix(AWAY), "new", lowered).unwrap_err(), Full::All);
        assert!(seats.take(node(2), prefix(HOME), "back", lowered).unwrap().1.is_some());
    }
}
