//! `doctor`: what this host is like for a relay, what is wrong with it, and what mends that.

use std::process::ExitCode;
use std::str::FromStr;

use relay_userspace::agent::KnownRelays;
use relay_userspace::config::{AddressError, AtlasRoot, RelayAddress};
use relay_userspace::doctor::facts::PortState;
use relay_userspace::doctor::{self, CallBack, Caller, Check, Facts, Finding, Level, Question};
use relay_userspace::identity::{NodeId, NodeKey};
use serde::Serialize;

use crate::node::runtime;
use crate::{args, output};

pub fn run(options: args::Doctor) -> anyhow::Result<ExitCode> {
    let args::Doctor { interface, from, list, format } = options;
    if list {
        show_list(format)?;
        return Ok(ExitCode::SUCCESS);
    }
    let root = AtlasRoot::from_env()?;
    let mut facts = doctor::look(&Question { root: root.clone(), interfaces: interface });
    match from {
        Some(Peer::Agent(agent)) => {
            let told = doctor::call_back_by_agent(&facts.socket, agent);
            let expected = told.as_ref().ok().map(|told| told.relay);
            let outcome = told.map(|told| told.probed);
            facts.call_back = Some(CallBack { by: Caller::Agent(agent), expected, outcome });
        }
        Some(Peer::Relay(relay)) => from_relay(relay, &root, &mut facts)?,
        None => {}
    }
    let findings = doctor::findings(&facts);
    let worst = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
    match format.json {
        true => output::json(&Report { worst, findings: &findings })?,
        false => lines(&findings).into_iter().for_each(output::line),
    }
    Ok(ExitCode::from(worst.exit_code()))
}

/// Who is asked with --from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Another relay.
    Relay(RelayAddress),
    /// An agent of the relay here.
    Agent(NodeId),
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Peer, String> {
        match text.parse() {
            Ok(agent) => Ok(Peer::Agent(agent)),
            Err(_) => text.parse().map(Peer::Relay).map_err(|error: AddressError| {
                format!("{error}; or an agent's node id alone (atlas_ and 64 hexadecimal digits)")
            }),
        }
    }
}

/// Whether `relay` is reached from here and, on a relay's host, whether that one reaches this.
fn from_relay(relay: RelayAddress, root: &AtlasRoot, facts: &mut Facts) -> anyhow::Result<()> {
    let reached = runtime()?.block_on(doctor::reach(relay.clone(), root.known_relays()));
    if reached.is_ok() && facts.configuration == Ok("a relay") {
        // Without a relay at the port somebody has to answer there.
        let own = NodeKey::load(&root.node_key()).ok().filter(|_| facts.port_state == PortState::Free);
        let port = facts.advertise.first().map_or(facts.port, std::net::SocketAddr::port);
        let asking = doctor::call_back(
            relay.clone(),
            KnownRelays::at(root.known_relays()),
            port,
            own.map(|key| (key, facts.port)),
        );
        let outcome = runtime()?.block_on(asking);
        let expected = facts.identity.as_ref().ok().and_then(|id| id.parse().ok());
        facts.call_back = Some(CallBack { by: Caller::Relay, expected, outcome });
    }
    facts.peer = Some((relay.to_string(), reached));
    Ok(())
}

#[derive(Serialize)]
struct Report<'f> {
    worst: Level,
    findings: &'f [Finding],
}

/// A line for each finding, and two more where there is something to mend.
fn lines(findings: &[Finding]) -> Vec<String> {
    let width = Check::ALL.iter().map(|check| check.name().len()).max().unwrap_or(0);
    let mut lines = Vec::new();
    for Finding { check, level, interface, found, expected, mend } in findings {
        let of = interface.as_ref().map(|interface| format!("{interface}: ")).unwrap_or_default();
        lines.push(format!("{:<7}  {check:<width$}  {of}{found}", level.name()));
        if let Some(mend) = mend {
            lines.push(format!("{:9}{:width$}  expected: {expected}", "", ""));
            lines.push(format!("{:9}{:width$}  mend: {mend}", "", ""));
        }
    }
    let count = |of: Level| findings.iter().filter(|finding| finding.level == of).count();
    let [ok, notes, warnings, errors] = [Level::Ok, Level::Note, Level::Warning, Level::Error].map(count);
    lines.push(String::new());
    lines.push(format!("{ok} ok, {notes} notes, {warnings} warnings, {errors} errors"));
    lines
}

#[derive(Serialize)]
struct Row {
    check: &'static str,
    worst: Level,
    about: &'static str,
    expected: &'static str,
    mend: &'static str,
}

fn show_list(format: args::Format) -> anyhow::Result<()> {
    let row = |check: &Check| Row {
        check: check.name(),
        worst: check.worst(),
        about: check.about(),
        expected: check.expected(),
        mend: check.mend(),
    };
    let rows: Vec<Row> = Check::ALL.iter().map(row).collect();
    if format.json {
        return output::json(&rows);
    }
    for Row { check, worst, about, expected, mend } in rows {
        output::line(format_args!("{check}, {} at worst: {about}", worst.name()));
        output::line(format_args!("  expected: {expected}"));
        if !mend.is_empty() {
            output::line(format_args!("  mend: {mend}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_id_alone_is_an_agents_and_with_an_address_a_relays() {
        let node = NodeKey::from_seed(&[1; 32]).node_id();
        assert_eq!(node.to_string().parse(), Ok(Peer::Agent(node)));
        for relay in ["192.0.2.1:4433".to_owned(), format!("{node}@[2001:db8::1]:4433")] {
            assert_eq!(relay.parse(), Ok(Peer::Relay(relay.parse().unwrap())));
        }
        let error = "atlas_70b4".parse::<Peer>().unwrap_err();
        assert!(error.contains("HOST:PORT") && error.contains("64 hexadecimal digits"), "{error}");
    }

    #[test]
    fn what_is_to_be_mended_is_told_with_its_command_and_the_rest_in_a_line() {
        let findings = [
            Check::Kernel.ok("Linux 6.12"),
            Check::OtherProgram.at(Level::Warning, "program 7", &[("interface", "eth0")]),
        ];
        let said = lines(&findings);
        assert_eq!(said.len(), 6, "{said:#?}");
        assert_eq!(
            said[0],
            format!("ok       {:<width$}  Linux 6.12", "kernel", width = "unit_capabilities".len())
        );
        assert!(said[1].ends_with("eth0: program 7") && said[1].starts_with("warning  other_program"));
        assert!(said[3].trim_start() == "mend: ip link set dev eth0 xdp off", "{said:#?}");
        assert_eq!(said[5], "1 ok, 0 notes, 1 warnings, 0 errors");
    }
}
