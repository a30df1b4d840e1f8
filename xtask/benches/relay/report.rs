//! What was measured, as a table and as JSON.

use serde::Serialize;

use crate::goals;
use crate::rounds::Samples;

/// All figures of one run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What it ran on.
    pub machine: Machine,
    /// Whether it is a first look only.
    pub is_quick: bool,
    /// The figures.
    pub results: Vec<Row>,
    /// What we are measured by, once all is measured.
    pub measures: Vec<Measured>,
    /// What else the reader should know.
    pub notes: Vec<String>,
}

/// A measure's figure beside its floor, which is owed, and its goal.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// What is measured.
    pub measure: &'static str,
    /// Its figure.
    pub figure: f64,
    /// What is owed.
    pub floor: f64,
    /// What is aimed at.
    pub goal: f64,
    /// `goal`, `floor` or `BELOW`.
    pub verdict: &'static str,
}

/// What it ran on.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// The processor, as the kernel names it.
    pub processor: String,
    /// How many of its CPUs there are.
    pub cpus: usize,
    /// The kernel's release.
    pub kernel: String,
}

/// One figure: the median of its rounds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// In what.
    pub unit: &'static str,
    /// The median.
    pub value: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// The row it is compared with, if any.
    pub ratio_to: Option<String>,
    /// The median of each round's ratio.
    pub ratio: Option<f64>,
}

impl Report {
    /// An empty report.
    pub fn of_this_machine(is_quick: bool) -> Report {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let processors = read("/proc/cpuinfo");
        let processor = processors
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map_or_else(String::new, |(_, name)| name.trim().to_owned());
        let machine = Machine {
            processor,
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        };
        Report { machine, is_quick, results: Vec::new(), measures: Vec::new(), notes: Vec::new() }
    }

    /// Adds a figure of its own.
    pub fn add(&mut self, name: impl Into<String>, unit: &'static str, samples: &Samples) {
        self.push(name.into(), unit, samples, None, None);
    }

    /// Adds a figure beside the one that stands under `ratio_to`, measured in the same rounds.
    pub fn add_beside(
        &mut self,
        name: impl Into<String>,
        unit: &'static str,
        samples: &Samples,
        ratio_to: &str,
        other: &Samples,
    ) {
        let ratio = samples.over(other).median();
        self.push(name.into(), unit, samples, Some(ratio_to.to_owned()), Some(ratio));
    }

    fn push(
        &mut self,
        name: String,
        unit: &'static str,
        samples: &Samples,
        ratio_to: Option<String>,
        ratio: Option<f64>,
    ) {
        let (value, min, max) = (samples.median(), samples.min(), samples.max());
        self.results.push(Row { name, unit, value, min, max, ratio_to, ratio });
    }

    /// Adds what the reader should know.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// The table for people, with what we are measured by.
    pub fn table(&self) -> String {
        let mut rows = vec![HEAD.map(str::to_owned)];
        rows.extend(self.results.iter().map(cells));
        let Machine { processor, cpus, kernel } = &self.machine;
        let mut text = format!("\n{processor}, {cpus} CPUs, Linux {kernel}\n\n{}", aligned(&rows));
        let mut measures = vec![goals::HEAD.map(str::to_owned)];
        measures.extend(self.measures.iter().map(|measured| {
            let Measured { measure, figure: value, floor, goal, verdict } = *measured;
            [measure.to_owned(), figure(value), figure(floor), figure(goal), verdict.to_owned()]
        }));
        if measures.len() > 1 {
            text.push_str(&format!("\n{}", aligned(&measures)));
        }
        for note in &self.notes {
            text.push_str(&format!("\n{note}"));
        }
        text
    }
}

const HEAD: [&str; 7] = ["what", "median", "unit", "min", "max", "ratio", "to"];

fn cells(row: &Row) -> [String; HEAD.len()] {
    [
        row.name.clone(),
        figure(row.value),
        row.unit.to_owned(),
        figure(row.min),
        figure(row.max),
        row.ratio.map(figure).unwrap_or_default(),
        row.ratio_to.clone().unwrap_or_default(),
    ]
}

/// Three digits that mean something, at least.
pub fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => {
            let digits = format!("{value:.0}");
            let grouped = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy);
            grouped.collect::<Vec<_>>().join(",")
        }
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.01 || size == 0.0 => format!("{value:.3}"),
        _ => format!("{value:.2e}"),
    }
}

/// Columns side by side; those that begin with a digit to the right.
fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let is_number: [bool; N] = std::array::from_fn(|column| {
        rows.iter()
            .skip(1)
            .all(|row| row[column].chars().next().is_none_or(|c| c.is_ascii_digit() || c == '-'))
    });
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let padding = " ".repeat(widths[column].saturating_sub(cell.chars().count()));
            let cell =
                if is_number[column] { format!("{padding}{cell}  ") } else { format!("{cell}{padding}  ") };
            line.push_str(&cell);
        }
        text.push_str(line.trim_end());
        text.push('\n');
        if number == 0 {
            text.push_str(&"-".repeat(widths.iter().sum::<usize>() + 2 * (N - 1)));
            text.push('\n');
        }
    }
    text
}
