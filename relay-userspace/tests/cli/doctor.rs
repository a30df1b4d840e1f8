//! `doctor`, as an operator types it. What is found differs from host to host; how it is told does not.

use std::collections::BTreeMap;
use std::time::Instant;

use relay_userspace::doctor::{Check, Level};
use serde_json::Value;

use super::*;

/// Its report by check, after it has exited with the code of the worst finding.
fn examined(node: &Node, words: &str) -> BTreeMap<String, Vec<Value>> {
    let said = node.run(&format!("doctor --json {words}"));
    let report: Value =
        serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:?}"));
    let mut by_check: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let mut worst = 0;
    for finding in report["findings"].as_array().unwrap() {
        let level = [Level::Ok, Level::Note, Level::Warning, Level::Error]
            .into_iter()
            .find(|level| finding["level"] == level.name())
            .unwrap();
        worst = worst.max(level.exit_code());
        by_check.entry(finding["check"].as_str().unwrap().to_owned()).or_default().push(finding.clone());
    }
    assert_eq!(said.code, i32::from(worst), "{said:?}");
    by_check
}

fn one<'r>(report: &'r BTreeMap<String, Vec<Value>>, check: &Check) -> &'r Value {
    let [finding] = &report[check.name()][..] else { panic!("{}: {report:?}", check.name()) };
    finding
}

#[test]
fn a_relay_that_runs_in_userspace_is_examined_and_found_to_have_its_port() {
    let relay = Node::relay();
    let port = free_port();
    relay.configure(&format!(
        "[network]\nport = {port}\n[transport]\nenable_relay = true\noffer_relay = true\n\
         [datapath]\nmode = \"userspace\"\nmax_sessions = 16\n"
    ));
    let report = examined(&relay, "");
    assert_eq!(one(&report, &Check::Port)["level"], "ok");
    assert_eq!(one(&report, &Check::Datapath)["found"], "userspace: asked for by datapath.mode");
    let mut running = relay.start("net listen");
    relay.until_it_answers("net peers");
    let report = examined(&relay, "");
    assert!(one(&report, &Check::Port)["found"].as_str().unwrap().contains("held by the running relay"));
    assert_eq!(one(&report, &Check::Datapath)["found"], "userspace: the running relay's: asked for");
    assert_eq!(one(&report, &Check::Identity)["found"], relay.id().as_str());
    assert!(one(&report, &Check::Reached)["mend"].as_str().unwrap().contains(&relay.id()));
    let peer = examined(&Node::with_identity(), &format!("--from {}@127.0.0.1:{port}", relay.id()));
    let peer = one(&peer, &Check::Peer);
    assert!(
        peer["level"] == "ok" && peer["found"].as_str().unwrap().contains("a datagram came through"),
        "{peer}"
    );

    // Another relay's host asks this relay whether it is reached itself, before its own relay runs and while it does.
    let other = Node::relay();
    let of_other = free_port();
    other.configure(&format!(
        "[network]\nport = {of_other}\n[transport]\nenable_relay = true\noffer_relay = true\n\
         [datapath]\nmode = \"userspace\"\nmax_sessions = 16\n"
    ));
    let from = format!("--from {}@127.0.0.1:{port}", relay.id());
    let connected_back = format!("127.0.0.1:{of_other}: the relay has connected to this node there");
    assert_eq!(one(&examined(&other, &from), &Check::Reachable)["found"], connected_back.as_str());
    let mut other_running = other.start("net listen");
    other.until_it_answers("net peers");
    assert_eq!(one(&examined(&other, &from), &Check::Reachable)["found"], connected_back.as_str());
    terminate(&other_running);
    assert_eq!(wait(&mut other_running, Duration::from_secs(5)), Some(0));
    terminate(&running);
    assert_eq!(wait(&mut running, Duration::from_secs(5)), Some(0));
}

#[test]
fn a_relays_agent_says_whether_newcomers_reach_it_whoever_asks_the_relay() {
    let relay = Node::relay();
    let port = free_port();
    relay.configure(&format!(
        "[network]\nport = {port}\n[transport]\nenable_relay = true\noffer_relay = true\n\
         [datapath]\nmode = \"userspace\"\nmax_sessions = 16\n"
    ));
    let mut running = relay.start("net listen");
    relay.until_it_answers("net peers");
    let agent = Node::with_identity();
    agent.configure(&format!(
        "[network]\nrelays = [\"127.0.0.1:{port}\"]\n[transport]\nenable_relay = true\n"
    ));
    let mut agent_running = agent.start("net listen");
    agent.until_logged("announced: other agents can find this one there");
    let from = format!("--from {}", agent.id());
    let report = examined(&relay, &from);
    let connected = format!("127.0.0.1:{port}: the agent has connected to this node there");
    assert_eq!(one(&report, &Check::Reachable)["found"], connected.as_str());
    assert!(!report.contains_key(Check::Peer.name()), "no relay was asked: {report:?}");

    // As root has it who has set no more than where the relay's admin socket is.
    let [nobody, somebody_else] = [Node::new(), Node::with_identity()];
    for asker in [&nobody, &somebody_else] {
        fs::create_dir_all(asker.path("state")).unwrap();
        asker.configure(&format!("[admin]\nsocket = \"{}\"\n", relay.path("state/admin.sock")));
        // One at a time: the agent lets go of the one before.
        let found = || one(&examined(asker, &from), &Check::Reachable)["found"].as_str().unwrap().to_owned();
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut said = found();
        while said.contains("ask again") && Instant::now() < deadline {
            said = found();
        }
        assert_eq!(said, connected);
    }

    let absent = examined(&relay, &format!("--from {OTHER}"));
    let absent = one(&absent, &Check::Reachable);
    assert!(
        absent["found"].as_str().unwrap().contains(&format!("no agent {OTHER} is connected")),
        "{absent}"
    );
    assert!(absent["mend"].as_str().unwrap().starts_with("atlas-relay net peers"), "{absent}");
    let no_relay = examined(&agent, &from);
    let no_relay = one(&no_relay, &Check::Reachable)["found"].as_str().unwrap();
    assert!(no_relay.contains("this daemon is an agent"), "{no_relay}");
    terminate(&agent_running);
    assert_eq!(wait(&mut agent_running, Duration::from_secs(5)), Some(0));
    terminate(&running);
    assert_eq!(wait(&mut running, Duration::from_secs(5)), Some(0));
}

#[test]
fn what_is_wrong_is_told_with_what_mends_it() {
    let nobody = Node::new();
    let report = examined(&nobody, "");
    let identity = one(&report, &Check::Identity);
    assert_eq!(
        (identity["level"].as_str(), identity["mend"].as_str()),
        (Some("error"), Some("atlas-relay id init"))
    );
    let relay = Node::relay();
    let report = examined(&relay, "--interface no-such-if");
    assert!(one(&report, &Check::Interface)["found"].as_str().unwrap().contains("no-such-if"));
    let said = relay.run("doctor --interface no-such-if");
    assert!(said.code == 2 && said.stdout.contains("mend: ip -brief link"), "{said:?}");

    let held = UdpSocket::bind("0.0.0.0:0").unwrap();
    let port = held.local_addr().unwrap().port();
    relay.configure(&format!(
        "[network]\nport = {port}\n[transport]\nenable_relay = true\noffer_relay = true\n"
    ));
    let taken = examined(&relay, "");
    assert_eq!(
        one(&taken, &Check::Port)["mend"],
        format!("ss --udp --listening --numeric --processes 'sport = :{port}'")
    );

    let nobodys = examined(&relay, &format!("--from {OTHER}"));
    let nobodys = one(&nobodys, &Check::Reachable);
    assert_eq!(nobodys["level"], "note");
    let found = nobodys["found"].as_str().unwrap();
    assert!(found.contains("no daemon is running here") && found.contains("NODE@HOST:PORT"), "{found}");

    let other = format!("--from {OTHER}@127.0.0.1:{}", free_port());
    let peer = examined(&relay, &other);
    assert_eq!(one(&peer, &Check::Peer)["level"], "error", "{peer:?}");
}

#[test]
fn all_that_is_looked_at_is_listed() {
    let said = Node::new().run("doctor --list");
    assert_eq!(said.code, 0);
    for check in Check::ALL {
        assert!(
            said.stdout.contains(&format!("{}, {} at worst: ", check.name(), check.worst().name())),
            "{said:?}"
        );
        assert!(said.stdout.contains(check.mend()));
    }
    let json: Value = serde_json::from_str(&Node::new().run("doctor --list --json").stdout).unwrap();
    assert_eq!(json.as_array().unwrap().len(), Check::ALL.len());
}
