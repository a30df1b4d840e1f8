//! `config reload`: the running daemon reads its configuration again.

use relay_userspace::admin::{self, Request};
use relay_userspace::config::{Change, Reloaded};

use crate::args::Format;
use crate::{node, output};

pub fn run(format: Format) -> anyhow::Result<()> {
    let answer = admin::ask(&node::admin_socket()?, Request::Reload)?;
    if format.json {
        return output::json(&answer);
    }
    let Reloaded { applied, needs_restart } = serde_json::from_value(answer)?;
    for (what, changes) in [("applied", &applied), ("needs a restart", &needs_restart)] {
        for Change { key, from, to } in changes {
            output::line(format_args!("{what}: {key}: {} -> {}", shown(from), shown(to)));
        }
    }
    if applied.is_empty() && needs_restart.is_empty() {
        output::line("nothing has changed");
    }
    Ok(())
}

fn shown(value: &str) -> &str {
    if value.is_empty() { "(nothing)" } else { value }
}
