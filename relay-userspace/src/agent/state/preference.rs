//! Which relay is asked first: the one with the shortest round trip, as far as that is clear.

use std::time::Duration;

use super::RelayIndex;

/// The relays in the order in which they are asked: the configured one, until measurements say otherwise.
#[derive(Debug)]
pub(super) struct Preference {
    order: Vec<RelayIndex>,
    /// Of each relay, by its index.
    round_trips: Vec<Option<Duration>>,
}

/// A sample counts for this share of the smoothed round trip.
const WEIGHT: u32 = 4;

/// Smaller differences change nothing, so that relays alike do not change places with every sample,
const MARGIN: Duration = Duration::from_millis(5);

/// nor do those below this share of the longer round trip.
const MARGIN_SHARE: u32 = 5;

impl Preference {
    /// So many relays, none of them measured.
    pub fn new(relays: usize) -> Self {
        Preference { order: (0..relays).map(RelayIndex).collect(), round_trips: vec![None; relays] }
    }

    /// One more, the last for the time being.
    pub fn add(&mut self, relay: RelayIndex) {
        self.order.push(relay);
        self.round_trips.push(None);
    }

    /// The preferred one first.
    pub fn order(&self) -> impl Iterator<Item = RelayIndex> + '_ {
        self.order.iter().copied()
    }

    /// The smoothed round trip.
    pub fn round_trip(&self, relay: RelayIndex) -> Option<Duration> {
        self.round_trips.get(relay.0).copied().flatten()
    }

    /// A relay's round trip was measured. It takes the place of one before it that is clearly slower.
    pub fn measured(&mut self, relay: RelayIndex, sample: Duration) {
        let Some(smoothed) = self.round_trips.get_mut(relay.0) else { return };
        let present = smoothed.map_or(sample, |before| before - before / WEIGHT + sample / WEIGHT);
        *smoothed = Some(present);
        let Some(place) = self.order.iter().position(|other| *other == relay) else { return };
        let mut better = place;
        for (before, other) in self.order.iter().enumerate().take(place).rev() {
            match self.round_trip(*other) {
                // It is passed with the next that is slower, or not at all.
                None => {}
                Some(theirs) if present + MARGIN.max(theirs / MARGIN_SHARE) < theirs => better = before,
                Some(_) => break,
            }
        }
        if let Some(passed) = self.order.get_mut(better..=place) {
            passed.rotate_right(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unmeasured_relays_stand_as_they_are_configured() {
        assert_eq!(order(&Preference::new(3)), [0, 1, 2]);
    }

    #[test]
    fn a_clearly_faster_relay_is_preferred_and_a_hardly_faster_one_is_not() {
        let mut preference = Preference::new(3);
        measure(&mut preference, [100, 90, 50]);
        assert_eq!(order(&preference), [2, 0, 1], "a tenth is no reason to change places");
        let mut preference = Preference::new(2);
        measure(&mut preference, [4, 1]);
        assert_eq!(order(&preference), [0, 1], "three milliseconds are none either");
    }

    #[test]
    fn relays_alike_do_not_change_places_however_their_samples_vary() {
        let mut preference = Preference::new(2);
        measure(&mut preference, [40, 40]);
        for sample in [38, 45, 41, 36, 44].into_iter().cycle().take(500) {
            preference.measured(RelayIndex(sample as usize % 2), Duration::from_millis(sample));
            assert_eq!(order(&preference), [0, 1]);
        }
    }

    #[test]
    fn one_outlier_does_not_move_a_relay_but_lasting_slowness_does() {
        let mut preference = Preference::new(2);
        measure(&mut preference, [20, 30]);
        preference.measured(RelayIndex(0), Duration::from_millis(60));
        preference.measured(RelayIndex(1), Duration::from_millis(30));
        assert_eq!(order(&preference), [0, 1]);
        for _ in 0..10 {
            preference.measured(RelayIndex(0), Duration::from_millis(60));
            preference.measured(RelayIndex(1), Duration::from_millis(30));
        }
        assert_eq!(order(&preference), [1, 0]);
    }

    #[test]
    fn a_relay_that_was_never_reached_does_not_shield_a_slower_one() {
        let mut preference = Preference::new(3);
        preference.measured(RelayIndex(0), Duration::from_millis(200));
        preference.measured(RelayIndex(2), Duration::from_millis(20));
        assert_eq!(order(&preference), [2, 0, 1]);
        let mut preference = Preference::new(2);
        preference.measured(RelayIndex(1), Duration::from_millis(20));
        assert_eq!(order(&preference), [0, 1], "and keeps its place before others");
    }

    fn measure<const N: usize>(preference: &mut Preference, round_trips_ms: [u64; N]) {
        for (relay, ms) in round_trips_ms.into_iter().enumerate() {
            preference.measured(RelayIndex(relay), Duration::from_millis(ms));
        }
    }

    fn order(preference: &Preference) -> Vec<usize> {
        preference.order().map(|relay| relay.0).collect()
    }
}
