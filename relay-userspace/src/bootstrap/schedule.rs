//! When to register next, and whether what came of it is worth a line in the log.

use std::net::SocketAddr;
use std::time::Duration;

use crate::agent::Backoff;

/// Documented: a bootstrap node forgets a registration after this, in seconds.
const FORGOTTEN_AFTER_S: u64 = 3600;

/// The longest wait until a registration is renewed: time enough to fail for a while and still be remembered.
const RENEWAL: Duration = Duration::from_secs(FORGOTTEN_AFTER_S / 2);

/// Registrations with one bootstrap node, one after another.
#[derive(Debug, Default)]
pub struct Schedule {
    backoff: Backoff,
    last: Option<Result<SocketAddr, String>>,
}

/// What follows a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// Until the next one.
    pub wait: Duration,
    /// It came out otherwise than the one before.
    pub is_news: bool,
}

impl Schedule {
    /// What follows `outcome`. `chance` is a random number: it shortens a wait by up to its half, so that nodes that were
    /// started together do not come together.
    pub fn after(&mut self, outcome: &Result<SocketAddr, String>, chance: u64) -> Next {
        let wait = match outcome {
            Ok(_) => {
                self.backoff = Backoff::default();
                let half_ns = u64::try_from((RENEWAL / 2).as_nanos()).unwrap_or(u64::MAX);
                RENEWAL - Duration::from_nanos(chance % half_ns)
            }
            Err(_) => self.backoff.next(chance),
        };
        let is_news = self.last.as_ref() != Some(outcome);
        self.last = Some(outcome.clone());
        Next { wait, is_news }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registered() -> Result<SocketAddr, String> {
        Ok("192.0.2.1:4433".parse().unwrap())
    }

    fn failed(why: &str) -> Result<SocketAddr, String> {
        Err(why.to_owned())
    }

    #[test]
    fn a_registration_is_renewed_while_there_is_time_to_fail_and_be_remembered() {
        for chance in [0, 1, u64::MAX / 3, u64::MAX] {
            let next = Schedule::default().after(&registered(), chance);
            assert!(next.wait >= Duration::from_secs(900) && next.wait <= Duration::from_secs(1800));
        }
    }

    #[test]
    fn failures_are_tried_again_later_and_later_until_one_succeeds() {
        let mut schedule = Schedule::default();
        let waits: Vec<Duration> = (0..10).map(|_| schedule.after(&failed("no"), 0).wait).collect();
        assert!(waits.is_sorted() && waits.first() < waits.last(), "{waits:?}");
        assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(30)), "{waits:?}");
        schedule.after(&registered(), 0);
        assert_eq!(schedule.after(&failed("no"), 0).wait, waits[0]);
    }

    #[test]
    fn only_what_has_changed_is_news() {
        let mut schedule = Schedule::default();
        let mut news = |outcome: Result<SocketAddr, String>| schedule.after(&outcome, 0).is_news;
        assert_eq!([failed("a"), failed("a"), failed("b")].map(&mut news), [true, false, true]);
        assert_eq!([registered(), registered(), failed("b")].map(&mut news), [true, false, true]);
        let elsewhere = Ok("192.0.2.2:4433".parse().unwrap());
        assert_eq!([registered(), elsewhere].map(&mut news), [true, true]);
    }
}
