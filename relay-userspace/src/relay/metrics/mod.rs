//! What a relay tells those who watch it over HTTP: metrics for Prometheus, and whether it lives and is ready.
//!
//! [`names`] is the table of all metrics. The driver answers with an [`Observation`], which is read when somebody asks: the
//! packet path only counts for itself. [`Endpoint`] is the only part that has a socket.

pub mod names;

mod endpoint;
mod event_counts;
mod exposition;
mod histogram;
mod hosts;
mod interface_counts;
mod observation;
mod readiness;
mod request;

pub use endpoint::{Endpoint, ListenError};
pub use event_counts::EventCounts;
pub use observation::{Observation, PathFigures, WatchedInterface};

use tokio::sync::oneshot;

/// Who waits for an observation: it, or a sentence why there is none.
pub type Observer = oneshot::Sender<Result<Observation, String>>;
