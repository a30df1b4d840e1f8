//! `atlas-relay`, also installed as `atlas`: relay daemon, agent daemon and their commands.
//!
//! Results go to stdout, the log and errors to stderr. Exit codes: 0 done, 1 failed (one line says why and what to do),
//! 2 the command line was not understood. `doctor` has its own: that of its worst finding.

mod agent_forwards;
mod args;
mod bans;
mod config_check;
mod config_reload;
mod config_show;
mod connected_peer;
mod doctor;
mod drain;
mod explain;
mod id;
mod id_rotate;
mod log;
mod manual;
mod net_connect;
mod net_disconnect;
mod net_forward;
mod net_listen;
mod net_peers;
mod net_ping;
mod net_send;
mod net_sessions;
mod net_top;
mod node;
mod output;
mod packet_file;
#[cfg(test)]
mod shown_commands;
mod stop;
mod xdp;

use std::process::ExitCode;

use clap::Parser as _;

use args::{Args, Command, ConfigCommand, NetCommand};
use log::LogFormat;

fn main() -> ExitCode {
    let Args { command } = Args::parse();
    match start_log(&command).and_then(|()| run(command)) {
        Ok(code) => code,
        Err(error) => {
            output::failure(&error);
            ExitCode::FAILURE
        }
    }
}

fn start_log(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Net(NetCommand::Listen(options)) => log::start(options.log_format, true),
        _ => log::start(LogFormat::default(), false),
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Doctor(options) => return doctor::run(options),
        Command::Id(command) => id::run(&command),
        Command::Net(NetCommand::Listen(options)) => net_listen::run(options),
        Command::Net(NetCommand::Peers(options)) => net_peers::run(options),
        Command::Net(NetCommand::Sessions(options)) => net_sessions::run(options),
        Command::Net(NetCommand::Top(options)) => net_top::run(&options),
        Command::Net(NetCommand::Connect(options)) => net_connect::run(&options),
        Command::Net(NetCommand::Ping(options)) => net_ping::run(&options),
        Command::Net(NetCommand::Send(options)) => net_send::run(options),
        Command::Net(NetCommand::Forward(options)) => net_forward::run(options),
        Command::Net(NetCommand::Disconnect(options)) => net_disconnect::run(&options),
        Command::Xdp(command) => xdp::run(command),
        Command::Bans(options) => bans::run(options),
        Command::Drain(options) => drain::run(options),
        Command::Explain(options) => explain::run(&options),
        Command::Stop(options) => stop::run(&options),
        Command::Manual { directory } => manual::run(&directory),
        Command::Config(ConfigCommand::Check { path }) => config_check::run(path),
        Command::Config(ConfigCommand::Show { path, running, format }) => {
            config_show::run(path, running, format)
        }
        Command::Config(ConfigCommand::Reload(format)) => config_reload::run(format),
    }?;
    Ok(ExitCode::SUCCESS)
}
