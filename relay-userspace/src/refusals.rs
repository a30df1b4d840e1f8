//! Closed lists of reasons to refuse something. Each refusal is counted under its reason's name, and logged.
//!
//! There are two, `Refusal` of the relay's control side and `Refusal` of the agent. ARCHITECTURE.md repeats both; a test
//! compares them.

use std::marker::PhantomData;
use std::time::Duration;

use crate::clock::MonoTime;

/// Why something is refused: a member of a closed list.
pub trait RefusalReason: Copy + 'static {
    /// All of them, each at its place.
    const ALL: &'static [Self];

    /// The name that counters, logs and listings use.
    fn name(self) -> &'static str;

    /// What is refused.
    fn meaning(self) -> &'static str;

    /// Where it stands in [`RefusalReason::ALL`].
    fn place(self) -> usize;

    /// The one of this name.
    fn of_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.name() == name)
    }
}

/// Defines a list: each line is a reason, its name and what is refused.
macro_rules! reasons {
    ($(#[$doc:meta])* pub enum $list:ident { $($variant:ident = $name:literal: $meaning:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $list {
            $(#[doc = $meaning] $variant,)*
        }

        impl $crate::refusals::RefusalReason for $list {
            const ALL: &'static [$list] = &[$($list::$variant),*];

            fn name(self) -> &'static str {
                match self {
                    $($list::$variant => $name,)*
                }
            }

            fn meaning(self) -> &'static str {
                match self {
                    $($list::$variant => $meaning,)*
                }
            }

            fn place(self) -> usize {
                self as usize
            }
        }
    };
}
pub(crate) use reasons;

/// How often each refusal of a list has happened.
#[derive(Clone, Debug)]
pub struct Refusals<R> {
    tallies: Vec<Tally>,
    list: PhantomData<R>,
}

/// How often something has happened, and how often that is said.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    total: u64,
    logged: u64,
    logged_at: Option<MonoTime>,
}

impl Tally {
    /// Counts one more. If it is to be logged, how many it is since the last line.
    pub fn count(&mut self, now: MonoTime) -> Option<u64> {
        self.total += 1;
        if self.logged_at.is_some_and(|at| now.since(at) < LOG_EVERY) {
            return None;
        }
        let times = self.total - self.logged;
        self.logged = self.total;
        self.logged_at = Some(now);
        Some(times)
    }
}

/// One thing is logged at most this often; the line says how many there were.
const LOG_EVERY: Duration = Duration::from_secs(1);

impl<R: RefusalReason> Default for Refusals<R> {
    fn default() -> Self {
        Refusals { tallies: vec![Tally::default(); R::ALL.len()], list: PhantomData }
    }
}

impl<R: RefusalReason> Refusals<R> {
    /// How often `refusal` has happened.
    pub fn of(&self, refusal: R) -> u64 {
        self.tallies.get(refusal.place()).map_or(0, |tally| tally.total)
    }

    /// Name and count of each.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        R::ALL.iter().map(|refusal| (refusal.name(), self.of(*refusal)))
    }

    /// Counts one more. If it is to be logged, how many it is since the last line.
    pub(crate) fn count(&mut self, refusal: R, now: MonoTime) -> Option<u64> {
        self.tallies.get_mut(refusal.place())?.count(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    reasons! {
        /// Two reasons.
        pub enum Example {
            First = "first": "The first.",
            Second = "second": "The second.",
        }
    }

    #[test]
    fn each_reason_is_counted_apart_and_logged_once_a_second_with_how_many_there_were() {
        let mut refusals = Refusals::<Example>::default();
        let at = |ms: u64| MonoTime(0) + Duration::from_millis(ms);
        assert_eq!(refusals.count(Example::Second, at(0)), Some(1));
        assert_eq!(refusals.count(Example::Second, at(999)), None);
        assert_eq!(refusals.count(Example::First, at(999)), Some(1));
        assert_eq!(refusals.count(Example::Second, at(1000)), Some(2));
        assert_eq!(refusals.iter().collect::<Vec<_>>(), [("first", 1), ("second", 3)]);
    }
}
