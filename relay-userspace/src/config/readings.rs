//! A configuration file read again and again beside a daemon that runs: one reading at a time.

use std::future::pending;
use std::thread;

use tokio::sync::oneshot;

use super::{Config, ConfigError, ConfigSource};
use crate::admin::Asker;
use crate::supervision::{Announcer, Reloading};

/// Readings of one file. A request that comes while the file is read is not answered by that reading, which may have begun
/// before the file was changed, but by one more after it: the last reading has seen the last change.
#[derive(Debug)]
pub struct Readings {
    source: ConfigSource,
    announcer: Announcer,
    under_way: Option<UnderWay>,
    /// Who has asked since that one began; as long as nobody has, none follows.
    next: Option<Vec<Asker>>,
}

#[derive(Debug)]
struct UnderWay {
    reloading: Reloading,
    config: oneshot::Receiver<Result<Config, ConfigError>>,
    askers: Vec<Asker>,
}

/// A sound file, and who waits for what comes of it.
#[derive(Debug)]
pub struct Reading {
    /// What it says.
    pub config: Config,
    askers: Vec<Asker>,
    /// Until what it says is in effect.
    _reloading: Reloading,
}

impl Readings {
    /// None yet. The daemon's supervisor will be told of each.
    pub fn of(source: ConfigSource, announcer: Announcer) -> Readings {
        Readings { source, announcer, under_way: None, next: None }
    }

    /// Has the file read, at once or after the reading that is under way.
    pub fn ask(&mut self, asker: Asker) {
        let waiting = self.next.get_or_insert_default();
        // However long a reading takes, only those who still wait are kept.
        waiting.retain(|asker| !asker.is_closed());
        waiting.push(asker);
        self.begin();
    }

    /// Waits for the next reading of a sound file. What is wrong with others is logged and answered: they change nothing.
    /// Cancelling loses nothing.
    pub async fn next(&mut self) -> Reading {
        loop {
            let Some(under_way) = &mut self.under_way else { return pending().await };
            let read = (&mut under_way.config).await;
            let Some(UnderWay { askers, reloading, .. }) = self.under_way.take() else { continue };
            // Before this one is over: in between the daemon would seem to be ready.
            self.begin();
            let fault = match read {
                Ok(Ok(config)) => {
                    for warning in &config.warnings {
                        tracing::warn!(
                            line = warning.line,
                            key = warning.key,
                            "configuration: {}",
                            warning.text
                        );
                    }
                    return Reading { config, askers, _reloading: reloading };
                }
                Ok(Err(error)) => error.to_string(),
                Err(_died) => "the configuration could not be read".to_owned(),
            };
            tracing::error!(error = fault, "configuration not reloaded: nothing is changed");
            for asker in askers {
                let _asker_gone = asker.send(Err(fault.clone()));
            }
        }
    }

    /// Begins the next reading, if one is asked for and none is under way.
    fn begin(&mut self) {
        if self.under_way.is_some() {
            return;
        }
        let Some(askers) = self.next.take() else { return };
        let reloading = self.announcer.reloading();
        let (read, config) = oneshot::channel();
        let source = self.source.clone();
        // A thread of its own, for a file may take its time, and the runtime would wait for its threads at the end.
        let reader = thread::Builder::new().name("configuration".to_owned()).spawn(move || {
            let _daemon_gone = read.send(source.load());
        });
        if let Err(error) = reader {
            tracing::error!(%error, "no thread to read the configuration");
        }
        self.under_way = Some(UnderWay { reloading, config, askers });
    }
}

impl Reading {
    /// Tells everybody who waits.
    pub fn answer(self, value: &Result<serde_json::Value, String>) {
        for asker in self.askers {
            let _asker_gone = asker.send(value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::process::Command;
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::config::AtlasRoot;
    use crate::supervision::Supervision;
    use crate::supervision::listener::Listener;

    /// A configuration file that is one of two: `quick`, or `slow`, which is a pipe.
    struct Files(tempfile::TempDir);

    impl Files {
        fn new() -> Files {
            let files = Files(tempfile::tempdir().unwrap());
            assert!(Command::new("mkfifo").arg(files.path("slow")).status().unwrap().success());
            files
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn choose(&self, name: &str) {
            let _there_was_none = fs::remove_file(self.path("config.toml"));
            std::os::unix::fs::symlink(self.path(name), self.path("config.toml")).unwrap();
        }

        /// Opens the pipe, which waits until it is being read.
        async fn being_read(&self) -> fs::File {
            let slow = self.path("slow");
            tokio::task::spawn_blocking(move || fs::OpenOptions::new().write(true).open(slow).unwrap())
                .await
                .unwrap()
        }

        fn readings(&self) -> Readings {
            self.announced_readings(Announcer::default())
        }

        fn announced_readings(&self, announcer: Announcer) -> Readings {
            let source = ConfigSource {
                path: self.path("config.toml"),
                root: AtlasRoot::at(self.0.path()),
                port: None,
                bootstrap: Vec::new(),
                mode: None,
                interfaces: Vec::new(),
            };
            Readings::of(source, announcer)
        }
    }

    fn limit(bytes_per_s: u64) -> String {
        format!(
            "[transport]\nenable_relay = true\noffer_relay = true\nrelay_bandwidth_limit = {bytes_per_s}\n"
        )
    }

    async fn next_limit(readings: &mut Readings) -> u64 {
        let reading = tokio::time::timeout(Duration::from_secs(10), readings.next()).await;
        let reading = reading.expect("no reading follows");
        let limit = reading.config.transport.relay_bandwidth_limit.bytes_per_s;
        reading.answer(&Ok(json!(limit)));
        limit
    }

    #[tokio::test]
    async fn the_last_reading_has_the_last_word_and_answers_all_who_asked_during_the_one_before() {
        let files = Files::new();
        let mut readings = files.readings();
        files.choose("slow");
        let (ask, mut first) = oneshot::channel();
        readings.ask(ask);
        let mut pipe = files.being_read().await;
        fs::write(files.path("quick"), limit(2_000_000)).unwrap();
        files.choose("quick");
        let during: Vec<_> = (0..3)
            .map(|_| {
                let (ask, asked) = oneshot::channel();
                readings.ask(ask);
                asked
            })
            .collect();
        std::io::Write::write_all(&mut pipe, limit(500_000).as_bytes()).unwrap();
        drop(pipe);
        assert_eq!(next_limit(&mut readings).await, 500_000);
        assert_eq!(first.try_recv(), Ok(Ok(json!(500_000))));
        assert_eq!(next_limit(&mut readings).await, 2_000_000);
        for mut asked in during {
            assert_eq!(asked.try_recv(), Ok(Ok(json!(2_000_000))));
        }
        assert!(readings.under_way.is_none() && readings.next.is_none(), "one reading for all of them");
    }

    #[tokio::test]
    async fn a_file_that_hangs_holds_one_reading_and_keeps_nobody_who_has_given_up() {
        let files = Files::new();
        let mut readings = files.readings();
        files.choose("slow");
        readings.ask(oneshot::channel().0);
        let pipe = files.being_read().await;
        for _ in 0..1000 {
            readings.ask(oneshot::channel().0);
        }
        assert_eq!(readings.next.as_ref().map(Vec::len), Some(1));
        // What hung turns out to be no configuration; those who asked since then are read another one for.
        fs::write(files.path("quick"), limit(2_000_000)).unwrap();
        files.choose("quick");
        let (ask, mut asked) = oneshot::channel();
        readings.ask(ask);
        std::io::Write::write_all(&mut &pipe, b"[").unwrap();
        drop(pipe);
        assert_eq!(next_limit(&mut readings).await, 2_000_000);
        assert_eq!(asked.try_recv(), Ok(Ok(json!(2_000_000))));
    }

    #[tokio::test]
    async fn the_supervisor_hears_of_each_reading_and_that_the_daemon_is_ready_when_it_is_in_effect_or_refused()
     {
        let (files, listener) = (Files::new(), Listener::open());
        let announcer = Supervision::keeping(listener.connected(), Vec::new()).announcer();
        let mut readings = files.announced_readings(announcer);
        let heard = || -> Vec<String> {
            let words = |said: String| said.split_whitespace().next().unwrap().to_owned();
            listener.said().into_iter().map(words).collect()
        };
        fs::write(files.path("quick"), limit(2_000_000)).unwrap();
        files.choose("quick");
        readings.ask(oneshot::channel().0);
        let reading = readings.next().await;
        assert_eq!(heard(), ["RELOADING=1"]);
        reading.answer(&Ok(json!(null)));
        assert_eq!(heard(), ["READY=1"]);

        fs::write(files.path("quick"), "[").unwrap();
        let (ask, asked) = oneshot::channel();
        readings.ask(ask);
        tokio::select! {
            _ = readings.next() => panic!("that is no configuration"),
            answer = asked => assert!(answer.unwrap().is_err()),
        }
        assert_eq!(heard(), ["RELOADING=1", "READY=1"]);
    }
}
