//! The rates that sessions had lately, as a line of bars.

use std::collections::{HashMap, VecDeque};

use relay_userspace::relay::activity::Activity;

/// So many rates of each session are kept and shown.
pub const LENGTH: usize = 8;

const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The last rates of each session, by its id.
#[derive(Debug, Default)]
pub struct Trends(HashMap<String, VecDeque<u64>>);

impl Trends {
    /// Adds the rates of now, and forgets sessions that are no more.
    pub fn note(&mut self, activity: &Activity) {
        let mut before = std::mem::take(&mut self.0);
        for session in &activity.sessions {
            let mut rates = before.remove(&session.session).unwrap_or_default();
            if rates.len() == LENGTH {
                rates.pop_front();
            }
            rates.push_back(session.bytes_per_s);
            self.0.insert(session.session.clone(), rates);
        }
    }

    /// One bar a rate, the latest last; the highest of them fills its line, and nothing relayed is a blank.
    pub fn bars(&self, session: &str) -> String {
        let Some(rates) = self.0.get(session) else { return String::new() };
        let highest = rates.iter().copied().max().unwrap_or(0);
        let bar = |rate: &u64| match rate {
            0 => ' ',
            rate => {
                let level = u128::from(rate - 1) * BARS.len() as u128 / u128::from(highest);
                usize::try_from(level).ok().and_then(|level| BARS.get(level)).copied().unwrap_or('█')
            }
        };
        let bars: String = rates.iter().map(bar).collect();
        format!("{bars:>LENGTH$}")
    }
}

#[cfg(test)]
mod tests {
    use relay_userspace::relay::activity::SessionActivity;

    use super::*;

    fn at(rates: &[(&str, u64)]) -> Activity {
        let session = |(id, rate): &(&str, u64)| SessionActivity {
            session: (*id).to_owned(),
            bytes_per_s: *rate,
            ..SessionActivity::default()
        };
        Activity { sessions: rates.iter().map(session).collect(), ..Activity::default() }
    }

    #[test]
    fn bars_are_as_high_as_the_rate_is_of_the_highest() {
        let mut trends = Trends::default();
        for rate in [0, 1, 500, 1000] {
            trends.note(&at(&[("1", rate)]));
        }
        assert_eq!(trends.bars("1"), "     ▁▄█");
        trends.note(&at(&[("1", u64::MAX)]));
        assert_eq!(trends.bars("1"), "    ▁▁▁█");
        assert_eq!(trends.bars("2"), "", "none is known");
    }

    #[test]
    fn only_the_last_rates_are_kept_and_only_of_sessions_that_are_there() {
        let mut trends = Trends::default();
        for rate in 1..=20 {
            trends.note(&at(&[("1", rate), ("2", rate)]));
        }
        trends.note(&at(&[("2", 1)]));
        assert_eq!(trends.0.keys().collect::<Vec<_>>(), ["2"]);
        assert_eq!(trends.0["2"], [14, 15, 16, 17, 18, 19, 20, 1]);
    }
}
