//! `config reload`: the running daemon reads its configuration again.

use relay_userspace::admin::{self, Request};
use relay_userspace::config::{Change, Overridden, Reloaded};

use crate::args::Format;
use crate::{node, output};

pub fn run(format: Format) -> anyhow::Result<()> {
    let answer = admin::ask(&node::admin_socket()?, Request::Reload)?;
    if format.json {
        return output::json(&answer);
    }
    let Reloaded { applied, needs_restart, overridden } = serde_json::from_value(answer)?;
    for (what, changes) in [("applied", &applied), ("needs a restart", &needs_restart)] {
        for Change { key, from, to } in changes {
            output::line(format_args!("{what}: {key}: {} -> {}", shown(from), shown(to)));
        }
    }
    for Overridden { key, option, value, file } in &overridden {
        let (value, file) = (shown(value), shown(file));
        output::line(format_args!(
            "overridden: {key}: {value}, by {option} of the daemon's command line; the file's {file} has no effect"
        ));
    }
    if applied.is_empty() && needs_restart.is_empty() && overridden.is_empty() {
        output::line("nothing has changed");
    }
    Ok(())
}

fn shown(value: &str) -> &str {
    if value.is_empty() { "(nothing)" } else { value }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use relay_userspace::config::ConfigSource;

    use crate::args::Args;

    #[test]
    fn every_option_that_is_named_as_having_the_last_word_is_one_of_net_listen() {
        let args = Args::command();
        let net = args.find_subcommand("net").unwrap();
        let listen = net.find_subcommand("listen").unwrap();
        for (_, option) in ConfigSource::OPTIONS {
            let named = |argument: &clap::Arg| argument.get_long() == option.strip_prefix("--");
            assert!(listen.get_arguments().any(named), "{option}");
        }
    }
}
