//! What a demo found, as a table and as JSON.

use serde::{Serialize, Serializer};

/// The runs of one demo.
#[derive(Debug, Serialize)]
pub struct Report {
    /// One for each datapath, with more than one kind of addresses one for each. In JSON each has its
    /// [`Run::packets_lost`] and its [`Run::verdict`] too.
    #[serde(serialize_with = "with_findings")]
    pub runs: Vec<Run>,
    /// What else the reader should know.
    pub notes: Vec<String>,
}

/// One datapath at work. Names and units are those of the JSON report.
#[derive(Debug, Default, Serialize)]
pub struct Run {
    /// `xdp-native`, `xdp-generic` or `userspace`.
    pub datapath: String,
    /// What the agents speak to the relay: `ipv4`, `ipv6`, or `ipv4-ipv6` if the connector speaks the one and the target
    /// the other.
    pub addresses: String,
    /// Packets of the file transfer that the XDP program forwarded.
    pub packets_kernel: u64,
    /// Packets of the file transfer that the daemon forwarded.
    pub packets_userspace: u64,
    /// Packets of the file transfer that either dropped.
    pub packets_dropped: u64,
    /// Datagrams both agents say they sent for the file transfer.
    pub agents_datagrams_sent: u64,
    /// Datagrams both agents say they received for it.
    pub agents_datagrams_received: u64,
    /// The file's bytes that arrived at the target.
    pub bytes: u64,
    /// UDP payload the relay carried for the file transfer, both directions.
    pub relayed_bytes: u64,
    /// Whether the file is the same at both ends.
    pub sha256_match: bool,
    /// The file's bytes over the time from its first to its last.
    pub throughput_bytes_per_s: f64,
    /// Median round trip through the relay, in microseconds.
    pub rtt_us_p50: u64,
    /// 99th percentile of it.
    pub rtt_us_p99: u64,
    /// Pings sent.
    pub pings_sent: u64,
    /// Pings answered.
    pub pings_received: u64,
    /// The default `relay_bandwidth_limit`, UDP payload in both directions.
    pub limit_bytes_per_s: u64,
    /// UDP payload per second that the relay carried under it.
    pub limited_relayed_bytes_per_s: f64,
    /// The file's bytes per second that arrived at the target under it.
    pub limited_throughput_bytes_per_s: f64,
    /// What did not go as it should; empty: the verdict is ok.
    pub complaints: Vec<String>,
}

impl Run {
    /// Adds a reason why the verdict is not ok.
    pub fn complain(&mut self, reason: String) {
        self.complaints.push(reason);
    }

    /// Packets of the file transfer that an agent has sent and none received, beyond what the relay has dropped: a queue
    /// on the way was full. The agents' QUIC sends them again.
    pub fn packets_lost(&self) -> u64 {
        let accounted = self.agents_datagrams_received.saturating_add(self.packets_dropped);
        self.agents_datagrams_sent.saturating_sub(accounted)
    }

    /// `ok` or `FAILED`.
    pub fn verdict(&self) -> &'static str {
        if self.complaints.is_empty() { "ok" } else { "FAILED" }
    }
}

fn with_findings<S: Serializer>(runs: &[Run], serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Found<'a> {
        #[serde(flatten)]
        run: &'a Run,
        packets_lost: u64,
        verdict: &'static str,
    }
    let found = |run| Found { run, packets_lost: Run::packets_lost(run), verdict: Run::verdict(run) };
    serializer.collect_seq(runs.iter().map(found))
}

impl Report {
    /// Whether all runs went as they should.
    pub fn is_ok(&self) -> bool {
        self.runs.iter().all(|run| run.complaints.is_empty())
    }

    /// The table for a reader who has never seen it, with its legend.
    pub fn table(&self) -> String {
        let mut rows = vec![HEAD.map(str::to_owned)];
        rows.extend(self.runs.iter().map(row));
        let widths: Vec<usize> = (0..HEAD.len())
            .map(|column| {
                rows.iter()
                    .filter_map(|row| row.get(column))
                    .map(|cell| cell.chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let mut text = String::from("\n");
        for (number, row) in rows.iter().enumerate() {
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
                let cell = if column < 2 { format!("{cell}{padding}") } else { format!("{padding}{cell}") };
                text.push_str(if column == 0 { "" } else { "  " });
                text.push_str(&cell);
            }
            text.push('\n');
            if number == 0 {
                let width = widths.iter().sum::<usize>() + 2 * (widths.len() - 1);
                text.push_str(&"-".repeat(width));
                text.push('\n');
            }
        }
        text.push_str(LEGEND);
        for run in &self.runs {
            for complaint in &run.complaints {
                text.push_str(&format!("\n{}, {} FAILED: {complaint}", run.datapath, run.addresses));
            }
        }
        for note in &self.notes {
            text.push_str(&format!("\n{note}"));
        }
        text
    }
}

const HEAD: [&str; 11] = [
    "datapath",
    "addresses",
    "by kernel",
    "by daemon",
    "dropped",
    "lost",
    "file",
    "throughput",
    "round trip p50/p99",
    "with limit (of)",
    "verdict",
];

const LEGEND: &str = "
addresses               what the agents speak to the relay; ipv4-ipv6: one each, the relay translates
by kernel / by daemon   relayed packets of the file transfer that the XDP program forwarded without waking
                        the daemon, and that the daemon forwarded itself
dropped                 by the relay, for whatever reason
lost                    sent by an agent and received by none, the dropped aside: without limit a queue on the way
                        overflows now and then, and the agents send again
file, throughput        64 MiB through `net forward` from agent to agent, sha256 compared at both ends, no limit
round trip              50 pings, agent to agent through the relay
with limit (of)         what the relay carried under its default relay_bandwidth_limit, and that limit
";

fn row(run: &Run) -> [String; HEAD.len()] {
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    [
        run.datapath.clone(),
        run.addresses.clone(),
        run.packets_kernel.to_string(),
        run.packets_userspace.to_string(),
        run.packets_dropped.to_string(),
        run.packets_lost().to_string(),
        (if run.sha256_match { "identical" } else { "DIFFERS" }).to_owned(),
        format!("{:.1} MiB/s", mib(run.throughput_bytes_per_s)),
        format!("{:.2} / {:.2} ms", run.rtt_us_p50 as f64 / 1e3, run.rtt_us_p99 as f64 / 1e3),
        format!(
            "{:.3} ({:.0}) MiB/s",
            mib(run.limited_relayed_bytes_per_s),
            mib(run.limit_bytes_per_s as f64)
        ),
        run.verdict().to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_lines_up_and_names_what_failed() {
        let good = Run { datapath: "xdp-native".to_owned(), packets_kernel: 50_000, ..Run::default() };
        let mut bad =
            Run { datapath: "userspace".to_owned(), addresses: "ipv4".to_owned(), ..Run::default() };
        bad.complain("the file differs".to_owned());
        let report = Report { runs: vec![good, bad], notes: vec!["a note".to_owned()] };
        let table = report.table();
        let lines: Vec<&str> = table.lines().skip(1).take(4).collect();
        assert!(lines.iter().all(|line| line.chars().count() == lines[0].chars().count()), "{table}");
        assert!(
            table.contains("userspace, ipv4 FAILED: the file differs") && table.ends_with("a note"),
            "{table}"
        );
        assert!(!report.is_ok());
    }

    #[test]
    fn what_the_relay_dropped_is_not_lost_too() {
        let run = |sent, received, dropped| {
            let run = Run {
                agents_datagrams_sent: sent,
                agents_datagrams_received: received,
                packets_dropped: dropped,
                ..Run::default()
            };
            run.packets_lost()
        };
        assert_eq!([run(100, 90, 4), run(100, 100, 0), run(100, 101, 0)], [6, 0, 0]);
    }

    #[test]
    fn every_field_of_the_json_is_described() {
        let report = Report { runs: vec![Run::default()], notes: Vec::new() };
        let json = serde_json::to_value(&report).unwrap();
        let document = include_str!("../../../docs/lab.md");
        for name in json["runs"][0].as_object().unwrap().keys() {
            assert!(document.contains(&format!("`{name}`")), "{name} is missing in docs/lab.md");
        }
    }

    #[test]
    fn the_json_has_the_names_that_readers_rely_on() {
        let report = Report { runs: vec![Run::default()], notes: Vec::new() };
        let json = serde_json::to_value(&report).unwrap();
        for name in [
            "datapath",
            "addresses",
            "packets_kernel",
            "packets_userspace",
            "packets_dropped",
            "bytes",
            "sha256_match",
            "throughput_bytes_per_s",
            "rtt_us_p50",
            "rtt_us_p99",
            "packets_lost",
            "verdict",
        ] {
            assert!(json["runs"][0].get(name).is_some(), "{name}");
        }
    }
}
