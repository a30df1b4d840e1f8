//! `net disconnect`: ends sessions of the running daemon, relay or agent.

use anyhow::bail;
use relay_userspace::admin::{self, Request};
use serde::Deserialize;

use crate::args::{Disconnect, Ended};
use crate::{node, output};

/// What the daemon answers.
#[derive(Deserialize)]
struct Answer {
    sessions: u64,
}

pub fn run(options: &Disconnect) -> anyhow::Result<()> {
    let request = match options.target {
        Ended::Node(node) => Request::EndSessionsOf { node },
        Ended::Session(session) => Request::EndSession { session },
    };
    let answer = admin::ask(&node::admin_socket()?, request)?;
    let Answer { sessions } = serde_json::from_value(answer.clone())?;
    // Of one session the daemon has said so itself.
    if sessions == 0
        && let Ended::Node(node) = options.target
    {
        bail!("{node} has no session here: `net sessions` shows those there are");
    }
    if options.format.json {
        return output::json(&answer);
    }
    output::line(format_args!("Ended    : {sessions} session{}", if sessions == 1 { "" } else { "s" }));
    Ok(())
}
