//! Being asked by a relay, by `probe` in a Ping, to connect to it anew and to say who answers: so its operator hears whether who
//! is not connected yet reaches it.
//!
//! No relay must be able to have this agent send to somebody else, or much: see `crate::probe`. So it connects to the address and
//! port at which it is connected to that very relay, where newcomers go too; for one relay at a time, and for each so often,
//! however often that one hangs up. The port that the relay names is not looked at: it may be another one outside.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::refusal::{Refusal, RefusalLog};
use super::verification::unix_s;
use crate::clock::MonoTime;
use crate::probe::{MOST_AT_FIRST, Probed, who_answers};
use crate::protocol::Message;

/// A relay may ask this often in the long run.
const EVERY: Duration = Duration::from_secs(60);

/// What all relays of an agent may ask for. Clones share the place.
#[derive(Clone, Debug)]
pub struct Probes {
    /// Of the one that is under way.
    place: Arc<Semaphore>,
    refusals: RefusalLog,
}

impl Probes {
    pub fn new(refusals: RefusalLog) -> Self {
        Probes { place: Arc::new(Semaphore::new(1)), refusals }
    }

    /// What one more relay may ask for, over all its connections.
    pub fn of_relay(&self) -> RelayProbes {
        RelayProbes { of_all: self.clone(), asked_until: MonoTime(0) }
    }
}

/// What one relay may ask for.
#[derive(Debug)]
pub struct RelayProbes {
    of_all: Probes,
    /// When its questions would have come, had it asked them evenly.
    asked_until: MonoTime,
}

impl RelayProbes {
    /// The relay that is reached at `to`, and says that its port is `port`, asks what becomes of another connection to it. The
    /// answer goes to `answers` once there is one, if that is still there.
    pub fn ask(&mut self, port: u16, to: SocketAddr, echo: i64, answers: &mpsc::WeakSender<Message>) {
        let Some(place) = self.place(port, MonoTime::now()) else {
            if let Some(times) = self.of_all.refusals.count(Refusal::ProbeLimit) {
                tracing::debug!(%to, times, "not connecting to the relay anew: not now");
            }
            return send(answers, Probed::Refused.answer(unix_s(), echo).into());
        };
        tracing::debug!(%to, "connecting to the relay anew: it asks who answers");
        let answers = answers.clone();
        tokio::spawn(async move {
            let probed = who_answers(to, place).await;
            send(&answers, probed.answer(unix_s(), echo).into());
        });
    }

    /// The place for one, if it may be.
    fn place(&mut self, port: u16, now: MonoTime) -> Option<OwnedSemaphorePermit> {
        let until = self.asked_until.max(now) + EVERY;
        if port == 0 || until.since(now) > MOST_AT_FIRST * EVERY {
            return None;
        }
        let place = Arc::clone(&self.of_all.place).try_acquire_owned().ok()?;
        self.asked_until = until;
        Some(place)
    }
}

/// A relay that does not read what it asked for gets no answer.
fn send(answers: &mpsc::WeakSender<Message>, message: Message) {
    if let Some(answers) = answers.upgrade() {
        let _full_or_gone = answers.try_send(message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_may_ask_three_times_and_then_once_a_minute() {
        let mut relay = Probes::new(RefusalLog::default()).of_relay();
        let at = |seconds| MonoTime(1 << 40) + Duration::from_secs(seconds);
        let mut may = |seconds| relay.place(4433, at(seconds)).is_some();
        assert_eq!([may(0), may(0), may(0), may(0), may(59)], [true, true, true, false, false]);
        assert_eq!([may(60), may(60), may(119), may(120)], [true, false, false, true]);
        assert_eq!([may(3600), may(3600), may(3600), may(3600)], [true, true, true, false]);
        assert!(relay.place(0, at(7200)).is_none(), "no port");
        assert!(relay.place(1, at(7200)).is_some());
    }

    #[test]
    fn one_is_under_way_at_a_time_for_all_relays_and_who_was_not_served_may_ask_as_often_as_before() {
        let probes = Probes::new(RefusalLog::default());
        let (mut one, mut other, now) = (probes.of_relay(), probes.of_relay(), MonoTime(1 << 40));
        let place = one.place(4433, now).unwrap();
        for _ in 0..10 {
            assert!(one.place(4433, now).is_none() && other.place(4433, now).is_none());
        }
        drop(place);
        for _ in 0..3 {
            assert!(other.place(4433, now).is_some());
        }
        assert!(other.place(4433, now).is_none());
        assert!(one.place(4433, now).is_some());
    }
}
