//! How a relay stops, and how it is told to.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::keeper::Keeper;

/// What becomes of agents and sessions when a relay stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopping {
    /// A successor goes on with what this relay leaves: flows and sessions stay, and agents are told to connect again.
    Leave,
    /// It is over: sessions end, agents are told so, and nothing stays.
    End,
}

impl Stopping {
    /// What a relay makes of SIGTERM, which comes for a stop and a restart alike: it leaves its flows if they can go on
    /// without it. `in_kernel`: it is the XDP program that forwards.
    pub fn at_sigterm(keeper: &Keeper, in_kernel: bool) -> Stopping {
        let kept = keeper.keeps_all() || (keeper.keeps_bpf() && in_kernel);
        if kept { Stopping::Leave } else { Stopping::End }
    }

    /// How long agents may take to hear of it. Who has not heard that a successor comes learns it from the successor, for
    /// whom all others wait.
    pub(super) const fn farewell(self) -> Duration {
        match self {
            Stopping::Leave => Duration::from_millis(500),
            Stopping::End => Duration::from_secs(2),
        }
    }

    /// What becomes of the sessions, for people.
    pub const fn words(self) -> &'static str {
        match self {
            Stopping::Leave => "they go on for a successor",
            Stopping::End => "they end",
        }
    }

    /// What connections are closed with.
    pub(super) const fn to_agents(self) -> &'static str {
        match self {
            Stopping::Leave => "the relay restarts",
            Stopping::End => "the relay stops",
        }
    }
}

/// Tells one relay to stop. Clones tell the same one.
#[derive(Clone, Debug, Default)]
pub struct Stopper {
    how: Arc<OnceLock<Stopping>>,
    told: CancellationToken,
}

impl Stopper {
    /// Has it stop in this way. Whoever is first decides: it is under way then.
    pub fn stop(&self, how: Stopping) {
        let _decided_already = self.how.set(how);
        self.told.cancel();
    }

    /// Waits until it is told, and says how it is to stop.
    pub(super) async fn told(&self) -> Stopping {
        self.told.cancelled().await;
        // It is set before that is cancelled.
        self.how.get().copied().unwrap_or(Stopping::End)
    }

    /// Cancelled once it is told.
    pub(super) fn token(&self) -> CancellationToken {
        self.told.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sigterm_ends_everything_where_nobody_keeps_anything() {
        for in_kernel in [false, true] {
            assert_eq!(Stopping::at_sigterm(&Keeper::nobody(), in_kernel), Stopping::End);
        }
    }

    #[tokio::test]
    async fn a_relay_stops_in_the_way_that_it_is_told_first() {
        let stopper = Stopper::default();
        let told = stopper.clone();
        let waiting = tokio::spawn(async move { told.told().await });
        stopper.stop(Stopping::Leave);
        stopper.stop(Stopping::End);
        assert_eq!(waiting.await.unwrap(), Stopping::Leave);
        assert!(stopper.token().is_cancelled());
    }
}
