//! `cargo xtask lab`: a lab to look around in.

use std::time::Duration;

use super::delay::Conditions;
use super::{Family, Lab, LabPlan, RELAY_ADDRESSES};
use crate::{interrupt, terminal};

/// What the line of agent 1 does to packets, in each direction.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Line {
    /// Agent 1's packets take this long in each direction, for example 20ms.
    #[arg(long, value_name = "TIME", value_parser = time)]
    delay: Option<Duration>,
    /// And up to this much longer.
    #[arg(long, value_name = "TIME", value_parser = time)]
    jitter: Option<Duration>,
    /// The share of them that is lost, for example 1%.
    #[arg(long, value_name = "SHARE", value_parser = share)]
    loss: Option<f64>,
    /// The share of them that others overtake.
    #[arg(long, value_name = "SHARE", value_parser = share)]
    reordering: Option<f64>,
}

impl Line {
    fn conditions(self) -> Option<Conditions> {
        let conditions = Conditions {
            jitter: self.jitter.unwrap_or_default(),
            loss: self.loss.unwrap_or_default(),
            reordering: self.reordering.unwrap_or_default(),
            ..Conditions::delay(self.delay.unwrap_or_default())
        };
        (conditions != Conditions::default()).then_some(conditions)
    }
}

/// Brings up a lab, tells how to enter it, and waits for Ctrl-C.
///
/// # Errors
/// The lab cannot be brought up.
pub fn show(line: Line) -> anyhow::Result<()> {
    let lab = Lab::planned(&line.conditions().map_or_else(LabPlan::default, LabPlan::over_a_line))?;
    terminal::result("The lab is up. To enter:\n");
    let enter = |name: &str, what: &str| {
        terminal::result(format!("  ip netns exec {name:28} bash   # {what}"));
    };
    enter(lab.relay.name(), "relay host, its interface is r0");
    for (agent, place) in lab.agents.iter().zip(["a NAT with random ports", "a NAT that keeps ports"]) {
        enter(agent.name(), &format!("agent behind {place}"));
    }
    for (nat, what) in lab.nats.iter().zip(["NAT with random ports", "NAT that keeps ports"]) {
        enter(nat.name(), what);
    }
    enter(lab.router.name(), "router between the NATs and the relay");
    let [v4, v6] = [Family::V4, Family::V6].map(|family| RELAY_ADDRESSES.of(family));
    terminal::result(format!(
        "\nThe relay is at {v4} and {v6}. Ctrl-C removes the lab and ends what runs in it. \
         docs/lab.md has the lines from `id init` to `net ping`."
    ));
    while !interrupt::is_stopped() {
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// For example `20ms` or `0.5s`.
fn time(text: &str) -> Result<Duration, String> {
    let number = |number: &str| number.parse::<f64>().ok();
    let seconds = match text.strip_suffix("ms") {
        Some(ms) => number(ms).map(|ms| ms / 1_000.0),
        None => text.strip_suffix('s').and_then(number),
    };
    let time = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    time.filter(|time| *time <= LONGEST).ok_or_else(|| "expected a time up to 60s, such as 20ms".to_owned())
}

const LONGEST: Duration = Duration::from_secs(60);

/// For example `1%`.
fn share(text: &str) -> Result<f64, String> {
    let per_cent = text.strip_suffix('%').and_then(|number| number.parse::<f64>().ok());
    let per_cent = per_cent.filter(|per_cent| (0.0..=100.0).contains(per_cent));
    per_cent.map(|per_cent| per_cent / 100.0).ok_or_else(|| "expected a share, such as 1%".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_shares_are_read_with_their_units() {
        assert_eq!(time("20ms"), Ok(Duration::from_millis(20)));
        assert_eq!(time("0.5s"), Ok(Duration::from_millis(500)));
        assert_eq!(share("0.5%"), Ok(0.005));
        for wrong in ["20", "-1ms", "61s", "ms", "nans"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
        for wrong in ["1", "101%", "-1%", "nan%"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }
}
