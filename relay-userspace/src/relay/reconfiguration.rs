//! The configuration file read again while the relay runs. A file that is not sound changes nothing.

use std::future::pending;

use crate::admin::Asker;
use crate::config::{Config, ConfigSource, Reading, Readings, Reloaded, Setting};
use crate::supervision::Announcer;

/// What is in effect, and readings of the file.
pub struct Reconfiguration {
    present: Config,
    readings: Option<Readings>,
}

impl Reconfiguration {
    /// `present` is in effect. Readings are announced.
    pub fn new(present: &Config, source: Option<ConfigSource>, announcer: Announcer) -> Reconfiguration {
        let readings = source.map(|source| Readings::of(source, announcer));
        Reconfiguration { present: present.clone(), readings }
    }

    /// What is in effect.
    pub fn settings(&self) -> Vec<Setting> {
        self.present.settings()
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

    /// Logs and answers what has changed. `apply` is called with what was in effect and what is, if that is another.
    pub fn finish(&mut self, reading: Reading, apply: impl FnOnce(&Config, &Config)) {
        let before = self.present.clone();
        let reloaded = Reloaded::apply(&mut self.present, &reading.config);
        reloaded.log();
        if !reloaded.applied.is_empty() {
            apply(&before, &self.present);
        }
        reading.answer(&serde_json::to_value(reloaded).map_err(|error| error.to_string()));
    }
}
