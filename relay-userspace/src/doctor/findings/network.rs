//! What is to be said of the way to the relay's port: filters, tracking, addresses, the port itself; and of clock and buffers.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{Check, Facts, Finding, Level};
use crate::doctor::facts::{CallBack, Caller, PortState};
use crate::doctor::packet_rules::{InputChain, PortFate};
use crate::probe::Probed;
use crate::relay::forwarder::BUFFER_BYTES;

/// A table of connections that is as full as this has room for little.
const FULL: u64 = 75;

/// All of it.
pub fn findings(facts: &Facts) -> Vec<Finding> {
    let port = facts.port.to_string();
    let port = ("port", port.as_str());
    let mut all = firewall(facts, port);
    all.push(match facts.ufw {
        Some(true) => Check::Ufw.ok("enabled, with a rule that names the port"),
        Some(false) => Check::Ufw.at(Level::Warning, "enabled, and no rule of it names the port", &[port]),
        None => Check::Ufw.ok("not enabled"),
    });
    all.push(firewalld(facts, port));
    all.push(conntrack(facts, port));
    all.push(match &facts.clock {
        Ok(true) => Check::Clock.ok("synchronised"),
        Ok(false) => {
            Check::Clock.at(Level::Warning, "not synchronised: handshakes fail once it is far off", &[])
        }
        Err(why) => Check::Clock.at(Level::Note, format!("cannot tell: {why}"), &[]),
    });
    all.push(receive_buffer(facts));
    all.push(advertise(facts, port));
    all.push(match (&facts.port_state, facts.running.is_some()) {
        (PortState::Taken, true) => Check::Port.ok(format!("{}: held by the running relay", facts.port)),
        (PortState::Taken, false) => {
            Check::Port.at(Level::Error, format!("{}: held by another program", facts.port), &[port])
        }
        (PortState::Free, true) => {
            let found = format!("{} is free, although a relay runs: it has another port", facts.port);
            Check::Port.at(Level::Note, found, &[port])
        }
        (PortState::Free, false) => Check::Port.ok(format!("{}: free", facts.port)),
        (PortState::Unknown(why), _) => {
            Check::Port.at(Level::Note, format!("{}: cannot tell: {why}", facts.port), &[port])
        }
    });
    all.extend(reached(facts, port));
    let reachable = reachable(facts, port, &all);
    all.extend(reachable);
    all
}

fn firewall(facts: &Facts, port: (&'static str, &str)) -> Vec<Finding> {
    let chains = match &facts.chains {
        Ok(chains) => chains,
        Err(why) => {
            let found = format!("cannot tell: {why}");
            let values = [("family", "inet"), ("table", "filter"), ("chain", "input"), port];
            return vec![Check::Firewall.at(Level::Note, found, &values)];
        }
    };
    let own: Vec<&InputChain> = chains.iter().filter(|chain| manager(facts, chain).is_none()).collect();
    let closed: Vec<Finding> = own.iter().filter_map(|chain| closed(chain, port)).collect();
    if !closed.is_empty() {
        return closed;
    }
    let is_told = |chain: &&InputChain| chain.port == PortFate::Accepted;
    vec![Check::Firewall.ok(match (own.len(), own.iter().all(is_told)) {
        (0, _) => "no chain of nftables for packets to this host".to_owned(),
        (count, true) => format!("{count} chains of nftables for packets to this host: the port is let in"),
        (count, false) => {
            format!("{count} chains of nftables for packets to this host; none drops by its policy")
        }
    })]
}

/// What is said of a chain whose rules are not known.
const WITHOUT_NFT: &str =
    "drops what no rule accepts: whether one accepts the port cannot be told without nft";

/// What is to be said of a chain that does not let everybody in.
fn closed(chain: &InputChain, port: (&'static str, &str)) -> Option<Finding> {
    let InputChain { family, table, name, port: fate } = chain;
    let what = match fate {
        PortFate::Accepted | PortFate::Untold { drops: false } => return None,
        PortFate::Untold { drops: true } => WITHOUT_NFT,
        PortFate::SomeAccepted => {
            "lets in some of what comes to the port at most: its rules have further conditions"
        }
        PortFate::Dropped => "keeps the port out: no rule accepts it before the packet is dropped",
    };
    let values = [("family", &**family), ("table", table), ("chain", name), port];
    let found = format!("chain {name} of table {family} {table} {what}");
    Some(Check::Firewall.at(Level::Warning, found, &values))
}

/// Whose rules stand in a chain, if they are to be changed by its commands alone.
fn manager(facts: &Facts, chain: &InputChain) -> Option<Check> {
    match (&*chain.family, &*chain.table) {
        (_, "firewalld") if facts.firewalld => Some(Check::Firewalld),
        ("ip" | "ip6", "filter") if facts.ufw.is_some() => Some(Check::Ufw),
        _ => None,
    }
}

fn firewalld(facts: &Facts, port: (&'static str, &str)) -> Finding {
    if !facts.firewalld {
        return Check::Firewalld.ok("not running");
    }
    let chains = facts.chains.iter().flatten();
    let of_it = chains.filter(|chain| manager(facts, chain) == Some(Check::Firewalld));
    match of_it.map(|chain| chain.port).max() {
        Some(PortFate::Accepted) => Check::Firewalld.ok("running; its rules let the port in"),
        Some(PortFate::SomeAccepted) => Check::Firewalld.at(
            Level::Warning,
            "running; its rules let in some of what comes to the port at most",
            &[port],
        ),
        Some(PortFate::Dropped) => {
            Check::Firewalld.at(Level::Warning, "running; its rules keep the port out", &[port])
        }
        Some(PortFate::Untold { .. }) | None => Check::Firewalld.at(
            Level::Note,
            "running: whether the port is open cannot be told from here",
            &[port],
        ),
    }
}

fn conntrack(facts: &Facts, port: (&'static str, &str)) -> Finding {
    let Some((count, max)) = facts.conntrack else { return Check::Conntrack.ok("not in use") };
    let used = format!("{count} of {max} connections");
    let full = max > 0 && count.saturating_mul(100) / max >= FULL;
    let what = match facts.untracked {
        Some(true) => return Check::Conntrack.ok(format!("{used}; the port is not tracked")),
        Some(false) => "each stranger that sends to the port takes one",
        None => {
            "each stranger that sends to the port takes one unless a rule says notrack, which cannot be told"
        }
    };
    let level = if full { Level::Warning } else { Level::Note };
    let finding = Check::Conntrack.at(level, format!("{used}: {what}"), &[port]);
    Finding { mend: finding.mend.map(|mend| without_idle_sed(&mend)), ..finding }
}

/// The command as it is for the port that the file has anyway.
fn without_idle_sed(mend: &str) -> String {
    let same = mend.strip_prefix("sed s/4433/4433/ ").and_then(|rest| rest.split_once(" | nft -f -"));
    same.map_or_else(|| mend.to_owned(), |(file, rest)| format!("nft -f {file}{rest}"))
}

fn receive_buffer(facts: &Facts) -> Finding {
    let wanted = BUFFER_BYTES.to_string();
    let values = [("wanted", wanted.as_str())];
    match facts.kernel.rmem_max {
        Some(bytes) if bytes >= BUFFER_BYTES as u64 => {
            Finding { expected: filled(&values), ..Check::ReceiveBuffer.ok(format!("{bytes} bytes")) }
        }
        Some(bytes) => {
            // With CAP_NET_ADMIN, as the unit gives it, the limit does not hold.
            let found =
                format!("{bytes} bytes: without cap_net_admin the relay loses packets in short overloads");
            Check::ReceiveBuffer.at(Level::Note, found, &values)
        }
        None => {
            Check::ReceiveBuffer.at(Level::Note, "cannot tell: net.core.rmem_max is not readable", &values)
        }
    }
}

fn filled(values: &[(&'static str, &str)]) -> String {
    Check::ReceiveBuffer.at(Level::Note, "", values).expected
}

fn advertise(facts: &Facts, port: (&'static str, &str)) -> Finding {
    let config = facts.config.display().to_string();
    let values = [port, ("config", config.as_str())];
    let list = |addresses: &[String]| addresses.join(", ");
    // Two interfaces may have the same.
    let own: BTreeSet<IpAddr> = facts.addresses.iter().copied().collect();
    let own: Vec<String> = own.iter().map(ToString::to_string).collect();
    if facts.advertise.is_empty() {
        return match facts.addresses.iter().any(is_public) {
            true => Check::Advertise.ok("agents use the address that they reach this host at"),
            false => {
                let found = format!(
                    "this host has private addresses only ({}): fine if agents reach it at one of them, or through a translation that keeps ports",
                    list(&own)
                );
                Check::Advertise.at(Level::Note, found, &values)
            }
        };
    }
    let foreign: Vec<String> = facts
        .advertise
        .iter()
        .filter(|address| !facts.addresses.contains(&address.ip()))
        .map(ToString::to_string)
        .collect();
    let advertised: Vec<String> = facts.advertise.iter().map(ToString::to_string).collect();
    let unreachable =
        facts.advertise.iter().any(|address| address.ip().is_loopback() || address.ip().is_unspecified());
    match (unreachable, foreign.is_empty()) {
        (true, _) => Check::Advertise.at(
            Level::Warning,
            format!("{}: no agent on another host reaches that", list(&advertised)),
            &values,
        ),
        (false, true) => Check::Advertise.ok(format!("{}: this host's", list(&advertised))),
        (false, false) => {
            let found = format!(
                "{} is none of this host's ({}): fine if it is translated to one of them",
                list(&foreign),
                list(&own)
            );
            Check::Advertise.at(Level::Note, found, &values)
        }
    }
}

/// Whether agents anywhere can send to it.
fn is_public(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            // RFC 6598: shared by a provider's customers.
            let shared = a == 100 && (64..128).contains(&b);
            !(v4.is_private() || v4.is_loopback() || v4.is_link_local() || shared)
        }
        IpAddr::V6(v6) => !(v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local()),
    }
}

fn reached(facts: &Facts, port: (&'static str, &str)) -> Option<Finding> {
    let agents = &facts.running.as_ref()?.agents;
    let elsewhere =
        agents.iter().filter(|agent| !facts.addresses.contains(&agent.ip()) && !agent.ip().is_loopback());
    let node = facts.identity.as_deref().unwrap_or("atlas_<id>");
    let mut elsewhere = elsewhere.peekable();
    match elsewhere.peek().copied() {
        Some(first) => {
            let count = elsewhere.count();
            Some(Check::Reached.ok(format!(
                "{count} of {} agents are connected from other hosts, one of them from {first}",
                agents.len()
            )))
        }
        None => {
            let found =
                "no agent is connected from another host: whether one could cannot be told from this host";
            Some(Check::Reached.at(Level::Note, found, &[("node", node), port]))
        }
    }
}

/// What who is named by --from has found on connecting here. What was found `before` tells of this host's firewalls.
fn reachable(facts: &Facts, port: (&'static str, &str), before: &[Finding]) -> Option<Finding> {
    let CallBack { by, expected, outcome } = facts.call_back.as_ref()?;
    let caller = match by {
        Caller::Relay => "the relay",
        Caller::Agent(_) => "the agent",
    };
    let untold = |why: &str| Finding {
        mend: None,
        ..Check::Reachable.at(Level::Note, format!("cannot tell: {why}"), &[port])
    };
    Some(match (outcome, by) {
        (Ok(Probed::Answered { at, node }), _) if expected.is_none() => {
            untold(&format!("{node} answers at {at}, and who this host is cannot be read here"))
        }
        (Ok(Probed::Answered { at, node }), _) if *expected == Some(*node) => {
            Check::Reachable.ok(format!("{at}: {caller} has connected to this node there"))
        }
        (Ok(Probed::Answered { at, node }), _) => {
            Check::Reachable.at(Level::Error, format!("{at}: another node answers there, {node}"), &[port])
        }
        (Ok(Probed::Silent { .. }), Caller::Relay)
            if expected.is_none() && facts.port_state == PortState::Free =>
        {
            untold("no relay runs here, and without an identity nobody has answered in its place")
        }
        (Ok(Probed::Silent { at }), _) => {
            let but = match by {
                Caller::Relay => "",
                Caller::Agent(_) => "; its connection from before is let through",
            };
            let found = format!(
                "{at}: nobody has answered {caller} there, unless its own firewall keeps it from asking{but}"
            );
            let finding = Check::Reachable.at(Level::Error, found, &[port]);
            Finding { mend: opening(before).or(finding.mend), ..finding }
        }
        (Ok(Probed::Refused), _) => untold(&format!(
            "{caller} does not connect now, or was turned away: it does so a few times for each and for few at once; ask again later"
        )),
        (Ok(Probed::NotKnown | Probed::NotConnected), Caller::Relay) => {
            untold("the relay does not know how to connect back")
        }
        (Ok(Probed::NotKnown), Caller::Agent(_)) => untold(
            "the agent does not know how to: it is of an earlier version or another make, or only a command that dials",
        ),
        (Ok(Probed::NotConnected), Caller::Agent(agent)) => {
            let finding = untold(&format!("no agent {agent} is connected to the relay here"));
            Finding { mend: Some(CONNECTED_AGENTS.to_owned()), ..finding }
        }
        (Err(why), _) => untold(why),
    })
}

/// What lists the agents that can be asked.
const CONNECTED_AGENTS: &str = "atlas-relay net peers   # then name one of them";

/// The command that opens the port, if a firewall of this host is found to keep it out, and not only cannot be told.
fn opening(findings: &[Finding]) -> Option<String> {
    let firewalls = [Check::Firewall, Check::Ufw, Check::Firewalld].map(Check::name);
    let closed = |finding: &&Finding| {
        let of_firewall = finding.level == Level::Warning && firewalls.contains(&finding.check);
        of_firewall && !finding.found.ends_with(WITHOUT_NFT)
    };
    findings.iter().find(closed)?.mend.clone()
}
