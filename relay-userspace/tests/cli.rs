//! The command line, as a user meets it: exit codes, and one line that says what to do.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is a failure")]

#[path = "cli/access.rs"]
mod access;
#[path = "cli/bans.rs"]
mod bans;
#[path = "cli/doctor.rs"]
mod doctor;
#[path = "cli/explain.rs"]
mod explain;
#[path = "cli/logs.rs"]
mod logs;
mod node;
#[path = "cli/secrets.rs"]
mod secrets;
mod skipping;
#[path = "cli/stopping.rs"]
mod stopping;
mod terminal;
#[path = "cli/top.rs"]
mod top;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use node::{BINARY, Finished, Node, free_port, signal, terminate, wait};

const OTHER: &str = "atlas_70b499d01e2464e370b499d01e2464e370b499d01e2464e370b499d01e2464e3";

#[test]
fn an_identity_is_made_once_shown_and_named() {
    let node = Node::new();
    let made = node.run("id init");
    assert_eq!(made.code, 0, "{made:?}");
    let id = made.stdout.lines().next().unwrap().strip_prefix("Node ID  : ").unwrap().to_owned();
    let mode = |path: &str| fs::metadata(node.path(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("keys"), mode("keys/node-key.pem")), (0o700, 0o600));

    let again = node.run("id init");
    again.fails_with(&["node-key.pem exists", "atlas-relay id rotate"]);

    assert_eq!(node.run("id set-name relay-01").code, 0);
    let shown = node.run("id show");
    let [first, second] = shown.stdout.lines().take(2).collect::<Vec<_>>()[..] else { panic!("{shown:?}") };
    assert_eq!(first, format!("Node ID  : {id}"), "the whole: it is for others to type");
    assert_eq!(second, "Name     : relay-01");
    let json: serde_json::Value = serde_json::from_str(&node.run("id show --json").stdout).unwrap();
    assert_eq!((json["node_id"].as_str(), json["name"].as_str()), (Some(id.as_str()), Some("relay-01")));

    node.run_words(&["id", "set-name", "a\u{1b}[2J"]).fails_with(&["1 to 64 bytes of printable text"]);
}

#[test]
fn without_an_identity_every_command_that_needs_one_says_how_to_make_it() {
    let node = Node::new();
    for words in [
        "id show",
        "id set-name x",
        "net listen",
        &format!("net ping {OTHER}"),
        &format!("net connect {OTHER}"),
    ] {
        node.run(words).fails_with(&["no identity", "atlas-relay id init"]);
    }
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let node = Node::with_identity();
    fs::set_permissions(node.path("keys/node-key.pem"), fs::Permissions::from_mode(0o644)).unwrap();
    node.run("id show").fails_with(&["0644", "chmod 600"]);
}

#[test]
fn what_belongs_to_another_user_is_refused_with_that_users_name() {
    if !rustix::process::geteuid().is_root() {
        let name = "what_belongs_to_another_user_is_refused_with_that_users_name";
        return skipping::skip(name, "needs root, to be another user for a while");
    }
    let node = Node::relay();
    // Where an ordinary user can run it.
    let copy = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir().unwrap();
    let program = copy.path().join("atlas-relay");
    fs::copy(BINARY, &program).unwrap();
    let as_nobody = |words: &str| {
        let mut command = Command::new(&program);
        command.args(words.split_whitespace()).env("ATLAS_ROOT", node.path("")).uid(65_534).gid(65_534);
        Finished::of(command.output().unwrap())
    };
    let run_as_root = "belongs to user root: run this as that user, with `sudo -u root`";
    for words in ["id show", "net listen", "net peers", "config check"] {
        as_nobody(words).fails_with(&["ermission denied", run_as_root]);
    }
    // All may get at the directories, and not at what is in them.
    for directory in ["", "keys", "state"] {
        fs::set_permissions(node.path(directory), fs::Permissions::from_mode(0o755)).unwrap();
    }
    as_nobody("id show").fails_with(&["node-key.pem", "; it belongs to user root"]);
    let mut running = node.start("net listen --port 0 --datapath userspace");
    node.until_it_answers("net peers");
    as_nobody("net peers").fails_with(&["admin.sock", "; it belongs to user root"]);
    terminate(&running);
    assert_eq!(wait(&mut running, Duration::from_secs(5)), Some(0));
}

#[test]
fn without_a_root_the_variable_to_set_is_named() {
    let output =
        Command::new(BINARY).args(["id", "show"]).env_remove("ATLAS_ROOT").env_remove("HOME").output();
    Finished::of(output.unwrap()).fails_with(&["ATLAS_ROOT"]);
}

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
    assert_eq!(row("network.bootstrap")[1..], ["(none:", "registers", "nowhere)", "default"]);
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

#[test]
fn an_agent_without_relays_is_told_which_key_to_set() {
    let node = Node::with_identity();
    node.configure("");
    node.run("net listen").fails_with(&["transport.enable_relay = true"]);
    node.configure("[transport]\nenable_relay = true\n");
    node.run("net listen").fails_with(&["network.relays"]);
    node.run(&format!("net ping {OTHER}")).fails_with(&["network.relays"]);
}

#[test]
fn a_relays_own_root_is_no_place_to_connect_from() {
    let node = Node::relay();
    let forward = format!("net forward --listen 127.0.0.1:0 --peer {OTHER} --to 127.0.0.1:80");
    for words in [format!("net ping {OTHER}"), format!("net connect {OTHER}"), forward] {
        node.run(&words).fails_with(&["makes a relay", "an agent's ATLAS_ROOT"]);
    }
}

#[test]
fn a_shortened_id_is_refused_with_where_the_whole_one_is() {
    let refused = Node::new().run("net ping atlas_70b499d01e2464e3...");
    assert_eq!(refused.code, 2);
    assert!(refused.stderr.contains("the full id (atlas-relay id show, or --json)"), "{refused:?}");
}

#[test]
fn without_a_daemon_listings_say_how_to_start_one() {
    let node = Node::with_identity();
    for words in ["net peers", "net sessions --json", "xdp status", "config show --running"] {
        let parts = ["no daemon is running", "another ATLAS_ROOT", "sudo -u", "atlas-relay net listen"];
        node.run(words).fails_with(&parts);
    }
    for words in ["config reload", "stop", "drain", "bans", &format!("net disconnect {OTHER}")] {
        let refused = node.run(words);
        refused.fails_with(&["no daemon is running", "another ATLAS_ROOT"]);
        assert!(!refused.stderr.contains("net listen"), "{refused:?}");
    }
}

#[test]
fn a_command_line_that_is_not_understood_exits_with_2() {
    let node = Node::new();
    for words in [
        "",
        "net",
        "net listen --port 70000",
        "net listen --datapath fast",
        "net ping bob",
        "net ping",
        "net forward --listen 127.0.0.1:1 --peer x --to y",
        "frobnicate",
    ] {
        let refused = node.run(words);
        assert_eq!(refused.code, 2, "{words}: {refused:?}");
        assert!(refused.stdout.is_empty());
    }
}

#[test]
fn a_port_alone_is_no_address_to_listen_on_and_an_example_is_given() {
    let refused = Node::new().run(&format!("net forward --listen 8083 --peer {OTHER} --to 127.0.0.1:80"));
    assert_eq!(refused.code, 2);
    assert!(refused.stderr.contains("expected ADDR:PORT, such as 127.0.0.1:8080"), "{refused:?}");
}

#[test]
fn the_version_names_the_datapaths() {
    let version = Node::new().run("--version").stdout;
    let both = [
        "atlas-relay 0.1.0 (datapaths: xdp-native, xdp-generic, userspace)\n",
        "atlas-relay 0.1.0 (datapaths: userspace; built without the BPF program)\n",
    ];
    assert!(both.contains(&version.as_str()), "{version}");
}

#[test]
fn a_relay_serves_until_sigterm_and_a_second_one_is_told_the_port_is_in_use() {
    let first = Node::relay();
    let port = free_port();
    let mut running = first.start(&format!("net listen --port {port} --datapath userspace"));
    let status = first.until_it_answers("xdp status --json");
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!((status["datapath"].as_str(), status["why"].as_str()), (Some("userspace"), Some("asked for")));
    assert_eq!(first.run("net peers").stdout, "no peers are connected\n");
    assert_eq!(first.run("net sessions --json").stdout, "{\n  \"sessions\": []\n}\n");

    let second = Node::relay();
    let words = format!("net listen --port {port} --datapath userspace");
    second.run(&words).fails_with(&[&format!("0.0.0.0:{port} is in use"), "choose another port"]);
    first
        .run("net listen --port 0 --datapath userspace")
        .fails_with(&["another daemon has the admin socket"]);

    terminate(&running);
    let ended = wait(&mut running, Duration::from_secs(5));
    assert_eq!(ended, Some(0), "an orderly stop");
    assert!(!Path::new(&first.path("state/admin.sock")).exists());
    let log = fs::read_to_string(first.path("log")).unwrap();
    assert!(log.contains("relay listening") && log.contains("relay stopped"), "{log}");
}

#[test]
fn a_relays_port_datapath_tables_readers_and_admin_socket_are_those_of_its_configuration() {
    let node = Node::with_identity();
    let (port, socket) = (free_port(), node.path("elsewhere.sock"));
    node.configure(&format!(
        "[network]\nport = {port}\n[transport]\nenable_relay = true\noffer_relay = true\n\
         [datapath]\nmode = \"userspace\"\nmax_sessions = 100\nreaders = 3\n[admin]\nsocket = \"{socket}\"\n"
    ));
    let mut running = node.start("net listen");
    let status: serde_json::Value =
        serde_json::from_str(&node.until_it_answers("xdp status --json")).unwrap();
    assert_eq!((&status["datapath"], &status["why"]), (&"userspace".into(), &"asked for".into()));
    assert_eq!(status["table"]["max_sessions"], 100);
    assert!(Path::new(&socket).exists() && !Path::new(&node.path("state/admin.sock")).exists());
    let taken = UdpSocket::bind(("0.0.0.0", port)).unwrap_err();
    assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse);
    let families = if UdpSocket::bind("[::]:0").is_ok() { 2 } else { 1 };
    let threads = fs::read_dir(format!("/proc/{}/task", running.id())).unwrap();
    let is_reader = |thread: std::io::Result<fs::DirEntry>| {
        fs::read_to_string(thread.unwrap().path().join("comm")).is_ok_and(|name| name.starts_with("reader-"))
    };
    assert_eq!(threads.filter_map(|thread| is_reader(thread).then_some(())).count(), 3 * families);
    terminate(&running);
    assert_eq!(wait(&mut running, Duration::from_secs(5)), Some(0));
}

#[test]
fn a_killed_relay_leaves_nothing_in_the_way_of_the_next() {
    let node = Node::relay();
    let port = free_port();
    let words = format!("net listen --port {port} --datapath userspace");
    let mut killed = node.start(&words);
    node.until_it_answers("net peers");
    killed.kill().unwrap();
    killed.wait().unwrap();
    node.run("net peers").fails_with(&["no daemon is running"]);
    let mut next = node.start(&words);
    node.until_it_answers("net peers");
    terminate(&next);
    assert_eq!(wait(&mut next, Duration::from_secs(5)), Some(0));
}

#[test]
fn an_interface_that_cannot_take_the_program_is_refused_by_name() {
    let node = Node::relay();
    let port = free_port();
    node.run(&format!("net listen --port {port} --datapath xdp-native --interface no-such-if"))
        .fails_with(&["there is no interface \"no-such-if\""]);
    // Loopback is no Ethernet, so there is nothing to attach to.
    node.run(&format!("net listen --port {port} --datapath xdp-generic --interface lo"))
        .fails_with(&["there is no interface \"lo\" that speaks Ethernet"]);
}

#[test]
fn a_ping_shows_each_answer_as_it_comes_and_sums_up_when_interrupted() {
    let relay = Node::relay();
    let port = free_port();
    let mut relaying = relay.start(&format!("net listen --port {port} --datapath userspace"));
    relay.until_it_answers("net peers");
    let relays = format!("[network]\nrelays = [\"127.0.0.1:{port}\"]\n[transport]\nenable_relay = true\n");
    let (asking, asked) = (Node::with_identity(), Node::with_identity());
    asking.configure(&relays);
    asked.configure(&format!("{relays}[agent]\naccept = [\"{}\"]\n", asking.id()));
    let mut listening = asked.start("net listen");
    relay.until_logged("agent announced");

    let mut pinging = asking
        .command()
        .args(["net", "ping", &asked.id(), "--count", "100000", "--interval-ms", "10"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(pinging.stdout.take().unwrap()).lines().map(Result::unwrap);
    let first: Vec<String> = lines.by_ref().take(6).collect();
    signal(&pinging, "INT");
    let last = lines.last().unwrap();

    let seconds = |line: &str, title: &str| line.strip_prefix(title).unwrap().parse::<u64>().unwrap();
    assert_eq!(first[0], format!("Peer : {}...", &asked.id()[..22]));
    assert_eq!(first[1], "Path : relay");
    assert!(seconds(&first[2], "Ping : ") > 1_712_150_400, "{first:?}");
    assert!(seconds(&first[3], "Pong : ") > 1_712_150_400, "{first:?}");
    assert!(first[4].starts_with("1 of 100000: ") && first[4].ends_with(" ms"), "{first:?}");
    assert!(first[5].starts_with("2 of 100000: "), "{first:?}");
    for part in [" sent, ", "; round trip min ", ", avg ", ", max "] {
        assert!(last.contains(part), "{last}");
    }
    assert_eq!(wait(&mut pinging, Duration::from_secs(5)), Some(0));
    for daemon in [&mut listening, &mut relaying] {
        terminate(daemon);
        assert_eq!(wait(daemon, Duration::from_secs(5)), Some(0));
    }
}

#[test]
fn a_forward_whose_port_is_in_use_says_so_and_dials_nobody() {
    let relay = UdpSocket::bind("127.0.0.1:0").unwrap();
    let agent = Node::with_identity();
    agent.configure(&format!(
        "[network]\nrelays = [\"{}\"]\n[transport]\nenable_relay = true\n",
        relay.local_addr().unwrap()
    ));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    agent
        .run(&format!("net forward --listen 127.0.0.1:{port} --peer {OTHER} --to 127.0.0.1:80"))
        .fails_with(&[&format!("127.0.0.1:{port} is in use"), &format!("ss -tlpn sport = :{port}")]);
    relay.set_nonblocking(true).unwrap();
    let heard = relay.recv_from(&mut [0; 2000]).unwrap_err();
    assert_eq!(heard.kind(), std::io::ErrorKind::WouldBlock, "the relay was dialled");
}

#[test]
fn an_agent_daemon_answers_too_and_stops_on_sigint() {
    let agent = Node::with_identity();
    // Nobody listens there: the agent keeps trying.
    agent.configure(&format!(
        "[network]\nrelays = [\"127.0.0.1:{}\"]\n[transport]\nenable_relay = true\n",
        free_port()
    ));
    let mut running = agent.start("net listen --port 0");
    agent.until_it_answers("net peers --json");
    let sessions = agent.run("net sessions").stdout;
    assert!(sessions.contains("no sessions") && sessions.contains("of their own"), "{sessions}");
    agent.run("xdp status").fails_with(&["this daemon is an agent"]);
    signal(&running, "INT");
    assert_eq!(wait(&mut running, Duration::from_secs(5)), Some(0));
}
