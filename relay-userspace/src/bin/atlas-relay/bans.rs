//! `bans`: who may not connect to the running relay.

use relay_userspace::admin::{self, Request};
use relay_userspace::relay::bans::BanSubject;
use relay_userspace::relay::report::{Ban, Bans, Lifted};

use crate::args::{self, BansCommand};
use crate::{node, output};

pub fn run(options: args::Bans) -> anyhow::Result<()> {
    match options.command {
        None => list(options.format),
        Some(BansCommand::Lift { subject }) => lift(subject),
        Some(BansCommand::Add { subject, seconds }) => add(subject, seconds),
    }
}

fn list(format: args::Format) -> anyhow::Result<()> {
    let answer = admin::ask(&node::admin_socket()?, Request::Bans)?;
    if format.json {
        return output::json(&answer);
    }
    let Bans { bans } = serde_json::from_value(answer)?;
    // Whole: it is what `bans lift` takes.
    let rows =
        bans.into_iter().map(|Ban { subject, left_s, why, .. }| [subject, output::seconds(left_s), why]);
    output::table(["WHO", "LEFT", "WHY"], rows, "nobody is banned");
    Ok(())
}

fn lift(subject: BanSubject) -> anyhow::Result<()> {
    let answer = admin::ask(&node::admin_socket()?, Request::LiftBan { subject })?;
    let Lifted { subject, lifted } = serde_json::from_value(answer)?;
    if !lifted {
        anyhow::bail!("{subject} is not banned: `atlas-relay bans` lists who is");
    }
    output::line(format_args!("{subject} may connect again"));
    Ok(())
}

fn add(subject: BanSubject, seconds: Option<u64>) -> anyhow::Result<()> {
    let answer = admin::ask(&node::admin_socket()?, Request::AddBan { subject, seconds })?;
    let Ban { subject, left_s, .. } = serde_json::from_value(answer)?;
    output::line(format_args!("{subject} may not connect for {}", output::seconds(left_s)));
    Ok(())
}

/// Reads a time such as `90`, `90s`, `30m`, `12h` or `7d`, in seconds. A year is long enough.
pub fn seconds(text: &str) -> Result<u64, String> {
    const YEAR: u64 = 365 * 86_400;
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.strip_prefix(digits) {
        Some("" | "s") => Some(1),
        Some("m") => Some(60),
        Some("h") => Some(3600),
        Some("d") => Some(86_400),
        _ => None,
    };
    let seconds = digits.parse::<u64>().ok().zip(unit).and_then(|(count, unit)| count.checked_mul(unit));
    seconds
        .filter(|seconds| (1..=YEAR).contains(seconds))
        .ok_or_else(|| "expected a time of up to 365d, such as 90s, 30m, 12h or 7d".to_owned())
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn times_are_read_with_and_without_a_unit() {
        for (text, read) in [("90", 90), ("90s", 90), ("30m", 1800), ("12h", 43_200), ("365d", 31_536_000)] {
            assert_eq!(seconds(text), Ok(read));
        }
        for wrong in
            ["", "s", "0", "-1", "1w", "1.5h", "366d", "99999999999999999999", "18446744073709551615d"]
        {
            assert!(seconds(wrong).unwrap_err().contains("12h"), "{wrong}");
        }
    }
}
