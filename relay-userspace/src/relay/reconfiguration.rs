//! The configuration file read again while the relay runs. A file that is not sound changes nothing.

use std::future::pending;

use super::datapath::Limit;
use crate::admin::Asker;
use crate::config::{Config, ConfigSource, RELAY_BANDWIDTH_LIMIT, Reading, Readings, Reloaded};

/// What is in effect, and readings of the file.
pub struct Reconfiguration {
    present: Config,
    readings: Option<Readings>,
}

impl Reconfiguration {
    /// `present` is in effect.
    pub fn new(present: &Config, source: Option<ConfigSource>) -> Reconfiguration {
        Reconfiguration { present: present.clone(), readings: source.map(Readings::of) }
    }

    /// Has the file read.
    pub fn begin(&mut self, asker: Asker) {
        match &mut self.readings {
            Some(readings) => readings.ask(asker),
            None => {
                let _asker_gone = asker.send(Err("this relay has no configuration file".to_owned()));
            }
        }
    }

    /// Waits for the next reading. Cancelling loses nothing.
    pub async fn read(&mut self) -> Reading {
        match &mut self.readings {
            Some(readings) => readings.next().await,
            None => pending().await,
        }
    }

    /// Logs and answers what has changed. `set_limit` is called if the limit is another than before.
    pub fn finish(&mut self, reading: Reading, set_limit: impl FnOnce(Limit)) {
        let reloaded = Reloaded::of(&self.present, &reading.config, &[RELAY_BANDWIDTH_LIMIT]);
        reloaded.log();
        if reloaded.applies(RELAY_BANDWIDTH_LIMIT) {
            let limit = reading.config.transport.relay_bandwidth_limit;
            self.present.transport.relay_bandwidth_limit = limit;
            set_limit(limit);
        }
        reading.answer(&serde_json::to_value(reloaded).map_err(|error| error.to_string()));
    }
}
