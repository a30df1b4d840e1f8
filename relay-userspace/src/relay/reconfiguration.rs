//! The configuration file read again while the relay runs. A file that is not sound changes nothing.

use std::future::pending;

use serde_json::Value;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::datapath::Limit;
use crate::config::{Config, ConfigError, ConfigSource, RELAY_BANDWIDTH_LIMIT, Reloaded};

/// What is in effect, and readings of the file that are under way.
pub struct Reconfiguration {
    present: Config,
    source: Option<ConfigSource>,
    /// Apart from the driver's loop: a file may take its time.
    readings: JoinSet<Reading>,
}

/// The file as it was read, for whoever waits.
pub struct Reading {
    config: Result<Config, ConfigError>,
    answer: Answer,
}

/// Where the outcome goes: it, or a sentence why there is none.
type Answer = oneshot::Sender<Result<Value, String>>;

impl Reconfiguration {
    /// `present` is in effect.
    pub fn new(present: &Config, source: Option<ConfigSource>) -> Reconfiguration {
        Reconfiguration { present: present.clone(), source, readings: JoinSet::new() }
    }

    /// Begins to read the file.
    pub fn begin(&mut self, answer: Answer) {
        let Some(source) = self.source.clone() else {
            let _asker_gone = answer.send(Err("this relay has no configuration file".to_owned()));
            return;
        };
        self.readings.spawn_blocking(move || Reading { config: source.load(), answer });
    }

    /// Waits for the next reading. Cancelling loses nothing.
    pub async fn read(&mut self) -> Reading {
        loop {
            match self.readings.join_next().await {
                Some(Ok(reading)) => return reading,
                // A reading that has panicked has dropped its answer: whoever waits hears that.
                Some(Err(_panicked)) => {}
                None => return pending().await,
            }
        }
    }

    /// Logs and answers what has changed. `set_limit` is called if the limit is another than before.
    pub fn finish(&mut self, reading: Reading, set_limit: impl FnOnce(Limit)) {
        let Reading { config, answer } = reading;
        let new = match config {
            Ok(new) => new,
            Err(error) => {
                tracing::error!(%error, "configuration not reloaded: nothing is changed");
                let _asker_gone = answer.send(Err(error.to_string()));
                return;
            }
        };
        for warning in &new.warnings {
            tracing::warn!(line = warning.line, key = warning.key, "configuration: {}", warning.text);
        }
        let reloaded = Reloaded::of(&self.present, &new, &[RELAY_BANDWIDTH_LIMIT]);
        reloaded.log();
        let limit = new.transport.relay_bandwidth_limit;
        // A file that makes this node an agent says nothing about the relay that runs.
        if new.transport.offer_relay && limit != self.present.transport.relay_bandwidth_limit {
            self.present.transport.relay_bandwidth_limit = limit;
            set_limit(limit);
        }
        let value = serde_json::to_value(reloaded);
        let _asker_gone = answer.send(value.map_err(|error| error.to_string()));
    }
}
