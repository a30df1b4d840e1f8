use serde_json::json;

use super::*;

const NEWCOMER: Newcomer<'static> = Newcomer { port: 4433, interface: Some("eth0") };

/// As nft prints them: a chain `input` of this policy, a chain `services` that accepts the ports from 4000 to 4500, and a set
/// `ports` with 22 and 4433.
fn ruleset(policy: &str, rules: &[Value]) -> Ruleset {
    let place = json!({ "family": "inet", "table": "filter" });
    let with = |more: Value| {
        let mut object = place.clone();
        object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        object
    };
    let rule = |chain: &str, parts: &Value| json!({ "rule": with(json!({ "chain": chain, "expr": parts })) });
    let mut objects = vec![
        json!({ "metainfo": { "json_schema_version": 1 } }),
        json!({ "table": { "family": "inet", "name": "filter" } }),
        json!({ "set": with(json!({ "name": "ports", "elem": [22, { "elem": { "val": 4433 } }] })) }),
        json!({ "chain": with(json!({ "name": "input", "hook": "input", "policy": policy })) }),
        json!({ "chain": with(json!({ "name": "services" })) }),
        rule("services", &json!([dport(json!({ "range": [4000, 4500] })), { "accept": null }])),
    ];
    objects.extend(rules.iter().map(|parts| rule("input", parts)));
    Ruleset::parse(&json!({ "nftables": objects }).to_string()).unwrap()
}

fn dport(right: Value) -> Value {
    matching(json!({ "payload": { "protocol": "udp", "field": "dport" } }), "==", right)
}

fn matching(left: Value, op: &str, right: Value) -> Value {
    json!({ "match": { "op": op, "left": left, "right": right } })
}

fn meta(key: &str, op: &str, right: Value) -> Value {
    matching(json!({ "meta": { "key": key } }), op, right)
}

/// What the chain does with the port.
fn fate(policy: &str, rules: &[Value]) -> PortFate {
    let [chain] = ruleset(policy, rules).input_chains(NEWCOMER).try_into().unwrap();
    assert_eq!((&*chain.family, &*chain.table, &*chain.name), ("inet", "filter", "input"));
    chain.port
}

#[test]
fn a_chain_without_rules_does_what_its_policy_says() {
    assert_eq!(fate("accept", &[]), PortFate::Accepted);
    assert_eq!(fate("drop", &[]), PortFate::Dropped);
}

#[test]
fn a_rule_for_the_port_lets_it_in_however_it_is_written() {
    let state = json!({ "ct": { "key": "state" } });
    let vmap = |key: Value, pairs: Value| json!({ "vmap": { "key": key, "data": { "set": pairs } } });
    let port = json!({ "payload": { "protocol": "th", "field": "dport" } });
    for parts in [
        json!([dport(json!(4433)), { "counter": { "packets": 0, "bytes": 0 } }, { "accept": null }]),
        json!([dport(json!({ "set": [53, { "range": [4000, 5000] }] })), { "accept": null }]),
        json!([dport(json!("@ports")), { "accept": null }]),
        json!([meta("l4proto", "==", json!({ "set": ["tcp", "udp"] })), dport(json!(4433)), { "accept": null }]),
        json!([matching(state.clone(), "in", json!(["new", "untracked"])), dport(json!(4433)), { "accept": null }]),
        json!([meta("iifname", "==", json!("eth0")), dport(json!(4433)), { "accept": null }]),
        json!([meta("iifname", "!=", json!("lo")), dport(json!(4433)), { "accept": null }]),
        json!([{ "jump": { "target": "services" } }]),
        json!([{ "goto": { "target": "services" } }]),
        json!([vmap(port, json!([[53, { "drop": null }], [4433, { "jump": { "target": "services" } }]]))]),
        json!([
            matching(json!({ "fib": { "result": "type", "flags": ["daddr"] } }), "==", json!("local")),
            dport(json!(4433)),
            { "accept": null }
        ]),
    ] {
        let established = json!([vmap(
            state.clone(),
            json!([["established", { "accept": null }], ["invalid", { "drop": null }]])
        )]);
        assert_eq!(fate("drop", &[established, parts.clone()]), PortFate::Accepted, "{parts}");
    }
}

#[test]
fn rules_for_others_do_not_let_it_in() {
    let tcp = |field: &str| json!({ "payload": { "protocol": "tcp", "field": field } });
    for parts in [
        json!([dport(json!(443)), { "accept": null }]),
        json!([matching(tcp("dport"), "==", json!(4433)), { "accept": null }]),
        json!([matching(tcp("dport"), "!=", json!(22)), { "accept": null }]),
        json!([matching(json!({ "&": [tcp("flags"), ["syn", "ack"]] }), "==", json!("syn")), { "accept": null }]),
        json!([meta("iifname", "==", json!("lo")), { "accept": null }]),
        json!([meta("l4proto", "==", json!({ "set": ["icmp", "ipv6-icmp"] })), { "accept": null }]),
        json!([matching(json!({ "ct": { "key": "state" } }), "in", json!(["established", "related"])), { "accept": null }]),
        json!([matching(json!({ "ct": { "key": "status" } }), "in", json!("dnat")), { "accept": null }]),
        json!([{ "jump": { "target": "nothing" } }]),
        json!([{ "return": null }]),
    ] {
        assert_eq!(fate("drop", std::slice::from_ref(&parts)), PortFate::Dropped, "{parts}");
    }
}

#[test]
fn a_rule_that_drops_before_or_rejects_at_the_end_keeps_it_out_whatever_the_policy() {
    let accept = json!([dport(json!(4433)), { "accept": null }]);
    let drop = json!([dport(json!("@ports")), { "drop": null }]);
    assert_eq!(fate("accept", &[drop.clone(), accept.clone()]), PortFate::Dropped);
    assert_eq!(fate("drop", &[accept, drop]), PortFate::Accepted);
    let reject = json!([{ "reject": { "type": "icmpx", "expr": "admin-prohibited" } }]);
    assert_eq!(fate("accept", &[reject]), PortFate::Dropped);
}

#[test]
fn what_some_may_do_is_told_from_what_everybody_may() {
    let from = matching(
        json!({ "payload": { "protocol": "ip", "field": "saddr" } }),
        "==",
        json!({ "prefix": { "addr": "10.0.0.0", "len": 8 } }),
    );
    let accept = json!([dport(json!(4433)), { "accept": null }]);
    for some in [
        json!([from, dport(json!(4433)), { "accept": null }]),
        json!([dport(json!(4433)), { "limit": { "rate": 10, "per": "second" } }, { "accept": null }]),
        json!([meta("iifname", "==", json!("wg0")), { "accept": null }]),
        json!([{ "xt": { "type": "match", "name": "addrtype" } }, { "accept": null }]),
        json!([{ "xt": { "type": "target", "name": "OTHER" } }]),
        json!([dport(json!("@unknown")), { "accept": null }]),
    ] {
        assert_eq!(fate("drop", std::slice::from_ref(&some)), PortFate::SomeAccepted, "{some}");
    }
    let some_dropped = json!([from, { "drop": null }]);
    assert_eq!(fate("drop", &[some_dropped.clone(), accept]), PortFate::Accepted);
    assert_eq!(fate("accept", &[some_dropped]), PortFate::Accepted);
}

#[test]
fn chains_that_lead_in_a_circle_come_to_an_end() {
    let circle = json!([{ "jump": { "target": "input" } }]);
    assert_eq!(fate("drop", &[circle]), PortFate::SomeAccepted);
}

#[test]
fn rules_that_keep_connections_of_both_families_from_being_tracked_are_found() {
    let untracked = |families: &[&str], parts: Value| {
        let mut all = Vec::new();
        for family in families {
            all.push(
                json!({ "chain": { "family": family, "table": "t", "name": "raw", "hook": "prerouting" } }),
            );
            all.push(json!({ "rule": { "family": family, "table": "t", "chain": "raw", "expr": parts } }));
        }
        let all = json!({ "nftables": all });
        Ruleset::parse(&all.to_string()).unwrap().leaves_untracked(NEWCOMER)
    };
    let notrack = json!([dport(json!(4433)), { "notrack": null }]);
    assert_eq!(untracked(&["inet"], notrack.clone()), Some(true));
    assert_eq!(untracked(&["ip", "ip6"], notrack.clone()), Some(true));
    assert_eq!(untracked(&["ip"], notrack), Some(false), "IPv6 is tracked");
    assert_eq!(untracked(&["inet"], json!([dport(json!(443)), { "notrack": null }])), Some(false));
    assert_eq!(untracked(&["inet"], json!([dport(json!(4433)), { "accept": null }])), Some(false));
    let of_iptables = json!([dport(json!(4433)), { "xt": { "type": "target", "name": "CT" } }]);
    assert_eq!(untracked(&["ip", "ip6"], of_iptables.clone()), None, "it is not shown what CT does");
    assert_eq!(untracked(&["ip"], of_iptables), Some(false));
}

#[test]
fn what_is_not_nfts_is_refused() {
    assert!(Ruleset::parse("flush ruleset").is_err() && Ruleset::parse("{}").is_err());
    let odd = r#"{"nftables": [1, {"chain": 7}, {"rule": {"expr": "x"}}, {"chain": {"hook": "input"}}]}"#;
    assert_eq!(Ruleset::parse(odd).unwrap().input_chains(NEWCOMER), []);
}
