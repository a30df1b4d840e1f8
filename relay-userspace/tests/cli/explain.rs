//! `explain`, as an operator types it.

use super::*;

const ASK: &str = "explain 192.0.2.7:40001 192.0.2.1:4433";

#[test]
fn a_packet_of_nobody_is_explained_by_a_relay_without_an_xdp_program() {
    let relay = Node::relay();
    let mut running = relay.start("net listen --port 0 --datapath userspace");
    relay.until_it_answers("net peers");
    let said = relay.run(ASK);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.stdout.contains("192.0.2.7:40001 > 192.0.2.1:4433, 1200 bytes of UDP payload"), "{said:?}");
    assert!(said.stdout.contains("Forwarder : pass: no_flow: No session"), "{said:?}");
    assert!(!said.stdout.contains("Program"), "{said:?}");
    assert!(said.stdout.contains("Relay     : does not listen there: its port is "), "{said:?}");
    let json: serde_json::Value = serde_json::from_str(&relay.run(&format!("{ASK} --json")).stdout).unwrap();
    assert_eq!((json["forwarder"]["reason"].as_str(), json["session"].is_null()), (Some("no_flow"), true));

    let (_, port) = said.stdout.split_once("its port is ").unwrap();
    let port = port.lines().next().unwrap();
    let said = relay.run(&format!("explain 192.0.2.7:40001 192.0.2.1:{port}"));
    assert!(said.stdout.contains("192.0.2.1 is none of this host's addresses"), "{said:?}");
    let said = relay.run(&format!("explain 192.0.2.7:40001 127.0.0.1:{port}"));
    assert!(!said.stdout.contains("does not listen"), "{said:?}");

    let capture = relay.path("frame.hex");
    let other = [
        "02:00:00:00:00:01 02:00:00:00:00:02 0800 4500001c 00004000 40110000 c0000208 c0000201 9c41 1151 0008 0000",
    ];
    fs::write(&capture, other[0]).unwrap();
    relay
        .run(&format!("{ASK} --packet {capture}"))
        .fails_with(&["from 192.0.2.8:40001 to 192.0.2.1:4433", "asked for was 192.0.2.7:40001"]);
    let said = relay.run(&format!("explain 192.0.2.8:40001 192.0.2.1:4433 --packet {capture}"));
    assert!(said.stdout.contains("0 bytes of UDP payload, TTL 64"), "{said:?}");
    fs::write(&capture, "02:00").unwrap();
    relay.run(&format!("{ASK} --packet {capture}")).fails_with(&["frame.hex", "14 to 16384 bytes"]);
    relay.run("explain 192.0.2.7:40001 [::1]:4433").fails_with(&["two families"]);
    relay.run("explain 192.0.2.7:40001 192.0.2.1:4433 --packet /no/such/file").fails_with(&["/no/such/file"]);
    terminate(&running);
    assert_eq!(wait(&mut running, Duration::from_secs(5)), Some(0));
}

#[test]
fn without_a_relay_nothing_is_explained() {
    let node = Node::relay();
    node.run(ASK).fails_with(&["no daemon is running here", "net listen"]);
    assert_eq!(node.run("explain 192.0.2.7 192.0.2.1:4433").code, 2, "an address without a port");
    let agent = Node::with_identity();
    let relays = format!("[network]\nrelays = [\"127.0.0.1:{}\"]\n", free_port());
    agent.configure(&format!("{relays}[transport]\nenable_relay = true\n"));
    let mut running = agent.start("net listen");
    agent.until_it_answers("net peers");
    agent.run(ASK).fails_with(&["this daemon is an agent: it relays nothing"]);
    terminate(&running);
    assert_eq!(wait(&mut running, Duration::from_secs(5)), Some(0));
}
