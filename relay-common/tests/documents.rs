//! The table of reasons in ARCHITECTURE.md is the list in the code.

#![allow(clippy::expect_used, reason = "in a test a panic is a failure")]

use std::path::Path;

use relay_common::{Action, Reason};

#[test]
fn the_table_of_reasons_is_the_list_in_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ARCHITECTURE.md");
    let document = std::fs::read_to_string(&path).expect("ARCHITECTURE.md");
    let rows: Vec<&str> =
        document.lines().filter(|line| line.starts_with("| `") && is_reason_row(line)).collect();
    let expected: Vec<String> = Reason::ALL.iter().map(row).collect();
    assert_eq!(rows, expected, "put this into ARCHITECTURE.md:\n{}\n", expected.join("\n"));
}

fn is_reason_row(line: &str) -> bool {
    ["forward", "pass", "drop", "abort"].iter().any(|action| line.contains(&format!("` | {action} |")))
}

fn row(reason: &Reason) -> String {
    let action = match reason.action() {
        Action::Forward => "forward",
        Action::Pass => "pass",
        Action::Drop => "drop",
        Action::Abort => "abort",
    };
    format!("| `{}` | {action} | {} |", reason.name(), reason.text())
}
