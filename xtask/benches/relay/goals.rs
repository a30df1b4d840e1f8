//! What we are measured by: for each measure the floor, which is owed, and the goal.

use anyhow::bail;

use crate::report::{Measured, Report, Row};

/// Whether more or less is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Better {
    More,
    Less,
}

/// Which figure of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Value,
    Ratio,
}

/// A measure.
struct Measure {
    name: &'static str,
    /// The row's name, and for a ratio what it is to.
    row: &'static str,
    ratio_to: &'static str,
    of: Of,
    better: Better,
    floor: f64,
    goal: f64,
}

impl Measure {
    const fn ratio(
        name: &'static str,
        [row, ratio_to]: [&'static str; 2],
        better: Better,
        [floor, goal]: [f64; 2],
    ) -> Measure {
        Measure { name, row, ratio_to, of: Of::Ratio, better, floor, goal }
    }

    const fn value(
        name: &'static str,
        row: &'static str,
        better: Better,
        [floor, goal]: [f64; 2],
    ) -> Measure {
        Measure { name, row, ratio_to: "", of: Of::Value, better, floor, goal }
    }

    fn figure(&self, report: &Report) -> Option<f64> {
        let is_it = |row: &&Row| {
            row.name == self.row && (self.of == Of::Value || row.ratio_to.as_deref() == Some(self.ratio_to))
        };
        let row = report.results.iter().find(is_it)?;
        match self.of {
            Of::Value => Some(row.value),
            Of::Ratio => row.ratio,
        }
    }

    fn is_met(&self, figure: f64, bound: f64) -> bool {
        match self.better {
            Better::More => figure >= bound,
            Better::Less => figure <= bound,
        }
    }
}

const MEASURES: &[Measure] = &[
    Measure::ratio(
        "program cost, IPv4 hit, of the bare reflector",
        ["program, IPv4", "bare reflector, IPv4"],
        Better::Less,
        [3.2, 2.6],
    ),
    Measure::ratio(
        "program cost, IPv6 hit, of the bare reflector",
        ["program, IPv6", "bare reflector, IPv6"],
        Better::Less,
        [2.6, 2.1],
    ),
    Measure::ratio(
        "one-core rate, XDP native, of the bare reflector",
        ["rate, XDP native, same interface, 64 B, 256 flows", "rate, bare XDP reflector, 64 B, 256 flows"],
        Better::More,
        [0.87, 0.93],
    ),
    Measure::ratio(
        "one-core rate, XDP native, of the bare redirect",
        ["rate, XDP native, redirect, 64 B, 256 flows", "rate, bare XDP redirect, 64 B, 256 flows"],
        Better::More,
        [0.87, 0.93],
    ),
    Measure::ratio(
        "one-core rate, XDP native, of nftables NAT",
        ["rate, XDP native, redirect, 64 B, 256 flows", "rate, nftables DNAT + masquerade, 64 B, 256 flows"],
        Better::More,
        [2.6, 3.0],
    ),
    Measure::ratio(
        "one-core rate, XDP native, of coturn",
        ["rate, XDP native, redirect, 64 B, 256 flows", "rate, coturn, ChannelData, 64 B, 256 flows"],
        Better::More,
        [6.5, 7.5],
    ),
    Measure::ratio(
        "one-core rate, 1,000,000 flows, of 1,000",
        [
            "rate, XDP native, same interface, 64 B, 1,000,000 flows",
            "rate, XDP native, same interface, 64 B, 1,000 flows",
        ],
        Better::More,
        [0.5, 0.7],
    ),
    Measure::ratio(
        "userspace, one core, of coturn",
        ["rate, userspace forwarder, 64 B, 256 flows", "rate, coturn, ChannelData, 64 B, 256 flows"],
        Better::More,
        [1.0, 1.5],
    ),
    Measure::ratio(
        "userspace, one core, of the plain loop",
        ["rate, userspace forwarder, 64 B, 256 flows", "rate, recvmmsg/sendmmsg loop, 64 B, 256 flows"],
        Better::More,
        [0.9, 1.0],
    ),
    Measure::ratio(
        "userspace, bulk, bytes per CPU second, of coturn",
        ["bulk, userspace, by its CPU time", "bulk, coturn, by its CPU time"],
        Better::More,
        [8.0, 20.0],
    ),
    Measure::ratio(
        "userspace, two readers, packets per CPU second, of one reader",
        ["userspace, two readers, by their CPU time", "userspace, one reader, by its CPU time"],
        Better::More,
        [0.85, 0.95],
    ),
    Measure::value(
        "memory of a session, mapped arrays",
        "memory of a session, mapped arrays",
        Better::Less,
        [420.0, 330.0],
    ),
    Measure::value(
        "memory of a session, daemon besides",
        "memory of a session, daemon besides",
        Better::Less,
        [800.0, 400.0],
    ),
    Measure::value(
        "flows installed a second, one thread",
        "flows installed, agents in any order",
        Better::More,
        [1_000_000.0, 3_000_000.0],
    ),
    Measure::ratio(
        "full agent handshakes, of bare quinn mutual TLS",
        ["relay, agent's handshake", "bare quinn, mutual TLS"],
        Better::More,
        [0.7, 0.8],
    ),
    Measure::ratio(
        "the same, of bare quinn that does not probe for the MTU either",
        ["relay, agent's handshake", "bare quinn, mutual TLS, no MTU discovery"],
        Better::More,
        [0.7, 0.8],
    ),
    Measure::value(
        "limit accuracy, largest error in percent",
        "limit, largest error",
        Better::Less,
        [1.0, 0.2],
    ),
];

/// The columns of [`measures`].
pub const HEAD: [&str; 5] = ["measure", "figure", "floor", "goal", "verdict"];

/// Each measure that `report` has the figure of.
pub fn measures(report: &Report) -> Vec<Measured> {
    let row = |measure: &Measure| {
        let value = measure.figure(report)?;
        let verdict = match () {
            () if measure.is_met(value, measure.goal) => "goal",
            () if measure.is_met(value, measure.floor) => "floor",
            () => "BELOW",
        };
        let Measure { name, floor, goal, .. } = *measure;
        Some(Measured { measure: name, figure: value, floor, goal, verdict })
    };
    MEASURES.iter().filter_map(row).collect()
}

/// What the program's cost may be in continuous integration, as ratios to the bare reflector. A regression of 1.5 is
/// beyond it, a busy machine is not.
const COST_CHECKED: [(&str, f64); 2] = [("program, IPv4", 3.0), ("program, IPv6", 3.3)];

/// Checks the program's cost.
///
/// # Errors
/// It is beyond what is recorded, or was not measured.
pub fn check_cost(report: &Report) -> anyhow::Result<()> {
    for (name, most) in COST_CHECKED {
        let found = report.results.iter().find(|row| row.name == name).and_then(|row| row.ratio);
        match found {
            None => bail!("`{name}` was not measured"),
            Some(ratio) if ratio > most => bail!(
                "`{name}` costs {ratio:.2} times the bare reflector, more than {most}: the program has become slower"
            ),
            Some(_) => {}
        }
    }
    Ok(())
}
