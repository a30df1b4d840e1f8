//! `stop` and `drain`, as an operator or a unit types them.

use super::*;

const LISTEN: &str = "net listen --port 0 --datapath userspace";

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn a_relay_that_is_stopped_is_gone_when_the_command_returns() {
    let node = Node::relay();
    let mut running = node.start(LISTEN);
    node.until_it_answers("net peers");
    let stopped = node.run("stop");
    assert_eq!((stopped.code, stopped.stdout.as_str()), (0, "Stopped\n"), "{stopped:?}");
    node.run("net peers").fails_with(&["no daemon is running here"]);
    assert_eq!(wait(&mut running, PATIENCE), Some(0));
    node.run("stop").fails_with(&["no daemon is running here"]);
    assert_eq!(node.run("stop --unit a.service").code, 2, "a unit is for --unless-restarting");
}

#[test]
fn an_agent_is_neither_stopped_nor_drained_by_a_relays_commands() {
    let agent = Node::with_identity();
    let relays = format!("[network]\nrelays = [\"127.0.0.1:{}\"]\n", free_port());
    agent.configure(&format!("{relays}[transport]\nenable_relay = true\n"));
    let mut running = agent.start("net listen");
    agent.until_it_answers("net peers");
    agent.run("stop").fails_with(&["this daemon is an agent", "SIGTERM", "systemctl stop atlas-agent"]);
    agent.run("drain").fails_with(&["this daemon is an agent"]);
    terminate(&running);
    assert_eq!(wait(&mut running, PATIENCE), Some(0));
}

/// What a unit's ExecStop= comes to where systemctl is this script.
fn exec_stop(node: &Node, systemctl: &str) -> Finished {
    let directory = node.path("bin");
    fs::create_dir_all(&directory).unwrap();
    let program = Path::new(&directory).join("systemctl");
    fs::write(&program, format!("#!/bin/sh\n{systemctl}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = node.command();
    command.env("PATH", format!("{directory}:{}", std::env::var("PATH").unwrap()));
    command.args(["stop", "--unless-restarting", "--unit", "relay.service"]);
    Finished::of(command.output().unwrap())
}

#[test]
fn a_units_exec_stop_stops_the_relay_when_the_unit_stops_and_leaves_it_alone_otherwise() {
    let node = Node::relay();
    let mut running = node.start(LISTEN);
    node.until_it_answers("net peers");
    let exec_stop = |systemctl: &str| exec_stop(&node, systemctl);
    for (systemctl, said) in [
        ("echo '7 relay.service restart running'", "relay.service restarts: its sessions go on"),
        ("echo '7 other.service stop running'", "cannot tell whether relay.service stops or restarts"),
        ("echo 'no bus' >&2; exit 1", "no bus"),
        ("test \"$1\" = list-jobs || echo '7 relay.service stop running'", "cannot tell"),
    ] {
        let left_alone = exec_stop(systemctl);
        assert!(left_alone.code == 0 && left_alone.stdout.contains(said), "{systemctl}: {left_alone:?}");
        assert_eq!(node.run("net peers").code, 0, "{systemctl}: it runs on");
    }
    let stop = "echo '7 relay.service stop running'";
    let stopped = exec_stop(stop);
    assert_eq!((stopped.code, stopped.stdout.as_str()), (0, "Stopped\n"), "{stopped:?}");
    assert_eq!(wait(&mut running, PATIENCE), Some(0));
    let gone = exec_stop(stop);
    let nobody = format!("no relay is running: nothing answers at {}\n", node.path("state/admin.sock"));
    assert_eq!((gone.code, gone.stdout.as_str()), (0, nobody.as_str()), "{gone:?}");
}

#[test]
fn a_relay_whose_configuration_has_become_unsound_is_found_by_every_command_and_stopped() {
    let node = Node::relay();
    let mut running = node.start(LISTEN);
    node.until_it_answers("net peers");
    let path = node.path("state/config.toml");
    let sound = fs::read_to_string(&path).unwrap();
    for unsound in [format!("{sound}\n[transport]\n"), "[network]\nport = \"none\"\n".to_owned()] {
        fs::write(&path, unsound).unwrap();
        for words in ["xdp status", "net peers", "net sessions", "bans", "config show --running"] {
            let answered = node.run(words);
            let warned = answered.stderr.starts_with(&format!("warning: {path}:"));
            assert!(answered.code == 0 && warned && !answered.stdout.is_empty(), "{words}: {answered:?}");
        }
    }
    let stopped = exec_stop(&node, "echo '7 relay.service stop running'");
    assert_eq!((stopped.code, stopped.stdout.as_str()), (0, "Stopped\n"), "{stopped:?}");
    assert_eq!(wait(&mut running, PATIENCE), Some(0));
}

#[test]
fn a_hint_that_leads_back_to_the_relay_itself_is_refused_whatever_node_it_names() {
    let (node, port) = (Node::relay(), free_port());
    let config = fs::read_to_string(node.path("state/config.toml")).unwrap();
    node.configure(&format!("{config}[network]\nadvertise = [\"198.51.100.7:443\"]\n"));
    let mut running = node.start(&format!("net listen --port {port} --datapath userspace"));
    node.until_it_answers("net peers");
    for own in [&format!("127.0.0.1:{port}"), "198.51.100.7:443"] {
        let hint = format!("drain --hint {OTHER}@{own}");
        node.run(&hint).fails_with(&[&format!("{own} is an address of this relay"), &node.id()]);
    }
    assert!(!node.run("xdp status").stdout.contains("Draining"), "it goes on");
    let other_port = format!("drain --hint {OTHER}@198.51.100.7:444");
    assert_eq!(node.run(&other_port).code, 0);
    assert_eq!(wait(&mut running, PATIENCE), Some(0));
}

#[test]
fn a_relay_that_nobody_uses_is_drained_at_once_and_ends_without_a_fault() {
    for format in ["", " --json"] {
        let node = Node::relay();
        let mut running = node.start(LISTEN);
        node.until_it_answers("net peers");
        let itself = format!("{}@192.0.2.1:4433", node.id());
        node.run(&format!("drain --hint {itself}")).fails_with(&[&itself, "is this relay itself"]);
        assert_eq!(node.run("net sessions").stdout, "the running daemon has no sessions\n");
        let hint = format!("{OTHER}@192.0.2.1:4433");
        let drained = node.run(&format!("drain --deadline 10m --hint {hint}{format}"));
        assert_eq!(drained.code, 0, "{drained:?}");
        if format.is_empty() {
            let lines: Vec<&str> = drained.stdout.lines().collect();
            assert_eq!(
                [lines[0], lines[lines.len() - 1]],
                [
                    "Draining : 0 sessions left; it stops in 10 min at the latest",
                    "Drained  : the relay has stopped"
                ]
            );
        } else {
            let lines: Vec<serde_json::Value> =
                drained.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            let (first, last) = (&lines[0], &lines[lines.len() - 1]);
            assert_eq!(
                (&first["sessions"], &first["left_s"], &first["stopped"]),
                (&0.into(), &600.into(), &false.into())
            );
            assert_eq!((&first["hint"], &last["stopped"]), (&hint.into(), &true.into()));
        }
        assert_eq!(wait(&mut running, PATIENCE), Some(0));
        node.run("drain").fails_with(&["no daemon is running here"]);
    }
    let node = Node::relay();
    for wrong in ["--hint 192.0.2.1:4433", "--hint relay", "--deadline soon", "--deadline 0"] {
        assert_eq!(node.run(&format!("drain {wrong}")).code, 2, "{wrong}");
    }
}
