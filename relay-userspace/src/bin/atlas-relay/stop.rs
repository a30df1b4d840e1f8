//! `stop`: has the running relay end its sessions and stop.

use std::process::Command;

use relay_userspace::admin::{self, AskError};

use crate::{args, node, output, xdp};

pub fn run(options: &args::Stop) -> anyhow::Result<()> {
    if options.unless_restarting {
        unless_restarting(&options.unit);
        return Ok(());
    }
    let socket = node::admin_socket()?;
    match admin::stop(&socket) {
        Ok(()) => output::line("Stopped"),
        // One that was killed has left what it forwarded with.
        Err(error @ AskError::NotRunning { .. })
            if !xdp::remove_left().is_ok_and(|removed| removed.is_some()) =>
        {
            return Err(error.into());
        }
        Err(AskError::NotRunning { .. }) => {
            output::line("No relay was running; removed what the one before had left");
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// For a unit's ExecStop=. Whatever it comes to, systemd goes on with SIGTERM; so nothing here is a failure.
fn unless_restarting(unit: &str) {
    match running_job(unit) {
        Ok(Job::Restart) => output::line(format_args!("{unit} restarts: its sessions go on")),
        Ok(Job::Stop) => {
            let stopped = node::admin_socket().and_then(|socket| match admin::stop(&socket) {
                Ok(()) => Ok("Stopped".to_owned()),
                // It has stopped by itself, and its agents know.
                Err(AskError::NotRunning { path, .. }) => {
                    Ok(format!("no relay is running: nothing answers at {}", path.display()))
                }
                Err(error) => Err(error.into()),
            });
            let not_told = |error| format!("the relay was not told to end its sessions: {error}");
            output::line(stopped.unwrap_or_else(not_told));
        }
        Err(why) => output::line(format_args!(
            "cannot tell whether {unit} stops or restarts ({why}): the relay is not told to end its sessions"
        )),
    }
}

/// What systemd does with a unit.
#[derive(Debug, PartialEq, Eq)]
enum Job {
    Stop,
    Restart,
}

fn running_job(unit: &str) -> Result<Job, String> {
    let asked = Command::new("systemctl").args(["list-jobs", "--no-legend", "--no-pager", "--full"]).output();
    let asked = asked.map_err(|error| format!("systemctl: {error}"))?;
    if !asked.status.success() {
        let stderr = String::from_utf8_lossy(&asked.stderr);
        return Err(format!("systemctl list-jobs: {}", stderr.lines().next().unwrap_or("it failed")));
    }
    job_of(unit, &String::from_utf8_lossy(&asked.stdout))
}

/// The unit's job in a listing with the columns JOB, UNIT, TYPE and STATE.
fn job_of(unit: &str, jobs: &str) -> Result<Job, String> {
    let kind = jobs.lines().find_map(|line| {
        let mut columns = line.split_whitespace().skip(1);
        columns.next().filter(|of| *of == unit)?;
        columns.next()
    });
    match kind {
        Some("stop") => Ok(Job::Stop),
        Some("restart" | "try-restart") => Ok(Job::Restart),
        Some(other) => Err(format!("its job is {other}")),
        None => Err("systemd has no job for it".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_units_job_is_read_from_the_listing() {
        let jobs = "  12 network.target        stop        waiting\n\
                    1301 atlas-relay.service   restart     running\n\
                    1302 atlas-relay-2.service stop        running\n\
                    1303 atlas-agent.service   try-restart running\n\
                    1304 other.service         start       running\n";
        assert_eq!(job_of("atlas-relay.service", jobs), Ok(Job::Restart));
        assert_eq!(job_of("atlas-relay-2.service", jobs), Ok(Job::Stop));
        assert_eq!(job_of("atlas-agent.service", jobs), Ok(Job::Restart));
        assert_eq!(job_of("other.service", jobs), Err("its job is start".to_owned()));
        for none in ["", "\n", "No jobs running.\n", "1301\n", "1301 atlas-relay.service\n"] {
            assert_eq!(job_of("atlas-relay.service", none), Err("systemd has no job for it".to_owned()));
        }
    }
}
