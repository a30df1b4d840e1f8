//! `[access]`, as an operator changes it while the relay runs.

use super::*;

#[test]
fn a_node_that_a_reload_denies_is_not_let_in_any_more_and_one_that_it_permits_is() {
    let relay = Node::relay();
    let port = free_port();
    let mut running = relay.start(&format!("net listen --port {port} --datapath userspace"));
    relay.until_it_answers("net peers");
    let agent = Node::with_identity();
    agent.configure(&format!(
        "[network]\nrelays = [\"127.0.0.1:{port}\"]\n[transport]\nenable_relay = true\n"
    ));
    let connect = format!("net connect {OTHER}");
    let not_let_in = ["this relay does not serve this node"];
    let is_let_in = || {
        let said = agent.run(&connect);
        assert!(said.code == 1 && !said.stderr.contains(not_let_in[0]), "{said:?}");
    };
    is_let_in();

    let configure = |access: &str| {
        relay.configure(&format!(
            "[transport]\nenable_relay = true\noffer_relay = true\n[datapath]\nmax_sessions = 16\n[access]\n{access}\n"
        ));
        relay.run("config reload").stdout
    };
    let reloaded = configure(&format!("deny = [\"{}\"]", agent.id()));
    assert!(reloaded.starts_with("applied: access.deny"), "{reloaded}");
    agent.run(&connect).fails_with(&not_let_in);
    configure(&format!("allow = [\"{OTHER}\"]"));
    agent.run(&connect).fails_with(&not_let_in);
    configure(&format!("allow = [\"{OTHER}\", \"{}\"]", agent.id()));
    is_let_in();
    terminate(&running);
    assert_eq!(wait(&mut running, Duration::from_secs(5)), Some(0));
}
