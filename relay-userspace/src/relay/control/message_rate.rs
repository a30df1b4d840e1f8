//! How many control messages each agent sends in a minute: pure.

use std::time::Duration;

use crate::clock::MonoTime;
use crate::identity::NodeId;
use crate::relay::remembered::Remembered;
use crate::relay::sliding_count::SlidingCount;

/// The time that `rate_limit.per_peer_per_minute` speaks of.
const MINUTE: Duration = Duration::from_secs(60);

/// An agent that was told that it sends too much may take so long to hear it: what came until then was on its way.
const HEARS_WITHIN: Duration = Duration::from_secs(1);

/// So many agents are remembered, connected or not: coming again makes nobody forgotten.
const MAX_AGENTS: usize = 16_384;

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MessageVerdict {
    /// It is dealt with.
    Taken,
    /// Too many have come: it is dropped.
    TooMany,
    /// As `TooMany`, and the agent could know it: a violation.
    Violation,
}

/// The messages of all agents.
#[derive(Debug)]
pub(super) struct MessageRates {
    agents: Remembered<NodeId, Rate>,
}

#[derive(Debug, Default)]
struct Rate {
    taken: SlidingCount,
    /// When it was last blamed for a message too many.
    blamed: Option<MonoTime>,
}

impl Default for MessageRates {
    fn default() -> MessageRates {
        MessageRates { agents: Remembered::new(MAX_AGENTS) }
    }
}

impl MessageRates {
    /// One message of `node` has come, which may send `per_minute`; zero: as many as it likes.
    pub fn judge(&mut self, node: NodeId, per_minute: u32, now: MonoTime) -> MessageVerdict {
        if per_minute == 0 {
            return MessageVerdict::Taken;
        }
        let Rate { taken, blamed } = self.agents.see(node, now, Rate::default);
        if taken.within(MINUTE, now) < u64::from(per_minute) {
            taken.add(MINUTE, now);
            return MessageVerdict::Taken;
        }
        if blamed.is_some_and(|at| now.since(at) < HEARS_WITHIN) {
            return MessageVerdict::TooMany;
        }
        *blamed = Some(now);
        MessageVerdict::Violation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: MonoTime = MonoTime(500_000_000_000);

    fn node(seed: u8) -> NodeId {
        NodeId::from_bytes([seed; 32])
    }

    fn at(millis: u64) -> MonoTime {
        START + Duration::from_millis(millis)
    }

    /// How many of `messages` at once are taken, and how many are violations.
    fn sends(rates: &mut MessageRates, seed: u8, messages: usize, now: MonoTime) -> (usize, usize) {
        let verdicts: Vec<_> = (0..messages).map(|_| rates.judge(node(seed), 120, now)).collect();
        let count = |kind| verdicts.iter().filter(|verdict| **verdict == kind).count();
        (count(MessageVerdict::Taken), count(MessageVerdict::Violation))
    }

    #[test]
    fn so_many_messages_are_taken_in_a_minute_of_each_agent() {
        let mut rates = MessageRates::default();
        assert_eq!(sends(&mut rates, 1, 130, at(0)), (120, 1));
        assert_eq!(sends(&mut rates, 2, 120, at(0)), (120, 0));
        assert_eq!(sends(&mut rates, 1, 60, at(90_000)), (60, 0), "half of the window is past");
    }

    #[test]
    fn an_agent_has_a_second_to_hear_that_it_sends_too_much_before_it_is_blamed_again() {
        let mut rates = MessageRates::default();
        sends(&mut rates, 1, 120, at(0));
        let violations = [0, 1, 999, 1000, 1500, 2000].map(|time| sends(&mut rates, 1, 50, at(time)).1);
        assert_eq!(violations, [1, 0, 0, 1, 0, 1]);
    }

    #[test]
    fn whoever_keeps_below_the_limit_is_never_refused() {
        let mut rates = MessageRates::default();
        for message in 0..10_000 {
            let verdict = rates.judge(node(1), 120, at(message * 520));
            assert_eq!(verdict, MessageVerdict::Taken, "message {message}");
        }
    }

    #[test]
    fn without_a_limit_nobody_is_counted() {
        let mut rates = MessageRates::default();
        assert!((0..10_000).all(|_| rates.judge(node(1), 0, START) == MessageVerdict::Taken));
        assert_eq!(rates.agents.iter().count(), 0);
    }
}
