//! Which slots are free: never used, rested, or still resting.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::MonoTime;

/// How long a removed session's slot rests: far longer than any packet is being looked at.
pub const QUARANTINE: Duration = Duration::from_secs(1);

/// The numbers of the slots without a session.
#[derive(Debug)]
pub(super) struct SlotPool {
    capacity: u32,
    /// Slots below this number have been used.
    touched: u32,
    free: Vec<u32>,
    resting: VecDeque<(MonoTime, u32)>,
}

impl SlotPool {
    /// All of `capacity` slots.
    pub fn new(capacity: u32) -> SlotPool {
        SlotPool { capacity, touched: 0, free: Vec::new(), resting: VecDeque::new() }
    }

    /// The slots of tables that have been in use: those below `touched` are taken, but for the `resting` ones.
    pub fn of(capacity: u32, touched: u32, resting: impl Iterator<Item = u32>, now: MonoTime) -> SlotPool {
        let resting = resting.map(|number| (now + QUARANTINE, number)).collect();
        SlotPool { capacity, touched, free: Vec::new(), resting }
    }

    /// How many slots there are, with and without a session.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Slots from this number on have never been used.
    pub fn touched(&self) -> u32 {
        self.touched
    }

    /// A slot for a session, unless all are taken or resting.
    pub fn take(&mut self, now: MonoTime) -> Option<u32> {
        while let Some((_, rested)) = self.resting.pop_front_if(|(until, _)| *until <= now) {
            self.free.push(rested);
        }
        self.free.pop().or_else(|| {
            (self.touched < self.capacity).then(|| {
                self.touched += 1;
                self.touched - 1
            })
        })
    }

    /// Gives a slot back that nobody can have seen.
    pub fn give_back(&mut self, number: u32) {
        self.free.push(number);
    }

    /// Gives a slot back that others may be looking at.
    pub fn rest(&mut self, number: u32, now: MonoTime) {
        self.resting.push_back((now + QUARANTINE, number));
    }
}
