//! What becomes of a connection attempt's first packet: pure.
//!
//! Whoever sends it may have forged its source, so it costs next to nothing while there is much to do: a Retry is answered
//! without remembering anything, and only who has received it comes further. Who is ignored tries again by itself, a second
//! later or so: that is kinder to an agent than a refusal, which it hears only once.

use std::time::Duration;

use super::rules::ControlPolicy;
use crate::clock::MonoTime;
use crate::relay::rendezvous::Refusal;

/// What is known when a first packet has come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt {
    /// Its source has proved that it receives what is sent there.
    pub validated: bool,
    /// Its prefix is banned.
    pub banned: bool,
    /// There is no seat for an agent that is not here already.
    pub seats_full: bool,
    /// Handshakes under way.
    pub under_way: usize,
    /// Those of its prefix.
    pub of_prefix: usize,
}

/// What is done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The handshake begins.
    Begin,
    /// It is to come back with proof of its address.
    Retry,
    /// It is told that it is refused, in less than it has sent.
    Refuse(Refusal),
    /// It is left without an answer.
    Ignore(Refusal),
}

/// Of the handshakes that may be under way, altogether or of one prefix, such a part may be of addresses that have proved
/// nothing: whoever forges many addresses takes no more, and whoever forges those of one prefix leaves it the rest.
const UNVALIDATED_PART: usize = 4;

/// And not more of them altogether than this: with more under way, there is much to do.
const MAX_UNVALIDATED: usize = 64;

/// Handshakes of addresses that have proved nothing may begin so often in the long run. Those that fail at once are never
/// many at a time, and yet cost what ten Retries do.
const UNVALIDATED_EVERY: Duration = Duration::from_micros(1_000_000 / 512);

/// So many of them may begin at once.
const UNVALIDATED_BURST: u32 = 512;

/// Decides on first packets.
#[derive(Debug, Default)]
pub(super) struct Admission {
    /// When the unvalidated ones that have begun would have come, had they come evenly.
    unvalidated_until: MonoTime,
}

impl Admission {
    /// Decides on one.
    pub fn judge(&mut self, attempt: &Attempt, policy: &ControlPolicy, now: MonoTime) -> Verdict {
        let Attempt { validated, banned, seats_full, under_way, of_prefix } = *attempt;
        let limits = policy.handshakes;
        if banned {
            return Verdict::Refuse(Refusal::BannedPrefix);
        }
        if !validated {
            let all = (limits.all / UNVALIDATED_PART).min(MAX_UNVALIDATED);
            let many = under_way > all || of_prefix > limits.per_prefix / UNVALIDATED_PART;
            // Where all seats are taken, only an agent that comes back can get one, and it has to prove itself for that.
            if many || seats_full || !self.may_begin_unvalidated(now) {
                return Verdict::Retry;
            }
        }
        if under_way >= limits.all {
            return Verdict::Ignore(Refusal::HandshakesFull);
        }
        if of_prefix >= limits.per_prefix {
            return Verdict::Ignore(Refusal::PrefixHandshakesFull);
        }
        Verdict::Begin
    }

    fn may_begin_unvalidated(&mut self, now: MonoTime) -> bool {
        let until = self.unvalidated_until.max(now) + UNVALIDATED_EVERY;
        let may = until.since(now) <= UNVALIDATED_EVERY * UNVALIDATED_BURST;
        if may {
            self.unvalidated_until = until;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AtlasRoot, Config};

    const QUIET: Attempt =
        Attempt { validated: false, banned: false, seats_full: false, under_way: 0, of_prefix: 0 };
    const NOW: MonoTime = MonoTime(5_000_000_000);

    /// By default: 1024 handshakes under way, 50 of one prefix.
    fn judge(attempt: Attempt) -> Verdict {
        let config = Config::parse("", "config.toml".as_ref(), &AtlasRoot::at("/atlas")).unwrap();
        Admission::default().judge(&attempt, &ControlPolicy::of(&config), NOW)
    }

    #[test]
    fn with_little_to_do_a_handshake_begins_at_once() {
        assert_eq!(judge(QUIET), Verdict::Begin);
        assert_eq!(judge(Attempt { under_way: 64, of_prefix: 12, ..QUIET }), Verdict::Begin);
    }

    #[test]
    fn with_many_under_way_or_no_seat_free_an_address_has_to_prove_itself_first() {
        for much in [
            Attempt { under_way: 65, ..QUIET },
            Attempt { of_prefix: 13, ..QUIET },
            Attempt { seats_full: true, ..QUIET },
            Attempt { under_way: 5000, of_prefix: 5000, ..QUIET },
        ] {
            assert_eq!(judge(much), Verdict::Retry);
        }
        for much in [
            Attempt { under_way: 1023, ..QUIET },
            Attempt { of_prefix: 49, ..QUIET },
            Attempt { seats_full: true, ..QUIET },
        ] {
            assert_eq!(judge(Attempt { validated: true, ..much }), Verdict::Begin);
        }
    }

    #[test]
    fn who_has_proved_itself_waits_where_as_many_are_under_way_as_may_be() {
        let validated = Attempt { validated: true, ..QUIET };
        let all = Attempt { under_way: 1024, ..validated };
        assert_eq!(judge(all), Verdict::Ignore(Refusal::HandshakesFull));
        let of_prefix = Attempt { of_prefix: 50, ..validated };
        assert_eq!(judge(of_prefix), Verdict::Ignore(Refusal::PrefixHandshakesFull));
    }

    #[test]
    fn a_banned_prefix_is_refused_whatever_it_proves() {
        for validated in [false, true] {
            let verdict = judge(Attempt { validated, banned: true, under_way: 5000, ..QUIET });
            assert_eq!(verdict, Verdict::Refuse(Refusal::BannedPrefix));
        }
    }

    #[test]
    fn a_flood_of_attempts_that_fail_at_once_is_answered_with_retries() {
        let config = Config::parse("", "config.toml".as_ref(), &AtlasRoot::at("/atlas")).unwrap();
        let (policy, mut admission) = (ControlPolicy::of(&config), Admission::default());
        let mut begun = |now| {
            let judged = (0..10_000).map(|_| admission.judge(&QUIET, &policy, now));
            judged.filter(|verdict| *verdict == Verdict::Begin).count()
        };
        assert_eq!((begun(NOW), begun(NOW)), (512, 0));
        assert_eq!(begun(NOW + Duration::from_millis(500)), 256);
        assert_eq!(begun(NOW + Duration::from_secs(60)), 512);
    }
}
