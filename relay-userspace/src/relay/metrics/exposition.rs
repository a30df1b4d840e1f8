//! The text that Prometheus reads: version 0.0.4 of its format.
//!
//! Own code: it is fewer lines than would be needed to hand a library values that are read at each scrape.

use std::fmt::{Display, Write as _};

use super::histogram::Histogram;
use super::names::Family;

/// The type of the text, for HTTP.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Metrics, one after another.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
}

/// The samples of one metric.
#[derive(Debug)]
pub struct Samples<'a> {
    text: &'a mut String,
    family: &'static Family,
}

impl Exposition {
    /// Begins a metric. Each comes once.
    pub fn family(&mut self, family: &'static Family) -> Samples<'_> {
        let Family { name, kind, help, .. } = family;
        put(&mut self.text, format_args!("# HELP {name} {help}\n# TYPE {name} {}\n", kind.name()));
        Samples { text: &mut self.text, family }
    }

    /// A metric without labels.
    pub fn single(&mut self, family: &'static Family, value: impl Display) {
        self.family(family).sample([], value);
    }

    /// All of it.
    pub fn into_text(self) -> String {
        self.text
    }
}

impl Samples<'_> {
    /// A sample with these values of the metric's labels, in their order.
    pub fn sample<const N: usize>(&mut self, values: [&str; N], value: impl Display) {
        debug_assert_eq!(N, self.family.labels.len(), "{}", self.family.name);
        let labels = self.family.labels.iter().zip(values);
        let labels: Vec<String> =
            labels.map(|(label, value)| format!("{label}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        put(self.text, format_args!("{}{labels} {value}\n", self.family.name));
    }

    /// The samples of a histogram without labels.
    pub fn histogram(&mut self, histogram: &Histogram) {
        let name = self.family.name;
        for (bound, count) in histogram.buckets() {
            put(self.text, format_args!("{name}_bucket{{le=\"{}\"}} {count}\n", bound.as_secs_f64()));
        }
        let count = histogram.count();
        put(
            self.text,
            format_args!(
                "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {}\n{name}_count {count}\n",
                histogram.sum().as_secs_f64()
            ),
        );
    }
}

fn put(text: &mut String, line: std::fmt::Arguments<'_>) {
    // A String takes everything.
    let _cannot_fail = text.write_fmt(line);
}

/// A label's value as it is written between quotes.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::names;
    use super::*;

    #[test]
    fn a_metric_is_written_with_its_help_its_type_and_its_labels_escaped() {
        let mut exposition = Exposition::default();
        exposition.family(&names::DATAPATH).sample(["userspace", "a \"b\\c\"\nd"], 1);
        exposition.single(&names::DRAINING, 0);
        let text = exposition.into_text();
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("# HELP")).collect();
        assert_eq!(
            lines,
            [
                "# TYPE atlas_relay_datapath_info gauge",
                r#"atlas_relay_datapath_info{mode="userspace",why="a \"b\\c\"\nd"} 1"#,
                "# TYPE atlas_relay_draining gauge",
                "atlas_relay_draining 0",
            ]
        );
        assert!(text.starts_with("# HELP atlas_relay_datapath_info Always 1: "));
    }

    #[test]
    fn a_histogram_is_written_with_buckets_that_hold_all_below_them() {
        let mut histogram = Histogram::new(&[Duration::from_millis(5), Duration::from_secs(1)]);
        for ms in [5, 495, 1500] {
            histogram.record(Duration::from_millis(ms));
        }
        let mut exposition = Exposition::default();
        exposition.family(&names::SWEEPS).histogram(&histogram);
        let text = exposition.into_text();
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                r#"atlas_relay_sweep_seconds_bucket{le="0.005"} 1"#,
                r#"atlas_relay_sweep_seconds_bucket{le="1"} 2"#,
                r#"atlas_relay_sweep_seconds_bucket{le="+Inf"} 3"#,
                "atlas_relay_sweep_seconds_sum 2",
                "atlas_relay_sweep_seconds_count 3",
            ]
        );
    }
}
