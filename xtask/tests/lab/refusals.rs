//! Bad input: refused with the documented code where there is a connection, with silence where there is none; counted,
//! logged with the peer's name, and nobody else is disturbed.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use relay_common::BIND_LEN;
use relay_userspace::identity::NodeKey;
use relay_userspace::protocol::bind::{BindKind, Cookie};
use relay_userspace::protocol::flow_terms::{RelayAnnounce, RelayConnect};
use xtask::answers::{AgentSessions, Pings};
use xtask::lab::Process;
use xtask::tool::Tool;

use super::hand_agent::{HandAgent, HandBind, answer, unix_s};
use super::raw_agents::run_inside;
use super::world::{FORWARDED, NATIVE, RELAY, SERVED, World, wait_for, wait_until_said};

#[test]
fn handshakes_that_do_not_hold_are_refused_and_others_go_on() {
    let Some(world) = World::new("handshakes_that_do_not_hold_are_refused_and_others_go_on") else { return };
    let mut relay = world.deployment.start_relay(None, NATIVE).unwrap();
    let _target = world.deployment.start_target().unwrap();
    let mut bystander = pings(&world, 40);
    let other = NodeKey::generate().unwrap();

    let foreign_id = refused(&world, async |agent| {
        agent.say_hello(|hello| hello.node_id = other.node_id().to_string()).await;
    });
    assert_eq!(foreign_id.code, 1004, "a key that is not the node id's");

    let foreign_key = refused(&world, async |agent| {
        agent
            .say_hello(|hello| {
                hello.node_id = other.node_id().to_string();
                hello.public_key.0 = other.public().as_bytes().to_vec();
            })
            .await;
    });
    assert_eq!(foreign_key.code, 1004, "a key that is not the certificate's");

    let bad_signature = refused(&world, async |agent| {
        agent.say_hello(|_| {}).await;
        agent.verify(|verify| verify.signature.0 = vec![7; 64]).await;
    });
    assert_eq!(bad_signature.code, 1002, "a signature that does not verify");

    let slow = refused(&world, async |agent| agent.say_hello(|hello| hello.timestamp -= 400).await);
    assert_eq!(slow.code, 1002, "a clock that is 400 s slow");

    let fast = refused(&world, async |agent| agent.say_hello(|hello| hello.timestamp += 400).await);
    assert_eq!(fast.code, 1002, "a clock that is 400 s fast");

    let version = refused(&world, async |agent| agent.say_hello(|hello| hello.protocol_v = 9).await);
    assert_eq!(version.code, 1001, "another version");

    world.wait_refused([("clock_drift", 2), ("handshake_failed", 4)]);
    log_names(
        &mut relay,
        "handshake_failed",
        &[&foreign_id.node, &foreign_key.node, &bad_signature.node, &version.node],
    );
    log_names(&mut relay, "clock_drift", &[&slow.node, &fast.node]);
    all_answered(&mut bystander);
}

#[test]
fn messages_that_are_not_allowed_are_refused_and_others_go_on() {
    let Some(world) = World::new("messages_that_are_not_allowed_are_refused_and_others_go_on") else {
        return;
    };
    let mut relay = world.deployment.start_relay(None, NATIVE).unwrap();
    let _target = world.deployment.start_target().unwrap();
    let mut bystander = pings(&world, 40);
    let other = NodeKey::generate().unwrap().node_id().to_string();

    let announce = refused_after_handshake(&world, async |agent| {
        let node_id = other.clone();
        agent.send(RelayAnnounce { node_id, timestamp: unix_s(), flow: None, allow: None }).await;
    });
    assert_eq!(announce.code, 1004, "an announcement in another node's name");

    let connect = refused_after_handshake(&world, async |agent| {
        let target_id = world.deployment.target.id().to_owned();
        agent
            .send(RelayConnect { source_id: other.clone(), target_id, timestamp: None, flow: Some(1) })
            .await;
    });
    assert_eq!(connect.code, 1004, "a connect in another node's name");

    let unknown = refused_after_handshake(&world, async |agent| {
        agent.to_relay.write_all(&[0xac, 1, 1, 0x77, 0, 0, 0, 1, 0xc0]).await.unwrap();
    });
    assert_eq!(unknown.code, 2003, "an unknown message type");

    let truncated = refused_after_handshake(&world, async |agent| {
        agent.to_relay.write_all(&[0xac, 1, 1, 0x30, 0, 0, 0, 100, 0xc0]).await.unwrap();
        agent.to_relay.finish().unwrap();
    });
    assert_eq!(truncated.code, 2003, "a truncated frame");

    let oversized = refused_after_handshake(&world, async |agent| {
        agent.to_relay.write_all(&[0xac, 1, 1, 0x30, 0x7f, 0, 0, 0]).await.unwrap();
    });
    assert_eq!(oversized.code, 2002, "an oversized frame");

    let counts = [("foreign_identity", 2), ("unknown_message", 1), ("bad_frame", 1), ("frame_too_large", 1)];
    world.wait_refused(counts);
    log_names(&mut relay, "foreign_identity", &[&announce.node, &connect.node]);
    log_names(&mut relay, "unknown_message", &[&unknown.node]);
    log_names(&mut relay, "bad_frame", &[&truncated.node]);
    log_names(&mut relay, "frame_too_large", &[&oversized.node]);
    all_answered(&mut bystander);
}

#[test]
fn bind_datagrams_that_prove_nothing_get_no_answer_and_others_go_on() {
    let Some(world) = World::new("bind_datagrams_that_prove_nothing_get_no_answer_and_others_go_on") else {
        return;
    };
    let mut relay = world.deployment.start_relay(None, NATIVE).unwrap();
    let _target = world.deployment.start_target().unwrap();
    let mut bystander = pings(&world, 200);
    wait_for("the bystanders' session", Duration::from_secs(10), || {
        world.sessions().iter().any(|session| session.state == "paired").then_some(())
    });

    let (node, address) = run_inside(&world.lab.agents[0], async || {
        let mut target = HandAgent::verified(NodeKey::generate().unwrap()).await;
        target.announce().await;
        let mut connector = HandAgent::verified(NodeKey::generate().unwrap()).await;
        connector.connect(target.key.node_id()).await;
        let side = HandBind::new(connector.terms().await);
        let elsewhere = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        elsewhere.set_read_timeout(Some(Duration::from_millis(300))).unwrap();

        // Another's key: the MAC does not match.
        let mut forged = side.datagram(BindKind::Bind, 1, Cookie::NONE);
        forged[BIND_LEN - 1] ^= 1;
        assert_eq!(side.answer(&forged), None);
        world.wait_refused([("bind_mac", 1)]);

        // A proof that nobody asked for.
        assert_eq!(side.answer(&side.datagram(BindKind::Proof, 2, Cookie([9; 16]))), None);
        world.wait_refused([("bind_no_challenge", 1)]);

        // A proof without having received the challenge: who forged its address cannot know the cookie.
        let challenge = side.answer(&side.datagram(BindKind::Bind, 3, Cookie::NONE)).unwrap();
        assert_eq!(side.answer(&side.datagram(BindKind::Proof, 3, Cookie([9; 16]))), None);
        world.wait_refused([("bind_cookie", 1)]);

        // A challenge that was sent to one place proves nothing about another.
        let proof = side.datagram(BindKind::Proof, 3, side.read(&challenge).cookie);
        assert_eq!(answer(&elsewhere, &proof), None);
        world.wait_refused([("bind_no_challenge", 2)]);

        // The right proof is accepted; repeated from elsewhere, it is not.
        assert!(side.answer(&proof).is_some());
        assert_eq!(answer(&elsewhere, &proof), None);
        world.wait_refused([("bind_replayed", 1)]);

        // Begins as a bind datagram, but is none: dropped by the program.
        let before = dropped_as(&world, "bind_malformed");
        assert_eq!(side.answer(&proof[..60]), None);
        wait_for("the count of the malformed datagram", Duration::from_secs(2), || {
            (dropped_as(&world, "bind_malformed") == before + 1).then_some(())
        });

        let sessions = world.sessions();
        let own = sessions.iter().find(|session| session.session == side.session()).unwrap();
        assert_eq!(own.state, "half", "one side has proved its tuple");
        (connector.key.node_id().to_string(), own.sides[0].agent.unwrap().to_string())
    });

    assert!(bystander.ended().unwrap().is_none(), "the pings of others went on all the while");
    // A wrong MAC leaves only where it came from; all others are the node's own.
    log_names(&mut relay, "bind_mac", &[&address]);
    for reason in ["bind_no_challenge", "bind_cookie", "bind_replayed"] {
        log_names(&mut relay, reason, &[&node]);
    }
    all_answered(&mut bystander);
}

#[test]
fn a_relay_with_another_key_is_not_trusted() {
    let Some(world) = World::new("a_relay_with_another_key_is_not_trusted") else { return };
    let _relay = world.deployment.start_relay(None, NATIVE).unwrap();
    let expected = NodeKey::generate().unwrap().node_id().to_string();
    let relays = format!("[network]\nrelays = [\"{expected}@{RELAY}\"]\n[transport]\nenable_relay = true\n");
    world.deployment.connector.configure(&relays).unwrap();

    let error = world.deployment.connector.run(&format!("net connect {}", world.deployment.target.id()));

    let error = error.unwrap_err().to_string();
    let short = |id: &str| id[..22].to_owned();
    assert!(error.contains(&short(&expected)), "names the id it expected: {error}");
    assert!(error.contains(&short(world.deployment.relay.id())), "names the id it found: {error}");
}

#[test]
fn a_forward_that_the_peer_did_not_permit_is_refused() {
    let Some(world) = World::new("a_forward_that_the_peer_did_not_permit_is_refused") else { return };
    let _relay = world.deployment.start_relay(None, NATIVE).unwrap();
    let mut target = world.deployment.start_target().unwrap();
    let not_permitted = "127.0.0.1:22".parse().unwrap();
    let mut forward = world.deployment.start_forward(FORWARDED, not_permitted).unwrap();

    let got = world
        .deployment
        .connector
        .host()
        .run(&Tool::new("socat").args(["-u", "-T5", &format!("TCP:{FORWARDED}"), "STDOUT"]))
        .unwrap_or_default();

    assert_eq!(got, "", "nothing came through");
    wait_until_said(&mut forward, "[[agent.allow]]", Duration::from_secs(5));
    wait_until_said(&mut target, &not_permitted.to_string(), Duration::from_secs(5));
    assert!(
        target.log().contains(world.deployment.connector.id()),
        "the log names the peer: {}",
        target.log()
    );
    let line = format!("peer = \"{}\" to = \"{not_permitted}\"", world.deployment.connector.id());
    assert!(target.log().contains(&line), "and the line that would permit it: {}", target.log());
    let refused = world.deployment.target.json::<AgentSessions>("net sessions --json").unwrap().refused;
    assert_eq!(refused.get("forward_not_permitted"), Some(&1));
    assert_eq!(refused.values().sum::<u64>(), 1, "{refused:?}");
    let listed = world.deployment.target.run("net sessions").unwrap();
    assert!(listed.contains("forward_not_permitted"), "{listed}");
    // The peer goes on serving what it does permit.
    drop(forward);
    let mut allowed = world.deployment.start_forward(FORWARDED, SERVED).unwrap();
    assert!(allowed.ended().unwrap().is_none());
}

#[test]
fn an_agent_that_is_not_accepted_gets_the_answer_for_an_absent_one() {
    let Some(world) = World::new("an_agent_that_is_not_accepted_gets_the_answer_for_an_absent_one") else {
        return;
    };
    let _relay = world.deployment.start_relay(None, NATIVE).unwrap();
    let _target = world.deployment.start_target().unwrap();
    let target = world.deployment.target.id().parse().unwrap();
    let absent = NodeKey::generate().unwrap().node_id();

    let codes = run_inside(&world.lab.agents[0], async || {
        let mut stranger = HandAgent::verified(NodeKey::generate().unwrap()).await;
        stranger.connect(target).await;
        let denied = stranger.refusal().await;
        stranger.connect(absent).await;
        (denied, stranger.refusal().await)
    });

    assert_eq!(codes, (3001, 3001));
    world.wait_refused([("target_denies", 1), ("target_absent", 1)]);
}

/// What the relay made of a misbehaving agent.
struct Refused {
    code: u32,
    /// The agent.
    node: String,
}

fn refused(world: &World, misbehave: impl AsyncFnOnce(&mut HandAgent) + Send) -> Refused {
    run_inside(&world.lab.agents[0], async || {
        let mut agent = HandAgent::dial(NodeKey::generate().unwrap()).await;
        misbehave(&mut agent).await;
        Refused { code: agent.refusal().await, node: agent.key.node_id().to_string() }
    })
}

fn refused_after_handshake(world: &World, misbehave: impl AsyncFnOnce(&mut HandAgent) + Send) -> Refused {
    run_inside(&world.lab.agents[0], async || {
        let mut agent = HandAgent::verified(NodeKey::generate().unwrap()).await;
        misbehave(&mut agent).await;
        Refused { code: agent.refusal().await, node: agent.key.node_id().to_string() }
    })
}

/// Waits until a line of the log has the reason and one of the names or addresses of those that were refused for it: a
/// reason gets one line a second, with how many there were.
fn log_names(relay: &mut Process, reason: &str, refused: &[&str]) {
    let named = |line: &str| line.contains(reason) && refused.iter().any(|refused| line.contains(refused));
    relay
        .wait_until(reason, Duration::from_secs(5), |relay| relay.log().lines().any(named).then_some(()))
        .unwrap();
}

/// Pings through the relay, 50 ms apart, that must not be disturbed.
fn pings(world: &World, count: u32) -> Process {
    let target = world.deployment.target.id();
    world
        .deployment
        .connector
        .start(&format!("net ping {target} --count {count} --interval-ms 50 --json"))
        .unwrap()
}

fn all_answered(pings: &mut Process) {
    pings.wait_success(Duration::from_secs(20)).unwrap();
    let pings: Pings = serde_json::from_str(&pings.output()).unwrap();
    assert_eq!(pings.sent, pings.received, "the pings of others go on");
}

/// Packets that program or forwarder dropped for `reason`.
fn dropped_as(world: &World, reason: &str) -> u64 {
    let status = world.status();
    [status.kernel, status.userspace].iter().filter_map(|counters| counters.get(reason)).sum()
}
