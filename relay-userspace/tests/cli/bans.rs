//! `bans`, as an operator types it.

use super::*;

#[test]
fn bans_are_made_listed_and_lifted() {
    let node = Node::relay();
    let mut running = node.start("net listen --port 0 --datapath userspace");
    assert_eq!(node.until_it_answers("bans"), "nobody is banned\n");

    assert_eq!(
        node.run(&format!("bans add {OTHER}")).stdout,
        format!("{OTHER} may not connect for 60 min\n")
    );
    let added = node.run("bans add 2001:db8::1 --for 3d");
    assert_eq!(added.stdout, "2001:db8::/56 may not connect for 72 h\n");
    assert_eq!(node.run("bans add 192.0.2.1 --for 90").code, 0);

    let listed = node.run("bans").stdout;
    let lines: Vec<Vec<&str>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["WHO", "LEFT", "WHY"]);
    assert_eq!(
        (lines[1][0], &lines[1][3..]),
        (OTHER, &["by", "hand"][..]),
        "the whole id: it is for `bans lift`"
    );
    assert_eq!((lines[2][0], lines[3][0]), ("192.0.2.1", "2001:db8::/56"));
    let columns: Vec<usize> = listed.lines().skip(1).map(|line| line.find("by hand").unwrap()).collect();
    assert_eq!(columns, [columns[0]; 3], "aligned: {listed}");
    let json: serde_json::Value = serde_json::from_str(&node.run("bans --json").stdout).unwrap();
    let kinds: Vec<&str> =
        json["bans"].as_array().unwrap().iter().map(|ban| ban["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["node", "prefix", "prefix"]);
    assert!((85..=90).contains(&json["bans"][1]["left_s"].as_u64().unwrap()), "{json}");

    assert_eq!(node.run("bans lift 2001:db8:0:1::7").stdout, "2001:db8::/56 may connect again\n");
    node.run("bans lift 2001:db8::/56").fails_with(&["2001:db8::/56 is not banned", "atlas-relay bans"]);
    assert_eq!(node.run(&format!("bans lift {OTHER}")).code, 0);
    assert_eq!(node.run("bans").stdout.lines().count(), 2);

    for wrong in ["bans lift relay.example", "bans add 192.0.2.0/24", "bans add 192.0.2.1 --for 1w"] {
        assert_eq!(node.run(wrong).code, 2, "{wrong}");
    }
    terminate(&running);
    assert_eq!(wait(&mut running, Duration::from_secs(5)), Some(0));
    node.run("bans").fails_with(&["no daemon is running here"]);
}

#[test]
fn where_bans_last_no_time_one_by_hand_needs_a_time_and_an_agent_bans_nobody() {
    let node = Node::relay();
    node.configure(
        "[transport]\nenable_relay = true\noffer_relay = true\n[security]\nban_duration_secs = 0\n\
         [datapath]\nmax_sessions = 16\n",
    );
    let mut relaying = node.start("net listen --port 0 --datapath userspace");
    node.until_it_answers("bans");
    node.run("bans add 192.0.2.1").fails_with(&["for how long", "security.ban_duration_secs is 0"]);
    assert_eq!(node.run("bans add 192.0.2.1 --for 1h").code, 0);

    let agent = Node::with_identity();
    let relays = format!("[network]\nrelays = [\"127.0.0.1:{}\"]\n", free_port());
    agent.configure(&format!("{relays}[transport]\nenable_relay = true\n"));
    let mut connecting = agent.start("net listen");
    agent.until_it_answers("net peers");
    agent.run("bans").fails_with(&["this daemon is an agent"]);
    for daemon in [&mut relaying, &mut connecting] {
        terminate(daemon);
        assert_eq!(wait(daemon, Duration::from_secs(5)), Some(0));
    }
}
