//! The relay's unit, as systemd has it: drop-ins included.

use std::process::Command;

use super::program::said;

/// Its name.
const UNIT: &str = "atlas-relay";

/// The capabilities that the unit gives the relay; none: there is no such unit, or no systemd to ask.
pub fn capabilities() -> Option<Vec<String>> {
    let mut ask = Command::new("systemctl");
    ask.args(["show", UNIT, "--property=LoadState", "--property=AmbientCapabilities"]);
    parse(&said(&mut ask)?)
}

fn parse(said: &str) -> Option<Vec<String>> {
    let property = |name: &str| {
        said.lines()
            .filter_map(|line| line.split_once('='))
            .find_map(|(of, value)| (of == name).then_some(value))
    };
    let given = property("AmbientCapabilities").unwrap_or_default();
    (property("LoadState") == Some("loaded"))
        .then(|| given.split_whitespace().map(str::to_lowercase).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_capabilities_of_a_unit_that_is_there_are_told() {
        let said = "LoadState=loaded\nAmbientCapabilities=cap_net_admin cap_bpf\n";
        assert_eq!(parse(said), Some(vec!["cap_net_admin".to_owned(), "cap_bpf".to_owned()]));
        assert_eq!(parse("AmbientCapabilities=\nLoadState=loaded\n"), Some(Vec::new()));
        assert_eq!(parse("LoadState=not-found\nAmbientCapabilities=\n"), None);
        assert_eq!(parse(""), None);
    }
}
