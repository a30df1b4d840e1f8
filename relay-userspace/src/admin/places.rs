//! How many connections are served at once, and who waits: the daemon's user and root among themselves, and its group among
//! itself, so that who may only look cannot keep out who may stop the daemon.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::asker::{Credentials, Owner};

/// Only so many connections of each are served at once.
const SERVED: usize = 8;

/// Only so many more of each wait to be served.
const WAITING: usize = 128;

/// The places of an admin socket.
#[derive(Debug)]
pub struct Places {
    owner: Owner,
    owners: Queue,
    others: Queue,
}

#[derive(Debug)]
struct Queue {
    held: Arc<Semaphore>,
    served: Arc<Semaphore>,
}

/// Kept by who is served or waits; given back when it is dropped.
#[derive(Debug)]
pub struct Held {
    _held: OwnedSemaphorePermit,
    served: Arc<Semaphore>,
}

impl Places {
    /// Those of `owner`'s daemon.
    pub fn of(owner: Owner) -> Places {
        Places { owner, owners: Queue::new(), others: Queue::new() }
    }

    /// Lets `asker` wait; none if too many do.
    pub fn enter(&self, asker: &Credentials) -> Option<Held> {
        let Queue { held, served } = if self.owner.is(asker) { &self.owners } else { &self.others };
        let held = Arc::clone(held).try_acquire_owned().ok()?;
        Some(Held { _held: held, served: Arc::clone(served) })
    }
}

impl Queue {
    fn new() -> Queue {
        Queue { held: Arc::new(Semaphore::new(SERVED + WAITING)), served: Arc::new(Semaphore::new(SERVED)) }
    }
}

impl Held {
    /// Waits for its turn, which lasts as long as what is returned. In the order of entering.
    pub async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.served).acquire_owned().await.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    const DAEMON: Owner = Owner { user: 990, group: 991 };

    fn user(user: u32) -> Credentials {
        Credentials { user, groups: vec![991] }
    }

    /// Its turn, if that has come.
    fn turn(held: &Held) -> Option<OwnedSemaphorePermit> {
        match pin!(held.turn()).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(turn) => turn,
            Poll::Pending => None,
        }
    }

    #[test]
    fn members_of_the_group_hold_no_place_of_the_owners() {
        let places = Places::of(DAEMON);
        let members: Vec<_> = (0..SERVED + WAITING).map(|_| places.enter(&user(1000)).unwrap()).collect();
        let turns: Vec<_> = members.iter().map_while(turn).collect();
        assert_eq!(turns.len(), SERVED, "so many at once");
        assert!(places.enter(&user(1001)).is_none(), "and so many more wait");
        for owner in [990, 0] {
            let held = places.enter(&user(owner)).unwrap();
            assert!(turn(&held).is_some(), "user {owner} is served at once");
        }
        drop(turns);
        assert!(turn(&members[SERVED]).is_some(), "a place that is given back is another's");
        drop(members);
        assert!(places.enter(&user(1001)).is_some());
    }
}
