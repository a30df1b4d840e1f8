//! Where the log goes, and in which form.

use std::io::{self, IsTerminal as _};

use anyhow::Context as _;
use clap::ValueEnum;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// The form of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line of text for each event, on stderr.
    #[default]
    Human,
    /// An object of JSON on a line for each event, on stderr.
    Json,
    /// Entries of the systemd journal, whose fields are named ATLAS_SESSION and so on.
    Journald,
}

/// What the names of fields begin with in the journal: they are not to be taken for the journal's own.
const FIELD_PREFIX: &str = "ATLAS";

/// Starts the log. A daemon tells what happens; a command only what goes wrong. `RUST_LOG` says otherwise.
///
/// # Errors
/// There is no journal here.
pub fn start(format: LogFormat, daemon: bool) -> anyhow::Result<()> {
    let default = if daemon { "info" } else { "error" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let to_stderr = tracing_subscriber::fmt().with_env_filter(filter.clone()).with_writer(io::stderr);
    match format {
        LogFormat::Human => to_stderr.with_ansi(io::stderr().is_terminal()).with_target(false).init(),
        LogFormat::Json => {
            // Without the target of the log, whose name a field of ours has.
            let to_stderr = to_stderr.json().flatten_event(true).with_target(false);
            to_stderr.with_current_span(false).with_span_list(false).init();
        }
        LogFormat::Journald => {
            let journal = tracing_journald::layer()
                .context("--log-format journald: there is no systemd journal here; use human or json")?;
            let journal = journal
                .with_field_prefix(Some(FIELD_PREFIX.to_owned()))
                .with_syslog_identifier("atlas-relay".to_owned());
            tracing_subscriber::registry().with(filter).with(journal).init();
        }
    }
    Ok(())
}
