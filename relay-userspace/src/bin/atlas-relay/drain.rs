//! `drain`: has the running relay's agents move away, and waits until it has stopped.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::bail;
use relay_userspace::admin::{self, AskError, Request};
use relay_userspace::relay::report::{Drain, DrainProgress, Status};

use crate::{args, node, output};

/// The relay is asked how far it is this often.
const LOOK: Duration = Duration::from_secs(1);

pub fn run(options: args::Drain) -> anyhow::Result<()> {
    let args::Drain { deadline_s, hint, format } = options;
    let socket = node::admin_socket()?;
    let mut drain: Drain = serde_json::from_value(admin::ask(&socket, Request::Drain { deadline_s, hint })?)?;
    let mut shown = None;
    loop {
        match format.json {
            true => output::json_line(&DrainProgress { drain: drain.clone(), stopped: false })?,
            false if shown.replace(drain.sessions) != Some(drain.sessions) => {
                output::line(format_args!("Draining : {}", progress(&drain)))
            }
            false => {}
        }
        match look(&socket)? {
            Some(now) => drain = now,
            None => break,
        }
    }
    match format.json {
        true => output::json_line(&DrainProgress { drain, stopped: true }),
        false => {
            output::line("Drained  : the relay has stopped");
            Ok(())
        }
    }
}

/// What is left, and for how long at most.
pub fn progress(drain: &Drain) -> String {
    let sessions = drain.sessions;
    let s = if sessions == 1 { "" } else { "s" };
    let until = drain.left_s.map(|left| format!("; it stops in {} at the latest", output::seconds(left)));
    format!("{sessions} session{s} left{}", until.unwrap_or_default())
}

/// After a moment, how far the relay is; None once it has stopped.
fn look(socket: &Path) -> anyhow::Result<Option<Drain>> {
    loop {
        thread::sleep(LOOK);
        let answer = match admin::ask(socket, Request::Status) {
            Err(AskError::NotRunning { .. } | AskError::Ended { .. }) => return Ok(None),
            Err(AskError::Refused(why)) if why == admin::STOPPING => continue,
            answer => answer?,
        };
        match serde_json::from_value::<Status>(answer)?.drain {
            Some(drain) => return Ok(Some(drain)),
            None => bail!("the relay was started again and does not drain: run this again if it is to"),
        }
    }
}
