//! The configuration file: checked, shown, and read again beside a daemon that runs.

use super::*;

#[test]
fn without_a_configuration_the_file_to_make_is_named() {
    let node = Node::with_identity();
    let path = node.path("state/config.toml");
    node.run("net listen").fails_with(&[&path, "no such file"]);
    node.run("config check").fails_with(&[&path, "no such file"]);
}

#[test]
fn a_faulty_configuration_names_file_line_key_and_what_was_expected() {
    let node = Node::with_identity();
    node.configure("[transport]\nenable_relay = true\nidle_timout = 3\n");
    let path = node.path("state/config.toml");
    for words in ["config check", "net listen", "net peers"] {
        node.run(words).fails_with(&[&format!(
            "{path}:3: transport.idle_timout: unknown key; did you mean idle_timeout?"
        )]);
    }
    let elsewhere = node.path("other.toml");
    fs::write(&elsewhere, "[network]\nport = \"x\"\n").unwrap();
    node.run_words(&["config", "check", &elsewhere])
        .fails_with(&[&format!("{elsewhere}:2: network.port: expected a UDP port"), "not the text \"x\""]);
}

#[test]
fn a_sound_configuration_is_told_with_its_warnings() {
    let node = Node::with_identity();
    node.configure("[transport]\nenable_relay = true\noffer_relay = true\n[agent]\npacing = true\n");
    let checked = node.run("config check");
    assert_eq!(checked.code, 0);
    assert!(checked.stdout.contains("config.toml:5: agent.pacing: no effect"), "{checked:?}");
    assert!(checked.stdout.contains("it makes a relay"), "{checked:?}");
}

#[test]
fn every_value_in_effect_is_shown_with_where_it_comes_from() {
    let node = Node::with_identity();
    node.configure(&format!(
        "[transport]\nenable_relay = true\noffer_relay = true\n[access]\ndeny = [\"{OTHER}\", \"{OTHER}\"]\n\
         [agent]\npacing = false\n[datapath]\nmax_sessions = 16\n"
    ));
    let file = node.path("state/config.toml");
    let shown = node.run("config show");
    let rows: Vec<Vec<&str>> = shown.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["KEY", "VALUE", "FROM"]);
    let row =
        |key: &str| rows.iter().find(|row| row[0] == key).unwrap_or_else(|| panic!("no {key}: {shown:?}"));
    assert_eq!(row("network.port")[1..], ["4433", "default"]);
    assert_eq!(row("network.bootstrap")[1..], ["(none:", "this", "node", "registers", "nowhere)", "default"]);
    assert!(shown.stdout.contains("(none: those of the default routes)"), "{shown:?}");
    assert_eq!(row("transport.offer_relay")[1..], ["true", &format!("{file}:3")]);
    assert_eq!(row("quotas.connections_per_prefix")[1..], ["100", "default"], "it follows from another");
    assert_eq!(row("access.deny")[1..], [OTHER, &format!("{file}:5")]);
    let deny = rows.iter().position(|row| row[0] == "access.deny").unwrap();
    assert_eq!(rows[deny + 1], [OTHER], "one item a line");
    assert!(!rows.iter().any(|row| row[0] == "agent.pacing"), "it has no effect on a relay");
    let column = |line: &str, word: &str| line.find(word).unwrap();
    let header = shown.stdout.lines().next().unwrap();
    let port = shown.stdout.lines().find(|line| line.contains("network.port")).unwrap();
    assert_eq!(column(header, "VALUE"), column(port, "4433"));
    assert_eq!(column(header, "FROM"), column(port, "default"));

    let mut running = node.start("net listen --port 0 --datapath userspace --bootstrap 127.0.0.1:9");
    node.until_it_answers("net peers");
    node.configure(
        "# Two more lines.\n\n[transport]\nenable_relay = true\noffer_relay = true\nidle_timeout = 60\n\
         relay_bandwidth_limit = 5\n[datapath]\nmax_sessions = 16\n",
    );
    assert_eq!(node.run("config reload").code, 0);
    let shown = node.run("config show --running --json");
    let shown: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
    let setting = |key: &str| {
        let of_key = |setting: &&serde_json::Value| setting["key"] == key;
        let setting = shown.as_array().unwrap().iter().find(of_key).unwrap_or_else(|| panic!("no {key}"));
        (setting["value"].clone(), setting["origin"].as_str().unwrap().to_owned())
    };
    assert_eq!(setting("network.port"), (0.into(), "command line".to_owned()));
    assert_eq!(setting("network.bootstrap"), (vec!["127.0.0.1:9"].into(), "command line".to_owned()));
    assert_eq!(setting("datapath.mode"), ("userspace".into(), "command line".to_owned()));
    assert_eq!(setting("transport.relay_bandwidth_limit"), (5.into(), format!("{file}:7")), "applied");
    assert_eq!(setting("transport.idle_timeout"), (300.into(), "default".to_owned()), "needs a restart");
    assert_eq!(setting("access.deny").1, "default", "no more in the file");
    let named = node.run("id set-name relay-02");
    assert!(named.stdout.contains("until it is started again"), "{named:?}");
    terminate(&running);
    assert_eq!(wait(&mut running, Duration::from_secs(5)), Some(0));
    assert_eq!(node.run("id set-name relay-03").stdout, "Name     : relay-03\n");

    node.configure("[network]\nport = 0\n");
    assert_eq!(
        node.run("id set-name relay-04").stdout,
        "Name     : relay-04\n",
        "whatever is wrong with that"
    );
    node.run("config show").fails_with(&[&format!("{file}:2: network.port: expected a UDP port")]);
}

#[test]
fn what_a_daemon_would_trip_over_is_told_by_the_check() {
    let node = Node::relay();
    assert_eq!(node.run("config check").code, 0);
    node.configure(
        "[transport]\nenable_relay = true\noffer_relay = true\n[datapath]\ninterfaces = [\"no-such-if\"]\n",
    );
    node.run("config check").fails_with(&["datapath.interfaces", "there is no interface \"no-such-if\""]);
    fs::remove_file(node.path("keys/node-key.pem")).unwrap();
    node.run("config check").fails_with(&["atlas-relay id init", "\"no-such-if\""]);

    let agent = Node::with_identity();
    agent.configure("");
    agent.run("config check").fails_with(&["transport.enable_relay = true"]);
    // Longer than a label of a name can be: no server has to be asked.
    let nowhere = "x".repeat(64);
    let relays = |relays: &str| format!("[network]\nrelays = [{relays}]\n[transport]\nenable_relay = true\n");
    agent.configure(&relays(&format!("\"127.0.0.1:4433\", \"{nowhere}:4433\"")));
    agent.run("config check").fails_with(&["network.relays", &nowhere, "does not resolve"]);
    agent.configure(&format!(
        "[network]\nrelays = [\"127.0.0.1:4433\"]\nbootstrap = [\"{nowhere}:4433\"]\n[transport]\nenable_relay = true\n"
    ));
    agent.run("config check").fails_with(&["network.bootstrap", &nowhere, "does not resolve"]);
    agent.configure(&relays("\"127.0.0.1:4433\", \"[::1]:4433\""));
    assert_eq!(agent.run("config check").code, 0);
}

#[test]
fn a_relay_reads_its_configuration_again_when_asked_or_at_sighup() {
    let node = Node::relay();
    let relay = |more: &str| {
        let relay = "[transport]\nenable_relay = true\noffer_relay = true\n";
        node.configure(&format!("{relay}{more}\n[datapath]\nmax_sessions = 16\n"));
    };
    let mut running = node.start("net listen --port 0 --datapath userspace");
    node.until_it_answers("net peers");
    assert_eq!(node.run("config reload").stdout, "nothing has changed\n");

    relay("relay_bandwidth_limit = 2000000\nidle_timeout = 60");
    assert_eq!(
        node.run("config reload").stdout,
        "applied: transport.relay_bandwidth_limit: 1048576 -> 2000000\n\
         needs a restart: transport.idle_timeout: 300 -> 60\n"
    );
    let again: serde_json::Value = serde_json::from_str(&node.run("config reload --json").stdout).unwrap();
    assert_eq!(again["applied"], serde_json::json!([]), "it is in effect");
    assert_eq!(again["needs_restart"][0]["key"], "transport.idle_timeout", "it is not yet");

    let mode = |mode: &str| {
        node.configure(&format!(
            "[transport]\nenable_relay = true\noffer_relay = true\nrelay_bandwidth_limit = 2000000\n\
             [datapath]\nmax_sessions = 16\nmode = \"{mode}\"\n"
        ));
        node.run("config reload").stdout
    };
    assert_eq!(
        mode("auto"),
        "overridden: datapath.mode: userspace, by --datapath of the daemon's command line; the file's auto has no effect\n"
    );
    assert_eq!(mode("userspace"), "nothing has changed\n", "both say the same");

    relay("relay_bandwidth_limit = 3000000");
    signal(&running, "HUP");
    node.until_logged("key=\"transport.relay_bandwidth_limit\" from=\"2000000\" to=\"3000000\"");

    relay("relay_bandwidth_limit = -1");
    let fault = format!("{}:4: transport.relay_bandwidth_limit", node.path("state/config.toml"));
    node.run("config reload").fails_with(&[&fault]);
    signal(&running, "HUP");
    node.until_logged(&fault);
    relay("relay_bandwidth_limit = 3000000");
    assert_eq!(node.run("config reload").stdout, "nothing has changed\n", "the bad file has changed nothing");

    terminate(&running);
    assert_eq!(wait(&mut running, Duration::from_secs(5)), Some(0));
}

#[test]
fn an_agent_reads_its_configuration_again_too() {
    let agent = Node::with_identity();
    let relays =
        format!("[network]\nrelays = [\"127.0.0.1:{}\"]\n[transport]\nenable_relay = true\n", free_port());
    agent.configure(&relays);
    let mut running = agent.start("net listen");
    agent.until_it_answers("net peers");
    agent.configure(&format!("{relays}[agent]\naccept = [\"{OTHER}\"]\n"));
    assert_eq!(agent.run("config reload").stdout, format!("applied: agent.accept: (nothing) -> {OTHER}\n"));
    assert_eq!(agent.run("config reload").stdout, "nothing has changed\n");
    let paced = "pacing = false\necn = false";
    agent.configure(&format!("{relays}[agent]\naccept = [\"{OTHER}\"]\n{paced}\n"));
    let needed = "needs a restart: agent.pacing: true -> false\nneeds a restart: agent.ecn: true -> false\n";
    for _ in 0..2 {
        assert_eq!(agent.run("config reload").stdout, needed, "each time, for it is in effect at no time");
    }
    agent.configure(&format!("{relays}[agent]\n{paced}\n"));
    let applied = format!("applied: agent.accept: {OTHER} -> (nothing)\n{needed}");
    assert_eq!(agent.run("config reload").stdout, applied);
    agent.configure(&relays);
    assert_eq!(agent.run("config reload").stdout, "nothing has changed\n", "changed back");
    agent.configure("[network]\nrelays = [\"127.0.0.1:1\", 5]\n");
    signal(&running, "HUP");
    agent.until_logged("config.toml:2: network.relays");
    terminate(&running);
    assert_eq!(wait(&mut running, Duration::from_secs(5)), Some(0));
}

#[test]
fn a_file_that_makes_a_daemon_something_else_changes_nothing_until_a_restart() {
    let node = Node::relay();
    let mut running = node.start("net listen --port 0 --datapath userspace");
    node.until_it_answers("net peers");
    node.configure(&format!(
        "[network]\nrelays = [\"127.0.0.1:1\"]\n[transport]\nenable_relay = true\n[agent]\naccept = [\"{OTHER}\"]\n"
    ));
    let told = node.run("config reload").stdout;
    assert!(told.contains("needs a restart: transport.offer_relay: true -> false\n"), "{told}");
    assert!(told.contains("needs a restart: transport.relay_bandwidth_limit: "), "{told}");
    assert!(!told.contains("applied"), "{told}");
    assert_eq!(node.run("config reload").stdout, told, "it still needs a restart");
    terminate(&running);
    assert_eq!(wait(&mut running, Duration::from_secs(5)), Some(0));
}

#[test]
fn a_hangup_while_a_daemon_starts_does_not_kill_it() {
    let relay = "[transport]\nenable_relay = true\noffer_relay = true\n[datapath]\nmax_sessions = 16\n";
    let agent = "[network]\nrelays = [\"127.0.0.1:1\"]\n[transport]\nenable_relay = true\n";
    for (words, configuration) in [("net listen --port 0 --datapath userspace", relay), ("net listen", agent)]
    {
        let node = Node::with_identity();
        // The first thing a daemon reads after its key; it waits here for what a pipe brings.
        let path = node.path("state/config.toml");
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        let mut running = node.start(words);
        let mut pipe = fs::OpenOptions::new().write(true).open(&path).unwrap();
        signal(&running, "HUP");
        fs::remove_file(&path).unwrap();
        node.configure(configuration);
        pipe.write_all(configuration.as_bytes()).unwrap();
        drop(pipe);
        node.until_it_answers("net peers");
        node.until_logged("configuration reloaded: nothing has changed");
        terminate(&running);
        assert_eq!(wait(&mut running, Duration::from_secs(5)), Some(0));
    }
}

#[test]
fn a_configuration_that_hangs_keeps_a_daemon_neither_from_answering_nor_from_stopping() {
    let relay = "[transport]\nenable_relay = true\noffer_relay = true\n[datapath]\nmax_sessions = 16\n";
    let agent = "[network]\nrelays = [\"127.0.0.1:1\"]\n[transport]\nenable_relay = true\n";
    for (words, configuration) in [("net listen --port 0 --datapath userspace", relay), ("net listen", agent)]
    {
        let node = Node::with_identity();
        node.configure(configuration);
        let mut running = node.start(words);
        node.until_it_answers("net peers");
        let path = node.path("state/config.toml");
        // In the pipe's place comes a file again at once, for those who ask where the daemon is.
        fs::remove_file(&path).unwrap();
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        signal(&running, "HUP");
        let pipe = fs::OpenOptions::new().write(true).open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        node.configure(configuration);
        node.until_it_answers("net sessions");
        terminate(&running);
        assert_eq!(wait(&mut running, Duration::from_secs(5)), Some(0));
        drop(pipe);
    }
}
