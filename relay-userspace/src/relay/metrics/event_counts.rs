//! What is counted of the relay's events as they pass, and how long things took.

use std::collections::BTreeMap;
use std::time::Duration;

use super::histogram::Histogram;
use crate::relay::rendezvous::{EndReason, Event};

/// Counts since the daemon's start.
#[derive(Clone, Debug)]
pub struct EventCounts {
    /// Offers made.
    pub offers: u64,
    /// Offers that became sessions.
    pub paired: u64,
    /// Pairs of streams that were joined.
    pub spliced: u64,
    /// Sessions and offers that are over, by the word of the reason. Each has its place from the beginning: a series that
    /// appears with its first event is no change for who watches it.
    pub ended: BTreeMap<&'static str, u64>,
    /// How long agents took to shake hands.
    pub handshakes: Histogram,
    /// How long offers took to become sessions.
    pub pairings: Histogram,
    /// How long the loop was busy with what was due.
    pub sweeps: Histogram,
}

/// From a handshake on one host to the time when an offer dies.
const LATENCIES: [Duration; 13] = [
    Duration::from_millis(1),
    Duration::from_micros(2500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2500),
    Duration::from_secs(5),
    Duration::from_secs(10),
];

/// From one session to a million.
const SWEEPS: [Duration; 6] = [
    Duration::from_micros(10),
    Duration::from_micros(100),
    Duration::from_millis(1),
    Duration::from_millis(10),
    Duration::from_millis(100),
    Duration::from_secs(1),
];

impl Default for EventCounts {
    fn default() -> EventCounts {
        EventCounts {
            offers: 0,
            paired: 0,
            spliced: 0,
            ended: EndReason::ALL.iter().map(|reason| (reason.word(), 0)).collect(),
            handshakes: Histogram::new(&LATENCIES),
            pairings: Histogram::new(&LATENCIES),
            sweeps: Histogram::new(&SWEEPS),
        }
    }
}

impl EventCounts {
    /// Counts an event.
    pub fn see(&mut self, event: &Event) {
        match event {
            Event::Offered { .. } => self.offers += 1,
            Event::Paired { offered_for: Some(took), .. } => {
                self.paired += 1;
                self.pairings.record(*took);
            }
            Event::Spliced { .. } => self.spliced += 1,
            Event::Ended { reason, .. } => *self.ended.entry(reason.word()).or_default() += 1,
            _ => {}
        }
    }
}
